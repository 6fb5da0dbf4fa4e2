//! How a run ends: done, failed, or stopped by a signal; and what happens by the clock alone.

use super::message::{Line, Message, Progress};
use super::tasks::Ending;
use super::{Action, FailedTask, Phase, Run, RunEnd};
use crate::id::AttemptId;
use crate::metadata::{Record, RunState};
use crate::port::StopSignal;
use crate::task::{AttemptState, Cause, CauseKind, Millis};

/// How long tasks may take to react to SIGTERM.
pub const STOP_GRACE: Millis = 5_000;
/// Between two progress reports.
pub const PROGRESS_INTERVAL: Millis = 300_000;

/// A run on its way to an end that is not success.
#[derive(Debug)]
pub(super) struct Stopping {
    pub reason: Reason,
    /// When what still runs is killed; `None` once that was done.
    pub kill_at: Option<Millis>,
    pub since: Millis,
}

#[derive(Clone, Debug)]
pub(super) enum Reason {
    Failed(FailedTask),
    Signal(String),
    LayerDown(Cause),
}

impl Run {
    /// Ends the run early: nothing further starts, what runs is asked to end.
    pub(super) fn stop(&mut self, reason: Reason, now: Millis, out: &mut Vec<Action>) {
        self.queue.clear();
        self.give_up_gangs();
        for counts in &mut self.counts {
            counts.queued = 0;
        }
        out.push(Action::Print(Message::run(match &reason {
            Reason::Signal(signal) => Line::WorkflowStopping { signal: signal.clone() },
            Reason::Failed(_) | Reason::LayerDown(_) => Line::WorkflowFailed,
        })));
        self.phase = Phase::Stopping(Stopping { reason, kill_at: Some(now + STOP_GRACE), since: now });
        self.cancel_pauses(now, out);
        let tasks = self.active.len();
        if tasks > 0 {
            out.push(Action::Print(Message::run(Line::Terminating { tasks })));
        }
        let adopted = self.adopted_count();
        if adopted > 0 {
            out.push(Action::Print(Message::run(Line::TerminatingAdopted { tasks: adopted })));
        }
        for (task, active) in &self.active {
            out.push(self.say(*task, active, Line::KilledByOrchestrator));
        }
        self.stop_all(StopSignal::Terminate, out);
    }

    /// Attempts that pause before a retry are not out: nobody would tell of their end.
    fn cancel_pauses(&mut self, now: Millis, out: &mut Vec<Action>) {
        let cause = self.stop_cause();
        while let Some((_, id)) = self.pauses.first().copied() {
            let Some(mut active) = self.take(id) else { return };
            active.state = AttemptState::Cancelled;
            self.counts[active.ready.step].failed += 1;
            let ending = Ending { cause: cause.as_ref(), ok: Some(false), ..Ending::default() };
            out.push(self.record(id.task, &active, now, &ending));
        }
    }

    fn stop_all(&self, signal: StopSignal, out: &mut Vec<Action>) {
        let attempts: Vec<AttemptId> =
            self.active.iter().map(|(task, active)| AttemptId { task: *task, attempt: active.attempt }).collect();
        if !attempts.is_empty() {
            out.push(Action::Stop { attempts, signal });
        }
    }

    pub(super) fn stop_requested(&mut self, signal: String, now: Millis, out: &mut Vec<Action>) {
        match &self.phase {
            Phase::New | Phase::Cloning(_) | Phase::Running => {
                self.stop(Reason::Signal(signal), now, out);
            }
            Phase::Stopping(_) => self.kill(now, out),
            Phase::Ended => {}
        }
        self.go_on(now, out);
    }

    fn kill(&mut self, now: Millis, out: &mut Vec<Action>) {
        let Phase::Stopping(stopping) = &mut self.phase else { return };
        if stopping.kill_at.take().is_none() {
            return;
        }
        let seconds = u64::try_from((now - stopping.since) / 1000).unwrap_or_default();
        let tasks = self.active.len();
        if tasks > 0 {
            out.push(Action::Print(Message::run(Line::Killing { tasks, seconds })));
            self.stop_all(StopSignal::Kill, out);
        }
    }

    /// The layer is gone, and every attempt with it.
    pub(super) fn down(&mut self, cause: &Cause, now: Millis, out: &mut Vec<Action>) {
        if matches!(self.phase, Phase::Ended) {
            return;
        }
        let ids: Vec<AttemptId> =
            self.active.iter().map(|(task, active)| AttemptId { task: *task, attempt: active.attempt }).collect();
        for id in ids {
            let Some(mut active) = self.take(id) else { continue };
            active.state = AttemptState::Lost;
            self.counts[active.ready.step].failed += 1;
            let ending = Ending { cause: Some(cause), ok: Some(false), ..Ending::default() };
            out.push(self.record(id.task, &active, now, &ending));
            out.push(self.say(id.task, &active, Line::TaskCause(cause.clone())));
            out.push(self.say(id.task, &active, Line::TaskFailed));
        }
        if !matches!(self.phase, Phase::Stopping(_)) {
            self.stop(Reason::LayerDown(cause.clone()), now, out);
        }
        self.go_on(now, out);
    }

