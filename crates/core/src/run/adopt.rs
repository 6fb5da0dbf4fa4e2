//! Adopting what the engine of the origin run left on a remote layer when it died: such a task is
//! waited for and then counts as done, with the origin's data, like a clone. One that ends badly is
//! run by this run itself.

use std::collections::HashMap;

use super::frames::DataPoint;
use super::message::{Line, Message};
use super::queue::Ready;
use super::resume::Key;
use super::tasks::{Active, Ending};
use super::{Action, Phase, Run};
use crate::graph::{Graph, StepIndex, StepKind};
use crate::id::{AttemptId, RunId, StepName, TaskId};
use crate::metadata::{DataRef, TaskRecord};
use crate::port::Adoption;
use crate::task::{AttemptState, Cause, CauseKind, Millis, Usage};

/// A task of the origin that was handed to a remote layer, and of whose end nobody knows.
#[derive(Clone, Debug)]
pub(super) struct LeftBehind {
    pub step: StepName,
    /// The run and attempt as which it was submitted: the origin's, or one that the origin adopted.
    pub data: DataRef,
    /// The task in the run that is resumed.
    pub origin: DataRef,
    pub layer: String,
}

/// What is known of the origin's tasks that may still run.
#[derive(Debug, Default)]
pub(super) struct Adoptions {
    /// By what they are; taken out as their turn comes.
    pub known: HashMap<Key, (LeftBehind, DataPoint)>,
    /// Of no use to this run.
    unwanted: Vec<LeftBehind>,
    /// Those whose inputs are all there.
    ready: Vec<(Ready, LeftBehind, DataPoint)>,
}

/// An attempt that this run follows and did not submit.
#[derive(Clone, Debug)]
pub(super) struct Adopted {
    pub from: LeftBehind,
    pub point: DataPoint,
}

impl TaskRecord {
    /// Whether it may run without an engine: handed to a layer other than `local`, and without an end.
    pub fn is_left_behind(&self, local: &str) -> bool {
        let lost = self.cause.as_ref().is_some_and(|cause| cause.kind == CauseKind::EngineLost);
        self.layer != local && (!self.state.is_final() || (self.state == AttemptState::Lost && lost))
    }
}

impl Adoptions {
    pub fn add(&mut self, key: Key, from: LeftBehind, point: DataPoint) {
        self.known.insert(key, (from, point));
    }

    pub fn refuse(&mut self, from: LeftBehind) {
        self.unwanted.push(from);
    }

    /// The task is one that may still run: it is not to be run by us.
    pub fn take(&mut self, key: &Key, ready: &Ready) -> bool {
        let Some((from, point)) = self.known.remove(key) else { return false };
        self.ready.push((ready.clone(), from, point));
        true
    }

    pub fn ready(&self) -> impl Iterator<Item = &Ready> {
        self.ready.iter().map(|(ready, ..)| ready)
    }
}

/// Tasks of a `num_parallel` step find each other when they start: one alone is of no use.
pub(super) fn stands_alone(graph: &Graph, step: StepIndex) -> bool {
    graph.steps[step].split_stack.last().is_none_or(|split| !matches!(graph.steps[*split].kind, StepKind::Parallel))
}

impl Run {
    /// All of them at once, whatever `max_workers` says: they run already.
    pub(super) fn adopt(&mut self, adoptions: Adoptions, origin: &RunId, now: Millis, out: &mut Vec<Action>) {
        let Adoptions { known, mut unwanted, ready } = adoptions;
        unwanted.extend(known.into_values().map(|(from, _)| from));
        if !unwanted.is_empty() {
            let (run, tasks) = (origin.clone(), unwanted.len());
            out.push(Action::Print(Message::run(Line::StoppingLeftBehind { run, tasks })));
        }
        out.extend(unwanted.iter().map(|from| adoption(None, from)));
        self.places = self.places.max(ready.len());
        for (ready, from, point) in ready {
            let task = self.allocate();
            let line = Line::AdoptingTask {
                origin: from.origin.run.clone(),
                step: from.step.clone(),
                task: from.origin.task,
                layer: from.layer.clone(),
            };
            let mut active = Active::new(ready, now);
            active.adopted = Some(Adopted { from: from.clone(), point });
            self.counts[active.ready.step].starting += 1;
            out.push(self.record(task, &active, now, &Ending::default()));
            out.push(self.say(task, &active, line));
            out.push(adoption(Some(AttemptId { task, attempt: 0 }), &from));
            self.active.insert(task, active);
        }
    }

    /// What somebody killed by hand while this run was waiting for it stays dead.
    pub(super) fn may_run_adopted_again(&self, active: &Active, cause: &Cause) -> bool {
        active.adopted.is_some() && cause.kind != CauseKind::Killed && matches!(self.phase, Phase::Running)
    }

    /// What was adopted ended badly, or nothing of it was found: this run runs the task itself. That
    /// is a new beginning, as for every task that a resumed run runs again.
    pub(super) fn run_adopted_again(
        &mut self,
        task: TaskId,
        mut active: Active,
        (state, cause): (AttemptState, Cause),
        usage: Option<Usage>,
        now: Millis,
        out: &mut Vec<Action>,
    ) {
        active.state = state;
        let ending = Ending { cause: Some(&cause), ok: Some(false), usage, ..Ending::default() };
        out.push(self.record(task, &active, now, &ending));
        out.push(self.say(task, &active, Line::AdoptedFailed(cause)));
        let mut next = active.again();
        next.lost += 1;
        self.submit(task, next, now, out);
    }

    pub(super) fn adopted_count(&self) -> usize {
        self.active.values().filter(|active| active.adopted.is_some()).count()
    }
}

fn adoption(id: Option<AttemptId>, from: &LeftBehind) -> Action {
    Action::Adopt(Adoption {
        id,
        step: from.step.clone(),
        run: from.data.run.clone(),
        attempt: AttemptId { task: from.data.task, attempt: from.data.attempt },
        layer: from.layer.clone(),
    })
}
