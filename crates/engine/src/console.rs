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
    /// Why tasks of a step wait, in the layer's words.
    pub reasons: HashMap<StepName, String>,
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
