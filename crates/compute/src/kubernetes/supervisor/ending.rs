//! How attempts end: their lines first, then the one event that says how.

use std::time::Duration;

use ferroflow_core::id::AttemptId;
use ferroflow_core::port::{LayerEvent, StopSignal};
use ferroflow_core::task::{AttemptReport, Cause, ProcessExit, Usage};

use super::super::attempt::{Attempt, MOST_ROUNDS, Stage};
use super::super::names::container_name;
use super::super::pod::PodView;
use super::{FinishedJob, Message, Supervisor, cancelled};
use crate::remote::ending::told;

/// How long the last lines of an ended task may take.
const LAST_LINES: Duration = Duration::from_secs(15);
/// The same of one that nothing more is heard of.
const LAST_LINES_OF_LOST: Duration = Duration::from_secs(3);
/// What is asked of a node: more than a task prints between two of its writes to the store.
const LINES_OF_NODE: i64 = 5_000;

impl Supervisor {
    /// Reports once everything that was printed is through.
    pub(super) fn drain(&mut self, id: AttemptId, report: Box<AttemptReport>) {
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        attempt.stage = Stage::Ending;
        let (remote, sender) = (self.remote.clone(), self.sender.clone());
        tokio::spawn(async move {
            // A store that does not answer must not hold back the end of the task.
            let _late = tokio::time::timeout(LAST_LINES, remote.drained(id)).await;
            let _over = sender.send(Message::Drained { id, report });
        });
    }

    /// The same where the container died before it had sent all: its node may have the rest.
    pub(super) fn drain_with_node_log(&mut self, id: AttemptId, pod: &PodView, report: Box<AttemptReport>) {
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        attempt.stage = Stage::Ending;
        let container = container_name(attempt.launch.spec.step.as_str());
        let (namespace, pod) = (attempt.namespace.clone(), pod.name.clone());
        let (cluster, remote, sender) = (self.cluster.clone(), self.remote.clone(), self.sender.clone());
        tokio::spawn(async move {
            // Read first: it goes when the pod does.
            let lines = cluster.last_lines(&namespace, &pod, &container, LINES_OF_NODE).await;
            let rest = async {
                remote.drained(id).await;
                // Without permission, or with the pod gone, what the store has is all there is.
                if let Ok(lines) = lines {
                    remote.complete(id, lines).await;
                }
            };
            let _late = tokio::time::timeout(LAST_LINES, rest).await;
            let _over = sender.send(Message::Drained { id, report });
        });
    }

    pub(super) fn finish(&mut self, id: AttemptId, report: AttemptReport) {
        let Some(attempt) = self.attempts.remove(&id) else { return };
        self.jobs.remove(&attempt.job);
        self.finished.push_back(FinishedJob::of(&attempt));
        self.tell_end(id, &attempt, told(id, report));
    }

    /// A stopped attempt whose pod went without a word.
    pub(super) fn end_stopped(&mut self, id: AttemptId) {
        let Some(attempt) = self.attempts.get(&id) else { return };
        if !attempt.told_started {
            self.lose(id, cancelled());
            return;
        }
        let signal = if attempt.stop == Some(StopSignal::Kill) { 9 } else { 15 };
        let exit = ProcessExit::Signal(signal);
        self.drain(id, Box::new(AttemptReport { outcome: None, exit, usage: Usage::default(), cause: None }));
    }

    /// Ends an attempt of which nothing more is known; its Job goes too. What it had printed until
    /// then comes first.
    pub(super) fn lose(&mut self, id: AttemptId, cause: Cause) {
        let Some(attempt) = self.attempts.get_mut(&id).filter(|attempt| attempt.stage != Stage::Ending) else { return };
        let (has_run, was_sent) = (attempt.told_started, attempt.stage != Stage::Submitting);
        if has_run {
            attempt.stage = Stage::Ending;
        }
        if was_sent {
            self.delete(vec![id]);
        }
        if !has_run {
            self.tell_lost(id, cause);
            return;
        }
        let (remote, sender) = (self.remote.clone(), self.sender.clone());
        tokio::spawn(async move {
            let _late = tokio::time::timeout(LAST_LINES_OF_LOST, remote.drained(id)).await;
            let _over = sender.send(Message::LostDrained { id, cause });
        });
    }

    pub(super) fn tell_lost(&mut self, id: AttemptId, cause: Cause) {
        if let Some(attempt) = self.attempts.remove(&id) {
            self.jobs.remove(&attempt.job);
            let _whether_it_went_out = attempt.cancel_order();
            self.tell_end(id, &attempt, LayerEvent::Lost { id, cause });
        }
    }

    /// Another Job for an attempt whose addresses had expired while it waited; `false` when that
    /// was tried often enough.
    pub(super) fn submit_again(&mut self, id: AttemptId) -> bool {
        let may_come_back = |attempt: &&mut Attempt| attempt.round < MOST_ROUNDS && !attempt.adopted;
        let Some(attempt) = self.attempts.get_mut(&id).filter(may_come_back) else {
            return false;
        };
        self.finished.push_back(FinishedJob::of(attempt));
        self.jobs.remove(&attempt.job);
        attempt.round += 1;
        self.send_order(id);
        true
    }
}
