//! Submitting attempts: at a bounded rate, again when the server was busy or away, and never twice
//! (a Job's name is the attempt's own).

use std::sync::{Arc, Mutex as Lock, PoisonError};
use std::time::Duration;

use ferroflow_core::decorator::kubernetes::KubernetesOptions;
use ferroflow_core::port::{ObjectError, RemoteContainer, RemoteTasks};
use ferroflow_core::task::{Cause, CauseKind, TaskLaunch};
use tokio::sync::{Mutex, Notify, Semaphore, SemaphorePermit};
use tokio::time::Instant;

use super::KubernetesSettings;
use super::api::{ApiFault, Cluster, Target, jobs_path};
use super::job::JobParts;
use super::parallel::{Rank, no_service};
use super::submit_jobset::JobSets;

/// Submissions under way at once. With the watch, a delete, a look at events, the log's readers and
/// uploads the engine stays below twenty connections.
const AT_ONCE: usize = 5;
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
    pub jobsets: JobSets,
    at_once: Semaphore,
    /// When the next submission may go out.
    next: Mutex<Instant>,
}

/// One attempt on its way.
pub struct Order {
    pub launch: Arc<TaskLaunch>,
    pub round: u32,
    pub ticket: Arc<Ticket>,
}

/// What becomes of an order, shared with whoever may take it back.
#[derive(Default)]
pub struct Ticket {
    state: Lock<TicketState>,
    news: Notify,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum TicketState {
    #[default]
    Waiting,
    /// A request is or was on its way: the Job may be there.
    Sent,
    /// Taken back before anything was sent.
    Cancelled,
    /// Taken back too late: what may be there is to be deleted.
    Unwanted,
}

impl Ticket {
    /// `true` when nothing was sent and nothing will be.
    pub fn cancel(&self) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        *state = match *state {
            TicketState::Waiting | TicketState::Cancelled => TicketState::Cancelled,
            TicketState::Sent | TicketState::Unwanted => TicketState::Unwanted,
        };
        self.news.notify_waiters();
        *state == TicketState::Cancelled
    }

    /// Nothing was sent yet, and nothing will be.
    pub fn is_cancelled(&self) -> bool {
        self.state() == TicketState::Cancelled
    }

    fn state(&self) -> TicketState {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `false` when the order was taken back.
    fn may_go_out(&self) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if *state == TicketState::Waiting {
            *state = TicketState::Sent;
        }
        *state == TicketState::Sent
    }

    /// Sleeps, but not on when the order is taken back.
    async fn pause(&self, how_long: Duration) {
        let mut news = std::pin::pin!(self.news.notified());
        news.as_mut().enable();
        if self.state() == TicketState::Sent {
            let _either = tokio::time::timeout(how_long, news).await;
        }
    }
}

impl Submitter {
    pub fn new(cluster: Cluster, settings: Arc<KubernetesSettings>, remote: Arc<dyn RemoteTasks>) -> Self {
        Self {
            cluster,
            settings,
            remote,
            jobsets: JobSets::default(),
            at_once: Semaphore::new(AT_ONCE),
            next: Mutex::new(Instant::now()),
        }
    }

    pub fn options(&self, launch: &TaskLaunch) -> KubernetesOptions {
        match self.settings.steps.get(&launch.spec.step) {
            Some(options) => options.clone(),
            None => KubernetesOptions::resolve(&Default::default(), None, &Default::default())
                .expect("the defaults are valid"),
        }
    }

