//! The rules of tags: user tags are few and short, system tags do not change.

use ferroflow_core::id::RunId;
use ferroflow_core::port::MetadataError;
use rusqlite::{Connection, params};

use super::write::{json, run_key, sorted};
use super::{Keys, Trouble};

const LONGEST: usize = 500;
const MOST: usize = 50;

/// Checks the user tags of a new run.
pub(super) fn check(tags: &[String], system_tags: &[String]) -> Result<(), MetadataError> {
    check_each(tags)?;
    let own = sorted(tags).into_iter().filter(|tag| !system_tags.contains(tag)).count();
    if own > MOST { Err(too_many(own)) } else { Ok(()) }
}

/// Removes, then adds; returns the user tags after it.
pub(super) fn mutate(
    database: &Connection,
    keys: &mut Keys,
    flow: &str,
    run: &RunId,
    add: &[String],
    remove: &[String],
) -> Result<Vec<String>, Trouble> {
    check_each(add)?;
    check_each(remove)?;
    let run_key = run_key(database, keys, flow, run)?;
    let (tags, system_tags): (String, String) =
        database.query_row("SELECT tags, system_tags FROM runs WHERE run_key = ?1", [run_key], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?;
    let before: Vec<String> = parse(&tags)?;
    let system: Vec<String> = parse(&system_tags)?;
    if let Some(tag) = remove.iter().find(|tag| system.contains(tag)) {
        return Err(MetadataError::Refused(format!(
            "`{tag}` is a system tag of run `{flow}/{run}`; system tags cannot be removed"
        ))
        .into());
    }
    let mut after: Vec<String> = before.iter().filter(|tag| !remove.contains(tag)).cloned().collect();
    after.extend(add.iter().filter(|tag| !system.contains(tag)).cloned());
    after.sort();
    after.dedup();
    // Runs that somehow have too many may always lose some.
    if after.len() > MOST && after.len() >= before.len() {
        return Err(too_many(after.len()).into());
    }
    if after != before {
        database.execute("UPDATE runs SET tags = ?2 WHERE run_key = ?1", params![run_key, json(&after)])?;
    }
    Ok(after)
}

fn parse(text: &str) -> Result<Vec<String>, MetadataError> {
    serde_json::from_str(text).map_err(|_| super::write::strange("a list of tags"))
}

fn check_each(tags: &[String]) -> Result<(), MetadataError> {
    for tag in tags {
        if tag.is_empty() {
            return Err(MetadataError::Refused("a tag must not be empty".to_owned()));
        }
        let length = tag.chars().count();
        if length > LONGEST {
            let start: String = tag.chars().take(20).collect();
            return Err(MetadataError::Refused(format!(
                "the tag `{start}…` has {length} characters; at most {LONGEST} are allowed"
            )));
        }
    }
    Ok(())
}

fn too_many(count: usize) -> MetadataError {
    MetadataError::Refused(format!(
        "a run can have at most {MOST} user tags, this would make {count}; remove some first"
    ))
}
