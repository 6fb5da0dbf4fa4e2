//! `dump`: the artifacts of tasks, read and shown by the language that wrote them.

use ferroflow_core::id::AttemptId;
use ferroflow_core::metadata::{DataRef, TaskRow};
use ferroflow_core::task::StoreLocation;
use ferroflow_core::wire::{DumpRequest, DumpTask, Request};
use serde_json::Value;

use crate::arguments::DumpOptions;
use crate::context::Context;
use crate::report::Failure;

pub async fn dump(context: &Context, options: DumpOptions) -> Result<(), Failure> {
    let metadata = context.metadata(false)?;
    let tasks = super::tasks_at(context, &metadata, &options.path)?;
    let Some(first) = tasks.first() else { return Ok(()) };
    let store = context.store_of(&metadata, &first.run)?;
    for task in &tasks {
        let shown = dump_task(context, task);
        errln!("Dumping output of run_id={} step={} task_id={}", task.run, task.record.step, task.record.task);
        if options.file.is_none() {
            let answer = context.ask(request(&store, &options, vec![shown])).await?;
            print_lines(&answer)?;
        }
    }
    if let Some(file) = &options.file {
        let all = tasks.iter().map(|task| dump_task(context, task)).collect();
        let answer = context.ask(request(&store, &options, all)).await?;
        print_lines(&answer)?;
        errln!("Artifacts written to {file}");
    }
    Ok(())
}

fn request(store: &StoreLocation, options: &DumpOptions, tasks: Vec<DumpTask>) -> Request {
    Request::Dump {
        id: 0,
        store: store.clone(),
        request: DumpRequest {
            tasks,
            private: options.private,
            max_value_size: options.max_value_size,
            include: options.include.clone(),
            file: options.file.clone(),
        },
    }
}

/// Where the task's pack is: a clone's is its origin's.
fn dump_task(context: &Context, row: &TaskRow) -> DumpTask {
    let record = &row.record;
    let here = DataRef { run: row.run.clone(), task: record.task, attempt: record.attempt };
    let data = record.data.clone().unwrap_or(here);
    DumpTask {
        pathspec: format!("{}/{}/{}", row.run, record.step, record.task),
        flow: context.flow.name.clone(),
        run: data.run,
        step: record.step.clone(),
        attempt: AttemptId { task: data.task, attempt: data.attempt },
    }
}

/// The answer is `{"lines": [...], "errors": [...]}`.
fn print_lines(answer: &Value) -> Result<(), Failure> {
    let texts = |name: &str| answer[name].as_array().cloned().unwrap_or_default();
    for line in texts("lines") {
        outln!("{}", line.as_str().unwrap_or_default());
    }
    let errors: Vec<String> = texts("errors").iter().filter_map(|error| error.as_str().map(str::to_owned)).collect();
    if errors.is_empty() { Ok(()) } else { Err(Failure::new("Data store error", errors.join("\n"))) }
}
