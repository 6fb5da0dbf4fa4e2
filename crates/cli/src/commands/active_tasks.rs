//! `list` and `kill` of a flow's unfinished tasks on a layer: which are meant, and what is said of
//! them. How a layer finds and ends tasks is in `compute`; its words are in this folder.

mod batch;
pub mod kubernetes;

use ferroflow_compute::remote::TaskFilter;
use ferroflow_core::id::RunId;
use ferroflow_core::metadata::{RunRow, RunState};
use ferroflow_core::port::MetadataStore;

use crate::arguments::{TasksCommand, TasksVerb};
use crate::context::Context;
use crate::datastore;
use crate::report::Failure;

/// A layer as these commands see it.
trait Layer {
    type Task: Clone;

    /// Unfinished tasks, in the order in which they are shown.
    async fn list(&self, filter: &TaskFilter) -> Result<Vec<Self::Task>, Failure>;
    /// Asks for the end of tasks.
    async fn kill(&self, tasks: &[Self::Task]) -> Result<(), Failure>;
    /// Waits for the end of killed tasks; gives those that did not end in time.
    async fn wait_until_gone(&self, tasks: &[Self::Task], filter: &TaskFilter) -> Result<Vec<Self::Task>, Failure>;
    /// The line of `list`.
    fn line(&self, task: &Self::Task) -> String;
    /// The line of `kill`.
    fn killing(&self, task: &Self::Task) -> String;
    fn nothing_listed(&self) -> String;
    fn nothing_killed(&self, run: Option<&RunId>) -> String;
    /// What is left, and what to do about it.
    fn left(&self, tasks: &[Self::Task]) -> Failure;
}

pub async fn active_tasks(context: &Context, command: TasksCommand) -> Result<(), Failure> {
    let (layer, verb) = (command.layer, command.verb);
    let filter = filter(context, command)?;
    match layer {
        "batch" => carry_out(context, &batch::Batch::connect(context).await?, verb, &filter).await,
        _ => carry_out(context, &kubernetes::Kubernetes::connect(context).await?, verb, &filter).await,
    }
}

async fn carry_out(context: &Context, layer: &impl Layer, verb: TasksVerb, filter: &TaskFilter) -> Result<(), Failure> {
    match verb {
        TasksVerb::List => list(context, layer, filter).await,
        TasksVerb::Kill => kill(context, layer, filter).await,
    }
}

async fn list(context: &Context, layer: &impl Layer, filter: &TaskFilter) -> Result<(), Failure> {
    let tasks = layer.list(filter).await?;
    if tasks.is_empty() {
        outln!("{}", layer.nothing_listed());
        say_elsewhere(context, filter);
    }
    for task in &tasks {
        outln!("{}", layer.line(task));
    }
    Ok(())
}

/// Kills what is there, and again what a living engine started in the meantime.
const ROUNDS: usize = 3;

async fn kill(context: &Context, layer: &impl Layer, filter: &TaskFilter) -> Result<(), Failure> {
    let mut killed = 0;
    let mut left = layer.list(filter).await?;
    if left.is_empty() {
        outln!("{}", layer.nothing_killed(filter.run.as_ref()));
        say_elsewhere(context, filter);
        return Ok(());
    }
    for _ in 0..ROUNDS {
        for task in &left {
            outln!("{}", layer.killing(task));
        }
        layer.kill(&left).await?;
        let stay = layer.wait_until_gone(&left, filter).await?;
        killed += left.len() - stay.len();
        if !stay.is_empty() {
            return Err(layer.left(&stay));
        }
        left = layer.list(filter).await?;
        if left.is_empty() {
            context.say(&format!("{} gone.", counted(killed)));
            return Ok(());
        }
    }
    Err(layer.left(&left))
}

/// Of a run without tasks: which other run's tasks may be meant.
fn say_elsewhere(context: &Context, filter: &TaskFilter) {
    let Some(run) = filter.run.as_ref().filter(|_| filter.user.is_none()) else { return };
    let Ok(runs) = context.metadata(false).and_then(|metadata| Ok(metadata.runs(&context.flow.name)?)) else { return };
    let resumed_it = |row: &&RunRow| row.origin_run.as_ref() == Some(run) && row.state == RunState::Running;
    let origin = runs.iter().find(|row| row.run == *run).and_then(|row| row.origin_run.as_ref());
    if let Some(RunRow { run: later, .. }) = runs.iter().find(resumed_it) {
        context.say(&format!(
            "Run {later}, which resumed run {run}, is running: its tasks are those of --run-id {later}."
        ));
    } else if let Some(origin) = origin {
        context.say(&format!(
            "Run {run} resumed run {origin}; tasks that it adopted are still those of --run-id {origin}."
        ));
    }
}

fn counted(tasks: usize) -> String {
    if tasks == 1 { "1 task is".to_owned() } else { format!("{tasks} tasks are") }
}

/// Which tasks are meant (behaviour.md K-50, K-51).
fn filter(context: &Context, command: TasksCommand) -> Result<TaskFilter, Failure> {
    if command.my_runs && command.user.is_some() {
        return Err(Failure::invalid_command("--my-runs and --user are mutually exclusive: give one of them."));
    }
    if command.my_runs && command.run.is_some() {
        return Err(Failure::invalid_command("--my-runs and --run-id are mutually exclusive: give one of them."));
    }
    refuse_argo(&command)?;
    let filter = |user, run, metadata| TaskFilter { flow: context.flow.name.clone(), user, run, metadata };
    let run = command.run.as_deref().map(run_id).transpose()?;
    match (command.my_runs, command.user, run) {
        (true, ..) => Ok(filter(Some(context.config.user.clone()), None, None)),
        (false, Some(user), run) => Ok(filter(Some(user), run, None)),
        (false, None, Some(run)) => {
            let metadata = numbered_here(context, &run)?;
            Ok(filter(None, Some(run), Some(metadata)))
        }
        (false, None, None) => {
            let run = context.latest_run().ok_or_else(|| {
                Failure::invalid_command(format!(
                    "there is no latest run of {} in this folder. Specify --run-id, --user or --my-runs.",
                    context.flow.name
                ))
            })?;
            Ok(filter(None, Some(RunId::from(run)), Some(datastore::scope(&context.root)?)))
        }
    }
}

fn run_id(text: &str) -> Result<RunId, Failure> {
    let text = text.trim();
    if text.is_empty() || text.contains('/') {
        return Err(Failure::invalid_command(format!("`{text}` is not a run id: give the id alone, without a slash")));
    }
    Ok(RunId::from(text))
}

/// Local run ids are small numbers: a run 3 of this flow is in every user's folder.
fn numbered_here(context: &Context, run: &RunId) -> Result<String, Failure> {
    if context.root_is_new {
        return Err(Failure::invalid_command(format!(
            "which run {run} is meant is not known: nothing was run in or above {}. Call the command where the run was \
             started, or say with --user whose run it is.",
            context.cwd.display()
        )));
    }
    datastore::scope(&context.root)
}

fn refuse_argo(command: &TasksCommand) -> Result<(), Failure> {
    let of_argo = command.run.as_deref().is_some_and(|run| run.starts_with("argo-"))
        || command.user.as_deref() == Some("argo-workflows");
    if command.layer == "kubernetes" && command.verb == TasksVerb::Kill && of_argo {
        return Err(Failure::invalid_command(
            "tasks of Argo Workflows cannot be killed with `kubernetes kill`: Argo would start them again. Terminate \
             the workflow instead.",
        ));
    }
    Ok(())
}
