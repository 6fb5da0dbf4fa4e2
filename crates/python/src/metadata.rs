//! Runs, tasks, tags and logs for the client, as plain dictionaries and lists.

use ferroflow_core::id::{AttemptId, RunId, TaskId};
use ferroflow_core::port::{LogLine, LogPlace, MetadataError, MetadataStore, Stream};
use ferroflow_store::remote::log::log_store;
use ferroflow_store::{Datastore, Reader, SqliteMetadata};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyTuple};
use serde::Serialize;

use crate::error::{metadata_error, store_error};
use crate::json;

/// Reader of one datastore root. A root without runs reads as empty.
#[pyclass(frozen, module = "metaflow._native")]
pub struct Metadata {
    reader: Reader,
}

impl Metadata {
    /// Asks without the interpreter lock; `default` when there are no runs at all.
    fn ask<'py, T: Serialize + Send>(
        &self,
        py: Python<'py>,
        default: T,
        question: impl FnOnce(&SqliteMetadata) -> Result<T, MetadataError> + Send,
    ) -> PyResult<Bound<'py, PyAny>> {
        let text = py.detach(|| {
            let answer = match self.reader.metadata()? {
                Some(metadata) => question(metadata)?,
                None => default,
            };
            Ok::<_, MetadataError>(serde_json::to_vec(&answer).expect("rows are plain data"))
        });
        json::decode(py, &text.map_err(|error| metadata_error(&error))?)
    }
}

/// A run that does not exist has no tasks, for a reader.
fn or_empty<T>(rows: Result<Vec<T>, MetadataError>) -> Result<Vec<T>, MetadataError> {
    match rows {
        Err(MetadataError::NotFound(_)) => Ok(Vec::new()),
        other => other,
    }
}

#[pymethods]
impl Metadata {
    #[new]
    fn new(root: &str) -> Self {
        Self { reader: Reader::new(root) }
    }

    /// Names of flows.
    fn flows<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.ask(py, Vec::new(), SqliteMetadata::flows)
    }

    /// Runs of a flow, newest first.
    fn runs<'py>(&self, py: Python<'py>, flow: &str) -> PyResult<Bound<'py, PyAny>> {
        self.ask(py, Vec::new(), |metadata| metadata.runs(flow))
    }

    /// A run, or `None`.
    fn run<'py>(&self, py: Python<'py>, flow: &str, run: &str) -> PyResult<Bound<'py, PyAny>> {
        self.ask(py, None, |metadata| metadata.find_run(flow, &RunId::from(run)))
    }

    /// Steps of a run that have tasks, newest first: `step` and `created_at`.
    fn steps<'py>(&self, py: Python<'py>, flow: &str, run: &str) -> PyResult<Bound<'py, PyAny>> {
        self.ask(py, Vec::new(), |metadata| or_empty(metadata.steps(flow, &RunId::from(run))))
    }

    /// Latest attempts of a run's tasks, or of one step's, in order of task id.
    #[pyo3(signature = (flow, run, step=None))]
    fn tasks<'py>(&self, py: Python<'py>, flow: &str, run: &str, step: Option<&str>) -> PyResult<Bound<'py, PyAny>> {
        self.ask(py, Vec::new(), |metadata| or_empty(metadata.tasks_of(flow, &RunId::from(run), step)))
    }

    /// The latest attempt of a task, or `None`.
    fn task<'py>(&self, py: Python<'py>, flow: &str, run: &str, task: u64) -> PyResult<Bound<'py, PyAny>> {
        self.ask(py, None, |metadata| Ok(or_empty(metadata.attempts(flow, &RunId::from(run), TaskId(task)))?.pop()))
    }

    /// All attempts of a task, in order.
    fn attempts<'py>(&self, py: Python<'py>, flow: &str, run: &str, task: u64) -> PyResult<Bound<'py, PyAny>> {
        self.ask(py, Vec::new(), |metadata| or_empty(metadata.attempts(flow, &RunId::from(run), TaskId(task))))
    }

    /// Metadata entries of a task, of all its attempts.
    fn metadata<'py>(&self, py: Python<'py>, flow: &str, run: &str, task: u64) -> PyResult<Bound<'py, PyAny>> {
        let reader = &self.reader;
        self.ask(py, Vec::new(), |_| reader.task_metadata(flow, &RunId::from(run), TaskId(task)))
    }

    /// Removes, then adds tags; returns the user tags after it.
    fn mutate_tags<'py>(
        &self,
        py: Python<'py>,
        flow: &str,
        run: &str,
        add: Vec<String>,
        remove: Vec<String>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let missing = MetadataError::NotFound(format!("there is no run `{flow}/{run}`"));
        let known = py.detach(|| self.reader.metadata().map(|metadata| metadata.is_some()));
        if !known.map_err(|error| metadata_error(&error))? {
            return Err(metadata_error(&missing));
        }
        self.ask(py, Vec::new(), |metadata| metadata.mutate_tags(flow, &RunId::from(run), &add, &remove))
    }

    /// Lines of an attempt in the order they were written: `(stream, epoch milliseconds, bytes)`
    /// with `stdout` or `stderr` for the stream.
    fn logs<'py>(
        &self,
        py: Python<'py>,
        flow: &str,
        run: &str,
        step: &str,
        task: u64,
        attempt: u32,
    ) -> PyResult<Bound<'py, PyList>> {
        let id = AttemptId { task: TaskId(task), attempt };
        let place = LogPlace { flow: flow.to_owned(), run: RunId::from(run), step: step.to_owned(), id };
        let lines = py.detach(|| self.reader.logs(&place)).map_err(|error| metadata_error(&error))?;
        lines_of(py, lines)
    }
}

fn lines_of(py: Python<'_>, lines: Vec<LogLine>) -> PyResult<Bound<'_, PyList>> {
    let list = PyList::empty(py);
    for line in lines {
        let stream = match line.stream {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        };
        let entry: Bound<'_, PyTuple> = (stream, line.at, PyBytes::new(py, &line.bytes)).into_pyobject(py)?;
        list.append(entry)?;
    }
    Ok(list)
}

/// Like [`Metadata::logs`], of a datastore that may be a remote one.
#[pyfunction]
pub fn read_log<'py>(
    py: Python<'py>,
    root: &str,
    flow: &str,
    run: &str,
    step: &str,
    task: u64,
    attempt: u32,
) -> PyResult<Bound<'py, PyList>> {
    let id = AttemptId { task: TaskId(task), attempt };
    let place = LogPlace { flow: flow.to_owned(), run: RunId::from(run), step: step.to_owned(), id };
    let store = Datastore::at(root).map_err(|error| store_error(&error))?;
    let lines = py.detach(|| log_store(store).read(&place)).map_err(|error| metadata_error(&error))?;
    lines_of(py, lines)
}
