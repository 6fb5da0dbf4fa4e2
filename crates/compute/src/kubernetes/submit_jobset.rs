//! Submitting a gang as one JobSet: whether the server has them, what each rank has of its own, and
//! what becomes of it where JobSets may not be made.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ferroflow_core::port::RemoteContainer;
use ferroflow_core::task::{Cause, TaskLaunch};
use tokio::sync::OnceCell;

use super::api::{ApiFault, Cluster};
use super::jobset::{API, Gang, jobsets};
use super::submit::{Submitter, Ticket, refusal, store_fault};
use crate::remote::shared;

/// Whether gangs of a run are JobSets; the server is asked once, when the first is to be started.
#[derive(Default)]
pub struct JobSets {
    served: OnceCell<bool>,
    refused: AtomicBool,
}

impl JobSets {
    /// `false` also where that cannot be known: plain Jobs work everywhere.
    pub async fn are_used(&self, cluster: &Cluster) -> bool {
        let served = self.served.get_or_try_init(|| cluster.serves(API, "jobsets")).await;
        *served.unwrap_or(&false) && !self.refused.load(Ordering::Relaxed)
    }

    /// Without asking: some of this run may be there.
    pub fn may_be_there(&self) -> bool {
        self.served.get() == Some(&true)
    }

    /// They may not be made; `true` when that is news.
    fn refuse(&self) -> bool {
        !self.refused.swap(true, Ordering::Relaxed)
    }
}

/// A gang on its way.
pub struct GangOrder {
    pub name: String,
    /// In order of rank.
    pub ranks: Vec<Arc<TaskLaunch>>,
    /// Of all of them: they are taken back together.
    pub ticket: Arc<Ticket>,
}

/// What came of a gang's submission.
pub enum GangSubmitted {
    Created,
    /// It was taken back before it went out.
    TakenBack,
    /// JobSets may not be made here; why, where it was not said yet.
    PlainJobsInstead(Option<String>),
    Failed(Cause),
}

impl Submitter {
    pub async fn submit_jobset(&self, order: &GangOrder) -> GangSubmitted {
        let Some(first) = order.ranks.first() else { return GangSubmitted::TakenBack };
        let namespace = self.options(first).namespace;
        match self.try_jobset(order, first, &namespace).await {
            Ok(Ok(true)) => GangSubmitted::Created,
            Ok(Ok(false)) => GangSubmitted::TakenBack,
            // Missing: the definition was removed meanwhile; of a missing namespace the Jobs will tell.
            Ok(Err(fault @ (ApiFault::Denied(_) | ApiFault::Missing(_)))) => {
                GangSubmitted::PlainJobsInstead(self.jobsets.refuse().then(|| not_allowed(&namespace, &fault)))
            }
            Ok(Err(fault)) => GangSubmitted::Failed(refusal(&namespace, &fault)),
            Err(cause) => GangSubmitted::Failed(cause),
        }
    }

    async fn try_jobset(
        &self,
        order: &GangOrder,
        first: &TaskLaunch,
        namespace: &str,
    ) -> Result<Result<bool, ApiFault>, Cause> {
        let _place = self.place().await;
        if order.ticket.is_cancelled() {
            return Ok(Ok(false));
        }
        let control = self.container(first).await?;
        let worker = match &order.ranks[1..] {
            [] => control.clone(),
            workers => self.shared(first, workers).await?,
        };
        let options = self.options(first);
        let jobset = Gang {
            name: &order.name,
            id: first.id,
            nodes: order.ranks.len() as u64,
            control: &self.parts(first, &options, control, 0),
            worker: &self.parts(first, &options, worker, 0),
        };
        Ok(self.create(&order.ticket, &jobsets(namespace), &jobset.manifest()).await)
    }

    /// The container of several ranks: what is the same for all, and where the list of the rest is.
    async fn shared(&self, first: &TaskLaunch, ranks: &[Arc<TaskLaunch>]) -> Result<RemoteContainer, Cause> {
        let mut command = Vec::new();
        let mut environments = Vec::new();
        for launch in ranks {
            let container = self.container(launch).await?;
            command = container.command;
            environments.push(container.environment);
        }
        let (mut environment, own) = shared::split(&environments);
        let list = self.remote.publish(first, shared::list(&own), "kubernetes").await;
        let (address, digest) = list.map_err(|error| store_fault(&error))?;
        environment.insert("FERROFLOW_CHILDREN_URL".to_owned(), address);
        environment.insert("FERROFLOW_CHILDREN_SHA256".to_owned(), digest);
        Ok(RemoteContainer { command, environment })
    }
}

fn not_allowed(namespace: &str, fault: &ApiFault) -> String {
    format!(
        "Kubernetes does not let you create JobSets in the namespace `{namespace}` ({fault}): the ranks of a num_parallel are \
         plain Jobs instead. With a role for jobsets (create, get, list, delete) of jobset.x-k8s.io they would be one object"
    )
}
