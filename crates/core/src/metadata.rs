//! Records of runs and tasks as the metadata store keeps them and clients read them.

use serde::{Deserialize, Serialize};

use crate::id::{RunId, StepName, TaskId};
use crate::task::{AttemptState, Cause, Millis, StoreLocation, Usage};

/// A new run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NewRun {
    pub flow: String,
    pub user: String,
    pub tags: Vec<String>,
    pub system_tags: Vec<String>,
    pub origin_run: Option<RunId>,
    /// The flow as JSON (`ir::Flow`), for clients that walk the graph.
    pub graph: String,
    pub created_at: Millis,
    /// Who runs it, so that a reader can tell a living engine from a dead one.
    pub engine: EngineIdentity,
    /// Where its data is; `None` is beside the metadata.
    pub store: Option<StoreLocation>,
}

/// An engine process. A reader on the same `host` (boot id and pid namespace) checks `pid` and
/// `pid_start`; any other reader goes by the heartbeat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineIdentity {
    /// Boot id and pid namespace, e.g. `5b0c…:4026531836`.
    pub host: String,
    pub pid: u32,
    /// Start time from `/proc/<pid>/stat`, clock ticks since boot.
    pub pid_start: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    Running,
    Done,
    Failed,
    Cancelled,
    /// Its engine is gone; nobody is running it.
    Lost,
}

/// The state of one task's latest attempt; written again whenever something changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskRecord {
    pub step: StepName,
    pub task: TaskId,
    pub attempt: u32,
    pub state: AttemptState,
    pub cause: Option<Cause>,
    /// Split indices, outermost first; empty outside a foreach.
    pub foreach_path: Vec<u64>,
    /// Iteration of a recursive step, 0 otherwise.
    #[serde(default)]
    pub iteration: u32,
    /// For a task that split: the number of splits.
    pub num_splits: Option<u64>,
    /// Steps its `self.next` named; empty for end and for unfinished tasks.
    #[serde(default)]
    pub targets: Vec<StepName>,
    pub created_at: Millis,
    pub started_at: Option<Millis>,
    pub finished_at: Option<Millis>,
    /// Whether successors may follow (`ok`) and whether user code succeeded (`success`).
    pub ok: Option<bool>,
    pub success: Option<bool>,
    pub usage: Option<Usage>,
    pub pid: Option<u32>,
    /// Compute layer, e.g. `local`.
    pub layer: String,
    /// For a clone: the attempt whose pack and logs stand for this one.
    pub data: Option<DataRef>,
    /// For a clone: the task it was cloned from, in the run being resumed.
    pub origin: Option<DataRef>,
}

/// One attempt of one task of one run (of the same flow and step).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataRef {
    pub run: RunId,
    pub task: TaskId,
    pub attempt: u32,
}

/// A task metadata entry (behaviour.md §8.4).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetadataEntry {
    pub step: StepName,
    pub task: TaskId,
    pub attempt: u32,
    pub name: String,
    pub value: String,
    #[serde(rename = "type")]
    pub entry_type: String,
    pub created_at: Millis,
}

/// One write; a batch is one transaction.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    Task(TaskRecord),
    Metadata(MetadataEntry),
    /// The run is over (or, for `Lost`, found to be over).
    RunState {
        state: RunState,
        cause: Option<Cause>,
        at: Millis,
    },
}

/// A run as read back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunRow {
    pub flow: String,
    pub run: RunId,
    pub user: String,
    pub tags: Vec<String>,
    pub system_tags: Vec<String>,
    /// As a reader sees it now: `Lost` when recorded as running but the engine is gone.
    pub state: RunState,
    pub cause: Option<Cause>,
    pub created_at: Millis,
    pub finished_at: Option<Millis>,
    pub heartbeat_at: Millis,
    pub origin_run: Option<RunId>,
    pub graph: String,
    pub engine: EngineIdentity,
    /// Where its data is; `None` is beside the metadata.
    #[serde(default)]
    pub store: Option<StoreLocation>,
}

/// A task as read back. An unfinished attempt of a lost run reads as `lost`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskRow {
    pub run: RunId,
    #[serde(flatten)]
    pub record: TaskRecord,
}
