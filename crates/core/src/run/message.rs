//! The system lines of a run, with their fixed texts (behaviour.md §4.2). Where a line is shown,
//! in which colour and with which prefix is the terminal's business, not this file's.

use std::fmt;

use crate::id::{RunId, StepName, TaskId};
use crate::task::Cause;

/// One system line about a task or, without `task`, about the run.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    pub task: Option<TaskName>,
    pub line: Line,
}

/// The task a line is about; `pid` is known once the task runs on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskName {
    pub step: StepName,
    pub task: TaskId,
    pub attempt: u32,
    pub pid: Option<u32>,
}

/// What a system line says.
#[derive(Clone, Debug, PartialEq)]
pub enum Line {
    /// A resume that loads its origin: for the engine, before the machine exists.
    GatheringOrigin,
    WorkflowStarting {
        run: RunId,
    },
    /// The first task is about to be cloned.
    CloningRun {
        flow: String,
        origin: RunId,
    },
    /// Of a cloned task; the names are the origin's.
    CloningTask {
        origin: RunId,
        step: StepName,
        task: TaskId,
    },
    RunCloned {
        flow: String,
        origin: RunId,
    },
    /// Of an adopted task; the names are the origin's.
    AdoptingTask {
        origin: RunId,
        step: StepName,
        task: TaskId,
        layer: String,
    },
    /// The origin left tasks behind that are of no use to this run.
    StoppingLeftBehind {
        run: RunId,
        tasks: usize,
    },
    /// An adopted task ended badly, or was not found any more.
    AdoptedFailed(Cause),
    TaskStarting,
    /// A further attempt at user code.
    TaskRetrying,
    /// `@catch` handles a process that died.
    TaskFallback,
    /// The layer cannot start the task yet.
    TaskWaiting {
        reason: String,
    },
    /// A remote task pauses before its next attempt.
    SleepingBeforeRetry {
        minutes: f64,
    },
    ForeachYields {
        splits: u64,
    },
    TaskFinished,
    /// Why a task failed, where the task itself could not say it.
    TaskCause(Cause),
    TaskFailed,
    TaskSegfault,
    /// The failure is of a kind that a retry cannot mend.
    NotRetried,
    /// The layer lost the task; it starts again after so long, without spending a retry.
    TaskLost {
        cause: Cause,
        seconds: i64,
    },
    /// Written for every task that a stopping run interrupts.
    KilledByOrchestrator,
    WorkflowFailed,
    /// The user (or the system) asked the run to stop.
    WorkflowStopping {
        signal: String,
    },
    Terminating {
        tasks: usize,
    },
    /// Of those that are terminated.
    TerminatingAdopted {
        tasks: usize,
    },
    Killing {
        tasks: usize,
        seconds: u64,
    },
    FlushingLogs,
    Done,
    Progress(Progress),
}

/// The five-minute report (behaviour.md R-9).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Steps with running tasks, in order of the flow.
    pub running: Vec<StepProgress>,
    /// Tasks that are ready and wait for a free worker.
    pub queued: u64,
    /// Steps of which no task has started.
    pub not_started: Vec<StepName>,
}

/// How far one step is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepProgress {
    pub step: StepName,
    /// Ready tasks that wait for a free worker.
    pub queued: u64,
    /// Submitted attempts that the layer has not started yet.
    pub starting: u64,
    pub running: u64,
    /// Finished tasks, clones included.
    pub done: u64,
    pub failed: u64,
}

impl Message {
    pub fn run(line: Line) -> Self {
        Self { task: None, line }
    }

    pub fn task(task: TaskName, line: Line) -> Self {
        Self { task: Some(task), line }
    }

    /// The text without timestamp and prefix.
    pub fn text(&self) -> String {
        self.line.to_string()
    }

    /// Whether the line tells of something bad (shown in red).
    pub fn is_bad(&self) -> bool {
        self.line.is_bad()
    }
}

