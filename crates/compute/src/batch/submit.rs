//! Submitting attempts: the step's job definition first, once; then the job, at the run's pace, again
//! when the service was busy or away, and never twice (one that may have arrived is looked for by its
//! name, which is the attempt's own).

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ferroflow_core::decorator::batch::BatchOptions;
use ferroflow_core::id::AttemptId;
use ferroflow_core::port::{ObjectError, RemoteContainer, RemoteTasks};
use ferroflow_core::task::{Cause, CauseKind, TaskLaunch};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::api::{BatchFault, Call, Service};
use super::definition::DefinitionParts;
use super::job::{JobParts, MOST_OVERRIDES, overrides_size, share_of};
use super::names::array_name;
use super::{BatchSettings, StepPlan, array, multinode};
use crate::remote::shared;

/// Submissions under way at once.
const AT_ONCE: usize = 8;
/// A service that is away for longer fails the attempt; one that is only busy never does.
const PATIENCE: Duration = Duration::from_secs(600);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Submits for one run.
pub struct Submitter {
    pub service: Service,
    pub settings: Arc<BatchSettings>,
    pub remote: Arc<dyn RemoteTasks>,
    at_once: Semaphore,
    /// Name → ARN. Held while one is registered, so that it happens once.
    definitions: tokio::sync::Mutex<HashMap<String, String>>,
}

/// What is known once the store and the service have been asked.
struct Ready {
    plan: StepPlan,
    container: RemoteContainer,
    /// ARN.
    definition: String,
}

/// One attempt on its way.
#[derive(Clone)]
pub struct Order {
    pub launch: Arc<TaskLaunch>,
    pub round: u32,
    pub state: Arc<OrderState>,
}

/// Whether an order may still be taken back.
#[derive(Debug, Default)]
pub struct OrderState(Mutex<Way>);

#[derive(Debug, Default)]
struct Way {
    /// The request may have reached the service.
    out: bool,
    cancelled: bool,
}

impl OrderState {
    fn way(&self) -> MutexGuard<'_, Way> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the order back; `false` when it may have gone out.
    pub fn cancel(&self) -> bool {
        let mut way = self.way();
        way.cancelled = true;
        !way.out
    }

    /// Lets the order go out, unless it was cancelled.
    fn go_out(&self) -> bool {
        let mut way = self.way();
        way.out = way.out || !way.cancelled;
        way.out
    }

    /// The service does not have it.
    fn came_back(&self) {
        self.way().out = false;
    }

    fn is_cancelled(&self) -> bool {
        let way = self.way();
        way.cancelled && !way.out
    }
}

impl Submitter {
    pub fn new(service: Service, settings: Arc<BatchSettings>, remote: Arc<dyn RemoteTasks>) -> Self {
        Self { service, settings, remote, at_once: Semaphore::new(AT_ONCE), definitions: tokio::sync::Mutex::default() }
    }

    pub fn plan(&self, launch: &TaskLaunch) -> StepPlan {
        match self.settings.steps.get(&launch.spec.step) {
            Some(plan) => plan.clone(),
            None => StepPlan {
                options: BatchOptions::resolve(&Default::default(), None, &Default::default())
                    .expect("the defaults are valid"),
                queue: self.settings.default_queue.clone(),
            },
        }
    }

    pub fn image(&self, options: &BatchOptions) -> String {
        options.image.clone().unwrap_or_else(|| self.settings.default_image.clone())
    }

    /// Submits the job and gives its id; `None` when the order was cancelled before that.
    pub async fn submit(&self, order: &Order) -> Result<Option<String>, Cause> {
        let _place = self.at_once.acquire().await.expect("the semaphore is never closed");
        if order.state.is_cancelled() {
            return Ok(None);
        }
        let ready = self.prepare(order).await?;
        let job = self.request(order, &ready, &ready.container.environment);
        let name = job["jobName"].as_str().unwrap_or_default().to_owned();
        self.send(std::slice::from_ref(order), &job, &name, &ready.plan.queue.name).await
    }

