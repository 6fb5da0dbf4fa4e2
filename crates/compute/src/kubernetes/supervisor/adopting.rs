//! Attempts that this run's engine before had submitted (design D9): their Jobs have names that can
//! be told, so they are looked for, and then followed like any other.

use std::collections::HashSet;

use ferroflow_core::id::{AttemptId, StepName};
use ferroflow_core::task::{Cause, CauseKind};

use super::super::api::ApiFault;
use super::super::attempt::{Attempt, MOST_ROUNDS, Stage};
use super::super::jobset::{Member, jobsets, member_of, members};
use super::super::pod::PodView;
use super::super::submit::Submitter;
use super::{Message, Supervisor};

/// What there is of a run in one namespace, for attempts that are looked for.
pub struct Findings {
    namespace: String,
    ids: Vec<AttemptId>,
    found: Result<Found, ApiFault>,
}

struct Found {
    jobs: HashSet<String>,
    pods: Vec<PodView>,
    ranks: Vec<Member>,
}

impl Supervisor {
    pub(super) fn adopt_attempt(&mut self, step: &StepName, id: AttemptId) {
        let mut launch = self.settings.identity.probe_launch(step);
        launch.id = id;
        (launch.spec.task, launch.spec.attempt) = (id.task, id.attempt);
        let namespace = self.submitter.options(&launch).namespace;
        let job = self.settings.identity.job_name(step.as_str(), id, 0);
        let mut attempt = Attempt::new(launch, namespace, job);
        attempt.adopted = true;
        self.attempts.insert(id, attempt);
        self.remote.adopt(step, id);
        // The next tick looks for all of them together.
        self.adopted.push(id);
    }

    /// One look per namespace for all that were not looked for yet.
    pub(super) fn look_for_adopted(&mut self) {
        let mut left: Vec<AttemptId> = std::mem::take(&mut self.adopted);
        left.retain(|id| self.attempts.contains_key(id));
        while let Some(first) = left.first() {
            let namespace = self.attempts[first].namespace.clone();
            let (ids, others) = left.into_iter().partition(|id| self.attempts[id].namespace == namespace);
            left = others;
            let (submitter, sender) = (self.submitter.clone(), self.sender.clone());
            let selector = self.settings.identity.selector();
            tokio::spawn(async move {
                let found = look(&submitter, &namespace, &selector).await;
                let _over = sender.send(Message::Found(Box::new(Findings { namespace, ids, found })));
            });
        }
    }

    pub(super) fn found(&mut self, findings: Findings) {
        let Findings { namespace, ids, found } = findings;
        let Found { jobs, pods, ranks } = match found {
            Ok(found) => found,
            Err(fault) if fault.may_pass() => {
                // The next tick looks again.
                self.adopted.extend(ids);
                return;
            }
            Err(fault) => {
                let cause = Cause::new(
                    CauseKind::LayerError,
                    format!("Kubernetes does not let you see what is left of it in `{namespace}`: {fault}"),
                );
                for id in ids {
                    self.lose(id, cause.clone());
                }
                return;
            }
        };
        let with_pods: HashSet<&str> = pods.iter().map(|pod| pod.job.as_str()).collect();
        for id in ids {
            let rank = ranks.iter().find(|rank| rank.id == id);
            self.take_up(id, rank, |job| jobs.contains(job) || with_pods.contains(job));
        }
        for pod in &pods {
            self.changed(pod);
        }
        self.watch(&namespace);
    }

    /// Goes on with the newest Job of an adopted attempt.
    fn take_up(&mut self, id: AttemptId, rank: Option<&Member>, is_there: impl Fn(&str) -> bool) {
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        if let Some(Member { jobset, job, .. }) = rank {
            attempt.jobset = Some(jobset.clone());
            attempt.job.clone_from(job);
            self.jobs.insert(job.clone(), id);
            self.submitted(id, 0, Ok(true));
            return;
        }
        let step = attempt.launch.spec.step.clone();
        let names = (0..=MOST_ROUNDS).map(|round| (round, self.settings.identity.job_name(step.as_str(), id, round)));
        match names.filter(|(_, name)| is_there(name)).last() {
            Some((round, job)) => {
                (attempt.round, attempt.job) = (round, job);
                self.jobs.insert(attempt.job.clone(), id);
                self.submitted(id, round, Ok(true));
            }
            None => {
                // Whoever may not list Jobs does not see one without a pod: this removes it.
                attempt.stage = Stage::Created;
                self.lose(id, Cause::new(CauseKind::LayerError, "nothing of it is left on Kubernetes"));
            }
        }
    }
}

async fn look(submitter: &Submitter, namespace: &str, selector: &str) -> Result<Found, ApiFault> {
    let cluster = &submitter.cluster;
    let jobs = match cluster.list_jobs(namespace, selector).await {
        Err(ApiFault::Denied(_)) => Vec::new(),
        listed => listed?,
    };
    let jobs = jobs.iter().filter_map(|job| job["metadata"]["name"].as_str()).map(str::to_owned).collect();
    let (pods, _) = cluster.list_pods(namespace, selector).await?;
    let mut ranks: Vec<Member> = pods.iter().filter_map(member_of).collect();
    if !submitter.settings.gangs.is_empty() && submitter.jobsets.are_used(cluster).await {
        match cluster.list_at(&jobsets(namespace), selector).await {
            // Pods tell as much, where there are some.
            Err(ApiFault::Denied(_)) => {}
            listed => ranks.extend(listed?.iter().flat_map(members)),
        }
    }
    Ok(Found { jobs, pods: pods.iter().map(PodView::of).collect(), ranks })
}
