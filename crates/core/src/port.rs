//! Ports: the traits through which the engine reaches the world. Concrete parts are chosen and
//! joined in `cli` only.

use std::future::Future;
use std::pin::Pin;

use crate::id::{AttemptId, RunId};
use crate::metadata::{NewRun, Record, RunRow, TaskRow};
use crate::task::{AttemptReport, Cause, Millis, TaskLaunch};
use crate::wire::TerminationMessage;

/// A boxed future, so that ports stay object-safe without a runtime in this crate.
pub type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Which of a task's streams a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// How firmly to stop a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopSignal {
    /// SIGTERM: the task may clean up.
    Terminate,
    /// SIGKILL.
    Kill,
}

/// What a compute layer tells, in the order in which it happened to each attempt.
#[derive(Clone, Debug, PartialEq)]
pub enum LayerEvent {
    /// The layer took the attempt but cannot start it yet, and why.
    Waiting {
        id: AttemptId,
        reason: String,
    },
    /// On its way (a pod is pulling its image, an interpreter is starting).
    Starting {
        id: AttemptId,
        detail: String,
    },
    Started {
        id: AttemptId,
        pid: Option<u32>,
    },
    /// Complete lines (without line ends) of one stream, in order. Bytes as the task wrote them.
    Log {
        id: AttemptId,
        stream: Stream,
        at: Millis,
        lines: Vec<Vec<u8>>,
    },
    /// The process is gone and its streams are drained. Only lines of processes the task left
    /// behind may still follow, as `Log`.
    Finished {
        id: AttemptId,
        report: AttemptReport,
    },
    /// It is not known how the attempt ended; it does not run any more.
    Lost {
        id: AttemptId,
        cause: Cause,
    },
    /// A line for the user that belongs to no attempt (e.g. why a step is spawned).
    Notice {
        text: String,
    },
    /// The layer cannot go on; every attempt still out is lost.
    Down {
        cause: Cause,
    },
}

/// Where a layer sends its events. Never blocks.
pub trait EventSink: Send + Sync {
    fn send(&self, event: LayerEvent);

    /// A metadata entry that a task asked to record; comes before the attempt's `Finished`.
    /// A method and not an event: the run machine has no use for it, only a recorder has.
    fn metadata(&self, id: AttemptId, name: String, value: String) {
        let _ = (id, name, value);
    }

    /// Completes when there is room for more log lines. A layer waits for it before it reads
    /// more of a task's output, so that a flood fills the task's pipe and not our memory.
    fn ready(&self) -> Later<'_, ()> {
        Box::pin(async {})
    }
}

/// A place where tasks run. `submit` and `stop` return at once; what became of them comes as
/// events. `Finished` or `Lost` comes exactly once for every submitted attempt.
pub trait ComputeLayer: Send + Sync {
    fn name(&self) -> &'static str;
    fn submit(&self, launch: TaskLaunch);
    /// Stops attempts; unknown or finished ones are ignored. One that was not started yet is
    /// `Lost` with `CauseKind::Cancelled`.
    fn stop(&self, attempts: &[AttemptId], signal: StopSignal);
    /// Ends the layer: nothing it started is alive when the future completes.
    fn shut_down(&self) -> Later<'_, ()>;
    /// How many tasks make sense at once here (local: processors this process may use).
    fn capacity(&self) -> usize;
}

/// An object in an artifact store, by its key below the store's root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectEntry {
    pub key: String,
    /// Bytes.
    pub size: u64,
}

/// Why an object could not be read or written, after the retries that make sense.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ObjectError {
    /// The credentials do not allow it, or there are none; no retry helps.
    #[error("{0}")]
    Denied(String),
    /// No such bucket or container; no retry helps.
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Unavailable(String),
}

/// The artifact store as plain objects, for what remote tasks need: code packages and logs.
pub trait ObjectAccess: Send + Sync {
    /// Writes an object. With `only_if_absent` one that is there already stays (`false`).
    fn put<'a>(&'a self, key: &'a str, data: Vec<u8>, only_if_absent: bool) -> Later<'a, Result<bool, ObjectError>>;
    /// The bytes from `from` on; `None` when there is no such object.
    fn get_from<'a>(&'a self, key: &'a str, from: u64) -> Later<'a, Result<Option<Vec<u8>>, ObjectError>>;
    /// Everything below a prefix, in order of keys.
    fn list<'a>(&'a self, prefix: &'a str) -> Later<'a, Result<Vec<ObjectEntry>, ObjectError>>;
    /// An address from which anybody can read the object with plain HTTP GET for a while.
    /// `endpoint` replaces the configured one where the reader reaches the store elsewhere.
    fn presigned<'a>(
        &'a self,
        key: &'a str,
        valid_seconds: u64,
        endpoint: Option<&'a str>,
    ) -> Later<'a, Result<String, ObjectError>>;
}

