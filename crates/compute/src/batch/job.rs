//! The submission of one attempt, as JSON: what is its own beside its step's job definition. A pure
//! function of options, launch and container.

use std::collections::BTreeMap;

use ferroflow_core::decorator::batch::BatchOptions;
use ferroflow_core::decorator::kubernetes::DEFAULT_TIME_LIMIT;
use ferroflow_core::task::TaskLaunch;
use serde_json::{Value, json};

use super::definition::variables;
use super::names::job_name;
use crate::remote::{RunIdentity, metadata_label};

/// A task acts on its `@timeout` itself; the job's limit is for one that does not.
const TIME_LIMIT_GRACE: f64 = 60.0;
/// What AWS Batch takes as overrides of a container, all together.
pub const MOST_OVERRIDES: usize = 8192;

/// What a submission is made of.
pub struct JobParts<'a> {
    pub identity: &'a RunIdentity,
    pub options: &'a BatchOptions,
    pub launch: &'a TaskLaunch,
    pub environment: &'a BTreeMap<String, String>,
    pub queue: &'a str,
    /// Its ARN.
    pub definition: &'a str,
    /// A share in a queue that has a scheduling policy.
    pub share: Option<String>,
    /// Say of what run a job is in tags, too (that needs a permission).
    pub emit_tags: bool,
    /// Submissions of this attempt before.
    pub round: u32,
}

impl JobParts<'_> {
    pub fn name(&self) -> String {
        job_name(self.identity, self.launch.spec.step.as_str(), self.launch.id, self.round)
    }

    /// The request that submits it.
    pub fn request(&self) -> Value {
        let limit = self.launch.time_limit.map_or(DEFAULT_TIME_LIMIT, |limit| limit + TIME_LIMIT_GRACE);
        let mut job = json!({
            "jobName": self.name(),
            "jobQueue": self.queue,
            "jobDefinition": self.definition,
            "containerOverrides": { "environment": variables(self.environment) },
            "parameters": self.parameters(),
            "timeout": { "attemptDurationSeconds": limit.ceil() as u64 },
            "retryStrategy": { "attempts": 1 },
        });
        let tags = self.tags();
        if !tags.is_empty() {
            job["tags"] = json!(tags);
            job["propagateTags"] = json!(true);
        }
        if let Some(share) = &self.share {
            job["shareIdentifier"] = json!(share);
        }
        if let Some(priority) = self.options.scheduling_priority {
            job["schedulingPriorityOverride"] = json!(priority);
        }
        job
    }

    /// By these a job is found without its run's engine.
    fn parameters(&self) -> BTreeMap<String, String> {
        let spec = &self.launch.spec;
        let parameters = [
            ("flow_name", spec.flow.clone()),
            ("run_id", spec.run.to_string()),
            ("step_name", spec.step.to_string()),
            ("task_id", spec.task.to_string()),
            ("retry_count", spec.attempt.to_string()),
            ("user", spec.user.clone()),
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("metadata", metadata_label(&self.identity.metadata)),
            ("run", self.identity.run_label()),
        ];
        parameters.into_iter().map(|(name, value)| (format!("metaflow.{name}"), value)).collect()
    }

    fn tags(&self) -> BTreeMap<String, String> {
        let mut tags = self.options.tags.clone();
        if self.emit_tags {
            let values = self.parameters().into_iter();
            tags.extend(values.map(|(name, value)| (name, value.chars().take(256).collect())));
        }
        tags
    }
}

/// Characters of a container's overrides, as AWS Batch counts them.
pub fn overrides_size(job: &Value) -> usize {
    let of_all_nodes = &job["nodeOverrides"]["nodePropertyOverrides"][0]["containerOverrides"];
    let overrides = if of_all_nodes.is_null() { &job["containerOverrides"] } else { of_all_nodes };
    overrides.to_string().chars().count()
}

/// The share of a user in a fair-share queue: letters and digits only.
pub fn share_of(user: &str) -> String {
    let share: String = user.chars().filter(char::is_ascii_alphanumeric).take(255).collect();
    if share.is_empty() { "default".to_owned() } else { share }
}
