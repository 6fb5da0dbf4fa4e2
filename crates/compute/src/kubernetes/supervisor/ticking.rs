//! What happens by the clock: reasons are looked up, patience ends, finished Jobs are removed.

use std::collections::BTreeSet;
use std::time::Duration;

use ferroflow_core::id::AttemptId;
use ferroflow_core::task::{Cause, CauseKind};
use tokio::time::Instant;

use super::super::api::{ApiFault, jobs_path};
use super::super::attempt::{Attempt, Stage};
use super::super::explain::{Explanations, cannot_create, explain};
use super::super::jobset::jobsets;
use super::{FinishedJob, Message, Supervisor};

/// Jobs are removed this long after their end was told, so that it is recorded first.
const KEEP_FINISHED: Duration = Duration::from_secs(20);
/// Finished Jobs removed in one go.
const REMOVED_AT_ONCE: usize = 50;
/// Between two looks at events.
const EXPLAIN_EVERY: Duration = Duration::from_secs(2);
/// A Job without a pod is asked about after this.
const NO_POD: Duration = Duration::from_millis(1500);
/// And so is a pod that a node prepares.
const PREPARING: Duration = Duration::from_secs(3);
/// Trouble with an image that may pass: a registry that hiccups.
const STUCK: Duration = Duration::from_secs(20);
/// A Job whose pod cannot be created, other than for lack of quota.
const CANNOT_CREATE: Duration = Duration::from_secs(30);
/// A pod that somebody deletes and whose node does not confirm it.
const TAKEN: Duration = Duration::from_secs(30);
/// A Job that never got a pod may have been deleted.
const LOOK_FOR_JOB: Duration = Duration::from_secs(10);

impl Supervisor {
    pub(super) fn look_around(&mut self) {
        self.remove_finished();
        self.end_patience();
        self.press_on();
        self.look_for_adopted();
        let again: Vec<AttemptId> = self.attempts.iter().filter(|(_, a)| a.delete_again).map(|(id, _)| *id).collect();
        self.delete(again);
        if self.explained_at.elapsed() >= EXPLAIN_EVERY {
            self.explained_at = Instant::now();
            self.ask_why();
            self.look_for_job();
        }
    }

    /// One after the other: it is not urgent, and a connection each would be many.
    fn remove_finished(&mut self) {
        if self.removing.as_ref().is_some_and(|work| !work.is_finished()) {
            return;
        }
        let due = self.finished.iter().take(REMOVED_AT_ONCE).take_while(|job| job.at.elapsed() >= KEEP_FINISHED);
        let count = due.count();
        if count == 0 {
            return;
        }
        let jobs: Vec<FinishedJob> = self.finished.drain(..count).collect();
        let mut objects = BTreeSet::new();
        for job in jobs {
            match &job.jobset {
                None => objects.insert((jobs_path(&job.namespace), job.name)),
                Some(jobset) if !self.has_ranks_in(jobset) => objects.insert((jobsets(&job.namespace), jobset.clone())),
                Some(_) => {
                    self.finished.push_back(FinishedJob { at: Instant::now(), ..job });
                    continue;
                }
            };
        }
        let cluster = self.cluster.clone();
        self.removing = Some(tokio::spawn(async move {
            for (path, name) in objects {
                // One that could not be removed now is when the layer ends.
                let _later = cluster.delete_named(&path, &name).await;
            }
        }));
    }

    fn end_patience(&mut self) {
        let mut over = Vec::new();
        for (id, attempt) in &self.attempts {
            let waited = attempt.since.elapsed();
            if attempt.stage == Stage::Ending || attempt.is_stopped() {
                continue;
            }
            if let Some(cause) = attempt.taken.clone().filter(|_| waited >= TAKEN) {
                over.push((*id, cause));
            } else if let Some(cause) = attempt.stuck.clone().filter(|_| waited >= STUCK) {
                over.push((*id, cause));
            }
        }
        for (id, cause) in over {
            self.lose(id, cause);
        }
    }

    fn is_puzzling(attempt: &Attempt) -> bool {
        let waited = attempt.since.elapsed();
        attempt.stage == Stage::Created
            && !attempt.is_stopped()
            && match attempt.pod {
                None => waited >= NO_POD,
                Some(_) => attempt.preparing && waited >= PREPARING,
            }
    }

    /// Reads the events of namespaces where attempts do not get on.
    fn ask_why(&mut self) {
        for namespace in self.watched.clone() {
            let puzzling = self.attempts.values().any(|a| a.namespace == namespace && Self::is_puzzling(a));
            if !puzzling || !self.explaining.insert(namespace.clone()) {
                continue;
            }
            let (cluster, sender) = (self.cluster.clone(), self.sender.clone());
            tokio::spawn(async move {
                let result = explain(&cluster, &namespace).await;
                let _over = sender.send(Message::Explained { namespace, result });
            });
        }
    }

    pub(super) fn explained(&mut self, namespace: &str, result: Result<Explanations, ApiFault>) {
        self.explaining.remove(namespace);
        // Without permission to read events there is nothing to say.
        let Ok(found) = result else { return };
        let mut waiting = Vec::new();
        let mut refused = Vec::new();
        for (id, attempt) in self.attempts.iter().filter(|(_, a)| a.namespace == namespace && Self::is_puzzling(a)) {
            match &attempt.pod {
                None => {
                    let Some(message) = found.jobs.get(&attempt.job) else {
                        waiting.extend(self.waits_for_controller(attempt).map(|reason| (*id, reason)));
                        continue;
                    };
                    let reason = cannot_create(message);
                    if attempt.since.elapsed() >= CANNOT_CREATE && !message.contains("exceeded quota") {
                        refused.push((*id, Cause::new(CauseKind::Refused, reason)));
                    } else {
                        waiting.push((*id, reason));
                    }
                }
                Some(pod) => {
                    if let Some(message) = found.pods.get(pod).filter(|_| attempt.stuck.is_none()) {
                        waiting.push((*id, format!("its node prepares it: {message}")));
                    }
                }
            }
        }
        for (id, reason) in waiting {
            self.tell_waiting(id, reason);
        }
        for (id, cause) in refused {
            self.lose(id, cause);
        }
    }

    /// A Job that was deleted before it had a pod is on no watch of ours.
    fn look_for_job(&mut self) {
        let lonely = self
            .attempts
            .iter_mut()
            .find(|(_, a)| a.stage == Stage::Created && a.pod.is_none() && a.looked_for.elapsed() >= LOOK_FOR_JOB);
        let Some((id, attempt)) = lonely else { return };
        attempt.looked_for = Instant::now(); // the next look is at another one
        let id = *id;
        self.ask_for_job(id);
    }
}
