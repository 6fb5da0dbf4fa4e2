//! Runs, tasks, tags and logs of one datastore root, as JSON texts for the client in R.

use ferroflow_core::id::{AttemptId, RunId, TaskId};
use ferroflow_core::port::{LogPlace, MetadataError, MetadataStore, Stream};
use ferroflow_store::remote::log::log_store;
use ferroflow_store::{Datastore, Reader, SqliteMetadata};
use serde::Serialize;
use serde_json::Value;

use crate::{Answer, plain};

/// Asks; `default` when there are no runs at all.
fn ask<T: Serialize>(
    root: &str,
    default: T,
    question: impl FnOnce(&SqliteMetadata) -> Result<T, MetadataError>,
) -> Answer {
    let reader = Reader::new(root);
    let answer = match reader.metadata().map_err(|error| error.to_string())? {
        Some(metadata) => question(metadata).map_err(|error| error.to_string())?,
        None => default,
    };
    let value: Value = serde_json::to_value(&answer).map_err(|error| error.to_string())?;
    Ok(plain::as_lists(&value))
}

fn or_empty<T>(rows: Result<Vec<T>, MetadataError>) -> Result<Vec<T>, MetadataError> {
    match rows {
        Err(MetadataError::NotFound(_)) => Ok(Vec::new()),
        other => other,
    }
}

pub fn flows(root: &str) -> Answer {
    ask(root, Vec::new(), SqliteMetadata::flows)
}

pub fn runs(root: &str, flow: &str) -> Answer {
    ask(root, Vec::new(), |metadata| metadata.runs(flow))
}

pub fn run(root: &str, flow: &str, run: &str) -> Answer {
    ask(root, None, |metadata| metadata.find_run(flow, &RunId::from(run)))
}

pub fn tasks(root: &str, flow: &str, run: &str) -> Answer {
    ask(root, Vec::new(), |metadata| or_empty(metadata.tasks_of(flow, &RunId::from(run), None)))
}

pub fn attempts(root: &str, flow: &str, run: &str, task: f64) -> Answer {
    ask(root, Vec::new(), |metadata| or_empty(metadata.attempts(flow, &RunId::from(run), TaskId(task as u64))))
}

pub fn task_metadata(root: &str, flow: &str, run: &str, task: f64) -> Answer {
    let reader = Reader::new(root);
    let entries =
        reader.task_metadata(flow, &RunId::from(run), TaskId(task as u64)).map_err(|error| error.to_string())?;
    Ok(plain::as_lists(&serde_json::to_value(entries).map_err(|error| error.to_string())?))
}

pub fn change_tags(root: &str, flow: &str, run: &str, add: &[String], remove: &[String]) -> Answer {
    ask(root, Vec::new(), |metadata| metadata.mutate_tags(flow, &RunId::from(run), add, remove))
}

/// What an attempt printed on one stream.
pub fn log(location: &str, pathspec: (&str, &str, &str), task: f64, attempt: i32, stderr: bool) -> Answer {
    let (flow, run, step) = pathspec;
    let id = AttemptId { task: TaskId(task as u64), attempt: attempt.cast_unsigned() };
    let place = LogPlace { flow: flow.to_owned(), run: RunId::from(run), step: step.to_owned(), id };
    let store = Datastore::at(location).map_err(|error| error.to_string())?;
    let lines = log_store(store).read(&place).map_err(|error| error.to_string())?;
    let wanted = if stderr { Stream::Stderr } else { Stream::Stdout };
    let mut text = String::new();
    for line in lines.iter().filter(|line| line.stream == wanted) {
        text.push_str(&String::from_utf8_lossy(&line.bytes));
        if !text.ends_with('\n') {
            text.push('\n');
        }
    }
    Ok(text.into())
}
