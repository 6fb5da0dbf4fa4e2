//! A task as it crosses borders: what the engine asks for, what comes back, and the words for
//! the states in between.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::id::{AttemptId, RunId, StepName, TaskId};

/// Milliseconds since the Unix epoch.
pub type Millis = i64;

/// Where artifacts live. `kind` is `local`, `s3`, `azure` or `gs`; `root` is the folder, or the
/// URL (`s3://bucket/prefix`), below which the flows' data is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreLocation {
    pub kind: String,
    pub root: String,
    /// How a remote store is reached (`endpoint`, `region` …). Never credentials: those are found
    /// where every tool of that cloud finds them.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub options: std::collections::BTreeMap<String, String>,
}

/// Everything a task process has to know; sent as JSON to the front end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskSpec {
    pub flow: String,
    pub run: RunId,
    pub step: StepName,
    pub task: TaskId,
    /// Counted from 0.
    pub attempt: u32,
    /// Attempts beyond the first that may run user code (`@retry(times=…)`).
    pub max_user_code_retries: u32,
    /// Run only `@catch`'s fallback, no user code: earlier attempts died without raising.
    pub fallback: bool,
    /// How the earlier attempt died, for the fallback's exception.
    #[serde(default)]
    pub previous_failure: Option<String>,
    /// The step takes `inputs`.
    pub join: bool,
    /// Direct parents: one for a plain step; all branches, in order of `self.next`, or all
    /// splits, in split order, for a join.
    pub inputs: Vec<InputRef>,
    /// Attempt that holds the run's parameters and constants.
    pub parameters: InputRef,
    /// Outermost first; empty outside a foreach.
    pub foreach_stack: Vec<ForeachFrame>,
    /// Set in a resumed run.
    #[serde(default)]
    pub origin_run: Option<RunId>,
    pub store: StoreLocation,
    /// Decorators that act inside the task (`retry catch timeout environment resources …`)
    /// with defaults filled in.
    pub decorators: Vec<TaskDecorator>,
    pub user: String,
    /// `user:name` or `production:token`.
    pub identity: String,
    /// Client namespace for code in the task; `None` is global.
    pub namespace: Option<String>,
    pub tags: Vec<String>,
    /// Number of branches or splits a join must find; checked by the task.
    #[serde(default)]
    pub expected_inputs: Option<u64>,
    /// `--max-num-splits`: a foreach wider than this fails its parent.
    pub max_num_splits: u64,
    /// Set for the ranks of a `num_parallel`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gang: Option<GangPlace>,
}

/// Which of a gang's tasks this is. All ranks are submitted together, in order of rank, and are at
/// the same attempt; a layer that starts them as one has all it needs once `nodes` launches of the
/// same control task and attempt are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GangPlace {
    /// Counted from 0; rank 0 is the control task, whom the others reach by its address.
    pub rank: u64,
    /// How many ranks there are.
    pub nodes: u64,
    /// Task of rank 0.
    pub control_task: TaskId,
}

/// Finished attempts of one step, in order, as inclusive ranges of task ids.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputRef {
    /// The run whose data it is; an origin run's for cloned tasks.
    pub run: RunId,
    pub step: StepName,
    /// `[first task, last task, attempt]`; a step down from first to last never happens.
    pub tasks: Vec<(TaskId, TaskId, u32)>,
}

/// One level of a foreach a task is inside of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeachFrame {
    /// The step that split.
    pub step: StepName,
    pub variable: String,
    pub index: u64,
    pub num_splits: u64,
    /// The attempt whose pack holds the items.
    pub source: InputRef,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskDecorator {
    pub name: String,
    pub attributes: Map<String, Value>,
}

/// What user code came to, as the task process reports it on its control channel and writes it
/// into its pack.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TaskOutcome {
    /// The step may be followed by its successors (`true` also when `@catch` handled it).
    pub ok: bool,
    /// User code ended without an exception.
    pub success: bool,
    #[serde(default)]
    pub transition: Option<TakenTransition>,
    #[serde(default)]
    pub exception: Option<ExceptionInfo>,
    /// Installed packages the body imported in an unchanged environment.
    #[serde(default)]
    pub imports: Vec<String>,
    /// `false` for failures that a retry cannot mend (exit code 202).
    #[serde(default = "yes")]
    pub may_retry: bool,
}

fn yes() -> bool {
    true
}

/// The `self.next` that ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakenTransition {
    /// Empty for the end step.
    pub targets: Vec<StepName>,
    /// Number of splits of a foreach.
    #[serde(default)]
    pub num_splits: Option<u64>,
    /// Foreach variable.
    #[serde(default)]
    pub foreach: Option<String>,
}

/// A user's exception.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExceptionInfo {
    /// Class name, e.g. `MemoryError`.
    #[serde(rename = "type")]
    pub type_name: String,
    /// The same with its module, as clients show it; R's conditions have none.
    #[serde(default, rename = "class", skip_serializing_if = "Option::is_none")]
    pub class_name: Option<Box<str>>,
    pub message: String,
    /// The traceback without our frames.
    #[serde(default)]
    pub traceback: Box<str>,
}

/// How the process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessExit {
    Code(i32),
    Signal(i32),
}

/// What a task used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU seconds, user and system, of the task and the children it waited for.
    pub cpu_seconds: f64,
    /// Largest resident set, bytes, inherited pages included.
    pub peak_memory: u64,
}

/// A finished attempt as a compute layer reports it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttemptReport {
    /// `None` when the process ended without saying anything.
    pub outcome: Option<TaskOutcome>,
    pub exit: ProcessExit,
    pub usage: Usage,
    /// A cause the layer knows better than the exit status does (out of memory, evicted …).
    #[serde(default)]
    pub cause: Option<Cause>,
}

/// State of an attempt. A word; the cause stands beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttemptState {
    Queued,
    Waiting,
    Starting,
    Running,
    Finishing,
    Done,
    Failed,
    Cancelled,
    Lost,
}

impl AttemptState {
    pub fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled | Self::Lost)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Waiting => "waiting",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Finishing => "finishing",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Lost => "lost",
        }
    }
}

/// Why an attempt failed, was cancelled or got lost. `kind` is for programs, `text` is the
/// sentence a user reads, in the backend's own words where it has some.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    pub kind: CauseKind,
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CauseKind {
    UserException,
    ExitCode,
    Signal,
    OutOfMemory,
    TimedOut,
    Transition,
    Evicted,
    SpotReclaimed,
    Image,
    Unschedulable,
    /// The layer does not take the task (permission, quota, an impossible request): no retry helps.
    Refused,
    /// Somebody ended the task by hand, outside of the run: it is not started again.
    Killed,
    LayerError,
    Cancelled,
    EngineLost,
    FrontEndLost,
}

impl Cause {
    pub fn new(kind: CauseKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }
}

/// One submission to a compute layer.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskLaunch {
    pub id: AttemptId,
    pub spec: TaskSpec,
    /// Steps whose body imports something are worth starting slowly (design D3).
    pub has_imports: bool,
    /// `@timeout` in seconds, or none.
    pub time_limit: Option<f64>,
}
