//! Stopping attempts and ending the layer; what could not be ended is said.

use std::time::Duration;

use ferroflow_core::id::AttemptId;
use ferroflow_core::port::{LayerEvent, StopSignal};
use ferroflow_core::task::{Cause, CauseKind};
use futures_util::StreamExt;
use serde_json::json;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::super::api::{BatchFault, Call, Service};
use super::super::attempt::Stage;
use super::{CLOSING, Message, Supervisor, cancelled};

/// Requests under way at once.
const AT_ONCE: usize = 16;
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
    pub(super) fn stop(&mut self, ids: &[AttemptId], signal: StopSignal) {
        let mut there = Vec::new();
        for id in ids {
            let Some(attempt) = self.attempts.get_mut(id) else { continue };
            if attempt.stage == Stage::Ending {
                continue;
            }
            let first = attempt.stop.is_none();
            if first || signal == StopSignal::Kill {
                attempt.stop = Some(signal);
            }
            if attempt.stage == Stage::Submitting {
                attempt.cancel_order();
            } else if first {
                // There is no firmer request: AWS Batch kills what does not end by itself.
                there.push(*id);
            }
        }
        self.end(there);
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

    pub(super) fn end_jobs(&self, ids: Vec<AttemptId>, jobs: Vec<String>) {
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
        self.events.send(LayerEvent::Notice { text: format!("AWS Batch did not end tasks: {fault}") });
    }

    pub(super) fn shut_down(&mut self, done: oneshot::Sender<()>) {
        match &mut self.closing {
            Some((_, waiting)) => waiting.push(done),
            None => self.closing = Some((Instant::now() + CLOSING, vec![done])),
        }
        let all: Vec<AttemptId> = self.attempts.keys().copied().collect();
        self.stop(&all, StopSignal::Kill);
    }

    /// The last words of the layer: nothing of the run is left, or it is said what is.
    pub(super) fn close(&mut self) {
        let left: Vec<AttemptId> = self.attempts.keys().copied().collect();
        let mut alive = 0;
        for id in left {
            let Some(attempt) = self.attempts.remove(&id) else { continue };
            attempt.cancel_order();
            alive += usize::from(attempt.stage != Stage::Ending);
            let cause = if attempt.told_started {
                Cause::new(CauseKind::Cancelled, "stopped, but AWS Batch has not said that it ended")
            } else {
                cancelled()
            };
            self.events.send(LayerEvent::Lost { id, cause });
        }
        if alive > 0 {
            self.events.send(LayerEvent::Notice { text: self.what_is_left(alive) });
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
