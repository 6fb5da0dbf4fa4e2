//! What clients read: rows of the metadata store and logs under one root, and the metadata
//! entries that need not be stored because they follow from a task's row and its run.

use ferroflow_core::id::{PARAMETERS_STEP, RunId, TaskId};
use ferroflow_core::ir;
use ferroflow_core::metadata::{MetadataEntry, RunRow, TaskRow};
use ferroflow_core::port::{LogLine, LogPlace, LogStore, MetadataError};
use ferroflow_core::task::Millis;

use crate::location::Datastore;
use crate::log::FileLogStore;
use crate::sqlite::SqliteMetadata;

/// A datastore root as clients see it. A root without runs reads as empty.
#[derive(Debug)]
pub struct Reader {
    store: Datastore,
    metadata: std::sync::OnceLock<SqliteMetadata>,
    logs: FileLogStore,
}

impl Reader {
    pub fn new(root: impl Into<std::path::PathBuf>) -> Self {
        let store = Datastore::new(root);
        let logs = FileLogStore::new(store.clone());
        Self { store, metadata: std::sync::OnceLock::new(), logs }
    }

    /// The metadata, once there is any: looking must not create a database.
    pub fn metadata(&self) -> Result<Option<&SqliteMetadata>, MetadataError> {
        if self.metadata.get().is_none()
            && let Some(opened) = SqliteMetadata::open_existing(self.store.root())?
        {
            // Another thread may have been faster; either will do.
            let _ = self.metadata.set(opened);
        }
        Ok(self.metadata.get())
    }

    pub fn logs(&self, place: &LogPlace) -> Result<Vec<LogLine>, MetadataError> {
        self.logs.read(place)
    }

    /// All metadata entries of a task, derived and stored, of all its attempts.
    pub fn task_metadata(&self, flow: &str, run: &RunId, task: TaskId) -> Result<Vec<MetadataEntry>, MetadataError> {
        let Some(metadata) = self.metadata()? else { return Ok(Vec::new()) };
        let Some(run_row) = metadata.find_run(flow, run)? else { return Ok(Vec::new()) };
        let root = self.store.root().to_string_lossy();
        let mut entries = Vec::new();
        for attempt in metadata.attempts(flow, run, task)? {
            entries.extend(task_metadata(&run_row, &attempt, &root));
        }
        entries.extend(metadata.entries(flow, run, task)?);
        Ok(entries)
    }
}

/// The entries that follow from a run and one of its attempts.
pub fn task_metadata(run: &RunRow, row: &TaskRow, root: &str) -> Vec<MetadataEntry> {
    let record = &row.record;
    let mut list = Entries { row, entries: Vec::new() };
    let started = record.started_at.unwrap_or(record.created_at);
    list.add("attempt", record.attempt.to_string(), started);
    let origin = run.origin_run.as_ref().map_or("None", RunId::as_str);
    list.add("origin-run-id", origin.to_owned(), started);
    if let Some(origin) = &record.origin {
        list.add("origin-task-id", origin.task.to_string(), started);
    }
    let (kind, root) = run.store.as_ref().map_or(("local", root), |store| (store.kind.as_str(), store.root.as_str()));
    list.add("ds-type", kind.to_owned(), started);
    list.add("ds-root", root.to_owned(), started);
    for tag in &run.system_tags {
        if let Some((name, value)) = tag.split_once(':')
            && KEPT_TAGS.contains(&name)
        {
            list.add(name, value.to_owned(), started);
        }
    }
    add_from_graph(&mut list, run, started);
    if let (Some(ok), Some(finished)) = (record.ok, record.finished_at) {
        list.add("attempt_ok", if ok { "True" } else { "False" }.to_owned(), finished);
        list.add("attempt-done", record.attempt.to_string(), finished);
    }
    list.entries
}

/// System tags that are metadata of each task as well.
const KEPT_TAGS: [&str; 7] =
    ["user", "production", "runtime", "python_version", "metaflow_version", "r_version", "metaflow_r_version"];

struct Entries<'a> {
    row: &'a TaskRow,
    entries: Vec<MetadataEntry>,
}

impl Entries<'_> {
    fn add(&mut self, name: &str, value: String, created_at: Millis) {
        let record = &self.row.record;
        self.entries.push(MetadataEntry {
            step: record.step.clone(),
            task: record.task,
            attempt: record.attempt,
            name: name.to_owned(),
            value,
            entry_type: name.to_owned(),
            created_at,
        });
    }
}

