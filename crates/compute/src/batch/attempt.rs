//! One attempt as the supervisor keeps it, from its order to its end.

use std::sync::Arc;

use ferroflow_core::id::AttemptId;
use ferroflow_core::port::StopSignal;
use ferroflow_core::task::TaskLaunch;
use tokio::time::Instant;

use super::StepPlan;
use super::submit::{Order, OrderState};
use super::view::Status;

/// Submissions of one attempt whose addresses keep expiring.
pub const MOST_ROUNDS: u32 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// On its way to the service.
    Submitting,
    /// The service has it; its container has not started.
    Queued,
    /// The container runs.
    Started,
    /// Its end is known; what it printed is still on its way.
    Ending,
}

pub struct Attempt {
    pub launch: Arc<TaskLaunch>,
    pub plan: StepPlan,
    /// The job's id.
    pub job: Option<String>,
    pub stage: Stage,
    pub status: Status,
    /// The service's sentence about the status.
    pub reason: String,
    /// Since when the status is what it is.
    pub since: Instant,
    /// `Started` was told; it is told once, however often the attempt is submitted.
    pub told_started: bool,
    /// `Starting` was told.
    pub told_starting: bool,
    /// The reason to wait that was told last.
    pub told: Option<String>,
    pub stop: Option<StopSignal>,
    /// Ending it failed and is to be tried again.
    pub end_again: bool,
    /// Answers in a row that did not know the job.
    pub missing: u32,
    pub round: u32,
    /// Since when it was to be killed.
    pub killed_at: Option<Instant>,
    order: Arc<OrderState>,
    /// An engine before this one submitted it; nobody here knows its spec.
    pub adopted: bool,
}

impl Attempt {
    pub fn new(launch: TaskLaunch, plan: StepPlan) -> Self {
        Self {
            launch: Arc::new(launch),
            plan,
            job: None,
            stage: Stage::Submitting,
            status: Status::Submitted,
            reason: String::new(),
            since: Instant::now(),
            told_started: false,
            told_starting: false,
            told: None,
            stop: None,
            end_again: false,
            missing: 0,
            round: 0,
            killed_at: None,
            order: Arc::default(),
            adopted: false,
        }
    }

    /// One that an engine before this one has submitted.
    pub fn adopted(launch: TaskLaunch, plan: StepPlan) -> Self {
        Self { adopted: true, ..Self::new(launch, plan) }
    }

    /// Keeps the order from going out; `false` when it may have gone already.
    pub fn cancel_order(&self) -> bool {
        // What another engine submitted has gone out.
        !self.adopted && self.order.cancel()
    }

    /// Another submission of the same attempt.
    pub fn begin_round(&mut self) {
        self.round += 1;
        self.order = Arc::default();
    }

    /// Its current round is on its way to the service.
    pub fn goes_out(&mut self) -> Order {
        self.stage = Stage::Submitting;
        self.status = Status::Submitted;
        self.job = None;
        Order { launch: self.launch.clone(), round: self.round, state: self.order.clone() }
    }

    /// Rank 0 of the gang that it is a rank of.
    pub fn main_rank(&self) -> Option<AttemptId> {
        let gang = self.launch.spec.gang?;
        Some(AttemptId { task: gang.control_task, attempt: self.launch.id.attempt })
    }

    /// Its job is to be asked about.
    pub fn is_followed(&self) -> bool {
        self.job.is_some() && matches!(self.stage, Stage::Queued | Stage::Started)
    }
}
