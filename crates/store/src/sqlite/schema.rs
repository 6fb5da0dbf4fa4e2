//! Opening the database: its tables, its journal, and the race of many processes that open one
//! folder at once.

use std::path::Path;
use std::time::Instant;

use ferroflow_core::port::MetadataError;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use super::{PATIENCE, Trouble};

/// Raised when tables change; a database with a higher number is refused.
const VERSION: i64 = 3;

const TABLES: &str = "
CREATE TABLE flows (
    flow_key INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    -- Id of the newest run: ids are never used again, even if runs are removed.
    last_run INTEGER NOT NULL
);
CREATE TABLE runs (
    run_key INTEGER PRIMARY KEY,
    flow_key INTEGER NOT NULL,
    run INTEGER NOT NULL,
    user TEXT NOT NULL,
    tags TEXT NOT NULL,
    system_tags TEXT NOT NULL,
    state TEXT NOT NULL,
    cause TEXT,
    created_at INTEGER NOT NULL,
    finished_at INTEGER,
    heartbeat_at INTEGER NOT NULL,
    origin_run TEXT,
    graph_key INTEGER NOT NULL,
    host TEXT NOT NULL,
    pid INTEGER NOT NULL,
    pid_start INTEGER NOT NULL,
    store TEXT,
    -- Counts the engines that held the run: one whose number has passed may not write any more.
    epoch INTEGER NOT NULL DEFAULT 1,
    -- The run that went on with it.
    taken_by TEXT,
    UNIQUE (flow_key, run)
);
-- A flow is described once, however often it runs.
CREATE TABLE graphs (graph_key INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE, text TEXT NOT NULL);
-- Texts that many rows share: steps, targets, layers, names of entries.
CREATE TABLE names (name_key INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE);
CREATE TABLE tasks (
    run_key INTEGER NOT NULL,
    task INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    step_key INTEGER NOT NULL,
    state INTEGER NOT NULL,
    cause TEXT,
    foreach_path TEXT,
    iteration INTEGER NOT NULL,
    num_splits INTEGER,
    targets_key INTEGER,
    created_at INTEGER NOT NULL,
    started_at INTEGER,
    finished_at INTEGER,
    ok INTEGER,
    success INTEGER,
    cpu_seconds REAL,
    peak_memory INTEGER,
    pid INTEGER,
    layer_key INTEGER NOT NULL,
    data TEXT,
    origin TEXT,
    PRIMARY KEY (run_key, task, attempt)
) WITHOUT ROWID;
CREATE TABLE entries (
    run_key INTEGER NOT NULL,
    task INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    step_key INTEGER NOT NULL,
    name_key INTEGER NOT NULL,
    type_key INTEGER NOT NULL,
    value TEXT NOT NULL,
    created_at INTEGER NOT NULL
);
CREATE INDEX entries_by_task ON entries (run_key, task);
";

/// Changes that bring a database from version N + 1 to N + 2, one a line.
const CHANGES: [&str; 2] = [
    "ALTER TABLE runs ADD COLUMN store TEXT",
    "ALTER TABLE runs ADD COLUMN epoch INTEGER NOT NULL DEFAULT 1; ALTER TABLE runs ADD COLUMN taken_by TEXT",
];

pub(super) fn open(path: &Path) -> Result<Connection, Trouble> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|error| {
            MetadataError::Unavailable(format!(
                "cannot create the folder `{}`: {}",
                folder.display(),
                crate::error::io_reason(&error)
            ))
        })?;
    }
    // SQLite's own waiting does not cover everything that happens while many processes switch a
    // new database to WAL and recover it; what it gives up on is tried again here.
    let deadline = Instant::now() + PATIENCE;
    loop {
        match open_once(path) {
            Err(Trouble::Database(error)) if may_pass(&error) && Instant::now() < deadline => {
                std::thread::sleep(std::time::Duration::from_millis(5 + u64::from(std::process::id() % 20)));
            }
            other => return other,
        }
    }
}

fn may_pass(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

fn open_once(path: &Path) -> Result<Connection, Trouble> {
    let write = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, write)?;
    connection.busy_timeout(PATIENCE)?;
    connection.set_prepared_statement_cache_capacity(64);
    if connection.is_readonly(rusqlite::MAIN_DB)? {
        // Someone else's runs: they can be read.
        return Ok(connection);
    }
    choose_journal(&connection, path)?;
    connection.execute_batch("PRAGMA synchronous = NORMAL")?;
    create_tables(&mut connection, path)?;
    Ok(connection)
}

fn choose_journal(connection: &Connection, path: &Path) -> Result<(), Trouble> {
    let wanted = if is_on_network(path) { "delete" } else { "wal" };
    let current: String = connection.query_row("PRAGMA journal_mode", [], |row| row.get(0))?;
    if current != wanted {
        // A file system that cannot do WAL stays with what it had.
        connection.query_row(&format!("PRAGMA journal_mode = {wanted}"), [], |row| row.get::<_, String>(0))?;
    }
    Ok(())
}

fn create_tables(connection: &mut Connection, path: &Path) -> Result<(), Trouble> {
    if version(connection)? == VERSION {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found = version(&transaction)?;
    if found > VERSION {
        return Err(Trouble::Told(MetadataError::Unavailable(format!(
            "`{}` was written by a newer version of Ferroflow; use that version",
            path.display()
        ))));
    }
    if found == 0 {
        transaction.execute_batch(TABLES)?;
    } else {
        for change in &CHANGES[usize::try_from(found - 1).unwrap_or(0)..] {
            transaction.execute_batch(change)?;
        }
    }
    transaction.pragma_update(None, "user_version", VERSION)?;
    transaction.commit()?;
    Ok(())
}

fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("PRAGMA user_version", [], |row| row.get(0))
}

/// WAL needs memory shared by all processes that use the file, which network file systems do not
/// give. FUSE may be anything, so it counts as network.
#[cfg(target_os = "linux")]
fn is_on_network(path: &Path) -> bool {
    const NFS: i64 = 0x6969;
    const SMB: i64 = 0x517b;
    const SMB2: i64 = 0xfe53_4d42;
    const CIFS: i64 = 0xff53_4d42;
    const FUSE: i64 = 0x6573_5546;
    const NINE_P: i64 = 0x0102_1997;
    const CEPH: i64 = 0x00c3_6400;
    const LUSTRE: i64 = 0x0bd0_0bd0;
    const GPFS: i64 = 0x4750_4653;
    const AFS: i64 = 0x5346_414f;
    let folder = path.parent().unwrap_or(path);
    rustix::fs::statfs(folder).is_ok_and(|found| {
        // Signed, and of another width on some machines.
        #[allow(clippy::unnecessary_cast)]
        let kind = found.f_type as i64 & 0xffff_ffff;
        [NFS, SMB, SMB2, CIFS, FUSE, NINE_P, CEPH, LUSTRE, GPFS, AFS].contains(&kind)
    })
}

#[cfg(not(target_os = "linux"))]
fn is_on_network(_path: &Path) -> bool {
    false
}
