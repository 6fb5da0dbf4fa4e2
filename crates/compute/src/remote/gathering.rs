//! Ranks of gangs on their way: a layer hears of them one by one, and needs all of them at once.

use std::collections::HashMap;

use ferroflow_core::id::AttemptId;
use ferroflow_core::task::GangPlace;

/// By rank 0: ranks of gangs that are not complete yet.
#[derive(Default)]
pub struct Gathering(HashMap<AttemptId, Vec<AttemptId>>);

impl Gathering {
    /// Takes a rank in; all of its gang, in the order in which they came, when it was the last.
    pub fn add(&mut self, id: AttemptId, gang: GangPlace) -> Option<Vec<AttemptId>> {
        let main = AttemptId { task: gang.control_task, attempt: id.attempt };
        let ranks = self.0.entry(main).or_default();
        ranks.push(id);
        if (ranks.len() as u64) < gang.nodes { None } else { self.0.remove(&main) }
    }
}
