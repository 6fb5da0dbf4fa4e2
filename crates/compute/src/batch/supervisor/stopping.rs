//! Stopping attempts and ending the layer; what could not be ended is said.

use std::time::Duration;

use ferroflow_core::id::AttemptId;
use ferroflow_core::port::{LayerEvent, StopSignal};
use ferroflow_core::task::{Cause, CauseKind};
use futures_util::StreamExt;
use serde_json::json;
use tokio::time::Instant;

use super::super::api::{BatchFault, Call, Service};
use super::super::attempt::{Attempt, Stage};
use super::super::multinode;
use super::{Message, Supervisor, cancelled};
use crate::remote::drive::CLOSING;

/// Requests under way at once.
const AT_ONCE: usize = 16;
/// So long nothing is said of what is left; with the next tick it makes five seconds.
const SILENT: Duration = Duration::from_millis(4500);
/// A service that does not take them for so long is asked again later.
const PATIENCE: Duration = Duration::from_secs(4);

/// Ends jobs, one request each: those that run (SIGTERM, then SIGKILL) and those that wait alike.
async fn terminate(service: &Service, jobs: &[String], why: &str) -> Result<(), BatchFault> {
    let requests: Vec<_> = jobs.iter().map(|job| json!({ "jobId": job, "reason": why })).collect();
    let calls = requests.into_iter().map(|body| {
        let service = service.clone();
        async move { service.call_patiently(Call::TerminateJob, &body, PATIENCE).await }
    });
    let mut results = futures_util::stream::iter(calls).buffer_unordered(AT_ONCE);
    let mut worst = Ok(());
    while let Some(result) = results.next().await {
        worst = worst.and(result.map(drop));
    }
    worst
}

impl Supervisor {
    pub(super) fn stop_attempts(&mut self, ids: &[AttemptId], signal: StopSignal) {
        let mut there = Vec::new();
        let mut never_out = Vec::new();
        for id in ids {
            let Some(attempt) = self.attempts.get_mut(id) else { continue };
            if attempt.stage == Stage::Ending {
                continue;
            }
            let first = attempt.stop.is_none();
            if first || signal == StopSignal::Kill {
                attempt.stop = Some(signal);
            }
            if signal == StopSignal::Kill {
                attempt.killed_at.get_or_insert_with(Instant::now);
            }
            if attempt.stage == Stage::Submitting {
                if attempt.cancel_order() {
                    never_out.push(*id);
                }
            } else if first {
                // There is no firmer request: AWS Batch kills what does not end by itself.
                there.push(*id);
            }
        }
        for id in never_out {
            self.lose(id, cancelled());
        }
        self.end(there);
    }

    /// After five seconds it is said what the service still has of a run that was told to end.
    pub(super) fn tell_left(&mut self) {
        if self.told_left || self.run_ends_since.is_none_or(|since| since.elapsed() < SILENT) {
            return;
        }
        let left = self.attempts.values().filter(|attempt| attempt.stage != Stage::Ending).count();
        if left > 0 {
            self.told_left = true;
            let tasks = if left == 1 { "1 task".to_owned() } else { format!("{left} tasks") };
            let text = format!(
                "After 5 seconds AWS Batch has not confirmed the end of {tasks} of this run. They are asked to end until it \
                 does. See what is left and end it with: {}",
                self.settings.kill_command
            );
            self.events.send(LayerEvent::Notice { text });
        }
    }

    /// Gives up those that were to be killed and of whose end nothing is heard.
    pub(super) fn give_up(&mut self) {
        let over = |a: &Attempt| a.stage != Stage::Ending && a.killed_at.is_some_and(|at| at.elapsed() >= CLOSING);
        let over: Vec<AttemptId> = self.attempts.iter().filter(|(_, a)| over(a)).map(|(id, _)| *id).collect();
        for id in over {
            self.forget(id);
        }
    }

    fn forget(&mut self, id: AttemptId) {
        let Some(attempt) = self.attempts.remove(&id) else { return };
        let never_out = attempt.stage == Stage::Submitting && attempt.cancel_order();
        self.unconfirmed += usize::from(attempt.stage != Stage::Ending && !never_out);
        let cause = if attempt.told_started {
            Cause::new(CauseKind::Cancelled, "stopped, but AWS Batch has not said that it ended")
        } else {
            cancelled()
        };
        self.events.send(LayerEvent::Lost { id, cause });
    }

    /// Ends the jobs of attempts; the answer comes as a message.
    pub(super) fn end(&mut self, ids: Vec<AttemptId>) {
        if ids.is_empty() {
            return;
        }
        let mut jobs = Vec::new();
        for id in &ids {
            if let Some(attempt) = self.attempts.get_mut(id) {
                attempt.end_again = false;
                jobs.extend(attempt.job.clone());
            }
        }
        self.end_jobs(ids, jobs);
    }

    pub(super) fn end_jobs(&self, ids: Vec<AttemptId>, mut jobs: Vec<String>) {
        for job in &mut jobs {
            if let Some(whole) = multinode::whole(job) {
                *job = whole.to_owned();
            }
        }
        jobs.sort_unstable();
        jobs.dedup();
        let (service, sender) = (self.service.clone(), self.sender.clone());
        tokio::spawn(async move {
            let result = terminate(&service, &jobs, "The run does not need it any more.").await;
            let _over = sender.send(Message::Ended { ids, result });
        });
    }

    pub(super) fn ended_by_us(&mut self, ids: &[AttemptId], result: &Result<(), BatchFault>) {
        self.polling.hurry();
        let Err(fault) = result else { return };
        for id in ids {
            if let Some(attempt) = self.attempts.get_mut(id) {
                attempt.end_again = fault.may_pass();
            }
        }
        let text = format!("AWS Batch did not end tasks: {fault}");
        if self.not_ended.as_ref() != Some(&text) {
            self.not_ended = Some(text.clone());
            self.events.send(LayerEvent::Notice { text });
        }
    }

    /// The last words of the layer: nothing of the run is left, or it is said what is.
    pub(super) fn say_what_is_left(&mut self) {
        let left: Vec<AttemptId> = self.attempts.keys().copied().collect();
        for id in left {
            self.forget(id);
        }
        if self.unconfirmed > 0 {
            self.events.send(LayerEvent::Notice { text: self.what_is_left(self.unconfirmed) });
        } else if self.told_left {
            let text = "Nothing of this run is left on AWS Batch now.".to_owned();
            self.events.send(LayerEvent::Notice { text });
        }
    }

    fn what_is_left(&self, alive: usize) -> String {
        let tasks = match alive {
            1 => "1 task of this run may".to_owned(),
            n => format!("{n} tasks of this run may"),
        };
        format!(
            "{tasks} still be running on AWS Batch, which was asked to end them and has not confirmed it. See what is \
             left and end it with: {}",
            self.settings.kill_command
        )
    }
}
