//! Stopping attempts and ending the layer: by label selector where all are meant, one by one where
//! the cluster does not allow that; what could not be removed is said.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use ferroflow_core::id::AttemptId;
use ferroflow_core::port::{LayerEvent, StopSignal};
use futures_util::StreamExt;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::super::api::{ApiFault, Cluster, Target};
use super::super::attempt::Stage;
use super::super::job::TERMINATION_GRACE;
use super::{CLOSING, Message, Supervisor, cancelled};

/// So many are stopped one by one, if they are not all there are.
const FEW: usize = 3;
/// Deletes under way at once.
const AT_ONCE: usize = 16;
/// Seconds between SIGTERM and SIGKILL for what is to be killed; 0 would only forget the pod.
const KILL_GRACE: u32 = 1;

/// What is to be deleted in one namespace.
struct Deletion {
    namespace: String,
    /// Selects everything of the run; `None`: only the names.
    selector: Option<String>,
    /// Job and pod.
    names: Vec<(String, Option<String>)>,
    grace: u32,
}

impl Supervisor {
    pub(super) fn stop(&mut self, ids: &[AttemptId], signal: StopSignal) {
        let mut there = Vec::new();
        for id in ids {
            let Some(attempt) = self.attempts.get_mut(id) else { continue };
            let firmer = attempt.stop.is_none() || signal == StopSignal::Kill;
            if !firmer || attempt.stage == Stage::Ending {
                continue;
            }
            attempt.stop = Some(signal);
            if attempt.stage == Stage::Submitting {
                attempt.cancel_order();
            } else {
                there.push(*id);
            }
        }
        self.delete(there);
    }

    /// Deletes Jobs and pods of attempts; the answer comes as a message.
    pub(super) fn delete(&mut self, ids: Vec<AttemptId>) {
        if ids.is_empty() {
            return;
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
                grace: TERMINATION_GRACE,
            });
            if attempt.stop == Some(StopSignal::Kill) {
                deletion.grace = KILL_GRACE;
            }
            deletion.names.push((attempt.job.clone(), attempt.pod.clone()));
        }
        for (namespace, deletion) in &mut by_namespace {
            let all = self.attempts.iter().all(|(id, a)| a.namespace != **namespace || wanted.contains(id));
            if all && deletion.names.len() > FEW {
                deletion.selector = Some(self.settings.identity.selector());
            }
        }
        by_namespace.into_values().collect()
    }

    pub(super) fn deleted(&mut self, ids: &[AttemptId], result: &Result<(), ApiFault>) {
        for id in ids {
            let Some(attempt) = self.attempts.get_mut(id) else { continue };
            match result {
                Ok(()) if attempt.pod.is_none() && attempt.stage == Stage::Created && attempt.stop.is_some() => {
                    // Without a pod nobody will tell of its end. Not `lose`: it is deleted already.
                    if let Some(attempt) = self.attempts.remove(id) {
                        self.jobs.remove(&attempt.job);
                    }
                    self.events.send(LayerEvent::Lost { id: *id, cause: cancelled() });
                }
                Ok(()) => {}
                Err(fault) => attempt.delete_again = fault.may_pass(),
            }
        }
        if let Err(fault) = result.as_ref().map_err(|fault| fault.to_string()) {
            self.events.send(LayerEvent::Notice { text: format!("Kubernetes did not delete tasks: {fault}") });
        }
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
    pub(super) async fn close(&mut self) {
        let left: Vec<AttemptId> = self.attempts.keys().copied().collect();
        let alive = left.len();
        for id in left {
            if self.attempts.get(&id).is_some_and(|attempt| attempt.told_started) {
                let cause = ferroflow_core::task::Cause::new(
                    ferroflow_core::task::CauseKind::Cancelled,
                    "stopped, but the cluster has not said that it ended",
                );
                self.attempts.remove(&id);
                self.events.send(LayerEvent::Lost { id, cause });
            } else {
                self.attempts.remove(&id);
                self.events.send(LayerEvent::Lost { id, cause: cancelled() });
            }
        }
        let mut problem = None;
        for namespace in &self.watched {
            let deletion = Deletion {
                namespace: namespace.clone(),
                selector: Some(self.settings.identity.selector()),
                names: self.finished.iter().filter(|f| f.1 == *namespace).map(|f| (f.2.clone(), None)).collect(),
                grace: KILL_GRACE,
            };
            match tokio::time::timeout(Duration::from_secs(5), deletion.carry_out(&self.cluster)).await {
                Ok(Ok(())) => {}
                Ok(Err(fault)) => problem = Some(fault.to_string()),
                Err(_) => problem = Some("no answer within 5 seconds".to_owned()),
            }
        }
        if alive > 0 || problem.is_some() {
            self.events.send(LayerEvent::Notice { text: self.what_is_left(alive, problem) });
        }
    }

    fn what_is_left(&self, alive: usize, problem: Option<String>) -> String {
        let tasks = match alive {
            0 => "Jobs of this run may be left on Kubernetes".to_owned(),
            1 => "1 task of this run may still be running on Kubernetes".to_owned(),
            n => format!("{n} tasks of this run may still be running on Kubernetes"),
        };
        let why = problem.map_or_else(String::new, |problem| format!(" ({problem})"));
        let namespaces: Vec<&str> = self.watched.iter().map(String::as_str).collect();
        format!(
            "{tasks}{why}. Remove what is left with: {}, or: kubectl -n {} delete jobs,pods -l {}",
            self.settings.kill_command,
            namespaces.join(","),
            self.settings.identity.selector()
        )
    }
}

impl Deletion {
    async fn carry_out(&self, cluster: &Cluster) -> Result<(), ApiFault> {
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
