//! What a user who resumes a run may not have thought of: a later run that got further, and a layer
//! that the origin's steps ran on and these do not. Remarks only; what is resumed is not changed.

use std::collections::{BTreeMap, BTreeSet};

use ferroflow_core::graph::Graph;
use ferroflow_core::id::RunId;
use ferroflow_core::metadata::{RunRow, RunState, TaskRow};

use crate::adoption::LOCAL;

/// Of the folder's latest run, which a resume goes on from when no run is named. `runs` are all, newest
/// first.
pub fn got_further(runs: &[RunRow], origin: &RunId) -> Option<String> {
    let origins: BTreeMap<&RunId, &RunId> =
        runs.iter().filter_map(|row| Some((&row.run, row.origin_run.as_ref()?))).collect();
    let goes_back = |run: &RunId| {
        let ancestors = std::iter::successors(Some(run), |run| origins.get(run).copied());
        ancestors.skip(1).take(runs.len()).any(|ancestor| ancestor == origin)
    };
    let is_unfinished = |row: &&RunRow| !matches!(row.state, RunState::Done | RunState::Running);
    let later = runs.iter().filter(is_unfinished).find(|row| goes_back(&row.run))?;
    Some(format!(
        "This resumes run {origin}, the last one that `run` started. Run {0} resumed it too and may have got further: to \
         go on from there, add --origin-run-id {0}.",
        later.run
    ))
}

/// Layers that tasks of the origin ran on and that no step of this flow asks for now.
pub fn left_layers(origin: &RunId, tasks: &[TaskRow], graph: &Graph) -> Option<String> {
    let asked: BTreeSet<&str> = graph.steps.iter().filter_map(|step| step.policy.layer).collect();
    let used: BTreeSet<&str> = tasks.iter().map(|row| row.record.layer.as_str()).filter(|l| *l != LOCAL).collect();
    let left: Vec<&str> = used.difference(&asked).copied().collect();
    let with = left.first()?;
    let now = if asked.is_empty() { "what is left of it runs on this machine" } else { "nothing of this run does" };
    Some(format!(
        "Tasks of run {origin} ran on {}, but {now}, because no step asks for that layer. If that is not what you want, \
         stop, and resume with --with {with}.",
        left.join(" and ")
    ))
}
