//! Stopping attempts: by label selector where all are meant, one by one where the cluster does not
//! allow that. How the layer ends, and what is said of what is left, is `closing`'s work.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use ferroflow_core::id::AttemptId;
use ferroflow_core::port::{LayerEvent, StopSignal};
use ferroflow_core::task::{Cause, CauseKind};
use futures_util::StreamExt;
use tokio::time::Instant;

use super::super::api::{ApiFault, Cluster, Target};
use super::super::attempt::Stage;
use super::super::job::TERMINATION_GRACE;
use super::super::jobset::delete_jobset;
use super::super::names::{ATTEMPT_LABEL, attempt_label};
use super::closing::LONGEST_OF_NODES;
use super::{Message, Supervisor, cancelled};

/// So many are stopped one by one, if they are not all there are.
const FEW: usize = 3;
/// Deletes under way at once.
pub(super) const AT_ONCE: usize = 16;
/// Seconds between SIGTERM and SIGKILL for what is to be killed; 0 would only forget the pod.
pub(super) const KILL_GRACE: u32 = 1;
/// A pod whose container was never started is forgotten when its node has not let it go by then: a
/// node that pulls an image answers only when it has it.
pub(super) const NEVER_STARTED: Duration = Duration::from_secs(2);
/// What is killed is given up when its node has not said by then that it ended. Nothing hurries.
const NO_CONFIRMATION: Duration = Duration::from_secs(45);
/// The same while the run ends.
const NO_CONFIRMATION_AT_END: Duration = Duration::from_secs(6);
/// So many attempts are told apart in one selector.
const MOST_IN_SELECTOR: usize = 500;

/// What is to be deleted in one namespace.
struct Deletion {
    namespace: String,
    /// Selects all that is meant; `None`: only the names.
    selector: Option<String>,
    /// Job and pod.
    names: Vec<(String, Option<String>)>,
    /// Gangs, which go as a whole.
    jobsets: BTreeSet<String>,
    grace: u32,
}

impl Supervisor {
    pub(super) fn stop_attempts(&mut self, ids: &[AttemptId], signal: StopSignal) {
        let (mut there, mut taken_back) = (Vec::new(), Vec::new());
        for id in ids {
            let Some(attempt) = self.attempts.get_mut(id) else { continue };
            let firmer = attempt.stop.is_none() || (signal == StopSignal::Kill && attempt.stop != Some(signal));
            if !firmer || attempt.stage == Stage::Ending {
                continue;
            }
            attempt.stop = Some(signal);
            attempt.stopped_at = Instant::now();
            if attempt.stage != Stage::Submitting {
                there.push(*id);
            } else if !attempt.adopted && attempt.cancel_order() {
                taken_back.push(*id);
            }
        }
        for id in taken_back {
            self.lose(id, cancelled());
        }
        self.delete(there);
    }

    /// What was told to stop and has not yet.
    pub(super) fn press_on(&mut self) {
        let (mut forget, mut give_up) = (Vec::new(), Vec::new());
        let ending_since = self.herald.as_ref().map(|herald| herald.since);
        for (id, attempt) in &mut self.attempts {
            let Some(signal) = attempt.stop else { continue };
            let waited = attempt.stopped_at.elapsed();
            let is_late = match ending_since {
                None => waited >= NO_CONFIRMATION,
                Some(since) if attempt.view.deleting => since.elapsed() >= LONGEST_OF_NODES,
                Some(_) => waited >= NO_CONFIRMATION_AT_END,
            };
            if attempt.stage == Stage::Created && waited >= NEVER_STARTED && !attempt.forced {
                let Some((name, version)) = attempt.pod.clone().zip(attempt.version.clone()) else { continue };
                attempt.forced = true;
                forget.push((attempt.namespace.clone(), name, version));
            } else if attempt.stage != Stage::Ending && signal == StopSignal::Kill && is_late {
                give_up.push(*id);
            }
        }
        if !forget.is_empty() {
            let cluster = self.cluster.clone();
            tokio::spawn(async move {
                // The watch tells what came of it; one that has just started stays.
                let _told_by_the_watch = forget_pods(&cluster, forget).await;
            });
        }
        for id in give_up {
            self.lose(id, unconfirmed());
        }
    }

