//! Every cross-index of the machine, walked. Tests end by calling this; it may be slow.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::frames::{FrameId, Place};
use super::queue::{Entry, Queue};
use super::{Counts, Phase, Run};
use crate::id::AttemptId;
use crate::task::AttemptState;

impl Run {
    /// Panics, saying which, on the first invariant that does not hold.
    pub fn check_invariants(&self) {
        let stopping = matches!(self.phase, Phase::Stopping(_)); // gangs are given up then
        assert!(self.places >= self.settings.max_workers, "fewer places than max_workers");
        assert!(
            stopping || self.taken_workers() <= self.places,
            "more attempts than max_workers, and than were adopted"
        );
        self.check_phase();
        self.check_active();
        self.check_counts();
        self.check_frames();
        self.check_gangs();
        if !matches!(self.phase, Phase::Stopping(_) | Phase::Ended | Phase::New) {
            self.check_tokens();
        }
    }

    fn check_phase(&self) {
        match &self.phase {
            Phase::New | Phase::Cloning(_) => {
                assert!(self.active.is_empty(), "a task is out before the run began");
            }
            Phase::Running => {
                assert!(!self.active.is_empty(), "a running run has tasks");
                assert!(!self.end_reached, "nothing runs once the end step is done");
                let full = self.taken_workers() >= self.settings.max_workers;
                assert!(full || self.queue.is_empty(), "a worker is free and a task waits");
            }
            Phase::Stopping(_) => {
                assert!(!self.active.is_empty(), "a stopping run waits for something");
                assert!(self.queue.is_empty(), "a stopping run has no queue");
            }
            Phase::Ended => {
                assert!(self.active.is_empty() && self.queue.is_empty(), "work after the end");
                assert!(self.backstops.is_empty(), "a deadline after the end");
            }
        }
    }

    fn check_active(&self) {
        let (mut backstops, mut pauses) = (BTreeSet::new(), BTreeSet::new());
        for (task, active) in &self.active {
            assert!(task.0 > 0 && task.0 < self.next_task, "task {task} was never allocated");
            let started = active.state == AttemptState::Running;
            assert_eq!(started, active.started_at.is_some(), "task {task}: start time");
            assert!(!active.state.is_final(), "task {task} is over but still out");
            assert!(active.lost <= active.attempt, "task {task}: more losses than attempts");
            let policy = &self.graph.steps[active.ready.step].policy;
            let allowed = policy.user_retries + policy.fallbacks;
            assert!(active.tries() <= allowed, "task {task}: too many attempts");
            let is_adopted = active.adopted.is_some();
            assert!(!is_adopted || active.attempt == 0, "task {task} was adopted and has another attempt");
            pauses.extend(active.paused_until.map(|at| (at, attempt_id(*task, active.attempt))));
            backstops.extend(active.backstop.map(|at| (at, attempt_id(*task, active.attempt))));
        }
        assert_eq!(backstops, self.backstops, "deadlines and attempts differ");
        assert_eq!(pauses, self.pauses, "pauses and attempts differ");
    }

    fn check_counts(&self) {
        let mut counts = vec![Counts::default(); self.graph.steps.len()];
        for active in self.active.values() {
            let counts = &mut counts[active.ready.step];
            match active.state {
                AttemptState::Running => counts.running += 1,
                _ => counts.starting += 1,
            }
        }
        for entry in self.queue.entries() {
            match entry {
                Entry::Task(ready) => counts[ready.step].queued += 1,
                Entry::Splits { step, next, end, .. } => {
                    assert!(next < end, "an empty range of splits is queued");
                    counts[*step].queued += end - next;
                }
            }
        }
        for (index, (found, kept)) in counts.iter().zip(&self.counts).enumerate() {
            let name = &self.graph.steps[index].name;
            let live = |c: &Counts| (c.queued, c.starting, c.running);
            assert_eq!(live(found), live(kept), "counts of step {name}");
        }
        let ids = self.counts.iter().map(|c| c.starting + c.running + c.done + c.failed);
        let between = self.gangs.values().flat_map(super::Gang::ended).filter(|(_, done)| !done).count() as u64;
        assert_eq!(ids.sum::<u64>() + between, self.next_task - 1, "a task is counted nowhere or twice");
    }

