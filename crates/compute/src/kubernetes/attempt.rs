//! One attempt as the supervisor keeps it, from its order to its end.

use std::sync::Arc;

use ferroflow_core::port::StopSignal;
use ferroflow_core::task::{Cause, TaskLaunch};
use tokio::time::Instant;

use super::pod::PodView;
use super::submit::{Order, Ticket};

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
    /// Of the pod as it was last seen.
    pub version: Option<String>,
    pub view: PodView,
    pub stage: Stage,
    /// `Started` was told; it is told once, however often the attempt is submitted.
    pub told_started: bool,
    /// The reason to wait that was told last.
    pub told: Option<String>,
    pub stop: Option<StopSignal>,
    /// When it was told to stop, or to stop more firmly.
    pub stopped_at: Instant,
    /// Its pod was taken off the server without asking its node.
    pub forced: bool,
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
    /// The events about its pod, which somebody took away, are being read.
    pub asking_why: bool,
    pub pod_is_gone: bool,
    pub round: u32,
    ticket: Arc<Ticket>,
    /// An engine before this one submitted it; nobody here knows its spec.
    pub adopted: bool,
}

impl Attempt {
    pub fn new(launch: TaskLaunch, namespace: String, job: String) -> Self {
        Self {
            launch: Arc::new(launch),
            namespace,
            job,
            pod: None,
            version: None,
            view: PodView::default(),
            stage: Stage::Submitting,
            told_started: false,
            told: None,
            stop: None,
            stopped_at: Instant::now(),
            forced: false,
            delete_again: false,
            since: Instant::now(),
            looked_for: Instant::now(),
            preparing: false,
            stuck: None,
            taken: None,
            asking_for_job: false,
            asking_why: false,
            pod_is_gone: false,
            round: 0,
            ticket: Arc::default(),
            adopted: false,
        }
    }

    /// The order of the current round.
    pub fn order(&mut self) -> Order {
        self.ticket = Arc::default();
        Order { launch: self.launch.clone(), round: self.round, ticket: self.ticket.clone() }
    }

    /// Takes the order back; `true` when it has not gone out and never will.
    pub fn cancel_order(&self) -> bool {
        self.ticket.cancel()
    }
}
