//! Pods that somebody else takes away. With the Job gone too, somebody killed the task, and it is
//! not started again; without that, a node was drained or a pod deleted, and the task is lost.

use std::time::Duration;

use ferroflow_core::id::AttemptId;
use ferroflow_core::task::{Cause, CauseKind};
use tokio::time::Instant;

use super::super::api::{ApiFault, jobs_path};
use super::super::attempt::Attempt;
use super::super::explain::why_taken;
use super::super::jobset::jobsets;
use super::super::pod::PodView;
use super::{Message, Supervisor};

/// Between a pod's deletion and the event about it.
const EVENTS_LAG: Duration = Duration::from_millis(500);

/// How long a server that does not answer is asked whether a Job is there.
const ASKED_FOR: Duration = Duration::from_secs(25);
const ASK_AGAIN: Duration = Duration::from_secs(1);

impl Supervisor {
    /// A pod that is being deleted, not by us: asks whether its Job is, too.
    pub(super) fn taken(&mut self, id: AttemptId, pod: &PodView) {
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        if attempt.taken.is_some() {
            return;
        }
        let text = format!("its pod `{}` was deleted by somebody else, or its node was drained", pod.name);
        attempt.taken = Some(Cause::new(CauseKind::LayerError, text));
        attempt.since = Instant::now();
        if let Some(text) = pod.disrupted() {
            attempt.taken = Some(Cause::new(CauseKind::Evicted, text));
        } else {
            self.ask_why_taken(id);
        }
        self.ask_for_job(id);
    }

    fn ask_why_taken(&mut self, id: AttemptId) {
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        let Some(pod) = attempt.pod.clone() else { return };
        attempt.asking_why = true;
        let (namespace, job) = (attempt.namespace.clone(), attempt.job.clone());
        let (cluster, sender) = (self.cluster.clone(), self.sender.clone());
        tokio::spawn(async move {
            // The scheduler writes down what it did after it has done it.
            tokio::time::sleep(EVENTS_LAG).await;
            let text = why_taken(&cluster, &namespace, &pod).await;
            let _over = sender.send(Message::TakenWhy { id, job, text });
        });
    }

    pub(super) fn taken_why(&mut self, id: AttemptId, job: &str, text: Option<String>) {
        let Some(attempt) = self.attempts.get_mut(&id).filter(|attempt| attempt.job == job) else { return };
        attempt.asking_why = false;
        if let (Some(text), Some(taken)) = (text, &mut attempt.taken)
            && taken.kind == CauseKind::LayerError
        {
            *taken = Cause::new(CauseKind::Evicted, text);
        }
        if attempt.pod_is_gone {
            self.lose_taken(id);
        }
    }

    pub(super) fn ask_for_job(&mut self, id: AttemptId) {
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        attempt.asking_for_job = true;
        let job = attempt.job.clone();
        let (path, name) = match &attempt.jobset {
            None => (jobs_path(&attempt.namespace), job.clone()),
            Some(jobset) => (jobsets(&attempt.namespace), jobset.clone()),
        };
        let (cluster, sender) = (self.cluster.clone(), self.sender.clone());
        tokio::spawn(async move {
            let begun = Instant::now();
            let mut there = cluster.exists(&path, &name).await;
            // Whose will it was is worth waiting for a server that is away.
            while there.as_ref().is_err_and(ApiFault::may_pass) && begun.elapsed() < ASKED_FOR {
                tokio::time::sleep(ASK_AGAIN).await;
                there = cluster.exists(&path, &name).await;
            }
            let _over = sender.send(Message::JobAsked { id, job, there });
        });
    }

    pub(super) fn job_asked(&mut self, id: AttemptId, job: &str, there: &Result<bool, ApiFault>) {
        let Some(attempt) = self.attempts.get_mut(&id).filter(|attempt| attempt.job == job) else { return };
        attempt.asking_for_job = false;
        if attempt.is_stopped() {
            return;
        }
        match there {
            Ok(false) => attempt.taken = Some(killed(attempt)),
            // Else the Job would put another pod in its place.
            Ok(true) | Err(_) if attempt.taken.is_some() => self.delete(vec![id]),
            Ok(true) | Err(_) => {}
        }
        let Some(attempt) = self.attempts.get(&id) else { return };
        if let Some(cause) =
            attempt.taken.clone().filter(|_| (attempt.pod_is_gone && !attempt.asking_why) || attempt.pod.is_none())
        {
            self.lose(id, cause);
        }
    }

    /// The same with what the pod says of its end, where that is the cluster's own reason.
    pub(super) fn lose_taken_because(&mut self, id: AttemptId, cause: Cause) {
        if let Some(taken) = self.attempts.get_mut(&id).and_then(|attempt| attempt.taken.as_mut())
            && (taken.kind, cause.kind) == (CauseKind::LayerError, CauseKind::Evicted)
        {
            *taken = cause;
        }
        self.lose_taken(id);
    }

    /// The pod of a taken attempt is no more; the loss is told as soon as it is known whose will
    /// that was.
    pub(super) fn lose_taken(&mut self, id: AttemptId) {
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        attempt.pod_is_gone = true;
        if let Some(cause) = attempt.taken.clone().filter(|_| !attempt.asking_for_job && !attempt.asking_why) {
            self.lose(id, cause);
        }
    }
}

fn killed(attempt: &Attempt) -> Cause {
    let object = match &attempt.jobset {
        None => format!("Job `{}`", attempt.job),
        Some(jobset) => format!("JobSet `{jobset}`"),
    };
    let text = format!("somebody killed it: its {object} was deleted, as `kubernetes kill` does");
    Cause::new(CauseKind::Killed, text)
}
