//! The commands of a flow, a file each.

pub mod active_tasks;
pub mod dump;
pub mod logs;
pub mod package;
pub mod run;
pub mod tag;

use std::collections::BTreeSet;

use ferroflow_core::id::{RunId, StepName};
use ferroflow_core::metadata::{RunRow, RunState, TaskRow};
use ferroflow_core::port::MetadataStore;

use crate::adoption::LOCAL;
use crate::again;
use crate::context::Context;
use crate::report::Failure;

/// Tasks that `run/step` or `run/step/task` names, in order of task id.
pub fn tasks_at(context: &Context, metadata: &dyn MetadataStore, path: &str) -> Result<Vec<TaskRow>, Failure> {
    let parts: Vec<&str> = path.split('/').collect();
    let (run, step, task) = match parts.as_slice() {
        [run, step] => (*run, *step, None),
        [run, step, task] => (*run, *step, Some(*task)),
        _ => {
            return Err(Failure::invalid_command(format!(
                "`{path}` is not a task: give `run/step` or `run/step/task`, e.g. `{}`",
                example(context)
            )));
        }
    };
    let flow = &context.flow.name;
    let run = RunId::from(run);
    tell_if_lost(context, metadata, &run)?;
    let step_name = StepName::from(step);
    let mut tasks: Vec<TaskRow> =
        metadata.tasks(flow, &run)?.into_iter().filter(|row| row.record.step == step_name).collect();
    if tasks.is_empty() {
        return Err(Failure::new(
            "Object not found",
            format!("No Tasks found for {run}/{step}: the run has none of this step"),
        ));
    }
    if let Some(task) = task {
        tasks.retain(|row| row.record.task.to_string() == task);
        if tasks.is_empty() {
            return Err(Failure::new("Data store error", format!("there is no task {flow}/{run}/{step}/{task}")));
        }
    }
    Ok(tasks)
}

fn example(context: &Context) -> String {
    let run = context.latest_run().unwrap_or_else(|| "1".to_owned());
    let step = context.flow.steps.last().map_or("end", |step| step.name.as_str());
    format!("{run}/{step}")
}

/// A run whose engine died is never passed off as running.
fn tell_if_lost(context: &Context, metadata: &dyn MetadataStore, run: &RunId) -> Result<(), Failure> {
    let row = metadata.run(&context.flow.name, run)?;
    if row.state == RunState::Lost {
        let cause = row.cause.as_ref().map_or_else(String::new, |cause| format!(": {}", cause.text));
        errln!(
            "Run {}/{run} is lost{cause} ({})",
            context.flow.name,
            context.hello.typed(&again::resume_recorded(&row))
        );
        for layer in left_remote(metadata, &row)? {
            errln!(
                "Its tasks on {layer} may still run: {} shows them, and resume goes on with them.",
                context.hello.typed(&[layer.clone(), "list".to_owned(), "--run-id".to_owned(), run.to_string()])
            );
        }
    }
    Ok(())
}

/// Other layers than this machine on which tasks of a lost run had not ended.
fn left_remote(metadata: &dyn MetadataStore, run: &RunRow) -> Result<BTreeSet<String>, Failure> {
    let tasks = metadata.tasks(&run.flow, &run.run)?;
    let left = tasks.into_iter().map(|row| row.record).filter(|record| record.finished_at.is_none());
    Ok(left.map(|record| record.layer).filter(|layer| layer != LOCAL).collect())
}
