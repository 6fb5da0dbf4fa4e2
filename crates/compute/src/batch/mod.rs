//! The AWS Batch layer: a job per task attempt, one DescribeJobs per hundred of them, job definitions
//! registered once by content. This folder makes the requests, follows the jobs and tells in the
//! service's own words why they wait and how they ended. What runs inside the container and how its
//! logs come back is `RemoteTasks`' part.

mod admission;
mod api;
mod array;
mod attempt;
mod definition;
mod fargate;
mod http;
mod instances;
mod job;
mod multinode;
mod names;
mod pace;
mod queue;
mod submit;
mod supervisor;
mod view;
mod waiting;

pub mod listing;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use ferroflow_core::decorator::batch::BatchOptions;
use ferroflow_core::id::StepName;
use ferroflow_core::port::{EventSink, RemoteTasks};

pub use admission::{Admission, Asked, admit};
pub use api::{BatchFault, Service};
pub use definition::Platform;
use supervisor::Supervisor;
pub use view::KILLED_BY_HAND;

use crate::remote::{RemoteLayer, RunIdentity};

/// A job queue, as far as its jobs must know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueuePlan {
    pub name: String,
    pub platform: Platform,
    /// It has a scheduling policy: jobs need a share.
    pub fair_share: bool,
}

/// What the tasks of a step ask for, and where they go.
#[derive(Clone, Debug, PartialEq)]
pub struct StepPlan {
    pub options: BatchOptions,
    pub queue: QueuePlan,
}

/// What a run says to the layer.
#[derive(Clone, Debug)]
pub struct BatchSettings {
    pub identity: RunIdentity,
    /// By step; a step that is missing has the defaults.
    pub steps: HashMap<StepName, StepPlan>,
    /// Of steps that are missing.
    pub default_queue: QueuePlan,
    /// `python:X.Y` of the launching interpreter.
    pub default_image: String,
    /// `@environment` by step.
    pub environments: HashMap<StepName, BTreeMap<String, String>>,
    /// Say of what run a job is in tags, too.
    pub emit_tags: bool,
    /// Submit tasks of a wide foreach together, as array jobs.
    pub array_jobs: bool,
    /// How a user kills what is left, for sentences.
    pub kill_command: String,
}

/// The layer whose tasks are jobs of AWS Batch; within the current tokio runtime.
pub fn start_layer(
    service: Service,
    settings: BatchSettings,
    remote: Arc<dyn RemoteTasks>,
    events: Arc<dyn EventSink>,
) -> RemoteLayer {
    let (layer, commands) = RemoteLayer::new("batch", events.clone());
    tokio::spawn(Supervisor::run(service, settings, remote, events, commands));
    layer
}
