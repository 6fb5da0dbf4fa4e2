//! Ports: the traits through which the engine reaches the world. Concrete parts are chosen and
//! joined in `cli` only.

use std::future::Future;
use std::pin::Pin;

use crate::id::{AttemptId, RunId, StepName};
use crate::metadata::{NewRun, Record, RunRow, TaskRow};
use crate::task::{AttemptReport, Cause, Millis, TaskLaunch, TaskOutcome};
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

    /// Another engine has taken the run (or a run it adopts tasks of) over: this one must stop and
    /// leave everything to the other. `text` says who.
    fn taken_over(&self, text: String) {
        let _ = text;
    }

    /// Completes when there is room for more log lines. A layer waits for it before it reads
    /// more of a task's output, so that a flood fills the task's pipe and not our memory.
    fn ready(&self) -> Later<'_, ()> {
        Box::pin(async {})
    }
}

/// An attempt that an engine before this one had submitted to a remote layer, and that outlived it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adoption {
    /// What it is in this run; `None` when this run has no use for it: then it is stopped, and
    /// nothing is told of it.
    pub id: Option<AttemptId>,
    pub step: StepName,
    /// The run, and the attempt in it, as which it was submitted. A layer made for that run tells
    /// its events under `attempt`; `compute::adoption` translates.
    pub run: RunId,
    pub attempt: AttemptId,
    /// The layer that it was submitted to.
    pub layer: String,
}

/// A place where tasks run. `submit` and `stop` return at once; what became of them comes as
/// events. `Finished` or `Lost` comes exactly once for every submitted attempt.
pub trait ComputeLayer: Send + Sync {
    fn name(&self) -> &'static str;
    fn submit(&self, launch: TaskLaunch);
    /// Stops attempts; unknown or finished ones are ignored. One that was not started yet is
    /// `Lost` with `CauseKind::Cancelled`.
    fn stop(&self, attempts: &[AttemptId], signal: StopSignal);
    /// The user ended the run: what is out is being stopped, and nothing further comes. A layer that
    /// cannot soon say that nothing is left says what is, and how to remove it.
    fn run_ends(&self) {}
    /// Ends the layer: nothing it started is alive when the future completes.
    fn shut_down(&self) -> Later<'_, ()>;
    /// Whether a task goes on when this engine dies. It is submitted only once the record of that
    /// intent is kept, so that the next engine looks for it.
    fn outlives_engine(&self, launch: &TaskLaunch) -> bool {
        let _ = launch;
        false
    }
    /// Follows an attempt that an engine before this one submitted, as if it were submitted now; the
    /// events are the same. `Lost` when nothing of it is there, not even how it ended. `false`: this
    /// layer's tasks end with their engine, and nothing is told.
    fn adopt(&self, adoption: Adoption) -> bool {
        let _ = adoption;
        false
    }
    /// Ends the layer for an engine that lost its run to another: what outlives an engine is left
    /// as it is, the rest is stopped.
    fn let_go(&self) -> Later<'_, ()> {
        self.shut_down()
    }
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

/// An object's contents and their version.
pub type Versioned = (Vec<u8>, String);

/// The artifact store as plain objects, for what remote tasks need: code packages and logs.
pub trait ObjectAccess: Send + Sync {
    /// Writes an object. With `only_if_absent` one that is there already stays (`false`).
    fn put<'a>(&'a self, key: &'a str, data: Vec<u8>, only_if_absent: bool) -> Later<'a, Result<bool, ObjectError>>;
    /// The bytes from `from` on; `None` when there is no such object.
    fn get_from<'a>(&'a self, key: &'a str, from: u64) -> Later<'a, Result<Option<Vec<u8>>, ObjectError>>;
    /// An object and its version, which `replace` takes.
    fn get_versioned<'a>(&'a self, key: &'a str) -> Later<'a, Result<Option<Versioned>, ObjectError>> {
        Box::pin(async move { Ok(self.get_from(key, 0).await?.map(|data| (data, String::new()))) })
    }
    /// Writes an object if it still has that version (`None`: if there is none) and returns its new
    /// one; `None` when somebody else was faster. Stores without conditional writes always write.
    fn replace<'a>(
        &'a self,
        key: &'a str,
        data: Vec<u8>,
        version: Option<&'a str>,
    ) -> Later<'a, Result<Option<String>, ObjectError>> {
        Box::pin(async move { Ok(self.put(key, data, version.is_none()).await?.then(String::new)) })
    }
    /// The outcome that an attempt's pack keeps; `None` when there is no pack.
    fn outcome<'a>(
        &'a self,
        flow: &'a str,
        run: &'a RunId,
        step: &'a str,
        id: AttemptId,
    ) -> Later<'a, Result<Option<TaskOutcome>, ObjectError>> {
        let _ = (flow, run, step, id);
        Box::pin(async { Ok(None) })
    }
    /// Takes an object away; one that is not there is no fault.
    fn delete<'a>(&'a self, key: &'a str) -> Later<'a, Result<(), ObjectError>> {
        let _ = key;
        Box::pin(async { Ok(()) })
    }
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
    /// Puts what several containers read where they can fetch it; gives address and SHA-256.
    fn publish<'a>(
        &'a self,
        launch: &'a TaskLaunch,
        data: Vec<u8>,
        layer: &'a str,
    ) -> Later<'a, Result<(String, String), ObjectError>> {
        let _ = (launch, data);
        Box::pin(async move { Err(ObjectError::Unavailable(format!("tasks of `{layer}` share nothing"))) })
    }
    /// How an attempt ended, where its container has no termination message; `None` when it ended
    /// without saying anything.
    fn ending(&self, id: AttemptId) -> Later<'_, Result<Option<TerminationMessage>, ObjectError>> {
        let _ = id;
        Box::pin(async { Ok(None) })
    }
    /// Takes an attempt up that an engine before this one started: `follow` and `drained` know it
    /// from then on, and its run's lease is renewed.
    fn adopt(&self, step: &StepName, id: AttemptId) {
        let _ = (step, id);
    }
    /// How an attempt ended as far as the store knows, for when its container cannot be asked.
    fn kept_report(&self, id: AttemptId) -> Later<'_, Option<AttemptReport>> {
        let _ = id;
        Box::pin(async { None })
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
    /// Another engine has taken the run over, or still carries it out: hands off.
    #[error("{0}")]
    TakenOver(String),
    /// The store cannot be read or written (disk full, locked for too long, corrupt).
    #[error("{0}")]
    Unavailable(String),
}

/// Answers clients in containers, which reach the artifacts but not the metadata: these are on this
/// machine. Blocks.
pub trait MetadataAnswers: Send + Sync {
    /// The answer to a question; both are JSON (`store::questions`), and so are faults.
    fn answer(&self, question: &[u8]) -> Vec<u8>;
}

/// Runs and tasks, written by the run's engine and read by everyone. Calls block; the engine
/// makes them off its event loop.
pub trait MetadataStore: Send + Sync {
    /// Registers a run and returns its id.
    fn create_run(&self, run: &NewRun) -> Result<RunId, MetadataError>;
    /// Registers a run that goes on with remote tasks of other runs, and takes those runs over from
    /// their engines: all of it, or `TakenOver` and nothing when one of them is still carried out.
    fn create_run_from(&self, run: &NewRun, taken: &[RunId]) -> Result<RunId, MetadataError> {
        let _ = taken;
        self.create_run(run)
    }
    /// Writes a batch in one transaction. `TakenOver` when this engine had registered the run and
    /// another has taken it over since; `heartbeat` says so too.
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
