//! The local layer's view of memory: what steps were seen to need, what running tasks will still
//! take, and who was killed for want of it.

use std::time::{Duration, Instant};

use ferroflow_core::id::StepName;
use ferroflow_core::task::Usage;
use rustix::process::Pid;

use crate::admission::{SeenPeaks, fits};
use crate::processes::anonymous_memory;
use crate::resources::{Memory, MemoryGauge};

/// A look at memory is good for this long; reading it for each of a thousand tasks is not free.
const FRESH: Duration = Duration::from_millis(20);

/// A running task, as far as memory goes.
pub struct Occupant<'a> {
    pub step: &'a StepName,
    pub pid: Option<Pid>,
    /// What it started with.
    pub inherited: u64,
}

pub struct MemoryKeeper {
    gauge: MemoryGauge,
    peaks: SeenPeaks,
    last: Option<(Instant, Option<Memory>)>,
    /// Kills by the kernel that are explained already (or were there before the run).
    kills_known: Option<u64>,
}

impl MemoryKeeper {
    pub fn new(gauge: MemoryGauge) -> Self {
        let kills_known = gauge.memory_kills();
        Self { gauge, peaks: SeenPeaks::default(), last: None, kills_known }
    }

    /// An ended task of a step used this much, of which it had inherited some.
    pub fn note(&mut self, step: &StepName, usage: &Usage, inherited: u64) {
        self.peaks.note(step, usage.peak_memory.saturating_sub(inherited));
    }

    /// Whether a task of `step` may start beside these.
    pub fn admit<'a>(&mut self, step: &StepName, running: impl Iterator<Item = Occupant<'a>>) -> Result<(), String> {
        let peak = self.peaks.of(step);
        if peak == 0 {
            return Ok(());
        }
        let Some(memory) = self.look() else { return Ok(()) };
        let running: Vec<Occupant<'_>> = running.collect();
        let worst: u64 = running.iter().map(|task| self.peaks.of(task.step)).sum();
        if fits(step, peak, worst, &memory).is_ok() {
            return Ok(());
        }
        let promised = running.iter().map(|task| self.still_to_take(task)).sum();
        // Running tasks may have shown a higher peak just now.
        fits(step, self.peaks.of(step), promised, &memory)
    }

    fn still_to_take(&mut self, task: &Occupant<'_>) -> u64 {
        let resident = task.pid.and_then(anonymous_memory).unwrap_or(task.inherited);
        let own = resident.saturating_sub(task.inherited);
        self.peaks.note(task.step, own);
        self.peaks.of(task.step) - own
    }

    fn look(&mut self) -> Option<Memory> {
        match self.last {
            Some((at, memory)) if at.elapsed() < FRESH => memory,
            _ => {
                let memory = self.gauge.read();
                self.last = Some((Instant::now(), memory));
                memory
            }
        }
    }

    /// Whether the kernel has killed a process for lack of memory that is not explained yet; the
    /// caller found one that was killed. Each kill explains one.
    pub fn explains_a_kill(&mut self) -> bool {
        let (Some(known), Some(counted)) = (self.kills_known, self.gauge.memory_kills()) else { return false };
        if counted > known {
            self.kills_known = Some(known + 1);
        }
        counted > known
    }

    pub fn gauge(&self) -> &MemoryGauge {
        &self.gauge
    }
}
