//! `logs`: what tasks printed.

use std::io::{self, Write};

use ferroflow_core::id::AttemptId;
use ferroflow_core::metadata::{DataRef, TaskRow};
use ferroflow_core::port::{LogLine, LogPlace, LogStore, Stream};
use ferroflow_store::SqliteMetadata;
use jiff::tz::TimeZone;

use crate::arguments::{LogsOptions, ScrubOptions};
use crate::context::Context;
use crate::report::Failure;
use crate::terminal::local_time;

pub fn logs(context: &Context, options: &LogsOptions) -> Result<(), Failure> {
    let metadata = context.metadata(false)?;
    let mut tasks = super::tasks_at(context, &metadata, &options.path)?;
    if let Some(attempt) = options.attempt {
        keep_attempted(&mut tasks, attempt, &options.path)?;
    }
    let Some(first) = tasks.first() else { return Ok(()) };
    let logs = context.logs_of(&metadata, &first.run)?;
    for task in &tasks {
        errln!("Dumping logs of run_id={} step={} task_id={}", task.run, task.record.step, task.record.task);
        let lines = logs.read(&place(context, task, options.attempt))?;
        for (stream, name, wanted) in
            [(Stream::Stdout, "stdout", options.stdout), (Stream::Stderr, "stderr", options.stderr)]
        {
            if wanted {
                errln!("{name}");
                // A reader that went away (`| head`) wants no more; that is no mistake.
                if show(&lines, stream, options.timestamps).is_err() {
                    return Ok(());
                }
            }
        }
        tell_cause(task);
    }
    Ok(())
}

/// Only the tasks that came to that attempt.
fn keep_attempted(tasks: &mut Vec<TaskRow>, attempt: u32, path: &str) -> Result<(), Failure> {
    let last = tasks.iter().map(|task| task.record.attempt).max().unwrap_or(0);
    tasks.retain(|task| task.record.attempt >= attempt);
    if tasks.is_empty() {
        let message = format!("there is no attempt {attempt} of {path}: its last attempt is {last}");
        return Err(Failure::new("Data store error", message));
    }
    Ok(())
}

fn show(lines: &[LogLine], stream: Stream, timestamps: bool) -> io::Result<()> {
    let zone = TimeZone::system();
    let mut out = io::BufWriter::new(io::stdout().lock());
    for line in lines.iter().filter(|line| line.stream == stream) {
        if timestamps {
            write!(out, "{} ", local_time(line.at, &zone))?;
        }
        out.write_all(&line.bytes)?;
        out.write_all(b"\n")?;
    }
    out.flush()
}

/// Why a task ended badly stands below what it printed.
fn tell_cause(task: &TaskRow) {
    if let Some(cause) = &task.record.cause {
        errln!("{}: {}", task.record.state.as_str(), cause.text);
    }
}

/// A clone's logs are its origin's (difference 5).
fn place(context: &Context, row: &TaskRow, attempt: Option<u32>) -> LogPlace {
    let record = &row.record;
    let here = DataRef { run: row.run.clone(), task: record.task, attempt: record.attempt };
    let data = record.data.clone().unwrap_or(here);
    LogPlace {
        flow: context.flow.name.clone(),
        run: data.run,
        step: record.step.to_string(),
        id: AttemptId { task: data.task, attempt: attempt.unwrap_or(data.attempt) },
    }
}

/// `logs scrub`: what tasks printed is overwritten for good.
pub fn scrub(context: &Context, options: &ScrubOptions) -> Result<(), Failure> {
    let metadata = context.metadata(false)?;
    let tasks = super::tasks_at(context, &metadata, &options.logs.path)?;
    let Some(first) = tasks.first() else { return Ok(()) };
    let logs = context.logs_of(&metadata, &first.run)?;
    for task in &tasks {
        let name = format!("run_id={} step={} task_id={}", task.run, task.record.step, task.record.task);
        if !task.record.state.is_final() && !options.include_not_done {
            errln!("Not scrubbed, not finished yet: {name} (scrub it all the same with --include-not-done)");
            continue;
        }
        for attempt in attempts(&metadata, context, task, options)? {
            scrub_attempt(logs.as_ref(), &place(context, task, Some(attempt)), &options.logs)?;
        }
        errln!("Scrubbed logs of {name}");
    }
    Ok(())
}

fn attempts(
    metadata: &SqliteMetadata,
    context: &Context,
    task: &TaskRow,
    options: &ScrubOptions,
) -> Result<Vec<u32>, Failure> {
    let record = &task.record;
    if options.all_attempts {
        let rows = metadata.attempts(&context.flow.name, &task.run, record.task)?;
        return Ok(rows.iter().map(|row| row.record.attempt).collect());
    }
    let latest = record.data.as_ref().map_or(record.attempt, |data| data.attempt);
    Ok(vec![options.logs.attempt.unwrap_or(latest)])
}

fn scrub_attempt(logs: &dyn LogStore, place: &LogPlace, wanted: &LogsOptions) -> Result<(), Failure> {
    let lines = logs.read(place)?;
    let mut kept = Vec::new();
    for (stream, name, scrubbed) in
        [(Stream::Stdout, "stdout", wanted.stdout), (Stream::Stderr, "stderr", wanted.stderr)]
    {
        let mut of_stream = lines.iter().filter(|line| line.stream == stream).cloned();
        if scrubbed {
            kept.extend(
                of_stream
                    .next()
                    .map(|first| LogLine { bytes: format!("[REDACTED task {name}]").into_bytes(), ..first }),
            );
        } else {
            kept.extend(of_stream);
        }
    }
    if kept.is_empty() { Ok(()) } else { Ok(logs.replace(place, &kept)?) }
}
