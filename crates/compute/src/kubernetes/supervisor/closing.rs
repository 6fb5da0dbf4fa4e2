//! The end of the layer: nothing of the run is left on the cluster, or it is said what is and how
//! to remove it.

use std::collections::BTreeSet;
use std::time::Duration;

use ferroflow_core::port::LayerEvent;
use futures_util::StreamExt;
use futures_util::future::join_all;
use tokio::time::Instant;

use super::super::api::{ApiFault, Cluster, Target};
use super::super::jobset::jobsets;
use super::super::parallel::remove_services;
use super::super::pod::PodView;
use super::leaving::how_to_remove;
use super::stopping::{AT_ONCE, KILL_GRACE, NEVER_STARTED, forget_pods, unconfirmed};
use super::{FinishedJob, Supervisor, cancelled};

/// How long the cluster may take to confirm that nothing is left: hundreds of Jobs take a small one
/// many seconds.
const LONGEST: Duration = Duration::from_secs(20);
/// The same where it refuses or does not answer.
const LONGEST_TROUBLE: Duration = Duration::from_secs(5);
/// The same, from when the run was told to end, where only nodes have to say that containers are dead.
pub(super) const LONGEST_OF_NODES: Duration = Duration::from_secs(8);
/// Between two looks at what is left.
const LOOK_AGAIN: Duration = Duration::from_millis(150);

impl Supervisor {
    /// The last words of the layer.
    pub(super) async fn sweep(&mut self) {
        self.tell_held_ends();
        let gangs = self.known_jobsets();
        for (id, attempt) in self.attempts.drain() {
            let cause = if attempt.told_started { unconfirmed() } else { cancelled() };
            self.events.send(LayerEvent::Lost { id, cause });
        }
        let since = self.herald.as_ref().map_or_else(Instant::now, |herald| herald.since);
        let sweeps = self.watched.iter().map(|namespace| Sweep {
            cluster: &self.cluster,
            namespace,
            selector: self.settings.identity.selector(),
            known: self.finished.iter().filter(|job| job.namespace == *namespace).collect(),
            gangs: !self.settings.gangs.is_empty(),
            jobsets: self.submitter.jobsets.may_be_there().then_some(&gangs),
            began: Instant::now(),
            since,
        });
        let sweeps: Vec<Sweep> = sweeps.collect();
        let ends = join_all(sweeps.iter().map(Sweep::run)).await;
        let left = sweeps.iter().zip(&ends).filter_map(|(s, end)| s.what_is_left(end, &self.settings.kill_command));
        let left: Vec<String> = left.collect();
        let has_told = self.herald.take().is_some_and(|herald| herald.has_told());
        let all_gone =
            (left.is_empty() && has_told).then(|| "Nothing of this run is left on Kubernetes now.".to_owned());
        for text in left.into_iter().chain(all_gone) {
            self.events.send(LayerEvent::Notice { text });
        }
    }
}

impl Supervisor {
    fn known_jobsets(&self) -> BTreeSet<String> {
        let ended = self.finished.iter().filter_map(|job| job.jobset.clone());
        ended.chain(self.attempts.values().filter_map(|attempt| attempt.jobset.clone())).collect()
    }
}

/// Removes everything of the run from one namespace.
struct Sweep<'a> {
    cluster: &'a Cluster,
    namespace: &'a str,
    selector: String,
    /// Jobs that were not removed yet and whose ends were told.
    known: Vec<&'a FinishedJob>,
    /// Gangs of the run were JobSets: those that are known.
    jobsets: Option<&'a BTreeSet<String>>,
    /// Steps of the run are gangs, whose ranks found each other by Services.
    gangs: bool,
    began: Instant,
    /// When the run was told to end.
    since: Instant,
}

