//! `batch list|kill`.

use std::sync::Arc;
use std::time::Duration;

use ferroflow_compute::batch::listing::{self, ActiveTask};
use ferroflow_compute::batch::{BatchFault, KILLED_BY_HAND, Service};
use ferroflow_compute::remote::{TaskFilter, metadata_label};
use ferroflow_core::id::RunId;
use ferroflow_core::log_segment::RunKeys;
use ferroflow_core::port::{MetadataStore, ObjectAccess};
use ferroflow_store::remote::access::RemoteObjects;
use tokio::task::JoinSet;

use super::Layer;
use crate::context::Context;
use crate::datastore;
use crate::report::Failure;

const HEADLINE: &str = "AWS Batch error";

/// Marks written at once, and how long all of them may take.
const AT_ONCE: usize = 16;
const PATIENCE: Duration = Duration::from_secs(5);

pub struct Batch<'a> {
    context: &'a Context,
    service: Service,
}

impl<'a> Batch<'a> {
    pub async fn connect(context: &'a Context) -> Result<Self, Failure> {
        let service = Service::connect().await.map_err(|fault| Failure::new(HEADLINE, fault.to_string()))?;
        Ok(Self { context, service })
    }

    /// Leaves word in the datastore that tasks are killed by hand: the service keeps no reason for
    /// every job, and without one a running engine takes the end for a failure, which `@retry`
    /// starts again. Only for runs known here, and only as well as it goes.
    async fn leave_word(&self, tasks: &[ActiveTask]) {
        let marks = self.marks(tasks);
        let write = async {
            let mut writes = JoinSet::new();
            for (key, objects) in marks {
                if writes.len() >= AT_ONCE {
                    let _as_well_as_it_goes = writes.join_next().await;
                }
                writes.spawn(async move { objects.put(&key, KILLED_BY_HAND.into(), false).await });
            }
            let _as_well_as_it_goes = writes.join_all().await;
        };
        let _in_time = tokio::time::timeout(PATIENCE, write).await;
    }

    /// Keys of the marks, and the stores that they go to.
    fn marks(&self, tasks: &[ActiveTask]) -> Vec<(String, Arc<RemoteObjects>)> {
        let mut marks = Vec::new();
        let Ok(scope) = datastore::scope(&self.context.root) else { return marks };
        let here = metadata_label(&scope);
        let runs = self.context.metadata(false).and_then(|found| Ok(found.runs(&self.context.flow.name)?));
        for run in &runs.unwrap_or_default() {
            let of_run = |task: &&ActiveTask| task.run == run.run.as_str() && task.metadata == here;
            let mut tasks = tasks.iter().filter(of_run).peekable();
            if tasks.peek().is_none() {
                continue;
            }
            let location = datastore::of_run(&self.context.config, run, &self.context.root);
            let Ok(Some(objects)) = RemoteObjects::of(&location) else { continue };
            let (keys, objects) = (RunKeys::new(&self.context.flow.name, &run.run, &location), Arc::new(objects));
            let keys = tasks.filter_map(|task| Some(keys.killed(&task.step, task.attempt?)));
            marks.extend(keys.map(|key| (key, Arc::clone(&objects))));
        }
        marks
    }
}

fn refused(doing: &str, permissions: &str, fault: &BatchFault) -> Failure {
    match fault {
        BatchFault::Denied(said) => Failure::new(
            HEADLINE,
            format!("AWS does not let you {doing} on AWS Batch: {said}. Ask for a role with {permissions}"),
        ),
        fault => Failure::new(HEADLINE, format!("AWS Batch did not answer as it should: {fault}")),
    }
}

fn line(task: &ActiveTask) -> String {
    format!("{} [{}] ({})", task.job_name, task.job_id, task.status)
}

impl Layer for Batch<'_> {
    type Task = ActiveTask;

    async fn list(&self, filter: &TaskFilter) -> Result<Vec<ActiveTask>, Failure> {
        let permissions = "batch:DescribeJobQueues, batch:ListJobs and batch:DescribeJobs";
        listing::list(&self.service, &[], filter).await.map_err(|fault| refused("see jobs", permissions, &fault))
    }

    async fn kill(&self, tasks: &[ActiveTask]) -> Result<(), Failure> {
        self.leave_word(tasks).await;
        let killed = listing::kill(&self.service, tasks).await;
        killed.map_err(|fault| refused("end jobs, so tasks still run", "batch:TerminateJob", &fault))
    }

    async fn wait_until_gone(&self, tasks: &[ActiveTask], _: &TaskFilter) -> Result<Vec<ActiveTask>, Failure> {
        let left = listing::wait_until_gone(&self.service, tasks).await;
        left.map_err(|fault| refused("see jobs", "batch:DescribeJobs", &fault))
    }

    fn line(&self, task: &ActiveTask) -> String {
        line(task)
    }

    fn killing(&self, task: &ActiveTask) -> String {
        format!("Killing AWS Batch job: {}", line(task))
    }

    fn nothing_listed(&self) -> String {
        "No running AWS Batch jobs found.".to_owned()
    }

    fn nothing_killed(&self, _: Option<&RunId>) -> String {
        self.nothing_listed()
    }

    fn left(&self, tasks: &[ActiveTask]) -> Failure {
        let names: Vec<String> = tasks.iter().map(line).collect();
        Failure::new(
            HEADLINE,
            format!("AWS Batch was told to end these jobs, but has not confirmed it: {}", names.join(", ")),
        )
    }
}
