//! What readers see: rows as they are, except that nothing is shown as running whose engine is
//! gone.

use std::collections::hash_map::Entry;

use ferroflow_core::id::{RunId, StepName, TaskId};
use ferroflow_core::metadata::{DataRef, EngineIdentity, MetadataEntry, RunRow, RunState, TaskRecord, TaskRow};
use ferroflow_core::task::{Cause, CauseKind, Millis, Usage};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::write::{find_run_key, run_number, state_of, strange};
use super::{Keys, Trouble, no_such_run};
use crate::identity::why_gone;

/// A step of a run that has tasks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StepRow {
    pub step: StepName,
    /// When its first task was created.
    pub created_at: Millis,
}

const RUN_COLUMNS: &str = "SELECT name, run, user, tags, system_tags, state, cause, created_at, finished_at,
    heartbeat_at, origin_run, graphs.text, host, pid, pid_start, store
    FROM runs JOIN flows USING (flow_key) JOIN graphs USING (graph_key)";

pub(super) fn flows(database: &Connection) -> Result<Vec<String>, Trouble> {
    let mut statement = database.prepare_cached("SELECT name FROM flows ORDER BY name")?;
    let names = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    Ok(names)
}

pub(super) fn run(database: &Connection, flow: &str, run: &RunId, now: Millis) -> Result<Option<RunRow>, Trouble> {
    let Some(number) = run_number(run) else { return Ok(None) };
    let mut statement = database.prepare_cached(&format!("{RUN_COLUMNS} WHERE name = ?1 AND run = ?2"))?;
    let raw = statement.query_row(params![flow, number], raw_run).optional()?;
    raw.map(|raw| raw.finish(now)).transpose()
}

pub(super) fn runs(database: &Connection, flow: &str, now: Millis) -> Result<Vec<RunRow>, Trouble> {
    let mut statement = database.prepare_cached(&format!("{RUN_COLUMNS} WHERE name = ?1 ORDER BY run DESC"))?;
    let rows = statement.query_map([flow], raw_run)?;
    rows.map(|raw| raw?.finish(now)).collect()
}

struct RawRun {
    row: RunRow,
    tags: String,
    system_tags: String,
    state: String,
    cause: Option<String>,
    store: Option<String>,
}

fn raw_run(row: &Row<'_>) -> rusqlite::Result<RawRun> {
    Ok(RawRun {
        tags: row.get(3)?,
        system_tags: row.get(4)?,
        state: row.get(5)?,
        cause: row.get(6)?,
        store: row.get(15)?,
        row: RunRow {
            flow: row.get(0)?,
            run: RunId::from(row.get::<_, i64>(1)?.to_string()),
            user: row.get(2)?,
            tags: Vec::new(),
            system_tags: Vec::new(),
            state: RunState::Running,
            cause: None,
            created_at: row.get(7)?,
            finished_at: row.get(8)?,
            heartbeat_at: row.get(9)?,
            origin_run: row.get::<_, Option<String>>(10)?.map(RunId::from),
            graph: row.get(11)?,
            engine: EngineIdentity {
                host: row.get(12)?,
                pid: row.get(13)?,
                pid_start: row.get::<_, i64>(14)?.cast_unsigned(),
            },
            store: None,
        },
    })
}

impl RawRun {
    fn finish(self, now: Millis) -> Result<RunRow, Trouble> {
        let mut row = self.row;
        row.tags = parse(&self.tags, "a list of tags")?;
        row.system_tags = parse(&self.system_tags, "a list of tags")?;
        row.state = parse(&format!("\"{}\"", self.state), "the state of a run")?;
        row.cause = self.cause.map(|cause| parse(&cause, "the cause of a run's end")).transpose()?;
        row.store = self.store.map(|store| parse(&store, "where a run's data is")).transpose()?;
        if row.state == RunState::Running
            && let Some(text) = why_gone(&row.engine, row.heartbeat_at, now)
        {
            row.state = RunState::Lost;
            row.cause = Some(Cause::new(CauseKind::EngineLost, text));
        }
        Ok(row)
    }
}

fn parse<T: DeserializeOwned>(text: &str, what: &str) -> Result<T, Trouble> {
    serde_json::from_str(text).map_err(|_| strange(what).into())
}