    /// Submits attempts of one step together, in order of their index; the ids of their jobs. Ranks of
    /// a gang are the nodes of one job, others the children of an array job.
    pub async fn submit_together(&self, orders: &[Order]) -> Result<Vec<Option<String>>, Cause> {
        let _place = self.at_once.acquire().await.expect("the semaphore is never closed");
        let Some(first) = orders.first() else { return Ok(Vec::new()) };
        let ready = self.prepare(first).await?;
        let mut environments = vec![ready.container.environment.clone()];
        for order in &orders[1..] {
            environments.push(self.container(order, &ready.plan.options).await?.environment);
        }
        let (mut common, own) = shared::split(&environments);
        let list = self.remote.publish(&first.launch, shared::list(&own), "batch").await;
        let (address, digest) = list.map_err(|error| store_fault(&error))?;
        common.insert("FERROFLOW_CHILDREN_URL".to_owned(), address);
        common.insert("FERROFLOW_CHILDREN_SHA256".to_owned(), digest);
        let single = self.request(first, &ready, &common);
        let last = orders.last().map_or_else(String::new, |order| order.launch.id.task.to_string());
        let name = array_name(single["jobName"].as_str().unwrap_or_default(), &last);
        let children: Vec<AttemptId> = orders.iter().map(|order| order.launch.id).collect();
        let (job, child_id): (Value, fn(&str, usize) -> String) = match first.launch.spec.gang {
            Some(gang) => {
                let single = array::of_several(single, &name, &children, &common);
                (multinode::submission(single, gang.nodes), multinode::node_id)
            }
            None => (array::request(single, &name, &children, &common), array::child_id),
        };
        let id = self.send(orders, &job, &name, &ready.plan.queue.name).await?;
        Ok((0..orders.len()).map(|index| id.as_ref().map(|id| child_id(id, index))).collect())
    }

    async fn container(&self, order: &Order, options: &BatchOptions) -> Result<RemoteContainer, Cause> {
        let container = self.remote.container(&order.launch, "batch").await;
        let mut container = container.map_err(|error| store_fault(&error))?;
        container.environment.insert("FERROFLOW_IMAGE".to_owned(), self.image(options));
        Ok(container)
    }

    async fn prepare(&self, order: &Order) -> Result<Ready, Cause> {
        let plan = self.plan(&order.launch);
        let container = self.container(order, &plan.options).await?;
        let image = self.image(&plan.options);
        let definition = self.definition(&order.launch, &plan, &image, &container).await?;
        Ok(Ready { plan, container, definition })
    }

    fn request(&self, order: &Order, ready: &Ready, environment: &BTreeMap<String, String>) -> Value {
        JobParts {
            identity: &self.settings.identity,
            options: &ready.plan.options,
            launch: &order.launch,
            environment,
            queue: &ready.plan.queue.name,
            definition: &ready.definition,
            share: self.share(&ready.plan),
            emit_tags: self.settings.emit_tags,
            round: order.round,
        }
        .request()
    }

    fn share(&self, plan: &StepPlan) -> Option<String> {
        let given = plan.options.share_identifier.clone();
        given.or_else(|| plan.queue.fair_share.then(|| share_of(&self.settings.identity.user)))
    }

    /// The ARN of the step's job definition, registered unless it is there.
    async fn definition(
        &self,
        launch: &TaskLaunch,
        plan: &StepPlan,
        image: &str,
        container: &RemoteContainer,
    ) -> Result<String, Cause> {
        let nothing = Default::default();
        let request = DefinitionParts {
            options: &plan.options,
            platform: plan.queue.platform,
            image,
            command: &container.command,
            environment: self.settings.environments.get(&launch.spec.step).unwrap_or(&nothing),
            nodes: launch.spec.gang.map(|gang| gang.nodes),
        }
        .request();
        let name = request["jobDefinitionName"].as_str().unwrap_or_default().to_owned();
        let mut known = self.definitions.lock().await;
        if let Some(arn) = known.get(&name) {
            return Ok(arn.clone());
        }
        let arn = self.find_or_register(&name, &request).await.map_err(|fault| {
            refusal("register a job definition", "batch:RegisterJobDefinition", &self.service.place, &fault)
        })?;
        known.insert(name, arn.clone());
        Ok(arn)
    }