    fn check_frames(&self) {
        for (_, frame) in self.frames.iter() {
            let mut count = 0;
            let mut from = 0;
            for (first, len, _) in frame.arrivals.spans() {
                assert!(first >= from && len > 0, "arrivals overlap");
                from = first + len;
                count += len;
            }
            assert_eq!(count, frame.arrivals.count(), "arrivals are miscounted");
            assert!(from <= frame.width, "an arrival past the last split");
            assert!(count < frame.width, "a complete split is still open");
        }
    }

    /// A rank of a gang is either out or over, and all ranks are at the same attempt.
    fn check_gangs(&self) {
        for gang in self.gangs.values() {
            assert!(gang.out() > 0, "a gang that is over is kept");
            let mut attempts = BTreeSet::new();
            for rank in 0..gang.width {
                let active = self.active.get(&crate::id::TaskId(gang.first.0 + rank));
                assert_eq!(active.is_none(), gang.is_ended(rank), "rank {rank} is out and over, or neither");
                attempts.extend(active.map(|active| (active.attempt, active.lost)));
            }
            assert_eq!(attempts.len(), 1, "ranks of a gang are at different attempts");
        }
        let ranks = self.active.values().filter(|active| self.gang_of(&active.ready).is_some()).count();
        if matches!(self.phase, Phase::Running) {
            assert_eq!(ranks, self.gangs.values().map(super::Gang::out).sum::<usize>(), "a rank without a gang");
        }
    }

    /// Each branch that has not arrived is held by exactly one task, queued split or inner split.
    fn check_tokens(&self) {
        let mut held: HashMap<FrameId, u64> = HashMap::new();
        let mut seen = HashSet::new();
        let mut outside = 0;
        let mut hold = |place: Place, count: u64| match place.frame {
            None => outside += count,
            Some(frame) => {
                *held.entry(frame).or_default() += count;
                let width = self.frames.get(frame).width;
                assert!(place.index + count <= width, "a place past the last split");
                if count == 1 {
                    assert!(seen.insert((frame, place.index)), "two tasks in one place");
                    let arrivals = &self.frames.get(frame).arrivals;
                    assert!(!arrivals.contains(place.index), "a task in a place that arrived");
                }
            }
        };
        for active in self.active.values() {
            hold(active.ready.place, 1);
        }
        for (ready, _) in self.gangs.values().flat_map(super::Gang::ended) {
            hold(ready.place, 1);
        }
        if let Phase::Cloning(cloning) = &self.phase {
            cloning.adoptions.ready().for_each(|ready| hold(ready.place, 1));
        }
        for (_, frame) in self.frames.iter() {
            hold(frame.outer, 1);
        }
        let mut queues: Vec<&Queue> = vec![&self.queue];
        if let Phase::Cloning(cloning) = &self.phase {
            queues.push(&cloning.waiting);
        }
        for entry in queues.into_iter().flat_map(Queue::entries) {
            match entry {
                Entry::Task(ready) => hold(ready.place, 1),
                Entry::Splits { frame, next, end, .. } => {
                    hold(Place { frame: Some(*frame), index: *next }, end - next);
                }
            }
        }
        for (id, frame) in self.frames.iter() {
            let held = held.get(&id).copied().unwrap_or_default();
            assert_eq!(held + frame.arrivals.count(), frame.width, "a branch is missing or double");
        }
        assert_eq!(outside, 1, "outside of all splits there is one task or one split");
    }
}

fn attempt_id(task: crate::id::TaskId, attempt: u32) -> AttemptId {
    AttemptId { task, attempt }
}
