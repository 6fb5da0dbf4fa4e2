//! Whether one more task fits into memory (design, difference 11): pure arithmetic over what the
//! steps' tasks have been seen to need. CPU never holds a task back, and neither does
//! `@resources`.

use std::collections::HashMap;

use ferroflow_core::id::StepName;

use crate::resources::{Memory, human_bytes};

/// The most memory of its own that a task of each step was seen to use, in bytes.
#[derive(Clone, Debug, Default)]
pub struct SeenPeaks {
    by_step: HashMap<StepName, u64>,
}

impl SeenPeaks {
    pub fn note(&mut self, step: &StepName, bytes: u64) {
        match self.by_step.get_mut(step) {
            Some(peak) => *peak = bytes.max(*peak),
            None => {
                self.by_step.insert(step.clone(), bytes);
            }
        }
    }

    /// 0 for a step of which nothing is known yet.
    pub fn of(&self, step: &StepName) -> u64 {
        self.by_step.get(step).copied().unwrap_or(0)
    }
}

/// Whether a task of a step whose tasks need `peak` may start when tasks that run already are
/// expected to take another `promised` bytes. The reason is for the user.
pub fn fits(step: &StepName, peak: u64, promised: u64, memory: &Memory) -> Result<(), String> {
    if peak.saturating_add(promised) <= memory.available {
        return Ok(());
    }
    let promise = match promised {
        0 => String::new(),
        bytes => format!(", of which running tasks are expected to take another {}", human_bytes(bytes)),
    };
    Err(format!(
        "tasks of `{step}` have been seen to need {} of memory each, and {} of {}'s {} is available{promise}",
        human_bytes(peak),
        human_bytes(memory.available),
        memory.bound,
        human_bytes(memory.total),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::Bound;

    const GIB: u64 = 1 << 30;

    fn memory(available: u64) -> Memory {
        Memory { available, total: 8 * GIB, bound: Bound::Machine }
    }

    #[test]
    fn an_unknown_step_fits_and_a_known_one_needs_its_peak() {
        let (mut peaks, step) = (SeenPeaks::default(), StepName::from("train"));
        assert_eq!(fits(&step, peaks.of(&step), 0, &memory(0)), Ok(()));
        peaks.note(&step, 3 * GIB);
        peaks.note(&step, GIB);
        assert_eq!(fits(&step, peaks.of(&step), 0, &memory(3 * GIB)), Ok(()));
        assert_eq!(
            fits(&step, peaks.of(&step), 0, &memory(GIB)),
            Err("tasks of `train` have been seen to need 3.0 GiB of memory each, and 1.0 GiB of this machine's 8.0 GiB \
                 is available"
                .to_owned())
        );
    }

    #[test]
    fn what_running_tasks_will_still_take_is_not_given_twice() {
        let step = StepName::from("train");
        assert_eq!(fits(&step, 3 * GIB, 4 * GIB, &memory(8 * GIB)), Ok(()));
        assert_eq!(
            fits(&step, 3 * GIB, 6 * GIB, &memory(8 * GIB)),
            Err("tasks of `train` have been seen to need 3.0 GiB of memory each, and 8.0 GiB of this machine's 8.0 GiB \
                 is available, of which running tasks are expected to take another 6.0 GiB"
                .to_owned())
        );
    }
}