    /// Deletes Jobs and pods of attempts, of a rank in a JobSet those of all; the answer comes as a
    /// message.
    pub(super) fn delete(&mut self, mut ids: Vec<AttemptId>) {
        if ids.is_empty() {
            return;
        }
        for id in ids.clone() {
            let with_it = self.fell_gang_of(id);
            ids.extend(with_it);
        }
        let deletions = self.deletions(&ids);
        for id in &ids {
            if let Some(attempt) = self.attempts.get_mut(id) {
                attempt.delete_again = false;
            }
        }
        let (cluster, sender) = (self.cluster.clone(), self.sender.clone());
        tokio::spawn(async move {
            let mut result = Ok(());
            for deletion in deletions {
                result = result.and(deletion.carry_out(&cluster).await);
            }
            let _over = sender.send(Message::Deleted { ids, result });
        });
    }

    fn deletions(&self, ids: &[AttemptId]) -> Vec<Deletion> {
        let wanted: HashSet<&AttemptId> = ids.iter().collect();
        let mut by_namespace: HashMap<&str, Deletion> = HashMap::new();
        for attempt in ids.iter().filter_map(|id| self.attempts.get(id)) {
            let deletion = by_namespace.entry(&attempt.namespace).or_insert_with(|| Deletion {
                namespace: attempt.namespace.clone(),
                selector: None,
                names: Vec::new(),
                jobsets: BTreeSet::new(),
                grace: TERMINATION_GRACE,
            });
            if attempt.stop == Some(StopSignal::Kill) {
                deletion.grace = KILL_GRACE;
            }
            match &attempt.jobset {
                Some(jobset) => drop(deletion.jobsets.insert(jobset.clone())),
                None => deletion.names.push((attempt.job.clone(), attempt.pod.clone())),
            }
        }
        for (namespace, deletion) in &mut by_namespace {
            if deletion.names.len() > FEW {
                deletion.selector = self.selector_of(namespace, &wanted);
            }
        }
        by_namespace.into_values().collect()
    }

    /// Selects these attempts, and what is stopped already, in a namespace.
    fn selector_of(&self, namespace: &str, wanted: &HashSet<&AttemptId>) -> Option<String> {
        let mut others = Others { meant: Vec::new(), ending: Vec::new(), some_go_on: false };
        for (id, attempt) in self.attempts.iter().filter(|(_, attempt)| attempt.namespace == namespace) {
            if attempt.is_stopped() || wanted.contains(id) {
                others.meant.push(*id);
            } else if attempt.stage == Stage::Ending {
                others.ending.push(*id);
            } else {
                others.some_go_on = true;
            }
        }
        others.selector(self.settings.identity.selector())
    }

    pub(super) fn deleted(&mut self, ids: &[AttemptId], result: &Result<(), ApiFault>) {
        for id in ids {
            let Some(attempt) = self.attempts.get_mut(id) else { continue };
            match result {
                Ok(()) if attempt.pod.is_none() && attempt.stage == Stage::Created && attempt.is_stopped() => {
                    // Without a pod nobody will tell of its end. Not `lose`: it is deleted already.
                    self.tell_lost(*id, cancelled());
                }
                Ok(()) => {}
                Err(fault) => attempt.delete_again = fault.may_pass(),
            }
        }
        let Err(fault) = result else {
            self.told_undeleted = false;
            return;
        };
        if !std::mem::replace(&mut self.told_undeleted, true) {
            let again = if fault.may_pass() { ". It is tried again" } else { "" };
            self.events.send(LayerEvent::Notice { text: format!("Kubernetes did not delete tasks: {fault}{again}") });
        }
    }
}

/// A namespace's attempts, by whether they are to be deleted.
struct Others {
    meant: Vec<AttemptId>,
    /// Their end is known, and their last lines are being read.
    ending: Vec<AttemptId>,
    some_go_on: bool,
}

