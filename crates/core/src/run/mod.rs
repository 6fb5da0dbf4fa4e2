//! The run machine: a pure function of state and event that returns actions. Time and the outside
//! world come in as arguments; what is to be done goes out as `Action`s in the order in which
//! they are to be carried out. No I/O, no clock, no threads in this folder.

mod message;

use std::sync::Arc;

use crate::graph::Graph;
use crate::id::{AttemptId, RunId, StepName, TaskId};
use crate::metadata::{Record, RunState, TaskRow};
use crate::port::{LayerEvent, StopSignal};
use crate::task::{AttemptReport, Cause, Millis, StoreLocation, TaskLaunch};

pub use message::{Line, Message, Progress, StepProgress, TaskName};

/// What holds for the whole run.
#[derive(Clone, Debug)]
pub struct RunSettings {
    pub flow: String,
    pub run: RunId,
    pub store: StoreLocation,
    pub user: String,
    /// `user:name` or `production:token`.
    pub identity: String,
    /// Client namespace for code in tasks; `None` is global.
    pub namespace: Option<String>,
    pub tags: Vec<String>,
    /// Attempts that may be out at the same time; at least 1.
    pub max_workers: usize,
    pub max_num_splits: u64,
    /// Name of the compute layer, for records.
    pub layer: String,
}

/// What a resumed run may clone.
#[derive(Clone, Debug)]
pub struct ResumePlan {
    pub origin_run: RunId,
    /// Latest attempts of the origin's tasks, `_parameters` included.
    pub tasks: Vec<TaskRow>,
    /// This step and all that follow it are run again.
    pub rerun_from: Option<StepName>,
}

/// What the machine is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Waiting {
        id: AttemptId,
        reason: String,
    },
    Starting {
        id: AttemptId,
        detail: String,
    },
    Started {
        id: AttemptId,
        pid: Option<u32>,
    },
    Finished {
        id: AttemptId,
        report: AttemptReport,
    },
    Lost {
        id: AttemptId,
        cause: Cause,
    },
    Down {
        cause: Cause,
    },
    /// The run is to end: `SIGINT` or `SIGTERM`.
    StopRequested {
        signal: String,
    },
    /// Time has passed; due at `Run::next_tick`, harmless at any other time.
    Tick,
}

impl TryFrom<LayerEvent> for Event {
    /// `Log` and `Notice`: nothing for the machine to decide.
    type Error = LayerEvent;

    fn try_from(event: LayerEvent) -> Result<Self, LayerEvent> {
        match event {
            LayerEvent::Waiting { id, reason } => Ok(Self::Waiting { id, reason }),
            LayerEvent::Starting { id, detail } => Ok(Self::Starting { id, detail }),
            LayerEvent::Started { id, pid } => Ok(Self::Started { id, pid }),
            LayerEvent::Finished { id, report } => Ok(Self::Finished { id, report }),
            LayerEvent::Lost { id, cause } => Ok(Self::Lost { id, cause }),
            LayerEvent::Down { cause } => Ok(Self::Down { cause }),
            LayerEvent::Log { .. } | LayerEvent::Notice { .. } => Err(event),
        }
    }
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    Submit(Box<TaskLaunch>),
    Stop {
        attempts: Vec<AttemptId>,
        signal: StopSignal,
    },
    /// Write to the metadata store. A later record of a task replaces an earlier one, so a batch
    /// needs only the last.
    Record(Box<Record>),
    Print(Message),
    /// The run is over; always the last action of a run.
    Finish(RunEnd),
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct RunEnd {
    /// `Done`, `Failed` or `Cancelled`.
    pub state: RunState,
    pub cause: Option<Cause>,
    /// The task whose failure failed the run (`Step failure`).
    pub failed: Option<FailedTask>,
    /// Set when the run was asked to stop (`SIGINT`, `SIGTERM`).
    pub signal: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct FailedTask {
    pub step: StepName,
    pub task: TaskId,
    pub attempt: u32,
    pub cause: Cause,
}

/// A run from its first task to its end.
pub struct Run {
    graph: Arc<Graph>,
    settings: RunSettings,
    resume: Option<ResumePlan>,
    ended: bool,
}

impl Run {
    /// `Err` when the resume plan does not fit the flow (unknown step to run again from).
    pub fn new(graph: Arc<Graph>, settings: RunSettings, resume: Option<ResumePlan>) -> Result<Self, String> {
        Ok(Self { graph, settings, resume, ended: false })
    }

    /// The first actions: `Workflow starting`, the record of `_parameters`, clones, submits.
    pub fn start(&mut self, now: Millis) -> Vec<Action> {
        let _ = (now, &self.graph, &self.settings, &self.resume);
        Vec::new()
    }

    /// Takes an event; events of unknown or finished attempts are ignored.
    pub fn on(&mut self, event: Event, now: Millis) -> Vec<Action> {
        let _ = (event, now);
        Vec::new()
    }

    /// When the machine wants its next `Tick` at the latest; `None` once the run is over. May lie
    /// in the past (a large resume clones in portions): tick at once then.
    pub fn next_tick(&self) -> Option<Millis> {
        None
    }

    /// Whether `Finish` was returned.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// How far each step is, in order of the flow; for a live display.
    pub fn progress(&self) -> Vec<StepProgress> {
        Vec::new()
    }

    /// Walks every cross-index and panics on the first that does not hold.
    pub fn check_invariants(&self) {}
}