    /// After every event: start what can start, and end when nothing is left.
    pub(super) fn go_on(&mut self, now: Millis, out: &mut Vec<Action>) {
        match &self.phase {
            Phase::Running => {
                self.pump(now, out);
                if self.active.is_empty() {
                    self.finish(now, out);
                }
            }
            Phase::Stopping(_) if self.active.is_empty() => self.finish(now, out),
            _ => {}
        }
    }

    fn finish(&mut self, now: Millis, out: &mut Vec<Action>) {
        let end = self.end();
        let line = match end.state {
            RunState::Done => Line::Done,
            _ => Line::FlushingLogs,
        };
        let record = Record::RunState { state: end.state, cause: end.cause.clone(), at: now };
        out.push(Action::Record(Box::new(record)));
        out.push(Action::Print(Message::run(line)));
        out.push(Action::Finish(end));
        self.phase = Phase::Ended;
    }

    fn end(&self) -> RunEnd {
        let Phase::Stopping(stopping) = &self.phase else {
            assert!(self.end_reached, "a run without tasks has reached its end step");
            return RunEnd { state: RunState::Done, cause: None, failed: None, signal: None };
        };
        match &stopping.reason {
            Reason::Failed(failed) => RunEnd {
                state: RunState::Failed,
                cause: Some(Cause::new(
                    failed.cause.kind,
                    format!("step {} (task {}) failed: {}", failed.step, failed.task, failed.cause.text),
                )),
                failed: Some(failed.clone()),
                signal: None,
            },
            Reason::Signal(signal) => RunEnd {
                state: RunState::Cancelled,
                cause: Some(Cause::new(CauseKind::Cancelled, format!("stopped by {signal}"))),
                failed: None,
                signal: Some(signal.clone()),
            },
            Reason::LayerDown(cause) => {
                RunEnd { state: RunState::Failed, cause: Some(cause.clone()), failed: None, signal: None }
            }
        }
    }

    /// Why tasks are being stopped, if they are.
    pub(super) fn stop_cause(&self) -> Option<Cause> {
        let Phase::Stopping(stopping) = &self.phase else { return None };
        let text = match &stopping.reason {
            Reason::Failed(failed) => {
                format!("stopped because step {} (task {}) failed", failed.step, failed.task)
            }
            Reason::Signal(signal) => format!("stopped because the run got {signal}"),
            Reason::LayerDown(cause) => cause.text.clone(),
        };
        Some(Cause::new(CauseKind::Cancelled, text))
    }

    pub(super) fn tick(&mut self, now: Millis, out: &mut Vec<Action>) {
        match &self.phase {
            Phase::Stopping(stopping) if stopping.kill_at.is_some_and(|at| at <= now) => {
                self.kill(now, out);
            }
            Phase::Running => {
                self.kill_overdue(now, out);
                self.kill_gangs(now, out);
                self.end_pauses(now, out);
                if now >= self.report_at {
                    self.report_at = now + PROGRESS_INTERVAL;
                    out.push(Action::Print(Message::run(Line::Progress(self.report()))));
                }
            }
            _ => {}
        }
    }

    /// Kills attempts that did not react to their `@timeout`.
    fn kill_overdue(&mut self, now: Millis, out: &mut Vec<Action>) {
        let mut attempts = Vec::new();
        while let Some((at, id)) = self.backstops.first().copied().filter(|(at, _)| *at <= now) {
            self.backstops.remove(&(at, id));
            if let Some(active) = self.active.get_mut(&id.task) {
                active.overdue = true;
                active.backstop = None;
                attempts.push(id);
            }
        }
        if !attempts.is_empty() {
            out.push(Action::Stop { attempts, signal: StopSignal::Kill });
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Millis> {
        match &self.phase {
            Phase::New | Phase::Ended => None,
            Phase::Cloning(_) => Some(0),
            Phase::Stopping(stopping) => stopping.kill_at,
            Phase::Running => {
                let backstop = self.backstops.first().map_or(Millis::MAX, |(at, _)| *at);
                let pause = self.pauses.first().map_or(Millis::MAX, |(at, _)| *at);
                let gang = self.gangs.values().filter_map(|gang| gang.kill_at()).min().unwrap_or(Millis::MAX);
                Some(backstop.min(pause).min(gang).min(self.report_at))
            }
        }
    }

    fn report(&self) -> Progress {
        let all = self.progress();
        Progress {
            queued: all.iter().map(|s| s.queued).sum(),
            not_started: all
                .iter()
                .filter(|s| s.starting + s.running + s.done + s.failed == 0)
                .map(|s| s.step.clone())
                .collect(),
            running: all.into_iter().filter(|s| s.running + s.starting > 0).collect(),
        }
    }
}