    /// Creates the Job; `false` when the order was taken back before that.
    pub async fn submit(&self, order: &Order) -> Result<bool, Cause> {
        let _place = self.place().await;
        if order.ticket.is_cancelled() {
            return Ok(false);
        }
        let launch = &order.launch;
        let container = self.container(launch).await?;
        let options = self.options(launch);
        let parts = self.parts(launch, &options, container, order.round);
        let mut job = parts.manifest();
        let rank = Rank::of(&self.settings.identity, launch);
        if let Some(rank) = &rank {
            rank.join(&mut job);
        }
        let created = self.create(&order.ticket, &jobs_path(&options.namespace), &job).await;
        let created = created.map_err(|fault| refusal(&options.namespace, &fault))?;
        if let Some(rank) = rank.filter(|rank| created && rank.is_first()) {
            self.make_service(order, &options.namespace, &parts.name(), &rank).await?;
        }
        Ok(created)
    }

    /// One of the few submissions under way at once.
    pub async fn place(&self) -> SemaphorePermit<'_> {
        self.at_once.acquire().await.expect("the semaphore is never closed")
    }

    /// What an attempt's container runs, with the step's `@environment`.
    pub async fn container(&self, launch: &TaskLaunch) -> Result<RemoteContainer, Cause> {
        let container = self.remote.container(launch, "kubernetes").await;
        let mut container = container.map_err(|error| store_fault(&error))?;
        for (name, value) in self.settings.environments.get(&launch.spec.step).into_iter().flatten() {
            container.environment.entry(name.clone()).or_insert_with(|| value.clone());
        }
        Ok(container)
    }

    pub fn parts<'a>(
        &'a self,
        launch: &'a TaskLaunch,
        options: &'a KubernetesOptions,
        container: RemoteContainer,
        round: u32,
    ) -> JobParts<'a> {
        let (identity, default_image) = (&self.settings.identity, self.settings.default_image.as_str());
        JobParts { identity, options, launch, container, default_image, round }
    }

    /// What the ranks of a gang find each other by; without it there is no gang.
    async fn make_service(&self, order: &Order, namespace: &str, job: &str, rank: &Rank<'_>) -> Result<(), Cause> {
        let begun = Instant::now();
        loop {
            match rank.make_service(&self.cluster, namespace, job, order.round > 0).await {
                Ok(()) => return Ok(()),
                Err(fault) if fault.may_pass() && begun.elapsed() < PATIENCE && order.ticket.may_go_out() => {
                    order.ticket.pause(LONGEST_PAUSE).await;
                }
                // The Job was deleted in the meantime; its watch tells of that.
                Err(ApiFault::Missing(_)) => return Ok(()),
                Err(fault) => {
                    let _removed = self.cluster.delete_jobs(namespace, Target::Name(job)).await;
                    return Err(Cause::new(CauseKind::Refused, no_service(namespace, &fault)));
                }
            }
        }
    }

    /// Creates an object under a path; `false` when the order was taken back before that.
    pub async fn create(&self, ticket: &Ticket, path: &str, object: &serde_json::Value) -> Result<bool, ApiFault> {
        let begun = Instant::now();
        let mut pause = Duration::from_millis(200);
        loop {
            self.keep_pace().await;
            if !ticket.may_go_out() {
                // An earlier try may have reached the server.
                return Ok(ticket.state() == TicketState::Unwanted);
            }
            match self.cluster.create(path, object, false).await {
                // It is there from an earlier try whose answer did not reach us.
                Ok(()) | Err(ApiFault::Exists(_)) => return Ok(true),
                Err(fault) if fault.may_pass() && begun.elapsed() < PATIENCE => {
                    if let ApiFault::Busy { after, .. } = fault {
                        pause = pause.max(after);
                    }
                    ticket.pause(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE.max(pause));
                }
                Err(fault) => return Err(fault),
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

pub fn store_fault(error: &ObjectError) -> Cause {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_taken_back_whole_only_before_it_goes_out() {
        let early = Ticket::default();
        assert!(early.cancel() && early.cancel() && !early.may_go_out());
        let late = Ticket::default();
        assert!(late.may_go_out() && late.may_go_out());
        assert!(!late.cancel() && !late.may_go_out());
        assert_eq!(late.state(), TicketState::Unwanted);
    }
}
