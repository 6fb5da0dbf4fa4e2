//! What an engine writes: runs, attempts, entries. Everything here runs inside a transaction.

use ferroflow_core::id::{RunId, StepName};
use ferroflow_core::metadata::{DataRef, MetadataEntry, NewRun, Record, RunState, TaskRecord};
use ferroflow_core::port::MetadataError;
use ferroflow_core::task::{AttemptState, Cause, Millis};
use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;

use super::{Keys, Trouble, no_such_run, takeover};

pub(super) fn create_run(database: &Connection, keys: &mut Keys, run: &NewRun) -> Result<RunId, Trouble> {
    let (flow_key, number): (i64, i64) = database.query_row(
        "INSERT INTO flows (name, last_run) VALUES (?1, 1)
         ON CONFLICT (name) DO UPDATE SET last_run = last_run + 1
         RETURNING flow_key, last_run",
        [&run.flow],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    let graph_key = graph_key(database, &run.graph)?;
    database
        .prepare_cached(
            "INSERT INTO runs (flow_key, run, user, tags, system_tags, state, created_at, heartbeat_at,
                               origin_run, graph_key, host, pid, pid_start, store)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
        )?
        .execute(params![
            flow_key,
            number,
            run.user,
            json(&own_tags(run)),
            json(&sorted(&run.system_tags)),
            state_name(RunState::Running),
            run.created_at,
            run.origin_run.as_ref().map(RunId::as_str),
            graph_key,
            run.engine.host,
            run.engine.pid,
            run.engine.pid_start.cast_signed(),
            run.store.as_ref().map(json),
        ])?;
    let id = RunId::from(number.to_string());
    let run_key = database.last_insert_rowid();
    keys.runs.insert((run.flow.clone(), id.to_string()), run_key);
    keys.held.insert(run_key, 1);
    Ok(id)
}

fn graph_key(database: &Connection, text: &str) -> Result<i64, Trouble> {
    let hash = blake3::hash(text.as_bytes());
    let hash: &[u8] = hash.as_bytes();
    let known =
        database.query_row("SELECT graph_key FROM graphs WHERE hash = ?1", [hash], |row| row.get(0)).optional()?;
    if let Some(key) = known {
        return Ok(key);
    }
    database.execute("INSERT INTO graphs (hash, text) VALUES (?1, ?2)", params![hash, text])?;
    Ok(database.last_insert_rowid())
}

/// A user tag that is a system tag too is only that.
fn own_tags(run: &NewRun) -> Vec<&String> {
    sorted(&run.tags).into_iter().filter(|tag| !run.system_tags.contains(tag)).collect()
}

/// Tags without repetitions, in order.
pub(super) fn sorted(tags: &[String]) -> Vec<&String> {
    let mut sorted: Vec<&String> = tags.iter().collect();
    sorted.sort();
    sorted.dedup();
    sorted
}

pub(super) fn record(
    database: &Connection,
    keys: &mut Keys,
    flow: &str,
    run: &RunId,
    records: &[Record],
) -> Result<(), Trouble> {
    let run_key = run_key(database, keys, flow, run)?;
    takeover::check(database, keys, run_key, run)?;
    for record in records {
        match record {
            Record::Task(task) => put_task(database, keys, run_key, task)?,
            Record::Metadata(entry) => add_entry(database, keys, run_key, entry)?,
            Record::RunState { state, cause, at } => set_run_state(database, run_key, *state, cause.as_ref(), *at)?,
        }
    }
    Ok(())
}

pub(super) fn heartbeat(
    database: &Connection,
    keys: &mut Keys,
    flow: &str,
    run: &RunId,
    at: Millis,
) -> Result<(), Trouble> {
    let run_key = run_key(database, keys, flow, run)?;
    takeover::check(database, keys, run_key, run)?;
    database
        .prepare_cached("UPDATE runs SET heartbeat_at = max(heartbeat_at, ?2) WHERE run_key = ?1")?
        .execute(params![run_key, at])?;
    Ok(())
}

pub(super) fn run_key(database: &Connection, keys: &mut Keys, flow: &str, run: &RunId) -> Result<i64, Trouble> {
    let place = (flow.to_owned(), run.to_string());
    if let Some(key) = keys.runs.get(&place) {
        return Ok(*key);
    }
    let key = find_run_key(database, flow, run)?.ok_or_else(|| no_such_run(flow, run))?;
    keys.runs.insert(place, key);
    Ok(key)
}

pub(super) fn find_run_key(database: &Connection, flow: &str, run: &RunId) -> rusqlite::Result<Option<i64>> {
    let Some(number) = run_number(run) else { return Ok(None) };
    database
        .prepare_cached("SELECT run_key FROM runs JOIN flows USING (flow_key) WHERE name = ?1 AND run = ?2")?
        .query_row(params![flow, number], |row| row.get(0))
        .optional()
}