/// Why unfinished attempts of a run do not run; `None` while its engine lives.
fn why_lost(run: &RunRow) -> Option<Cause> {
    match run.state {
        RunState::Running => None,
        RunState::Lost if run.cause.is_some() => run.cause.clone(),
        _ => Some(Cause::new(CauseKind::EngineLost, "the run ended before this attempt did")),
    }
}

const TASK_COLUMNS: &str = "SELECT task, attempt, step_key, state, cause, foreach_path, iteration, num_splits,
    targets_key, created_at, started_at, finished_at, ok, success, cpu_seconds, peak_memory, pid, layer_key, data,
    origin FROM tasks";

pub(super) fn tasks(
    database: &Connection,
    keys: &mut Keys,
    flow: &str,
    run_id: &RunId,
    step: Option<&str>,
    now: Millis,
) -> Result<Vec<TaskRow>, Trouble> {
    let wanted = match step {
        None => None,
        Some(step) => match find_name(database, step)? {
            Some(key) => Some(key),
            None => return Ok(Vec::new()),
        },
    };
    let filter = if wanted.is_some() { "AND step_key = ?2" } else { "AND ?2 IS NULL" };
    let sql = format!("{TASK_COLUMNS} WHERE run_key = ?1 {filter} ORDER BY task, attempt");
    let mut latest: Vec<TaskRow> = Vec::new();
    for row in read_tasks(database, keys, flow, run_id, &sql, wanted, now)? {
        match latest.last_mut() {
            Some(last) if last.record.task == row.record.task => *last = row,
            _ => latest.push(row),
        }
    }
    Ok(latest)
}

pub(super) fn attempts(
    database: &Connection,
    keys: &mut Keys,
    flow: &str,
    run_id: &RunId,
    task: TaskId,
    now: Millis,
) -> Result<Vec<TaskRow>, Trouble> {
    let sql = format!("{TASK_COLUMNS} WHERE run_key = ?1 AND task = ?2 ORDER BY attempt");
    read_tasks(database, keys, flow, run_id, &sql, Some(task.0.cast_signed()), now)
}

fn read_tasks(
    database: &Connection,
    keys: &mut Keys,
    flow: &str,
    run_id: &RunId,
    sql: &str,
    second: Option<i64>,
    now: Millis,
) -> Result<Vec<TaskRow>, Trouble> {
    // The run first: if its engine ends in between, its last words are in the tasks.
    let run_row = run(database, flow, run_id, now)?.ok_or_else(|| no_such_run(flow, run_id))?;
    let run_key = find_run_key(database, flow, run_id)?.ok_or_else(|| no_such_run(flow, run_id))?;
    let lost = why_lost(&run_row);
    let mut statement = database.prepare_cached(sql)?;
    let mut rows = statement.query(params![run_key, second])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let mut record = task_record(database, keys, row)?;
        if let Some(cause) = lost.as_ref().filter(|_| !record.state.is_final()) {
            record.state = ferroflow_core::task::AttemptState::Lost;
            record.cause = Some(cause.clone());
        }
        found.push(TaskRow { run: run_id.clone(), record });
    }
    Ok(found)
}

fn task_record(database: &Connection, keys: &mut Keys, row: &Row<'_>) -> Result<TaskRecord, Trouble> {
    let cpu_seconds: Option<f64> = row.get(14)?;
    let peak_memory: Option<i64> = row.get(15)?;
    let targets: Option<i64> = row.get(8)?;
    let targets = match targets {
        None => Vec::new(),
        Some(key) => text_of(database, keys, key)?.split(',').map(StepName::from).collect(),
    };
    Ok(TaskRecord {
        step: StepName::from(text_of(database, keys, row.get(2)?)?),
        task: TaskId(row.get::<_, i64>(0)?.cast_unsigned()),
        attempt: row.get(1)?,
        state: state_of(row.get(3)?).ok_or_else(|| strange("the state of a task"))?,
        cause: row.get::<_, Option<String>>(4)?.map(|text| parse(&text, "the cause of a task's end")).transpose()?,
        foreach_path: foreach_path(row.get(5)?)?,
        iteration: row.get(6)?,
        num_splits: row.get::<_, Option<i64>>(7)?.map(i64::cast_unsigned),
        targets,
        created_at: row.get(9)?,
        started_at: row.get(10)?,
        finished_at: row.get(11)?,
        ok: row.get(12)?,
        success: row.get(13)?,
        usage: cpu_seconds
            .map(|cpu_seconds| Usage { cpu_seconds, peak_memory: peak_memory.unwrap_or(0).cast_unsigned() }),
        pid: row.get(16)?,
        layer: text_of(database, keys, row.get(17)?)?.to_owned(),
        data: data_ref(row.get(18)?)?,
        origin: data_ref(row.get(19)?)?,
    })
}

