//! Run metadata in SQLite: one file, `ferroflow.db`, in the datastore root. This file holds the
//! connection and its rules (who waits, what is retried, how errors read); statements are in the
//! files beside it.

mod read;
mod schema;
mod tags;
mod takeover;
mod write;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use ferroflow_core::id::{RunId, TaskId};
use ferroflow_core::metadata::{MetadataEntry, NewRun, Record, RunRow, TaskRow};
use ferroflow_core::port::{MetadataError, MetadataStore};
use ferroflow_core::task::Millis;
use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior};

pub use read::StepRow;

/// Name of the database in the root.
pub const DATABASE: &str = "ferroflow.db";
/// How long a statement waits for other processes.
const PATIENCE: Duration = Duration::from_secs(150);

/// The metadata store of one root. Safe to use after a fork: the child opens a connection of
/// its own.
#[derive(Debug)]
pub struct SqliteMetadata {
    path: PathBuf,
    slot: Mutex<Option<Slot>>,
}

#[derive(Debug)]
struct Slot {
    pid: u32,
    connection: Connection,
    keys: Keys,
}

/// Keys of texts and runs seen so far; they never change once committed.
#[derive(Debug, Default)]
struct Keys {
    names: HashMap<String, i64>,
    texts: HashMap<i64, String>,
    runs: HashMap<(String, String), i64>,
    /// Epoch of each run that was registered here: nobody else may have written since.
    held: HashMap<i64, i64>,
}

/// Why a piece of work on the database did not succeed.
enum Trouble {
    Database(rusqlite::Error),
    Told(MetadataError),
}

impl From<rusqlite::Error> for Trouble {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error)
    }
}

impl From<MetadataError> for Trouble {
    fn from(error: MetadataError) -> Self {
        Self::Told(error)
    }
}

impl SqliteMetadata {
    /// Opens the database of a root and creates both if they are missing.
    pub fn open(root: impl AsRef<Path>) -> Result<Self, MetadataError> {
        let store = Self { path: root.as_ref().join(DATABASE), slot: Mutex::new(None) };
        store.with(|_, _| Ok(()))?;
        Ok(store)
    }

    /// Opens the database of a root; `None` when there is none.
    pub fn open_existing(root: impl AsRef<Path>) -> Result<Option<Self>, MetadataError> {
        if root.as_ref().join(DATABASE).exists() { Self::open(root).map(Some) } else { Ok(None) }
    }

    /// Names of all flows that have runs, in order of their names.
    pub fn flows(&self) -> Result<Vec<String>, MetadataError> {
        self.with(|connection, _| read::flows(connection))
    }

    /// The run, or `None`.
    pub fn find_run(&self, flow: &str, run: &RunId) -> Result<Option<RunRow>, MetadataError> {
        self.with(|connection, _| read::run(connection, flow, run, now()))
    }

    /// Latest attempts of a run or of one of its steps, in order of task id.
    pub fn tasks_of(&self, flow: &str, run: &RunId, step: Option<&str>) -> Result<Vec<TaskRow>, MetadataError> {
        self.with(|connection, keys| read::tasks(connection, keys, flow, run, step, now()))
    }

    /// All attempts of a task, in order.
    pub fn attempts(&self, flow: &str, run: &RunId, task: TaskId) -> Result<Vec<TaskRow>, MetadataError> {
        self.with(|connection, keys| read::attempts(connection, keys, flow, run, task, now()))
    }

    /// Steps of a run that have tasks, newest first.
    pub fn steps(&self, flow: &str, run: &RunId) -> Result<Vec<StepRow>, MetadataError> {
        self.with(|connection, _| read::steps(connection, flow, run))
    }

    /// Stored metadata entries of a task. What can be derived from its row is not among them;
    /// see [`crate::read::task_metadata`].
    pub fn entries(&self, flow: &str, run: &RunId, task: TaskId) -> Result<Vec<MetadataEntry>, MetadataError> {
        self.with(|connection, _| read::entries(connection, flow, run, task))
    }

    fn with<T>(&self, work: impl FnOnce(&mut Connection, &mut Keys) -> Result<T, Trouble>) -> Result<T, MetadataError> {
        let mut guard = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        let pid = std::process::id();
        if guard.as_ref().is_some_and(|slot| slot.pid != pid) {
            // Closing a connection of the parent would release the parent's locks.
            std::mem::forget(guard.take());
        }
        if guard.is_none() {
            let connection = schema::open(&self.path).map_err(|trouble| self.tell(trouble))?;
            *guard = Some(Slot { pid, connection, keys: Keys::default() });
        }
        let slot = guard.as_mut().expect("just opened");
        work(&mut slot.connection, &mut slot.keys).map_err(|trouble| self.tell(trouble))
    }

