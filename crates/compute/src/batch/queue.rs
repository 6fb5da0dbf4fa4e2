//! Job queues and their compute environments, as far as it matters whether and when a job can run
//! there. Read from the service as JSON; what it means is said elsewhere.

use std::time::Duration;

use serde_json::{Value, json};

use super::api::{BatchFault, Call, Service};
use super::definition::Platform;

/// A job queue with its compute environments, in their order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QueueView {
    pub name: String,
    arn: String,
    pub enabled: bool,
    /// `VALID`, `INVALID`, `CREATING` …
    pub status: String,
    pub reason: String,
    /// It has a scheduling policy.
    pub fair_share: bool,
    pub environments: Vec<EnvironmentView>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct EnvironmentView {
    pub name: String,
    arn: String,
    pub enabled: bool,
    pub status: String,
    pub reason: String,
    /// `EC2`, `SPOT`, `FARGATE`, `FARGATE_SPOT`; empty where the user runs the instances.
    pub kind: String,
    pub most_cpus: Option<f64>,
    /// What it has or is about to have.
    pub desired_cpus: Option<f64>,
    pub instance_types: Vec<String>,
}

impl QueueView {
    pub fn of(queue: &Value, environments: &[EnvironmentView]) -> Self {
        let mut order: Vec<&Value> = queue["computeEnvironmentOrder"].as_array().into_iter().flatten().collect();
        order.sort_by_key(|entry| entry["order"].as_i64());
        let named = |entry: &Value| {
            let wanted = text(&entry["computeEnvironment"]);
            environments.iter().find(|e| e.arn == wanted || e.name == wanted).cloned()
        };
        Self {
            name: text(&queue["jobQueueName"]),
            arn: text(&queue["jobQueueArn"]),
            enabled: queue["state"] != "DISABLED",
            status: text(&queue["status"]),
            reason: text(&queue["statusReason"]),
            fair_share: queue["schedulingPolicyArn"].as_str().is_some_and(|arn| !arn.is_empty()),
            environments: order.into_iter().filter_map(named).collect(),
        }
    }

    /// By name or ARN.
    pub fn is_named(&self, name: &str) -> bool {
        self.name == name || self.arn == name
    }

    /// It takes jobs now, or will soon.
    pub fn is_usable(&self) -> bool {
        self.enabled && self.status != "INVALID" && self.status != "DELETING" && self.status != "DELETED"
    }

    /// What its containers run on: its first compute environment says.
    pub fn platform(&self) -> Platform {
        match self.environments.first() {
            Some(environment) if environment.is_fargate() => Platform::Fargate,
            _ => Platform::Ec2,
        }
    }
}

impl EnvironmentView {
    pub fn of(environment: &Value) -> Self {
        let resources = &environment["computeResources"];
        let types = resources["instanceTypes"].as_array().into_iter().flatten();
        Self {
            name: text(&environment["computeEnvironmentName"]),
            arn: text(&environment["computeEnvironmentArn"]),
            enabled: environment["state"] != "DISABLED",
            status: text(&environment["status"]),
            reason: text(&environment["statusReason"]),
            kind: text(&resources["type"]),
            most_cpus: resources["maxvCpus"].as_f64(),
            desired_cpus: resources["desiredvCpus"].as_f64(),
            instance_types: types.map(text).collect(),
        }
    }

    pub fn is_fargate(&self) -> bool {
        self.kind.starts_with("FARGATE")
    }

    /// Multi-node parallel jobs can run there.
    pub fn takes_gangs(&self) -> bool {
        self.kind == "EC2"
    }

    pub fn kind_in_words(&self) -> &str {
        if self.kind.is_empty() { "not managed by AWS Batch" } else { &self.kind }
    }

    pub fn is_usable(&self) -> bool {
        self.enabled && !matches!(self.status.as_str(), "INVALID" | "DELETING" | "DELETED")
    }
}

/// Queues by name or ARN (none: all), each with its compute environments.
pub async fn read_queues(
    service: &Service,
    names: &[String],
    patience: Duration,
) -> Result<Vec<QueueView>, BatchFault> {
    let body = if names.is_empty() { json!({}) } else { json!({ "jobQueues": names }) };
    let queues = service.all(Call::DescribeJobQueues, body, "jobQueues", patience).await?;
    let mut wanted: Vec<&str> = queues
        .iter()
        .flat_map(|queue| queue["computeEnvironmentOrder"].as_array().into_iter().flatten())
        .filter_map(|entry| entry["computeEnvironment"].as_str())
        .collect();
    wanted.sort_unstable();
    wanted.dedup();
    let mut environments = Vec::new();
    if !wanted.is_empty() {
        let body = json!({ "computeEnvironments": wanted });
        environments = service.all(Call::DescribeComputeEnvironments, body, "computeEnvironments", patience).await?;
    }
    let environments: Vec<EnvironmentView> = environments.iter().map(EnvironmentView::of).collect();
    Ok(queues.iter().map(|queue| QueueView::of(queue, &environments)).collect())
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().trim().to_owned()
}