fn text_of<'a>(database: &Connection, keys: &'a mut Keys, key: i64) -> Result<&'a str, Trouble> {
    match keys.texts.entry(key) {
        Entry::Occupied(known) => Ok(known.into_mut()),
        Entry::Vacant(place) => {
            let text = database
                .prepare_cached("SELECT text FROM names WHERE name_key = ?1")?
                .query_row([key], |row| row.get::<_, String>(0))
                .optional()?
                .ok_or_else(|| strange("a name"))?;
            Ok(place.insert(text))
        }
    }
}

fn find_name(database: &Connection, text: &str) -> rusqlite::Result<Option<i64>> {
    database
        .prepare_cached("SELECT name_key FROM names WHERE text = ?1")?
        .query_row([text], |row| row.get(0))
        .optional()
}

fn foreach_path(text: Option<String>) -> Result<Vec<u64>, Trouble> {
    let Some(text) = text else { return Ok(Vec::new()) };
    text.split(',').map(|part| part.parse().map_err(|_| strange("a foreach path").into())).collect()
}

fn data_ref(text: Option<String>) -> Result<Option<DataRef>, Trouble> {
    let Some(text) = text else { return Ok(None) };
    let mut parts = text.rsplitn(3, '/');
    let attempt = parts.next().and_then(|part| part.parse().ok());
    let task = parts.next().and_then(|part| part.parse().ok());
    match (parts.next(), task, attempt) {
        (Some(run), Some(task), Some(attempt)) => {
            Ok(Some(DataRef { run: RunId::from(run), task: TaskId(task), attempt }))
        }
        _ => Err(strange("the origin of a task").into()),
    }
}

pub(super) fn steps(database: &Connection, flow: &str, run: &RunId) -> Result<Vec<StepRow>, Trouble> {
    let run_key = find_run_key(database, flow, run)?.ok_or_else(|| no_such_run(flow, run))?;
    let mut statement = database.prepare_cached(
        "SELECT text, min(created_at), min(task) FROM tasks JOIN names ON name_key = step_key
         WHERE run_key = ?1 GROUP BY step_key ORDER BY 2 DESC, 3 DESC",
    )?;
    let rows = statement
        .query_map([run_key], |row| {
            Ok(StepRow { step: StepName::from(row.get::<_, String>(0)?), created_at: row.get(1)? })
        })?
        .collect::<Result<_, _>>()?;
    Ok(rows)
}

pub(super) fn entries(
    database: &Connection,
    flow: &str,
    run: &RunId,
    task: TaskId,
) -> Result<Vec<MetadataEntry>, Trouble> {
    let run_key = find_run_key(database, flow, run)?.ok_or_else(|| no_such_run(flow, run))?;
    let mut statement = database.prepare_cached(
        "SELECT steps.text, attempt, named.text, value, types.text, created_at FROM entries
         JOIN names steps ON steps.name_key = step_key
         JOIN names named ON named.name_key = entries.name_key
         JOIN names types ON types.name_key = type_key
         WHERE run_key = ?1 AND task = ?2 ORDER BY entries.rowid",
    )?;
    let rows = statement
        .query_map(params![run_key, task.0.cast_signed()], |row| {
            Ok(MetadataEntry {
                step: StepName::from(row.get::<_, String>(0)?),
                task,
                attempt: row.get(1)?,
                name: row.get(2)?,
                value: row.get(3)?,
                entry_type: row.get(4)?,
                created_at: row.get(5)?,
            })
        })?
        .collect::<Result<_, _>>()?;
    Ok(rows)
}
