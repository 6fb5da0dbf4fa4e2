//! Who holds a run (design D9): an engine that goes on with what another left behind takes that run's
//! epoch, in the transaction that registers its own run; from then on the other may not write.

use ferroflow_core::id::RunId;
use ferroflow_core::metadata::{RunRow, RunState};
use ferroflow_core::port::MetadataError;
use ferroflow_core::task::{Cause, CauseKind, Millis};
use rusqlite::{Connection, OptionalExtension, params};

use super::write::{find_run_key, json, state_name};
use super::{Keys, Trouble, no_such_run, read};
use crate::identity::why_silent;

/// Takes a run over for run `by`, unless an engine still carries it, or its tasks, out.
pub(super) fn take(database: &Connection, flow: &str, run: &RunId, by: &RunId, now: Millis) -> Result<(), Trouble> {
    let run_key = find_run_key(database, flow, run)?.ok_or_else(|| no_such_run(flow, run))?;
    let row = read::run(database, flow, run, now)?.ok_or_else(|| no_such_run(flow, run))?;
    if let Some(text) = still_running(&row, now) {
        return Err(MetadataError::TakenOver(format!("run {run} is still carried out{text}")).into());
    }
    if let Some(other) = taken_by(database, run_key)?
        && let Some(text) = read::run(database, flow, &other, now)?.and_then(|row| still_running(&row, now))
    {
        let text = format!("the tasks of run {run} were taken over by run {other}, which is still carried out{text}");
        return Err(MetadataError::TakenOver(text).into());
    }
    database
        .prepare_cached("UPDATE runs SET epoch = epoch + 1, taken_by = ?2 WHERE run_key = ?1")?
        .execute(params![run_key, by.as_str()])?;
    let cause =
        Cause::new(CauseKind::EngineLost, format!("its engine did not answer any more; run {by} went on with it"));
    database
        .prepare_cached("UPDATE runs SET state = ?2, cause = ?3, finished_at = ?4 WHERE run_key = ?1 AND state = ?5")?
        .execute(params![run_key, state_name(RunState::Lost), json(&cause), now, state_name(RunState::Running)])?;
    Ok(())
}

/// The rest of a sentence that says who carries it out; nothing when nobody does.
fn still_running(row: &RunRow, now: Millis) -> Option<String> {
    if row.state != RunState::Running || why_silent(&row.engine, row.heartbeat_at, now).is_some() {
        return None;
    }
    let (pid, seconds) = (row.engine.pid, (now - row.heartbeat_at).max(0) / 1000);
    Some(format!(
        " by its engine (process {pid}, heard of {seconds} seconds ago): wait until it has ended, or stop it (kill -INT \
         {pid}), and resume then"
    ))
}

fn taken_by(database: &Connection, run_key: i64) -> Result<Option<RunId>, Trouble> {
    let by: Option<String> = database
        .prepare_cached("SELECT taken_by FROM runs WHERE run_key = ?1")?
        .query_row([run_key], |row| row.get(0))?;
    Ok(by.map(RunId::from))
}

/// Refuses a write to a run that was registered here and taken over since.
pub(super) fn check(database: &Connection, keys: &Keys, run_key: i64, run: &RunId) -> Result<(), Trouble> {
    let Some(held) = keys.held.get(&run_key) else { return Ok(()) };
    let found: Option<(i64, Option<String>)> = database
        .prepare_cached("SELECT epoch, taken_by FROM runs WHERE run_key = ?1")?
        .query_row([run_key], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    match found {
        Some((epoch, by)) if epoch != *held => {
            let by = by.map_or_else(|| "another engine".to_owned(), |by| format!("run {by}"));
            Err(MetadataError::TakenOver(format!(
                "run {run} was taken over by {by} while this engine did not answer (it was stopped, or its machine slept)"
            ))
            .into())
        }
        _ => Ok(()),
    }
}
