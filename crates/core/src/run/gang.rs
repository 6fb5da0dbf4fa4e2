//! Gangs: the ranks of a `num_parallel`, which start together, succeed together and, when one
//! fails or is lost, are stopped and start again together. How a single attempt ends is
//! `advance`'s work.

use std::collections::BTreeMap;

use super::frames::{DataPoint, FrameId};
use super::outcome::Taken;
use super::queue::Ready;
use super::stop::STOP_GRACE;
use super::tasks::Active;
use super::{Action, Run};
use crate::graph::StepKind;
use crate::id::{AttemptId, TaskId};
use crate::port::StopSignal;
use crate::task::{Cause, CauseKind, GangPlace, Millis};

/// A gang of which at least one rank is out.
#[derive(Debug)]
pub(super) struct Gang {
    /// Task of rank 0; the others' ids count up from it.
    pub first: TaskId,
    pub width: u64,
    /// Ranks whose current attempt is over.
    ended: BTreeMap<u64, Ended>,
    again: Option<Again>,
}

#[derive(Debug)]
struct Ended {
    active: Active,
    /// Where a rank that is done goes on.
    done: Option<(DataPoint, Taken)>,
}

/// Why a gang starts again once all its ranks have ended.
#[derive(Debug)]
pub(super) struct Again {
    /// The rank that failed or was lost.
    pub culprit: TaskId,
    /// It was lost: that does not count as a retry.
    pub lost: bool,
    pub previous_failure: Option<String>,
    /// When ranks that were asked to stop are killed; `None` once that was done.
    kill_at: Option<Millis>,
}

impl Gang {
    /// Ranks that are out.
    pub fn out(&self) -> usize {
        usize::try_from(self.width).unwrap_or(usize::MAX) - self.ended.len()
    }

    pub fn is_ended(&self, rank: u64) -> bool {
        self.ended.contains_key(&rank)
    }

    /// Where ranks that are over stand, and whether they are done.
    pub fn ended(&self) -> impl Iterator<Item = (&Ready, bool)> {
        self.ended.values().map(|ended| (&ended.active.ready, ended.done.is_some()))
    }

    pub fn kill_at(&self) -> Option<Millis> {
        self.again.as_ref()?.kill_at
    }

    fn is_over(&self) -> bool {
        self.ended.len() as u64 == self.width
    }
}

impl Run {
    /// The gang that a task is a rank of. Only ranks stand right within such a split, because a
    /// join has to follow them.
    pub(super) fn gang_of(&self, ready: &Ready) -> Option<FrameId> {
        let frame = ready.place.frame?;
        let split = self.frames.get(frame).split;
        matches!(self.graph.steps[split].kind, StepKind::Parallel).then_some(frame)
    }

    pub(super) fn gang_place(&self, ready: &Ready) -> Option<GangPlace> {
        let gang = self.gangs.get(&self.gang_of(ready)?)?;
        Some(GangPlace { rank: ready.place.index, nodes: gang.width, control_task: gang.first })
    }

    /// Workers that are taken: a gang takes one, however wide it is, because no part of it can
    /// wait for another.
    pub(super) fn taken_workers(&self) -> usize {
        let extra: usize = self.gangs.values().map(|gang| gang.out().saturating_sub(1)).sum();
        self.active.len() - extra
    }

    /// Submits all ranks of a gang; `rank` is the first, the others follow it in the queue.
    pub(super) fn start_gang(&mut self, frame: FrameId, rank: Ready, now: Millis, out: &mut Vec<Action>) {
        let width = self.frames.get(frame).width;
        let first = TaskId(self.next_task);
        self.gangs.insert(frame, Gang { first, width, ended: BTreeMap::new(), again: None });
        let mut next = Some(rank);
        while let Some(ready) = next {
            let more = ready.place.index + 1 < width;
            let task = self.allocate();
            self.submit(task, Active::new(ready, now), now, out);
            next = more.then(|| self.pop_ready().expect("the ranks of a gang are queued together"));
        }
    }

    /// Why a rank is being stopped, if its gang is about to start again.
    pub(super) fn gang_stop_cause(&self, active: &Active) -> Option<Cause> {
        let again = self.gangs.get(&self.gang_of(&active.ready)?)?.again.as_ref()?;
        let text = format!("stopped because task {} of its gang did not end well", again.culprit);
        Some(Cause::new(CauseKind::Cancelled, text))
    }

    pub(super) fn rank_done(
        &mut self,
        frame: FrameId,
        active: Active,
        done: (DataPoint, Taken),
        now: Millis,
        out: &mut Vec<Action>,
    ) {
        self.rank_ended(frame, active, Some(done), now, out);
    }

