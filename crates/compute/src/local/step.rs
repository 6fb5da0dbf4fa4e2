//! What the local layer keeps of one step: its zygote, its waiting tasks, its imports.

use std::collections::VecDeque;

use ferroflow_core::id::AttemptId;
use ferroflow_core::task::TaskLaunch;
use rustix::process::Pid;

use super::imports::Imports;
use crate::frontend::FrameSender;

/// Zygotes that may die one after another without a task that ended, before a step is given up.
const MOST_DEATHS: u32 = 3;
/// From this death on, tasks are started as new interpreters instead of forks.
const DEATHS_BEFORE_SPAWN: u32 = 2;

pub struct Step {
    pub zygote: Option<Zygote>,
    /// Zygotes are numbered, so that news of an old one is not taken for news of its successor.
    pub generation: u64,
    pub queue: VecDeque<Queued>,
    pub imports: Imports,
    /// In a row, without a task that ended in between.
    pub deaths: u32,
    pub spawn_told: bool,
}

pub struct Zygote {
    pub sender: FrameSender,
    pub ready: Option<Ready>,
}

/// What a zygote that can start tasks has told.
#[derive(Clone, Copy)]
pub struct Ready {
    pub pid: Option<Pid>,
    pub spawns: bool,
    /// Memory a forked task starts with, not its own, in bytes.
    pub inherited: u64,
}

pub struct Queued {
    pub launch: TaskLaunch,
    /// The user was told that it waits.
    pub told: bool,
}

impl Step {
    pub fn new(learn_imports: bool) -> Self {
        Self {
            zygote: None,
            generation: 0,
            queue: VecDeque::new(),
            imports: if learn_imports { Imports::default() } else { Imports::off() },
            deaths: 0,
            spawn_told: false,
        }
    }

    pub fn ready(&self) -> Option<Ready> {
        self.zygote.as_ref()?.ready
    }

    pub fn given_up(&self) -> bool {
        self.deaths >= MOST_DEATHS
    }

    pub fn must_spawn(&self) -> bool {
        self.deaths >= DEATHS_BEFORE_SPAWN
    }

    pub fn take_queued(&mut self, id: AttemptId) -> Option<TaskLaunch> {
        let at = self.queue.iter().position(|queued| queued.launch.id == id)?;
        self.queue.remove(at).map(|queued| queued.launch)
    }

    /// Adds a zygote's death. Its imports are its successor's to make again.
    pub fn zygote_gone(&mut self) {
        self.zygote = None;
        self.deaths += 1;
        self.imports.zygote_gone();
    }
}