impl Line {
    fn is_bad(&self) -> bool {
        matches!(
            self,
            Self::TaskCause(_)
                | Self::TaskFailed
                | Self::TaskSegfault
                | Self::NotRetried
                | Self::TaskLost { .. }
                | Self::AdoptedFailed(_)
                | Self::TerminatingAdopted { .. }
                | Self::KilledByOrchestrator
                | Self::WorkflowFailed
                | Self::WorkflowStopping { .. }
                | Self::Terminating { .. }
                | Self::Killing { .. }
        )
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GatheringOrigin => {
                f.write_str("Gathering required information to resume run (this may take a bit of time)...")
            }
            Self::WorkflowStarting { run } => write!(f, "Workflow starting (run-id {run}):"),
            Self::CloningRun { flow, origin } => write!(f, "Cloning {flow}/{origin}"),
            Self::CloningTask { origin, step, task } => {
                write!(f, "Cloning previously run task {origin}/{step}/{task}")
            }
            Self::RunCloned { flow, origin } => write!(f, "{flow}/{origin} cloned!"),
            Self::AdoptingTask { origin, step, task, layer } => {
                write!(f, "Adopting task {origin}/{step}/{task} from {layer}: it is waited for, not run again")
            }
            Self::StoppingLeftBehind { run, tasks: 1 } => {
                write!(f, "Stopping 1 task that run {run} left behind and this run has no use for.")
            }
            Self::StoppingLeftBehind { run, tasks } => {
                write!(f, "Stopping {tasks} tasks that run {run} left behind and this run has no use for.")
            }
            Self::AdoptedFailed(cause) => write!(
                f,
                "Adopted task did not end well ({}); this run runs it itself, which does not count as a retry.",
                cause.text.trim_end_matches('.')
            ),
            Self::TaskStarting => f.write_str("Task is starting."),
            Self::TaskRetrying => f.write_str("Task is starting (retry)."),
            Self::TaskFallback => f.write_str("Task fallback is starting to handle the failure."),
            Self::TaskWaiting { reason } => write!(f, "Task is waiting: {reason}"),
            Self::SleepingBeforeRetry { minutes } => write!(f, "Sleeping {minutes} minutes before the next retry"),
            Self::ForeachYields { splits } => write!(f, "Foreach yields {splits} child steps."),
            Self::TaskFinished => f.write_str("Task finished successfully."),
            Self::TaskCause(cause) => f.write_str(&sentence(&cause.text)),
            Self::TaskFailed => f.write_str("Task failed."),
            Self::TaskSegfault => f.write_str("Task failed with a segmentation fault."),
            Self::NotRetried => f.write_str("This failed task will not be retried."),
            Self::TaskLost { cause, seconds } => {
                let when = if *seconds > 0 { format!(" in {seconds} seconds") } else { String::new() };
                write!(f, "Task was lost ({}); it starts again{when}, which does not count as a retry.", cause.text)
            }
            Self::KilledByOrchestrator => f.write_str("[KILLED BY ORCHESTRATOR]"),
            Self::WorkflowFailed => f.write_str("Workflow failed."),
            Self::WorkflowStopping { signal } => write!(
                f,
                "Workflow is stopping because of {signal}: its tasks are asked to end. A second \
                 {signal} kills them."
            ),
            Self::Terminating { tasks } => write!(f, "Terminating {tasks} active tasks..."),
            Self::TerminatingAdopted { tasks } => write!(f, "Adopted tasks are terminated too ({tasks})."),
            Self::Killing { tasks, seconds } => write!(
                f,
                "Killing {tasks} remaining tasks after having waited for {seconds} seconds -- \
                 some tasks may not exit cleanly"
            ),
            Self::FlushingLogs => f.write_str("Flushing logs..."),
            Self::Done => f.write_str("Done!"),
            Self::Progress(progress) => progress.fmt(f),
        }
    }
}

/// Causes are written to stand inside a sentence; alone they begin and end like one.
fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    let mut sentence: String = chars.next().map_or_else(String::new, |c| c.to_uppercase().chain(chars).collect());
    if !sentence.ends_with(['.', '!', '?']) {
        sentence.push('.');
    }
    sentence
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.running.is_empty() {
            f.write_str("No tasks are running.")?;
        } else {
            let counts: Vec<String> = self
                .running
                .iter()
                .map(|s| {
                    let starting = if s.starting > 0 { format!("{} starting; ", s.starting) } else { String::new() };
                    format!("{} ({} running; {starting}{} done)", s.step, s.running, s.done)
                })
                .collect();
            write!(f, "Tasks are running: {}.", counts.join(", "))?;
        }
        match self.queued {
            0 => f.write_str(" No tasks are waiting in the queue.")?,
            1 => f.write_str(" 1 task is waiting in the queue.")?,
            n => write!(f, " {n} tasks are waiting in the queue.")?,
        }
        if self.not_started.is_empty() {
            f.write_str(" Every step has started.")
        } else {
            let names: Vec<&str> = self.not_started.iter().map(StepName::as_str).collect();
            write!(f, " Not started yet: {}.", names.join(", "))
        }
    }
}