    async fn find_or_register(&self, name: &str, request: &Value) -> Result<String, BatchFault> {
        let wanted = json!({ "jobDefinitionName": name, "status": "ACTIVE" });
        let found = self.service.call_patiently(Call::DescribeJobDefinitions, &wanted, PATIENCE).await;
        let there = match &found {
            Ok(found) => found["jobDefinitions"].as_array().and_then(|list| {
                let newest = list.iter().max_by_key(|definition| definition["revision"].as_i64())?;
                newest["jobDefinitionArn"].as_str()
            }),
            Err(BatchFault::Denied(_)) => None, // who may not look may still register
            Err(fault) => return Err(fault.clone()),
        };
        if let Some(arn) = there {
            return Ok(arn.to_owned());
        }
        let answer = self.service.call_patiently(Call::RegisterJobDefinition, request, PATIENCE).await?;
        match answer["jobDefinitionArn"].as_str() {
            Some(arn) => Ok(arn.to_owned()),
            None => Err(BatchFault::Invalid("the answer to RegisterJobDefinition has no ARN".to_owned())),
        }
    }

    /// Sends one request for all of them, unless all were cancelled; a child that was is ended later.
    async fn send(&self, orders: &[Order], job: &Value, name: &str, queue: &str) -> Result<Option<String>, Cause> {
        check_size(job)?;
        let mut away_since = None;
        let mut pause = Duration::from_millis(200);
        loop {
            self.service.turn(Call::SubmitJob).await;
            if orders.iter().filter(|order| order.state.go_out()).count() == 0 {
                return Ok(None);
            }
            let fault = match self.service.call_now(Call::SubmitJob, job).await {
                Ok(answer) => match answer["jobId"].as_str() {
                    Some(id) => return Ok(Some(id.to_owned())),
                    None => BatchFault::Invalid("the answer to SubmitJob has no job id".to_owned()),
                },
                Err(fault) => fault,
            };
            match &fault {
                BatchFault::Busy(_) => {
                    away_since = None;
                    orders.iter().for_each(|order| order.state.came_back()); // the pace waits
                }
                BatchFault::Unavailable(_) => {
                    let since = *away_since.get_or_insert_with(Instant::now);
                    if since.elapsed() > PATIENCE {
                        return Err(refusal("submit the job", "batch:SubmitJob", &self.service.place, &fault));
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    // It may have arrived all the same.
                    if let Ok(found) = find(&self.service, queue, name).await {
                        if found.is_some() {
                            return Ok(found);
                        }
                        away_since = None;
                        orders.iter().for_each(|order| order.state.came_back());
                    }
                }
                fault => return Err(refusal("submit the job", "batch:SubmitJob", &self.service.place, fault)),
            }
        }
    }
}

fn check_size(job: &Value) -> Result<(), Cause> {
    let size = overrides_size(job);
    if size <= MOST_OVERRIDES {
        return Ok(());
    }
    Err(Cause::new(
        CauseKind::Refused,
        format!(
            "AWS Batch takes {MOST_OVERRIDES} characters of variables for a job, and this one needs {size}: a datastore's \
             address or credentials with a long session token may be why"
        ),
    ))
}

/// The id of a job by its name, if it is in the queue.
pub async fn find(service: &Service, queue: &str, name: &str) -> Result<Option<String>, BatchFault> {
    let filter = json!([{ "name": "JOB_NAME", "values": [name] }]);
    let body = json!({ "jobQueue": queue, "filters": filter });
    let jobs = service.all(Call::ListJobs, body, "jobSummaryList", Duration::from_secs(5)).await?;
    let found = jobs.iter().find(|job| job["jobName"] == name);
    Ok(found.and_then(|job| job["jobId"].as_str()).map(str::to_owned))
}

fn store_fault(error: &ObjectError) -> Cause {
    let kind = match error {
        ObjectError::Denied(_) | ObjectError::NotFound(_) => CauseKind::Refused,
        ObjectError::Unavailable(_) => CauseKind::LayerError,
    };
    Cause::new(kind, format!("the task could not be handed to AWS Batch: {error}"))
}

/// Why the service did not do as asked, as a cause.
pub fn refusal(what: &str, permission: &str, place: &str, fault: &BatchFault) -> Cause {
    match fault {
        BatchFault::Denied(said) => Cause::new(
            CauseKind::Refused,
            format!(
                "AWS does not let you {what}: {said}. Ask for a policy with `{permission}`, or sign in as somebody who has it"
            ),
        ),
        BatchFault::Invalid(said) => {
            Cause::new(CauseKind::Refused, format!("AWS Batch does not take the request to {what}: {said}"))
        }
        BatchFault::Busy(said) | BatchFault::Unavailable(said) => {
            Cause::new(CauseKind::LayerError, format!("AWS Batch ({place}) cannot be reached: {said}"))
        }
    }
}
