//! The Kubernetes layer: a Job per task attempt (or a JobSet per gang), one watch per run, deletes by label. This folder
//! makes the Jobs, follows their pods and tells in the cluster's own words why they wait and how
//! they ended. What runs inside the container and how its logs come back is `RemoteTasks`' part.

mod admission;
mod api;
mod attempt;
mod explain;
mod job;
mod jobset;
mod names;
mod parallel;
mod pod;
mod submit;
mod submit_jobset;
mod supervisor;
mod watch;

pub mod listing;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use ferroflow_core::decorator::kubernetes::KubernetesOptions;
use ferroflow_core::id::StepName;
use ferroflow_core::port::{EventSink, RemoteTasks};

pub use admission::{Admission, admit};
pub use api::{ApiFault, Cluster};

use crate::remote::{RemoteLayer, RunIdentity};
use supervisor::Supervisor;

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

/// The layer whose tasks are Jobs on a Kubernetes cluster; within the current tokio runtime.
pub fn start_layer(
    cluster: Cluster,
    settings: KubernetesSettings,
    remote: Arc<dyn RemoteTasks>,
    events: Arc<dyn EventSink>,
) -> RemoteLayer {
    let (layer, commands) = RemoteLayer::new("kubernetes", events.clone());
    tokio::spawn(Supervisor::run(cluster, settings, remote, events, commands));
    layer
}
