//! One attempt as the supervisor keeps it, from its order to its end.

use std::sync::Arc;

use ferroflow_core::id::AttemptId;
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
    /// The JobSet that its Job is made by, of a rank; such Jobs are there and go together.
    pub jobset: Option<String>,
    /// The rank whose end ends this one, and is told first: the JobSet's controller stops the others.
    pub felled_by: Option<AttemptId>,
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
            jobset: None,
            felled_by: None,
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

    /// Its Job is there; the watch may have been faster than the answer.
    pub fn is_created(&mut self) {
        if self.stage == Stage::Submitting {
            self.stage = Stage::Created;
            self.since = Instant::now();
        }
    }

    /// It is to end, by our will or with its gang.
    pub fn is_stopped(&self) -> bool {
        self.stop.is_some() || self.felled_by.is_some()
    }

    /// Goes out with others, which are taken back with it.
    pub fn order_with(&mut self, ticket: Arc<Ticket>) {
        self.ticket = ticket;
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
