//! When tasks of a step wait for its imports (design D3): the first task of a step with imports
//! goes ahead alone, and what it imports is imported by the step's zygote before the others fork.
//! Pure; the supervisor keeps the clock and does the sending.

use std::collections::BTreeSet;

use ferroflow_core::id::AttemptId;

/// How long tasks are held back, at the longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// For the first task's first import.
    FirstImport,
    /// For the zygote to import what was learned.
    Learning,
}

/// What to do about the next task of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gate {
    Start,
    /// Start it, then hold the others.
    StartAlone,
    /// Have the zygote import these, then hold.
    Learn(Vec<String>),
    Wait,
}

#[derive(Debug, Default)]
pub struct Imports {
    phase: Phase,
    /// Grows with every hold, so that an old alarm does not end a new hold.
    hold: u64,
    /// Everything the zygote was ever asked to import; nothing is asked for twice.
    asked: BTreeSet<String>,
    pending: Vec<String>,
    learned: Vec<String>,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Fresh,
    First(AttemptId),
    Learning,
    Open,
}

impl Imports {
    /// For a step whose tasks share nothing that was imported (spawned, or learning is off).
    pub fn off() -> Self {
        Self { phase: Phase::Open, ..Self::default() }
    }

    /// What to do about the next task, which is ready to start.
    pub fn gate(&mut self, next: AttemptId, has_imports: bool) -> Gate {
        match self.phase {
            Phase::First(_) | Phase::Learning => Gate::Wait,
            Phase::Fresh | Phase::Open if !self.pending.is_empty() => {
                self.enter(Phase::Learning);
                Gate::Learn(std::mem::take(&mut self.pending))
            }
            Phase::Fresh if has_imports => {
                self.enter(Phase::First(next));
                Gate::StartAlone
            }
            Phase::Fresh | Phase::Open => {
                self.phase = Phase::Open;
                Gate::Start
            }
        }
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.hold += 1;
    }

    /// Number of the current hold, for `hold_over`.
    pub fn current_hold(&self) -> u64 {
        self.hold
    }

    /// A task told of imports, or ended having made some.
    pub fn imported(&mut self, by: AttemptId, packages: &[String]) {
        for package in packages {
            if self.asked.insert(package.clone()) {
                self.pending.push(package.clone());
            }
        }
        if self.phase == Phase::First(by) && !packages.is_empty() {
            self.phase = Phase::Open;
        }
    }

    /// A task ended.
    pub fn ended(&mut self, attempt: AttemptId) {
        if self.phase == Phase::First(attempt) {
            self.phase = Phase::Open;
        }
    }

    /// The zygote imported these.
    pub fn learned(&mut self, packages: Vec<String>) {
        self.learned.extend(packages);
        if self.phase == Phase::Learning {
            self.phase = Phase::Open;
        }
    }

    /// A hold has lasted long enough. `false` when it was over already.
    pub fn hold_over(&mut self, hold: u64) -> bool {
        let over = hold == self.hold && matches!(self.phase, Phase::First(_) | Phase::Learning);
        if over {
            self.phase = Phase::Open;
        }
        over
    }

    /// The zygote is gone. Its successor starts with what was learned; a package it was importing
    /// when it died is not tried again.
    pub fn zygote_gone(&mut self) {
        if self.phase == Phase::Learning {
            self.phase = Phase::Open;
        }
    }

    /// What a new zygote imports at once.
    pub fn for_new_zygote(&self) -> Vec<String> {
        self.learned.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferroflow_core::id::TaskId;

    fn id(task: u64) -> AttemptId {
        AttemptId { task: TaskId(task), attempt: 0 }
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn others_wait_for_the_first_task_and_then_for_the_zygote() {
        let mut imports = Imports::default();
        assert_eq!(imports.gate(id(1), true), Gate::StartAlone);
        assert_eq!(imports.gate(id(2), true), Gate::Wait);
        imports.imported(id(1), &names(&["numpy"]));
        assert_eq!(imports.gate(id(2), true), Gate::Learn(names(&["numpy"])));
        assert_eq!(imports.gate(id(2), true), Gate::Wait);
        imports.imported(id(1), &names(&["numpy", "pandas"]));
        imports.learned(names(&["numpy"]));
        assert_eq!(imports.gate(id(2), true), Gate::Learn(names(&["pandas"])));
        imports.learned(Vec::new());
        assert_eq!(imports.gate(id(2), true), Gate::Start);
        assert_eq!(imports.for_new_zygote(), names(&["numpy"]));
    }

    #[test]
    fn a_step_without_imports_waits_for_nothing_and_a_lone_task_teaches_nobody() {
        let mut imports = Imports::default();
        assert_eq!(imports.gate(id(1), false), Gate::Start);
        assert_eq!(imports.gate(id(2), false), Gate::Start);
        let mut imports = Imports::default();
        assert_eq!(imports.gate(id(1), true), Gate::StartAlone);
        imports.ended(id(1));
        imports.imported(id(1), &names(&["numpy"]));
        // Learned only because another task wants to start.
        assert_eq!(imports.gate(id(2), true), Gate::Learn(names(&["numpy"])));
    }

    #[test]
    fn holds_end_by_time_and_an_old_alarm_ends_no_new_hold() {
        let mut imports = Imports::default();
        imports.gate(id(1), true);
        let first = imports.current_hold();
        imports.imported(id(1), &names(&["numpy"]));
        imports.gate(id(2), true);
        assert!(!imports.hold_over(first));
        assert_eq!(imports.gate(id(2), true), Gate::Wait);
        assert!(imports.hold_over(imports.current_hold()));
        assert_eq!(imports.gate(id(2), true), Gate::Start);
    }

    #[test]
    fn a_zygote_that_died_of_an_import_is_not_asked_for_it_again() {
        let mut imports = Imports::default();
        imports.gate(id(1), true);
        imports.imported(id(1), &names(&["explosive"]));
        imports.gate(id(2), true);
        imports.zygote_gone();
        assert!(imports.for_new_zygote().is_empty());
        imports.imported(id(2), &names(&["explosive"]));
        assert_eq!(imports.gate(id(2), true), Gate::Start);
    }
}
