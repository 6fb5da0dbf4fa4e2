//! Submitting attempts: at a bounded rate, again when the server was busy or away, and never twice
//! (a Job's name is the attempt's own).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ferroflow_core::decorator::kubernetes::KubernetesOptions;
use ferroflow_core::port::{ObjectError, RemoteTasks};
use ferroflow_core::task::{Cause, CauseKind, TaskLaunch};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::Instant;

use super::KubernetesSettings;
use super::api::{ApiFault, Cluster};
use super::job::JobParts;

/// Submissions under way at once.
const AT_ONCE: usize = 16;
/// Between two submissions: at most 50 a second.
const BETWEEN: Duration = Duration::from_millis(20);
/// A server that is away for longer fails the attempt.
const PATIENCE: Duration = Duration::from_secs(600);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Submits for one run.
pub struct Submitter {
    pub cluster: Cluster,
    pub settings: Arc<KubernetesSettings>,
    pub remote: Arc<dyn RemoteTasks>,
    at_once: Semaphore,
    /// When the next submission may go out.
    next: Mutex<Instant>,
}

/// One attempt on its way.
pub struct Order {
    pub launch: Arc<TaskLaunch>,
    pub round: u32,
    /// Set when the attempt is not wanted any more.
    pub cancelled: Arc<AtomicBool>,
}

impl Order {
    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

impl Submitter {
    pub fn new(cluster: Cluster, settings: Arc<KubernetesSettings>, remote: Arc<dyn RemoteTasks>) -> Self {
        Self { cluster, settings, remote, at_once: Semaphore::new(AT_ONCE), next: Mutex::new(Instant::now()) }
    }

    pub fn options(&self, launch: &TaskLaunch) -> KubernetesOptions {
        match self.settings.steps.get(&launch.spec.step) {
            Some(options) => options.clone(),
            None => KubernetesOptions::resolve(&Default::default(), None, &Default::default())
                .expect("the defaults are valid"),
        }
    }

    /// Creates the Job; `false` when the order was cancelled before that.
    pub async fn submit(&self, order: &Order) -> Result<bool, Cause> {
        let _place = self.at_once.acquire().await.expect("the semaphore is never closed");
        if order.is_cancelled() {
            return Ok(false);
        }
        let launch = &order.launch;
        let mut container = self.remote.container(launch, "kubernetes").await.map_err(|error| store_fault(&error))?;
        if let Some(variables) = self.settings.environments.get(&launch.spec.step) {
            for (name, value) in variables {
                container.environment.entry(name.clone()).or_insert_with(|| value.clone());
            }
        }
        let options = self.options(launch);
        let parts = JobParts {
            identity: &self.settings.identity,
            options: &options,
            launch,
            container,
            default_image: &self.settings.default_image,
            round: order.round,
        };
        self.create(order, &options.namespace, &parts.manifest()).await
    }

    async fn create(&self, order: &Order, namespace: &str, job: &serde_json::Value) -> Result<bool, Cause> {
        let begun = Instant::now();
        let mut pause = Duration::from_millis(200);
        loop {
            self.keep_pace().await;
            if order.is_cancelled() {
                return Ok(false);
            }
            match self.cluster.create_job(namespace, job, false).await {
                // It is there from an earlier try whose answer did not reach us.
                Ok(()) | Err(ApiFault::Exists(_)) => return Ok(true),
                Err(fault) if fault.may_pass() && begun.elapsed() < PATIENCE => {
                    if let ApiFault::Busy { after, .. } = fault {
                        pause = pause.max(after);
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE.max(pause));
                }
                Err(fault) => return Err(refusal(namespace, &fault)),
            }
        }
    }

    async fn keep_pace(&self) {
        let at = {
            let mut next = self.next.lock().await;
            let at = (*next).max(Instant::now());
            *next = at + BETWEEN;
            at
        };
        tokio::time::sleep_until(at).await;
    }
}

fn store_fault(error: &ObjectError) -> Cause {
    let kind = match error {
        ObjectError::Denied(_) | ObjectError::NotFound(_) => CauseKind::Refused,
        ObjectError::Unavailable(_) => CauseKind::LayerError,
    };
    Cause::new(kind, format!("the task could not be handed to Kubernetes: {error}"))
}

/// Why a Job was not taken, as a cause.
pub fn refusal(namespace: &str, fault: &ApiFault) -> Cause {
    let (kind, text) = match fault {
        ApiFault::Denied(said) => (
            CauseKind::Refused,
            format!(
                "Kubernetes does not let you create Jobs in the namespace `{namespace}`: {said}. Ask for a role with \
                 jobs (create, delete) and pods (list, watch) there, or name another one with @kubernetes(namespace=…)"
            ),
        ),
        ApiFault::Missing(said) => (
            CauseKind::Refused,
            format!(
                "Kubernetes has no namespace `{namespace}`: {said}. Create it, or name another one with \
                 @kubernetes(namespace=…)"
            ),
        ),
        ApiFault::Unavailable(said) | ApiFault::Busy { text: said, .. } => {
            (CauseKind::LayerError, format!("the Kubernetes API server cannot be reached: {said}"))
        }
        other => (CauseKind::Refused, format!("Kubernetes does not take the Job: {other}")),
    };
    Cause::new(kind, text)
}
