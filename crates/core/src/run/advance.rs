//! What follows when an attempt ends: successors, joins, another attempt, or the end of the run.

use std::sync::Arc;

use super::frames::{DataPoint, Frame, FrameId, Place};
use super::gang::Again;
use super::message::Line;
use super::outcome::{Failure, Judge, Taken, Verdict};
use super::queue::{Inputs, Ready};
use super::stop::Reason;
use super::tasks::{Active, Ending};
use super::{Action, FailedTask, Phase, Run};
use crate::graph::{StepIndex, StepKind};
use crate::id::{AttemptId, TaskId};
use crate::task::{AttemptReport, AttemptState, Cause, CauseKind, InputRef, Millis, Usage};

/// How often a task may get lost before that is the run's failure.
const MAX_LOSSES: u32 = 3;

/// Losses that would only come again, or are somebody's will: failures, and whether `@retry` and `@catch` get to act.
fn never_starts(kind: CauseKind) -> Option<bool> {
    match kind {
        CauseKind::Image | CauseKind::TimedOut => Some(true),
        CauseKind::Refused | CauseKind::Killed => Some(false),
        _ => None,
    }
}

impl Run {
    pub(super) fn finished(&mut self, id: AttemptId, report: &AttemptReport, now: Millis, out: &mut Vec<Action>) {
        let Some(active) = self.take(id) else { return };
        let step = active.ready.step;
        let overdue = self.graph.steps[step].policy.time_limit.filter(|_| active.overdue);
        let judge = Judge { graph: &self.graph, max_num_splits: self.settings.max_num_splits };
        match judge.verdict(step, report, overdue) {
            Verdict::Done { taken, success } => {
                self.done(id.task, active, &taken, success, report.usage, now, out);
            }
            Verdict::Failed(failure) => self.failed(id.task, active, &failure, report.usage, now, out),
        }
        self.go_on(now, out);
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one record")]
    fn done(
        &mut self,
        task: TaskId,
        mut active: Active,
        taken: &Taken,
        success: bool,
        usage: Usage,
        now: Millis,
        out: &mut Vec<Action>,
    ) {
        active.state = AttemptState::Done;
        self.counts[active.ready.step].done += 1;
        let ending = Ending {
            taken: Some(taken),
            ok: Some(true),
            success: Some(success),
            usage: Some(usage),
            ..Ending::default()
        };
        out.push(self.record(task, &active, now, &ending));
        let foreach = matches!(self.graph.steps[active.ready.step].kind, StepKind::Foreach { .. });
        if let Some(splits) = taken.num_splits.filter(|_| foreach) {
            out.push(self.say(task, &active, Line::ForeachYields { splits }));
        }
        out.push(self.say(task, &active, Line::TaskFinished));
        if matches!(self.phase, Phase::Running) {
            let own = DataPoint { run: 0, step: active.ready.step, task, attempt: active.attempt };
            let point = active.adopted.as_ref().map_or(own, |adopted| adopted.point);
            match self.gang_of(&active.ready) {
                Some(gang) => self.rank_done(gang, active, (point, taken.clone()), now, out),
                None => self.advance(&active.ready, point, taken),
            }
        }
    }

    fn failed(
        &mut self,
        task: TaskId,
        mut active: Active,
        failure: &Failure,
        usage: Usage,
        now: Millis,
        out: &mut Vec<Action>,
    ) {
        if self.may_run_adopted_again(&active, &failure.cause) {
            let ended = (AttemptState::Failed, failure.cause.clone());
            self.run_adopted_again(task, active, ended, Some(usage), now, out);
            return;
        }
        // A task that was asked to end did not fail, unless it had a reason of its own.
        let gang_stops = self.gang_stop_cause(&active).filter(|_| failure.cause.kind != CauseKind::Killed);
        let stopped = self.stop_cause().or_else(|| gang_stops.clone()).filter(|_| !failure.said);
        active.state = match stopped {
            Some(_) => AttemptState::Cancelled,
            None => AttemptState::Failed,
        };
        let cause = stopped.unwrap_or_else(|| failure.cause.clone());
        let ending = Ending {
            cause: Some(&cause),
            ok: Some(false),
            success: Some(false),
            usage: Some(usage),
            ..Ending::default()
        };
        out.push(self.record(task, &active, now, &ending));
        if active.state == AttemptState::Cancelled {
            if gang_stops.is_some() && matches!(self.phase, Phase::Running) {
                out.push(self.say(task, &active, Line::TaskCause(cause.clone())));
            }
            out.push(self.say(task, &active, Line::TaskFailed));
        } else {
            self.say_failed(task, &active, failure, out);
        }
        if !matches!(self.phase, Phase::Running) {
            self.counts[active.ready.step].failed += 1;
            return;
        }
        let policy = &self.graph.steps[active.ready.step].policy;
        let left = active.tries() < policy.user_retries + policy.fallbacks;
        let gang = self.gang_of(&active.ready);
        if let Some(gang) = gang.filter(|_| gang_stops.is_some() || failure.may_retry && left) {
            self.rank_failed(gang, active, Again::failed(task, cause.text), now, out);
            return;
        }
        if failure.may_retry && left {
            let mut next = active.again();
            next.previous_failure = Some(cause.text);
            self.submit_again(task, next, now, out);
            return;
        }
        if !failure.may_retry && left {
            out.push(self.say(task, &active, Line::NotRetried));
        }
        self.fail_run(task, &active, cause, now, out);
    }

    pub(super) fn lost(&mut self, id: AttemptId, cause: Cause, now: Millis, out: &mut Vec<Action>) {
        let Some(mut active) = self.take(id) else { return };
        if self.may_run_adopted_again(&active, &cause) {
            self.run_adopted_again(id.task, active, (AttemptState::Lost, cause), None, now, out);
            self.go_on(now, out);
            return;
        }
        if let Some(may_retry) = never_starts(cause.kind) {
            let failure = Failure { cause, may_retry, said: false, segfault: false };
            self.failed(id.task, active, &failure, Usage::default(), now, out);
            self.go_on(now, out);
            return;
        }
        // A layer says `lost` of what it was told to stop before it had started it.
        let gang_stops = self.gang_stop_cause(&active);
        let stopped = self.stop_cause().or_else(|| gang_stops.clone()).filter(|_| cause.kind == CauseKind::Cancelled);
        active.state = if stopped.is_some() { AttemptState::Cancelled } else { AttemptState::Lost };
        let told = stopped.as_ref().unwrap_or(&cause);
        let ending = Ending { cause: Some(told), ok: Some(false), ..Ending::default() };
        out.push(self.record(id.task, &active, now, &ending));
        if !matches!(self.phase, Phase::Running) {
            self.counts[active.ready.step].failed += 1;
            out.push(self.say(id.task, &active, Line::TaskFailed));
        } else if let Some(gang) = self.gang_of(&active.ready).filter(|_| gang_stops.is_some()) {
            self.rank_failed(gang, active, Again::lost(id.task), now, out);
        } else if active.lost < MAX_LOSSES {
            let seconds = self.loss_pause(&active) / 1000;
            out.push(self.say(id.task, &active, Line::TaskLost { cause, seconds }));
            if let Some(gang) = self.gang_of(&active.ready) {
                self.rank_failed(gang, active, Again::lost(id.task), now, out);
                self.go_on(now, out);
                return;
            }
            self.submit_lost(id.task, active, now, out);
        } else {
            out.push(self.say(id.task, &active, Line::TaskCause(cause.clone())));
            out.push(self.say(id.task, &active, Line::TaskFailed));
            self.fail_run(id.task, &active, cause, now, out);
        }
        self.go_on(now, out);
    }

    fn fail_run(&mut self, task: TaskId, active: &Active, cause: Cause, now: Millis, out: &mut Vec<Action>) {
        let step = &self.graph.steps[active.ready.step];
        self.counts[active.ready.step].failed += 1;
        let failed = FailedTask { step: step.name.clone(), task, attempt: active.attempt, cause };
        self.stop(Reason::Failed(failed), now, out);
    }

    /// Creates what follows a task that is done.
    pub(super) fn advance(&mut self, ready: &Ready, point: DataPoint, taken: &Taken) {
        let graph = Arc::clone(&self.graph);
        let place = ready.place;
        match &graph.steps[ready.step].kind {
            StepKind::End => self.end_reached = true,
            StepKind::Linear => self.lead_to(taken.targets[0], place, 0, point),
            StepKind::Switch { .. } => {
                let target = taken.targets[0];
                let iteration = if target == ready.step { ready.iteration + 1 } else { 0 };
                self.lead_to(target, place, iteration, point);
            }
            StepKind::Split => {
                let width = taken.targets.len() as u64;
                let frame = self.open(ready, point, width, false);
                for (target, index) in taken.targets.iter().zip(0..) {
                    let place = Place { frame: Some(frame), index };
                    let inputs = Inputs::One(point);
                    self.enqueue(Ready { step: *target, place, iteration: 0, inputs });
                }
            }
            StepKind::Foreach { .. } | StepKind::Parallel => {
                let width = taken.num_splits.unwrap_or_default();
                let frame = self.open(ready, point, width, true);
                self.enqueue_splits(taken.targets[0], frame, point, width);
            }
        }
    }

    fn open(&mut self, ready: &Ready, source: DataPoint, width: u64, foreach: bool) -> FrameId {
        self.frames.open(Frame {
            split: ready.step,
            foreach,
            outer: ready.place,
            source,
            width,
            arrivals: super::frames::Arrivals::default(),
        })
    }

    fn lead_to(&mut self, target: StepIndex, place: Place, iteration: u32, point: DataPoint) {
        match place.frame {
            Some(frame) if self.graph.steps[target].is_join() => {
                self.arrive(target, frame, place.index, point);
            }
            _ => {
                self.enqueue(Ready { step: target, place, iteration, inputs: Inputs::One(point) });
            }
        }
    }

    /// One branch or split reached its join; the last one makes the join ready.
    fn arrive(&mut self, join: StepIndex, id: FrameId, index: u64, point: DataPoint) {
        let frame = self.frames.get_mut(id);
        frame.arrivals.insert(index, point);
        if frame.arrivals.count() < frame.width {
            return;
        }
        let frame = self.frames.close(id);
        let inputs = Inputs::Joined { inputs: self.joined(&frame), width: frame.width };
        self.enqueue(Ready { step: join, place: frame.outer, iteration: 0, inputs });
    }

    fn joined(&self, frame: &Frame) -> Arc<[InputRef]> {
        let mut inputs: Vec<InputRef> = Vec::new();
        let mut before = None;
        for (_, len, point) in frame.arrivals.spans() {
            let range = (point.task, TaskId(point.task.0 + len - 1), point.attempt);
            match inputs.last_mut() {
                Some(last) if before == Some((point.run, point.step)) => last.tasks.push(range),
                _ => {
                    let mut input = self.input(point);
                    input.tasks = vec![range];
                    inputs.push(input);
                }
            }
            before = Some((point.run, point.step));
        }
        inputs.into()
    }

    fn enqueue(&mut self, ready: Ready) {
        if let Phase::Cloning(cloning) = &mut self.phase {
            cloning.waiting.push(ready);
        } else {
            self.counts[ready.step].queued += 1;
            self.queue.push(ready);
        }
    }

    fn enqueue_splits(&mut self, step: StepIndex, frame: FrameId, source: DataPoint, width: u64) {
        if let Phase::Cloning(cloning) = &mut self.phase {
            cloning.waiting.push_splits(step, frame, source, width);
        } else {
            self.counts[step].queued += width;
            self.queue.push_splits(step, frame, source, width);
        }
    }
}