    /// Work that writes: one immediate transaction, so that it waits its turn at the start
    /// instead of failing in the middle.
    fn write<T>(
        &self,
        work: impl FnOnce(&Transaction<'_>, &mut Keys) -> Result<T, Trouble>,
    ) -> Result<T, MetadataError> {
        self.with(|connection, keys| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let result = work(&transaction, keys).and_then(|value| {
                transaction.commit()?;
                Ok(value)
            });
            if result.is_err() {
                // Keys made in a transaction that was rolled back do not exist.
                *keys = Keys { held: std::mem::take(&mut keys.held), ..Keys::default() };
            }
            result
        })
    }

    fn tell(&self, trouble: Trouble) -> MetadataError {
        match trouble {
            Trouble::Told(error) => error,
            Trouble::Database(error) => MetadataError::Unavailable(sentence(&self.path, &error)),
        }
    }
}

impl MetadataStore for SqliteMetadata {
    fn create_run(&self, run: &NewRun) -> Result<RunId, MetadataError> {
        tags::check(&run.tags, &run.system_tags)?;
        self.write(|transaction, keys| write::create_run(transaction, keys, run))
    }

    fn create_run_from(&self, run: &NewRun, taken: &[RunId]) -> Result<RunId, MetadataError> {
        tags::check(&run.tags, &run.system_tags)?;
        self.write(|transaction, keys| {
            let id = write::create_run(transaction, keys, run)?;
            for each in taken {
                takeover::take(transaction, &run.flow, each, &id, now())?;
            }
            Ok(id)
        })
    }

    fn record(&self, flow: &str, run: &RunId, records: &[Record]) -> Result<(), MetadataError> {
        self.write(|transaction, keys| write::record(transaction, keys, flow, run, records))
    }

    fn heartbeat(&self, flow: &str, run: &RunId, at: Millis) -> Result<(), MetadataError> {
        self.write(|transaction, keys| write::heartbeat(transaction, keys, flow, run, at))
    }

    fn run(&self, flow: &str, run: &RunId) -> Result<RunRow, MetadataError> {
        self.find_run(flow, run)?.ok_or_else(|| no_such_run(flow, run))
    }

    fn runs(&self, flow: &str) -> Result<Vec<RunRow>, MetadataError> {
        self.with(|connection, _| read::runs(connection, flow, now()))
    }

    fn tasks(&self, flow: &str, run: &RunId) -> Result<Vec<TaskRow>, MetadataError> {
        self.tasks_of(flow, run, None)
    }

    fn mutate_tags(
        &self,
        flow: &str,
        run: &RunId,
        add: &[String],
        remove: &[String],
    ) -> Result<Vec<String>, MetadataError> {
        self.write(|transaction, keys| tags::mutate(transaction, keys, flow, run, add, remove))
    }
}

fn no_such_run(flow: &str, run: &RunId) -> MetadataError {
    MetadataError::NotFound(format!("there is no run `{flow}/{run}`"))
}

/// Milliseconds since the epoch, for judging heartbeats.
fn now() -> Millis {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| Millis::try_from(since.as_millis()).unwrap_or(Millis::MAX))
}

fn sentence(path: &Path, error: &rusqlite::Error) -> String {
    let file = path.display();
    let code = error.sqlite_error_code();
    match code {
        Some(ErrorCode::DiskFull) => format!("cannot write `{file}`: the disk is full; free some space and try again"),
        Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen) if is_full(path) => {
            format!("cannot write `{file}`: the disk is full; free some space and try again")
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => format!(
            "`{file}` has been locked by another process for {} seconds; find out which one hangs (`fuser {file}`)",
            PATIENCE.as_secs()
        ),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => format!(
            "the run metadata in `{file}` is damaged ({error}); restore it from a backup, or move it away: \
             then new runs work and the runs recorded in it are no longer listed"
        ),
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
            format!("cannot write `{file}`: permission denied; check who owns the folder")
        }
        Some(ErrorCode::CannotOpen) => {
            format!("cannot open `{file}`: check that its folder exists and that you may write to it")
        }
        _ => format!("cannot use the run metadata in `{file}`: {error}"),
    }
}

/// SQLite reports some kinds of a full disk as a plain input/output error.
fn is_full(path: &Path) -> bool {
    const LEAST: u64 = 128 * 1024;
    path.parent()
        .and_then(|folder| rustix::fs::statvfs(folder).ok())
        .is_some_and(|space| space.f_bavail.saturating_mul(space.f_frsize) < LEAST)
}

#[cfg(test)]
mod tests;
