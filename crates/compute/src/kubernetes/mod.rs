//! The Kubernetes layer: a Job per task attempt, one watch per run, deletes by label. This folder
//! makes the Jobs, follows their pods and tells in the cluster's own words why they wait and how
//! they ended. What runs inside the container and how its logs come back is `RemoteTasks`' part.

mod admission;
mod api;
mod attempt;
mod explain;
mod job;
mod names;
mod parallel;
mod pod;
mod submit;
mod supervisor;
mod watch;

pub mod listing;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use ferroflow_core::decorator::kubernetes::KubernetesOptions;
use ferroflow_core::id::{AttemptId, StepName};
use ferroflow_core::port::{Adoption, ComputeLayer, EventSink, Later, LayerEvent, RemoteTasks, StopSignal};
use ferroflow_core::task::{Cause, CauseKind, TaskLaunch};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

pub use admission::{Admission, admit};
pub use api::{ApiFault, Cluster};

use crate::remote::RunIdentity;
use supervisor::{Message, Supervisor};

/// What a run says to the layer.
#[derive(Clone, Debug)]
pub struct KubernetesSettings {
    pub identity: RunIdentity,
    /// By step; a step that is missing has the defaults.
    pub steps: HashMap<StepName, KubernetesOptions>,
    /// Steps whose tasks are ranks of a gang.
    pub gangs: HashSet<StepName>,
    /// `python:X.Y` of the launching interpreter.
    pub default_image: String,
    /// `@environment` by step.
    pub environments: HashMap<StepName, BTreeMap<String, String>>,
    /// How a user kills what is left, for sentences.
    pub kill_command: String,
}

/// Tasks as Jobs on a Kubernetes cluster.
pub struct KubernetesLayer {
    supervisor: UnboundedSender<Message>,
    events: Arc<dyn EventSink>,
}

impl KubernetesLayer {
    /// Starts the layer within the current tokio runtime.
    pub fn new(
        cluster: Cluster,
        settings: KubernetesSettings,
        remote: Arc<dyn RemoteTasks>,
        events: Arc<dyn EventSink>,
    ) -> Self {
        let (sender, messages) = unbounded_channel();
        let supervisor = Supervisor::new(cluster, settings, remote, events.clone(), sender.clone());
        tokio::spawn(supervisor.run(messages));
        Self { supervisor: sender, events }
    }
}

impl ComputeLayer for KubernetesLayer {
    fn name(&self) -> &'static str {
        "kubernetes"
    }

    fn submit(&self, launch: TaskLaunch) {
        let id = launch.id;
        if self.supervisor.send(Message::Submit(Box::new(launch))).is_err() {
            let cause = Cause::new(CauseKind::LayerError, "the Kubernetes layer has ended already");
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
        // The cluster's queue is the place to wait in, not ours.
        usize::MAX
    }
}