impl Sweep<'_> {
    /// Pods that live on although they were deleted, or why nobody knows.
    async fn run(&self) -> Result<Vec<PodView>, ApiFault> {
        let mut told = false;
        loop {
            let rest = LONGEST.saturating_sub(self.began.elapsed());
            let silence = || Err(ApiFault::Unavailable("the API server does not answer".to_owned()));
            let seen = tokio::time::timeout(rest, self.look(&mut told)).await.unwrap_or_else(|_| silence());
            let may_change = match &seen {
                Ok(alive) => !alive.is_empty(),
                Err(fault) => fault.may_pass(),
            };
            let longest = if seen.is_ok() { LONGEST } else { LONGEST_TROUBLE };
            let is_told = seen.as_ref().is_ok_and(|alive| alive.iter().all(|pod| pod.deleting));
            let nodes_turn = is_told && self.since.elapsed() >= LONGEST_OF_NODES;
            if !may_change || nodes_turn || self.began.elapsed() + LOOK_AGAIN >= longest {
                return seen;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Removes what is there; the pods that live. `told`: they have been told to end.
    async fn look(&self, told: &mut bool) -> Result<Vec<PodView>, ApiFault> {
        if let Some(known) = self.jobsets {
            self.remove_jobsets(known).await?; // first, or their Jobs would come again
        }
        self.remove_jobs().await?;
        if self.gangs {
            remove_services(self.cluster, self.namespace, &self.selector).await;
        }
        let (pods, _) = self.cluster.list_pods(self.namespace, &self.selector).await?;
        // A task that has told its end in the store is dead, or will be in a moment: its node says so
        // much later, longest if it had not even said that the container runs.
        let is_known = |pod: &PodView| self.known.iter().any(|job| job.name == pod.job);
        let is_over = |pod: &PodView| pod.is_over() || is_known(pod);
        let (over, alive): (Vec<PodView>, Vec<PodView>) = pods.iter().map(PodView::of).partition(is_over);
        if alive.is_empty() && !over.is_empty() {
            let all = self.cluster.delete_pods(self.namespace, Target::Selector(&self.selector), 0).await;
            if all.is_ok() {
                return Ok(alive);
            }
        }
        let patient = self.began.elapsed() < NEVER_STARTED;
        let (forget, live): (Vec<PodView>, Vec<PodView>) =
            alive.into_iter().partition(|pod| pod.never_started() && !patient);
        let forget = over.into_iter().chain(forget).map(|pod| (self.namespace.to_owned(), pod.name, pod.version));
        // Pods go with their Jobs too, where one may not delete them; only later.
        let _by_propagation = forget_pods(self.cluster, forget.collect()).await;
        if !*told && !live.is_empty() {
            let target = Target::Selector(&self.selector);
            let _by_propagation = self.cluster.delete_pods(self.namespace, target, KILL_GRACE).await;
            *told = true;
        }
        Ok(live)
    }

    async fn remove_jobsets(&self, known: &BTreeSet<String>) -> Result<(), ApiFault> {
        let path = jobsets(self.namespace);
        match self.cluster.delete_selected(&path, &self.selector).await {
            Err(ApiFault::Denied(_)) => {}
            other => return other,
        }
        let listed = self.cluster.list_at(&path, &self.selector).await.unwrap_or_default();
        let listed = listed.iter().filter_map(|jobset| jobset["metadata"]["name"].as_str());
        for name in known.iter().map(String::as_str).chain(listed) {
            self.cluster.delete_named(&path, name).await?;
        }
        Ok(())
    }

    async fn remove_jobs(&self) -> Result<(), ApiFault> {
        let names = match self.cluster.list_jobs(self.namespace, &self.selector).await {
            Ok(jobs) if jobs.is_empty() => return Ok(()),
            Ok(jobs) => jobs.iter().filter_map(|job| Some(job["metadata"]["name"].as_str()?.to_owned())).collect(),
            // Those of a JobSet go with it.
            Err(ApiFault::Denied(_)) => {
                self.known.iter().filter(|job| job.jobset.is_none()).map(|job| job.name.clone()).collect()
            }
            Err(fault) => return Err(fault),
        };
        match self.cluster.delete_jobs(self.namespace, Target::Selector(&self.selector)).await {
            Err(ApiFault::Denied(_)) => self.remove_one_by_one(names).await,
            other => other,
        }
    }

    async fn remove_one_by_one(&self, names: Vec<String>) -> Result<(), ApiFault> {
        let each = names
            .into_iter()
            .map(|name| async move { self.cluster.delete_jobs(self.namespace, Target::Name(&name)).await });
        futures_util::stream::iter(each).buffer_unordered(AT_ONCE).fold(Ok(()), |a, b| async { a.and(b) }).await
    }

    fn what_is_left(&self, end: &Result<Vec<PodView>, ApiFault>, kill_command: &str) -> Option<String> {
        let (namespace, selector) = (self.namespace, &self.selector);
        let alive = match end {
            Ok(alive) if alive.is_empty() => return None,
            Ok(alive) => alive,
            Err(fault) => {
                let how = how_to_remove(kill_command, namespace, selector, self.jobsets.is_some());
                return Some(format!("jobs of this run may be left on Kubernetes ({fault}). {how}"));
            }
        };
        let (pods, they) = match alive.len() {
            1 => ("1 pod of this run has".to_owned(), "it goes"),
            count => (format!("{count} pods of this run have"), "they go"),
        };
        let node = &alive[0].node;
        Some(format!(
            "{pods} been deleted, but node `{node}` has not said that the container is dead: {they} when it does. If it is \
             gone for good, remove what is left with: kubectl -n {namespace} delete pods --force -l {selector}"
        ))
    }
}
