//! What is said when a run that was told to end is not gone within five seconds: what is left on the
//! cluster, and how to remove it. Removing it is `stopping`'s and `closing`'s work.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ferroflow_core::port::{EventSink, LayerEvent};
use futures_util::future::join_all;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::super::api::{ApiFault, Cluster};
use super::super::submit::Submitter;
use super::Supervisor;

/// So long nothing is said; with the look it makes five seconds.
const SILENT: Duration = Duration::from_secs(4);
/// How long the look at what is left may take.
const LOOK: Duration = Duration::from_millis(900);
/// So many pods are named.
const NAMED: usize = 3;

/// Says once, at its time, what of the run is left.
pub struct Herald {
    /// When the run was told to end.
    pub since: Instant,
    has_told: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Herald {
    pub fn has_told(&self) -> bool {
        self.has_told.load(Ordering::Relaxed)
    }
}

impl Drop for Herald {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One namespace of a run.
#[derive(Clone)]
struct Place {
    cluster: Cluster,
    namespace: String,
    selector: String,
    kill_command: String,
    submitter: Arc<Submitter>,
    events: Arc<dyn EventSink>,
}

impl Supervisor {
    /// From now on everything is being stopped.
    pub(super) fn begin_to_end(&mut self) {
        if self.herald.is_some() {
            return;
        }
        let place = |namespace: &String| Place {
            cluster: self.cluster.clone(),
            namespace: namespace.clone(),
            selector: self.settings.identity.selector(),
            kill_command: self.settings.kill_command.clone(),
            submitter: self.submitter.clone(),
            events: self.events.clone(),
        };
        let places: Vec<Place> = self.watched.iter().map(place).collect();
        let (since, has_told) = (Instant::now(), Arc::new(AtomicBool::new(false)));
        let tell = has_told.clone();
        let task = tokio::spawn(async move {
            tokio::time::sleep_until(since + SILENT).await;
            join_all(places.iter().map(|place| place.look(&tell))).await;
        });
        self.herald = Some(Herald { since, has_told, task });
    }
}

impl Place {
    async fn look(&self, has_told: &AtomicBool) {
        let seen = tokio::time::timeout(LOOK, self.what_is_left()).await;
        let late = || Err(ApiFault::Unavailable("the API server is slow to answer".to_owned()));
        let left = match seen.unwrap_or_else(|_| late()) {
            Ok(None) => return,
            Ok(Some(left)) => {
                format!("After 5 seconds Kubernetes still has {left} of this run. Deleting goes on")
            }
            Err(fault) => format!("After 5 seconds it is not known what of this run is left on Kubernetes ({fault})"),
        };
        has_told.store(true, Ordering::Relaxed);
        let jobsets = self.submitter.jobsets.may_be_there();
        let how = how_to_remove(&self.kill_command, &self.namespace, &self.selector, jobsets);
        let text = format!("{left}. {how}");
        self.events.send(LayerEvent::Notice { text });
    }

    async fn what_is_left(&self) -> Result<Option<String>, ApiFault> {
        let (pods, jobs) = tokio::join!(
            self.cluster.pod_names(&self.namespace, &self.selector),
            self.cluster.job_names(&self.namespace, &self.selector),
        );
        let jobs = match jobs {
            Err(ApiFault::Denied(_)) => 0,
            jobs => jobs?.len(),
        };
        Ok(count(jobs, &pods?))
    }
}

/// The commands for those who do not want to wait.
pub fn how_to_remove(kill_command: &str, namespace: &str, selector: &str, jobsets: bool) -> String {
    let kinds = if jobsets { "jobsets,jobs,pods" } else { "jobs,pods" };
    format!("Remove what is left with: {kill_command}, or: kubectl -n {namespace} delete {kinds} -l {selector}")
}

fn count(jobs: usize, pods: &[String]) -> Option<String> {
    let number = |count: usize, what: &str| match count {
        0 => None,
        1 => Some(format!("1 {what}")),
        count => Some(format!("{count} {what}s")),
    };
    let named: Vec<String> = pods.iter().take(NAMED).map(|name| format!("`{name}`")).collect();
    let more = if pods.len() > NAMED { ", …" } else { "" };
    let pods = number(pods.len(), "pod").map(|count| format!("{count} ({}{more})", named.join(", ")));
    let counted: Vec<String> = number(jobs, "Job").into_iter().chain(pods).collect();
    (!counted.is_empty()).then(|| counted.join(" and "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_counted_and_named() {
        let pods = ["a", "b", "c", "d"].map(str::to_owned);
        assert_eq!(count(0, &[]), None);
        assert_eq!(count(2, &[]).as_deref(), Some("2 Jobs"));
        assert_eq!(count(0, &pods[..1]).as_deref(), Some("1 pod (`a`)"));
        assert_eq!(count(1, &pods).as_deref(), Some("1 Job and 4 pods (`a`, `b`, `c`, …)"));
    }
}