    /// A rank ended otherwise; with all others that starts the gang again.
    pub(super) fn rank_failed(
        &mut self,
        frame: FrameId,
        active: Active,
        again: Again,
        now: Millis,
        out: &mut Vec<Action>,
    ) {
        let gang = self.gangs.get_mut(&frame).expect("a rank that is out has a gang");
        let first = gang.again.is_none();
        gang.again.get_or_insert(again);
        self.rank_ended(frame, active, None, now, out);
        let again = self.gangs.get_mut(&frame).and_then(|gang| gang.again.as_mut());
        if let Some(again) = again.filter(|_| first) {
            again.kill_at = Some(now + STOP_GRACE);
            self.stop_gang(frame, StopSignal::Terminate, out);
        }
    }

    fn rank_ended(
        &mut self,
        frame: FrameId,
        active: Active,
        done: Option<(DataPoint, Taken)>,
        now: Millis,
        out: &mut Vec<Action>,
    ) {
        let gang = self.gangs.get_mut(&frame).expect("a rank that is out has a gang");
        gang.ended.insert(active.ready.place.index, Ended { active, done });
        if !gang.is_over() {
            return;
        }
        match gang.again.take() {
            Some(again) => self.restart_gang(frame, &again, now, out),
            None => self.gang_done(frame),
        }
    }

    fn gang_done(&mut self, frame: FrameId) {
        let Some(gang) = self.gangs.remove(&frame) else { return };
        for (_, Ended { active, done }) in gang.ended {
            let (point, taken) = done.expect("without a reason to start again all ranks are done");
            self.advance(&active.ready, point, &taken);
        }
    }

    fn restart_gang(&mut self, frame: FrameId, again: &Again, now: Millis, out: &mut Vec<Action>) {
        let gang = self.gangs.get_mut(&frame).expect("it has just ended");
        let first = gang.first;
        for (rank, Ended { active, done }) in std::mem::take(&mut gang.ended) {
            if done.is_some() {
                self.counts[active.ready.step].done -= 1;
            }
            let task = TaskId(first.0 + rank);
            if again.lost {
                self.submit_lost(task, active, now, out);
                continue;
            }
            let earlier = active.previous_failure.clone();
            let mut next = active.again();
            next.previous_failure = again.previous_failure.clone().or(earlier);
            self.submit_again(task, next, now, out);
        }
    }

    /// The run ends: nothing starts again.
    pub(super) fn give_up_gangs(&mut self) {
        for gang in std::mem::take(&mut self.gangs).into_values() {
            for ended in gang.ended.values().filter(|ended| ended.done.is_none()) {
                self.counts[ended.active.ready.step].failed += 1;
            }
        }
    }

    fn stop_gang(&self, frame: FrameId, signal: StopSignal, out: &mut Vec<Action>) {
        let gang = &self.gangs[&frame];
        let ranks = (0..gang.width).filter(|rank| !gang.is_ended(*rank));
        let attempts: Vec<AttemptId> = ranks
            .filter_map(|rank| {
                let task = TaskId(gang.first.0 + rank);
                Some(AttemptId { task, attempt: self.active.get(&task)?.attempt })
            })
            .collect();
        if !attempts.is_empty() {
            out.push(Action::Stop { attempts, signal });
        }
    }

    /// Kills ranks that did not react to being asked to stop.
    pub(super) fn kill_gangs(&mut self, now: Millis, out: &mut Vec<Action>) {
        let due = |gang: &Gang| gang.kill_at().is_some_and(|at| at <= now);
        let frames: Vec<FrameId> = self.gangs.iter().filter(|(_, gang)| due(gang)).map(|(id, _)| *id).collect();
        for frame in frames {
            self.stop_gang(frame, StopSignal::Kill, out);
            if let Some(again) = self.gangs.get_mut(&frame).and_then(|gang| gang.again.as_mut()) {
                again.kill_at = None;
            }
        }
    }

    /// Whether all ranks of the gang that a rank to be cloned belongs to are done in the origin:
    /// a gang is cloned as a whole or not at all. `has` says that of one rank.
    pub(super) fn clones_gang(&self, frame: FrameId, rank: u64, has: impl Fn(u64) -> bool) -> bool {
        let frame = self.frames.get(frame);
        if rank == 0 { (0..frame.width).all(has) } else { frame.arrivals.contains(0) }
    }
}

impl Again {
    pub fn failed(culprit: TaskId, text: String) -> Self {
        Self { culprit, lost: false, previous_failure: Some(text), kill_at: None }
    }

    pub fn lost(culprit: TaskId) -> Self {
        Self { culprit, lost: true, previous_failure: None, kill_at: None }
    }
}