impl Others {
    /// Selects what is meant: all of the run, all but what is ending, or just these. With some that
    /// go on, finished ones stay, too: they are removed when their time comes.
    fn selector(&self, run: String) -> Option<String> {
        let list = |ids: &[AttemptId]| ids.iter().map(|id| attempt_label(*id)).collect::<Vec<_>>().join(",");
        if !self.some_go_on && self.ending.is_empty() {
            Some(run)
        } else if !self.some_go_on && self.ending.len() <= MOST_IN_SELECTOR {
            Some(format!("{run},{ATTEMPT_LABEL} notin ({})", list(&self.ending)))
        } else if self.meant.len() <= MOST_IN_SELECTOR {
            Some(format!("{run},{ATTEMPT_LABEL} in ({})", list(&self.meant)))
        } else {
            None
        }
    }
}

impl Deletion {
    async fn carry_out(&self, cluster: &Cluster) -> Result<(), ApiFault> {
        for jobset in &self.jobsets {
            delete_jobset(cluster, &self.namespace, jobset, self.grace).await?;
        }
        let Some(selector) = &self.selector else { return self.one_by_one(cluster).await };
        match cluster.delete_jobs(&self.namespace, Target::Selector(selector)).await {
            Ok(()) => {
                // The propagation takes the pods too, but later and with their own grace.
                let _propagated = cluster.delete_pods(&self.namespace, Target::Selector(selector), self.grace).await;
                Ok(())
            }
            Err(ApiFault::Denied(_)) => self.one_by_one(cluster).await,
            Err(fault) => Err(fault),
        }
    }

    async fn one_by_one(&self, cluster: &Cluster) -> Result<(), ApiFault> {
        let deletes = self.names.clone().into_iter().map(|(job, pod)| {
            let (cluster, namespace, grace) = (cluster.clone(), self.namespace.clone(), self.grace);
            async move {
                cluster.delete_jobs(&namespace, Target::Name(&job)).await?;
                if let Some(pod) = pod {
                    let _propagated = cluster.delete_pods(&namespace, Target::Name(&pod), grace).await;
                }
                Ok(())
            }
        });
        let mut results = futures_util::stream::iter(deletes).buffer_unordered(AT_ONCE);
        let mut worst = Ok(());
        while let Some(result) = results.next().await {
            worst = worst.and(result);
        }
        worst
    }
}

/// Takes pods (namespace, name, version) off the server that have no live container.
pub(super) async fn forget_pods(cluster: &Cluster, pods: Vec<(String, String, String)>) -> Result<(), ApiFault> {
    let each = pods.into_iter().map(|(namespace, name, version)| async move {
        match cluster.forget_pod(&namespace, &name, &version).await {
            Err(ApiFault::Exists(_)) => Ok(()), // it has changed: look again
            other => other,
        }
    });
    futures_util::stream::iter(each).buffer_unordered(AT_ONCE).fold(Ok(()), |a, b| async { a.and(b) }).await
}

pub(super) fn unconfirmed() -> Cause {
    Cause::new(CauseKind::Cancelled, "stopped, but the cluster has not said that it ended")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::attempt;

    #[test]
    fn one_selector_means_what_is_stopped_and_nothing_else() {
        let selector = |meant: &[u64], ending: &[u64], some_go_on| {
            let ids = |of: &[u64]| of.iter().map(|task| attempt(*task)).collect();
            Others { meant: ids(meant), ending: ids(ending), some_go_on }.selector("run=1".to_owned())
        };
        assert_eq!(selector(&[1, 2], &[], false).as_deref(), Some("run=1"));
        assert_eq!(selector(&[1, 2], &[3, 4], false).as_deref(), Some("run=1,ferroflow/attempt notin (3-0,4-0)"));
        assert_eq!(selector(&[1, 2], &[3], true).as_deref(), Some("run=1,ferroflow/attempt in (1-0,2-0)"));
        let many: Vec<u64> = (0..501).collect();
        assert_eq!(selector(&many, &[], true), None);
        assert_eq!(selector(&many, &many, false), None);
    }
}
