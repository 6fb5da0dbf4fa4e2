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
mod names;
mod pace;
mod queue;
mod submit;
mod supervisor;
mod view;
mod waiting;

pub mod listing;
pub mod multinode;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use ferroflow_core::decorator::batch::BatchOptions;
use ferroflow_core::id::{AttemptId, StepName};
use ferroflow_core::port::{Adoption, ComputeLayer, EventSink, Later, LayerEvent, RemoteTasks, StopSignal};
use ferroflow_core::task::{Cause, CauseKind, TaskLaunch};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

pub use admission::{Admission, Asked, admit};
pub use api::{BatchFault, Service};
pub use definition::Platform;
use supervisor::{Message, Supervisor};

use crate::remote::RunIdentity;

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

/// Tasks as jobs of AWS Batch.
pub struct BatchLayer {
    supervisor: UnboundedSender<Message>,
    events: Arc<dyn EventSink>,
}

impl BatchLayer {
    /// Starts the layer within the current tokio runtime.
    pub fn new(
        service: Service,
        settings: BatchSettings,
        remote: Arc<dyn RemoteTasks>,
        events: Arc<dyn EventSink>,
    ) -> Self {
        let (sender, messages) = unbounded_channel();
        let supervisor = Supervisor::new(service, settings, remote, events.clone(), sender.clone());
        tokio::spawn(supervisor.run(messages));
        Self { supervisor: sender, events }
    }
}

impl ComputeLayer for BatchLayer {
    fn name(&self) -> &'static str {
        "batch"
    }

    fn submit(&self, launch: TaskLaunch) {
        let id = launch.id;
        if self.supervisor.send(Message::Submit(Box::new(launch))).is_err() {
            let cause = Cause::new(CauseKind::LayerError, "the AWS Batch layer has ended already");
            self.events.send(LayerEvent::Lost { id, cause });
        }
    }

    fn stop(&self, attempts: &[AttemptId], signal: StopSignal) {
        let _over = self.supervisor.send(Message::Stop(attempts.to_vec(), signal));
    }

    fn shut_down(&self) -> Later<'_, ()> {
        Box::pin(async {
            let (done, wait) = oneshot::channel();
            if self.supervisor.send(Message::ShutDown(done)).is_ok() {
                // An error means that an earlier call has ended the layer.
                let _ended = wait.await;
            }
        })
    }

    fn outlives_engine(&self, _launch: &TaskLaunch) -> bool {
        true
    }

    fn adopt(&self, adoption: Adoption) -> bool {
        self.supervisor.send(Message::Adopt(adoption.step, adoption.attempt)).is_ok()
    }

    fn let_go(&self) -> Later<'_, ()> {
        Box::pin(async {
            let (done, wait) = oneshot::channel();
            if self.supervisor.send(Message::LetGo(done)).is_ok() {
                let _ended = wait.await;
            }
        })
    }

    fn capacity(&self) -> usize {
        // The job queue is the place to wait in, not ours.
        usize::MAX
    }
}
