//! The engine's view of the user's screen. What it looks like is decided in `cli`.

use std::collections::HashMap;
use std::sync::Arc;

use ferroflow_core::id::{StepName, TaskId};
use ferroflow_core::port::Stream;
use ferroflow_core::run::StepProgress;
use ferroflow_core::task::Millis;

/// Which task a line is about: `[run/step/task (pid N)]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskLabel {
    pub run: Arc<str>,
    pub step: StepName,
    pub task: TaskId,
    pub pid: Option<u32>,
}

/// How a line of the engine's own is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    Plain,
    /// One of many that a live display shows as a number instead.
    Routine,
    Bad,
}

/// Where a run stands, for a live display.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// In order of the flow.
    pub steps: Vec<StepProgress>,
    /// What keeps submitted tasks of a step from running; steps without such tasks are missing.
    pub holdups: HashMap<StepName, Holdup>,
}

/// Submitted tasks of a step of which the layer has said why they do not run yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holdup {
    pub waiting: u64,
    pub on_their_way: u64,
    /// Why the first of those that wait does, in the layer's words; empty if none waits.
    pub reason: String,
}

/// A screen or a file. Called from one thread; may block.
pub trait Console: Send {
    /// A line of the engine's own.
    fn system(&mut self, at: Millis, task: Option<&TaskLabel>, text: &str, tone: Tone);
    /// A line a task printed, as bytes, without its line end.
    fn log(&mut self, at: Millis, task: &TaskLabel, stream: Stream, line: &[u8]);
    /// A remark that belongs to no task (stderr).
    fn notice(&mut self, text: &str);
    /// Whether `progress` is worth calling.
    fn wants_progress(&self) -> bool {
        false
    }
    fn progress(&mut self, _progress: &Progress) {}
    /// The run is over: take down whatever moves.
    fn close(&mut self);
}