/// `007` and `+7` are not run `7`.
pub(super) fn run_number(run: &RunId) -> Option<i64> {
    run.as_str().parse::<i64>().ok().filter(|number| number.to_string() == run.as_str())
}

fn put_task(database: &Connection, keys: &mut Keys, run_key: i64, task: &TaskRecord) -> Result<(), Trouble> {
    let step = name_key(database, keys, task.step.as_str())?;
    let layer = name_key(database, keys, &task.layer)?;
    let targets = match task.targets.as_slice() {
        [] => None,
        targets => Some(name_key(database, keys, &joined(targets))?),
    };
    database
        .prepare_cached(
            "INSERT OR REPLACE INTO tasks VALUES
             (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21)",
        )?
        .execute(params![
            run_key,
            signed(task.task.0),
            task.attempt,
            step,
            state_number(task.state),
            task.cause.as_ref().map(json),
            path_text(&task.foreach_path),
            task.iteration,
            task.num_splits.map(signed),
            targets,
            task.created_at,
            task.started_at,
            task.finished_at,
            task.ok,
            task.success,
            task.usage.map(|usage| usage.cpu_seconds),
            task.usage.map(|usage| signed(usage.peak_memory)),
            task.pid,
            layer,
            task.data.as_ref().map(reference_text),
            task.origin.as_ref().map(reference_text),
        ])?;
    Ok(())
}

fn add_entry(database: &Connection, keys: &mut Keys, run_key: i64, entry: &MetadataEntry) -> Result<(), Trouble> {
    let step = name_key(database, keys, entry.step.as_str())?;
    let name = name_key(database, keys, &entry.name)?;
    let entry_type = name_key(database, keys, &entry.entry_type)?;
    database.prepare_cached("INSERT INTO entries VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")?.execute(params![
        run_key,
        signed(entry.task.0),
        entry.attempt,
        step,
        name,
        entry_type,
        entry.value,
        entry.created_at,
    ])?;
    Ok(())
}

fn set_run_state(
    database: &Connection,
    run_key: i64,
    state: RunState,
    cause: Option<&Cause>,
    at: Millis,
) -> Result<(), Trouble> {
    let finished = (state != RunState::Running).then_some(at);
    database
        .prepare_cached(
            "UPDATE runs SET state = ?2, cause = ?3, finished_at = ?4, heartbeat_at = max(heartbeat_at, ?5)
             WHERE run_key = ?1",
        )?
        .execute(params![run_key, state_name(state), cause.map(json), finished, at])?;
    Ok(())
}

fn name_key(database: &Connection, keys: &mut Keys, text: &str) -> Result<i64, Trouble> {
    if let Some(key) = keys.names.get(text) {
        return Ok(*key);
    }
    let key = database
        .prepare_cached(
            "INSERT INTO names (text) VALUES (?1) ON CONFLICT (text) DO UPDATE SET text = text RETURNING name_key",
        )?
        .query_row([text], |row| row.get(0))?;
    keys.names.insert(text.to_owned(), key);
    Ok(key)
}

fn joined(steps: &[StepName]) -> String {
    steps.iter().map(StepName::as_str).collect::<Vec<_>>().join(",")
}

fn path_text(path: &[u64]) -> Option<String> {
    (!path.is_empty()).then(|| path.iter().map(u64::to_string).collect::<Vec<_>>().join(","))
}

fn reference_text(reference: &DataRef) -> String {
    format!("{}/{}/{}", reference.run, reference.task, reference.attempt)
}

/// SQLite's integers are signed; ids never come near the border.
fn signed(number: u64) -> i64 {
    number.cast_signed()
}

pub(super) fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("plain data")
}

pub(super) fn state_name(state: RunState) -> &'static str {
    match state {
        RunState::Running => "running",
        RunState::Done => "done",
        RunState::Failed => "failed",
        RunState::Cancelled => "cancelled",
        RunState::Lost => "lost",
    }
}

/// Numbers in the database; never renumber.
const STATES: [AttemptState; 9] = [
    AttemptState::Queued,
    AttemptState::Waiting,
    AttemptState::Starting,
    AttemptState::Running,
    AttemptState::Finishing,
    AttemptState::Done,
    AttemptState::Failed,
    AttemptState::Cancelled,
    AttemptState::Lost,
];

fn state_number(state: AttemptState) -> i64 {
    STATES.iter().position(|known| *known == state).expect("every state is listed") as i64
}

pub(super) fn state_of(number: i64) -> Option<AttemptState> {
    STATES.get(usize::try_from(number).ok()?).copied()
}

/// The error of a value that no version of ours wrote.
pub(super) fn strange(what: &str) -> MetadataError {
    MetadataError::Unavailable(format!("the run metadata is damaged: {what} is not readable"))
}
