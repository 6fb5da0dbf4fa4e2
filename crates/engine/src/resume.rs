//! What a resume needs to know of the run it goes on from.

use std::collections::BTreeSet;

use ferroflow_core::id::{RunId, StepName};
use ferroflow_core::port::{MetadataError, MetadataStore};
use ferroflow_core::run::ResumePlan;

/// Reads the origin's tasks. `NotFound` when there is no such run.
pub fn plan(
    metadata: &dyn MetadataStore,
    flow: &str,
    origin: &RunId,
    rerun_from: Option<StepName>,
) -> Result<ResumePlan, MetadataError> {
    metadata.run(flow, origin)?;
    let tasks = metadata.tasks(flow, origin)?;
    Ok(ResumePlan { origin_run: origin.clone(), tasks, rerun_from })
}

/// Runs, each with the layers on which it may have left tasks behind that a plan goes on with; the
/// origin first, if there are any at all.
pub fn left_behind(plan: &ResumePlan, local: &str) -> Vec<(RunId, BTreeSet<String>)> {
    let mut found = vec![(plan.origin_run.clone(), BTreeSet::new())];
    for row in plan.tasks.iter().filter(|row| row.record.is_left_behind(local)) {
        let run = row.record.data.as_ref().map_or(&plan.origin_run, |data| &data.run);
        let at = found.iter().position(|(known, _)| known == run).unwrap_or_else(|| {
            found.push((run.clone(), BTreeSet::new()));
            found.len() - 1
        });
        found[at].1.insert(row.record.layer.clone());
    }
    if found.iter().all(|(_, layers)| layers.is_empty()) { Vec::new() } else { found }
}
