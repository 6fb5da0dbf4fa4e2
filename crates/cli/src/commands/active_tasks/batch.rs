//! `batch list|kill`.

use ferroflow_compute::batch::listing::{self, ActiveTask};
use ferroflow_compute::batch::{BatchFault, Service};
use ferroflow_compute::remote::TaskFilter;
use ferroflow_core::id::RunId;

use super::Layer;
use crate::report::Failure;

const HEADLINE: &str = "AWS Batch error";

pub struct Batch {
    service: Service,
}

impl Batch {
    pub async fn connect() -> Result<Self, Failure> {
        let service = Service::connect().await.map_err(|fault| Failure::new(HEADLINE, fault.to_string()))?;
        Ok(Self { service })
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

impl Layer for Batch {
    type Task = ActiveTask;

    async fn list(&self, filter: &TaskFilter) -> Result<Vec<ActiveTask>, Failure> {
        let permissions = "batch:DescribeJobQueues, batch:ListJobs and batch:DescribeJobs";
        listing::list(&self.service, &[], filter).await.map_err(|fault| refused("see jobs", permissions, &fault))
    }

    async fn kill(&self, tasks: &[ActiveTask]) -> Result<(), Failure> {
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