/// What a remote task's container runs; the image's interpreter is process 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteContainer {
    pub command: Vec<String>,
    /// No secrets in here: they come by reference.
    pub environment: std::collections::BTreeMap<String, String>,
}

/// What the store shows of an attempt.
#[derive(Clone, Debug)]
pub enum RemoteSign {
    Running,
    /// What its supervisor said last; all its lines are in the event sink.
    Ended(Box<TerminationMessage>),
}

/// A line as a node kept it; it does not say of which stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeLine {
    pub at: Millis,
    pub bytes: Vec<u8>,
}

pub type TellSign = Box<dyn Fn(RemoteSign) + Send + Sync>;

/// Turns a launch into what a container runs. One implementation serves all remote layers.
pub trait RemoteTasks: Send + Sync {
    /// `layer` is `kubernetes` or `batch`; each may reach the store by another endpoint.
    fn container<'a>(
        &'a self,
        launch: &'a TaskLaunch,
        layer: &'a str,
    ) -> Later<'a, Result<RemoteContainer, ObjectError>>;
    /// The attempt may run from now on. `tell` hears when the store shows that it does, which may
    /// be sooner than the layer knows; its lines are held back until `follow`.
    fn expect(&self, id: AttemptId, tell: TellSign) {
        let _ = (id, tell);
    }
    /// Begins to follow the logs of an attempt that was started; lines go to the event sink.
    fn follow(&self, id: AttemptId);
    /// Completes when everything the attempt had flushed was sent on.
    fn drained(&self, id: AttemptId) -> Later<'_, ()>;
    /// Of a drained attempt that died without a word: the last lines that its node has. What the
    /// store lacks of them is sent on and kept.
    fn complete(&self, id: AttemptId, of_node: Vec<NodeLine>) -> Later<'_, ()> {
        let _ = (id, of_node);
        Box::pin(async {})
    }
    /// How an attempt ended, where its container has no termination message; `None` when it ended
    /// without saying anything.
    fn ending(&self, id: AttemptId) -> Later<'_, Result<Option<TerminationMessage>, ObjectError>> {
        let _ = id;
        Box::pin(async { Ok(None) })
    }
}

/// Why the metadata store did not do as asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum MetadataError {
    /// A run, task or flow that does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The request breaks a rule (tags); no retry helps.
    #[error("{0}")]
    Refused(String),
    /// The store cannot be read or written (disk full, locked for too long, corrupt).
    #[error("{0}")]
    Unavailable(String),
}

/// Runs and tasks, written by the run's engine and read by everyone. Calls block; the engine
/// makes them off its event loop.
pub trait MetadataStore: Send + Sync {
    /// Registers a run and returns its id.
    fn create_run(&self, run: &NewRun) -> Result<RunId, MetadataError>;
    /// Writes a batch in one transaction.
    fn record(&self, flow: &str, run: &RunId, records: &[Record]) -> Result<(), MetadataError>;
    /// Says that the engine is alive.
    fn heartbeat(&self, flow: &str, run: &RunId, at: Millis) -> Result<(), MetadataError>;
    fn run(&self, flow: &str, run: &RunId) -> Result<RunRow, MetadataError>;
    /// Newest first.
    fn runs(&self, flow: &str) -> Result<Vec<RunRow>, MetadataError>;
    /// Latest attempts, in order of task id.
    fn tasks(&self, flow: &str, run: &RunId) -> Result<Vec<TaskRow>, MetadataError>;
    /// Removes, then adds; returns the user tags after it.
    fn mutate_tags(
        &self,
        flow: &str,
        run: &RunId,
        add: &[String],
        remove: &[String],
    ) -> Result<Vec<String>, MetadataError>;
}

/// Task logs. One object per attempt that printed anything.
pub trait LogStore: Send + Sync {
    /// Appends lines of one attempt's stream; `step` names its folder.
    fn append(&self, place: &LogPlace, stream: Stream, at: Millis, lines: &[Vec<u8>]) -> Result<(), MetadataError>;
    /// No more lines for this attempt will come; open handles may go.
    fn close(&self, place: &LogPlace);
    /// Puts these lines in place of all that is kept of an attempt, whole or not at all.
    fn replace(&self, place: &LogPlace, lines: &[LogLine]) -> Result<(), MetadataError>;
    /// All lines of an attempt, in the order they were appended.
    fn read(&self, place: &LogPlace) -> Result<Vec<LogLine>, MetadataError>;
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LogPlace {
    pub flow: String,
    pub run: RunId,
    pub step: String,
    pub id: AttemptId,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    pub stream: Stream,
    pub at: Millis,
    pub bytes: Vec<u8>,
}