fn add_from_graph(list: &mut Entries<'_>, run: &RunRow, at: Millis) {
    let Ok(flow) = serde_json::from_str::<ir::Flow>(&run.graph) else { return };
    let file = flow.file.rsplit('/').next().unwrap_or(&flow.file);
    list.add("script-name", file.to_owned(), at);
    let record = &list.row.record;
    if record.step.as_str() == PARAMETERS_STEP {
        for (name, step) in [("start_step", start_step(&flow)), ("end_step", end_step(&flow))] {
            if let Some(step) = step {
                list.add(name, step, at);
            }
        }
        return;
    }
    if record.foreach_path.is_empty() {
        return;
    }
    if let Some(stack) = foreach_steps(&flow, record.step.as_str()) {
        let parts: Vec<String> =
            stack.iter().zip(&record.foreach_path).map(|(step, index)| format!("{step}:{index}")).collect();
        list.add("foreach-stack", parts.join(","), at);
        list.add("foreach-execution-path", parts.join(","), at);
    }
}

fn start_step(flow: &ir::Flow) -> Option<String> {
    let marked = flow.steps.iter().find(|step| step.is_start);
    marked.or_else(|| flow.steps.iter().find(|step| step.name == "start")).map(|step| step.name.clone())
}

fn end_step(flow: &ir::Flow) -> Option<String> {
    let marked = flow.steps.iter().find(|step| step.is_end);
    marked.or_else(|| flow.steps.iter().find(|step| step.name == "end")).map(|step| step.name.clone())
}

/// The steps whose foreach `wanted` is inside of, outermost first.
fn foreach_steps(flow: &ir::Flow, wanted: &str) -> Option<Vec<String>> {
    // Each open split on the way to a step, and whether it is a foreach.
    type Splits = Vec<(String, bool)>;
    let mut known: Vec<(String, Splits)> = vec![(start_step(flow)?, Vec::new())];
    let mut next = 0;
    while let Some((name, splits)) = known.get(next).cloned() {
        next += 1;
        if name == wanted {
            return Some(splits.into_iter().filter(|(_, foreach)| *foreach).map(|(step, _)| step).collect());
        }
        let Some(transition) =
            flow.steps.iter().find(|step| step.name == name).and_then(|step| step.transition.as_ref())
        else {
            continue;
        };
        let mut inside = splits;
        match transition {
            ir::Transition::Foreach { .. } | ir::Transition::Parallel { .. } => inside.push((name, true)),
            ir::Transition::Split { .. } => inside.push((name, false)),
            _ => {}
        }
        for target in transition.targets() {
            if known.iter().any(|(seen, _)| seen == target) {
                continue;
            }
            let mut own = inside.clone();
            if flow.steps.iter().any(|step| step.name == target && step.arguments == 2) {
                own.pop();
            }
            known.push((target.to_owned(), own));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(text: serde_json::Value) -> ir::Flow {
        serde_json::from_value(text).expect("a flow")
    }

    #[test]
    fn finds_the_foreach_around_a_step() {
        let step = |name: &str, arguments: u32, transition: serde_json::Value| serde_json::json!({"name": name, "file": "f.py", "line": 1, "arguments": arguments, "transition": transition});
        let linear = |target: &str| serde_json::json!({"kind": "linear", "target": target, "line": 1});
        let foreach =
            |target: &str| serde_json::json!({"kind": "foreach", "target": target, "variable": "x", "line": 1});
        let flow = flow(serde_json::json!({"name": "F", "file": "/a/f.py", "steps": [
            step("start", 1, foreach("outer")),
            step("outer", 1, serde_json::json!({"kind": "split", "targets": ["left", "right"], "line": 1})),
            step("left", 1, foreach("inner")),
            step("inner", 1, linear("inner_join")),
            step("inner_join", 2, linear("joined")),
            step("right", 1, linear("joined")),
            step("joined", 2, linear("close")),
            step("close", 2, linear("end")),
            step("end", 1, serde_json::Value::Null),
        ]}));
        let of = |step: &str| foreach_steps(&flow, step).expect("reachable");
        assert_eq!(of("start"), [""; 0]);
        assert_eq!(of("right"), ["start"]);
        assert_eq!(of("inner"), ["start", "left"]);
        assert_eq!(of("inner_join"), ["start"]);
        assert_eq!(of("joined"), ["start"]);
        assert_eq!(of("close"), [""; 0]);
        assert_eq!(of("end"), [""; 0]);
    }
}
