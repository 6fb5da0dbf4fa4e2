//! What keeps submitted attempts from running, in the layer's words; for the live display.

use std::collections::HashMap;

use ferroflow_core::id::{AttemptId, StepName};

use crate::console::Holdup;

/// Attempts of which the layer has said that they wait or are on their way.
#[derive(Default)]
pub(crate) struct Unstarted {
    attempts: HashMap<AttemptId, (StepName, Option<String>)>,
}

impl Unstarted {
    /// The attempt waits for the reason given, or without one is on its way.
    pub(crate) fn note(&mut self, id: AttemptId, step: &StepName, reason: Option<&str>) {
        self.attempts.insert(id, (step.clone(), reason.map(str::to_owned)));
    }

    /// The attempt has started or ended.
    pub(crate) fn forget(&mut self, id: AttemptId) {
        self.attempts.remove(&id);
    }

    /// By step; the reason is that of the task with the lowest number.
    pub(crate) fn by_step(&self) -> HashMap<StepName, Holdup> {
        let mut steps: HashMap<StepName, (Holdup, Option<AttemptId>)> = HashMap::new();
        for (id, (step, reason)) in &self.attempts {
            let (holdup, told) = steps.entry(step.clone()).or_default();
            let Some(reason) = reason else {
                holdup.on_their_way += 1;
                continue;
            };
            holdup.waiting += 1;
            if told.is_none_or(|told| *id < told) {
                *told = Some(*id);
                holdup.reason.clone_from(reason);
            }
        }
        steps.into_iter().map(|(step, (holdup, _))| (step, holdup)).collect()
    }
}

#[cfg(test)]
mod tests {
    use ferroflow_core::id::TaskId;

    use super::*;

    fn id(task: u64) -> AttemptId {
        AttemptId { task: TaskId(task), attempt: 0 }
    }

    #[test]
    fn the_first_of_those_that_wait_gives_the_reason() {
        let train = StepName::from("train");
        let mut unstarted = Unstarted::default();
        unstarted.note(id(3), &train, Some("no node fits yet"));
        unstarted.note(id(2), &train, Some("quota"));
        unstarted.note(id(4), &train, None);
        let expected = Holdup { waiting: 2, on_their_way: 1, reason: "quota".to_owned() };
        assert_eq!(unstarted.by_step()[&train], expected);
        unstarted.forget(id(2));
        unstarted.note(id(3), &train, None);
        let expected = Holdup { waiting: 0, on_their_way: 2, reason: String::new() };
        assert_eq!(unstarted.by_step()[&train], expected);
    }
}
