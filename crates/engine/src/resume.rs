//! What a resume needs to know of the run it goes on from.

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
