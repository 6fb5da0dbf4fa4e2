//! One attempt as the supervisor keeps it, from its order to its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ferroflow_core::port::StopSignal;
use ferroflow_core::task::{Cause, TaskLaunch};
use tokio::time::Instant;

use super::submit::Order;

/// Submissions of one attempt whose addresses keep expiring.
pub const MOST_ROUNDS: u32 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// On its way to the server.
    Submitting,
    /// The Job is there; its container has not started.
    Created,
    /// The container runs.
    Started,
    /// Its end is known; what it printed is still on its way.
    Ending,
}

pub struct Attempt {
    pub launch: Arc<TaskLaunch>,
    pub namespace: String,
    pub job: String,
    pub pod: Option<String>,
    pub stage: Stage,
    /// `Started` was told; it is told once, however often the attempt is submitted.
    pub told_started: bool,
    /// The reason to wait that was told last.
    pub told: Option<String>,
    pub stop: Option<StopSignal>,
    /// Deleting it failed and is to be tried again.
    pub delete_again: bool,
    /// Since when it is as it is: without a pod, prepared by a node, stuck.
    pub since: Instant,
    /// When its Job, which had no pod yet, was last asked for.
    pub looked_for: Instant,
    pub preparing: bool,
    pub stuck: Option<Cause>,
    /// Somebody else is deleting its pod.
    pub taken: Option<Cause>,
    /// Whether its Job is still there is being asked.
    pub asking_for_job: bool,
    pub pod_is_gone: bool,
    pub round: u32,
    cancelled: Arc<AtomicBool>,
}

impl Attempt {
    pub fn new(launch: TaskLaunch, namespace: String, job: String) -> Self {
        Self {
            launch: Arc::new(launch),
            namespace,
            job,
            pod: None,
            stage: Stage::Submitting,
            told_started: false,
            told: None,
            stop: None,
            delete_again: false,
            since: Instant::now(),
            looked_for: Instant::now(),
            preparing: false,
            stuck: None,
            taken: None,
            asking_for_job: false,
            pod_is_gone: false,
            round: 0,
            cancelled: Arc::default(),
        }
    }

    pub fn order(&self) -> Order {
        Order { launch: self.launch.clone(), round: self.round, cancelled: self.cancelled.clone() }
    }

    /// Keeps the order from going out, if it has not yet.
    pub fn cancel_order(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }
}
