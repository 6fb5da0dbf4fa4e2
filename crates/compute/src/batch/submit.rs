//! Submitting attempts: the step's job definition first, once; then the job, at the run's pace, again
//! when the service was busy or away, and never twice (one that may have arrived is looked for by its
//! name, which is the attempt's own).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ferroflow_core::decorator::batch::BatchOptions;
use ferroflow_core::port::{ObjectError, RemoteContainer, RemoteTasks};
use ferroflow_core::task::{Cause, CauseKind, TaskLaunch};
use serde_json::{Value, json};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::Instant;

use super::api::{BatchFault, Call, Service};
use super::definition::DefinitionParts;
use super::job::{JobParts, MOST_OVERRIDES, overrides_size, share_of};
use super::{BatchSettings, StepPlan};

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
    definitions: Mutex<HashMap<String, String>>,
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
    pub fn new(service: Service, settings: Arc<BatchSettings>, remote: Arc<dyn RemoteTasks>) -> Self {
        Self { service, settings, remote, at_once: Semaphore::new(AT_ONCE), definitions: Mutex::default() }
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
        if order.is_cancelled() {
            return Ok(None);
        }
        let launch = &order.launch;
        let plan = self.plan(launch);
        let image = self.image(&plan.options);
        let mut container = self.remote.container(launch, "batch").await.map_err(|error| store_fault(&error))?;
        container.environment.insert("FERROFLOW_IMAGE".to_owned(), image.clone());
        let definition = self.definition(launch, &plan, &image, &container).await?;
        let parts = JobParts {
            identity: &self.settings.identity,
            options: &plan.options,
            launch,
            environment: &container.environment,
            queue: &plan.queue.name,
            definition: &definition,
            share: self.share(&plan),
            emit_tags: self.settings.emit_tags,
            round: order.round,
        };
        let job = parts.request();
        let size = overrides_size(&job);
        if size > MOST_OVERRIDES {
            return Err(Cause::new(
                CauseKind::Refused,
                format!(
                    "AWS Batch takes {MOST_OVERRIDES} characters of variables for a job, and this one needs {size}: a \
                     datastore's address or credentials with a long session token may be why"
                ),
            ));
        }
        self.send(order, &job, &parts.name(), &plan.queue.name).await
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

    async fn send(&self, order: &Order, job: &Value, name: &str, queue: &str) -> Result<Option<String>, Cause> {
        let mut away_since = None;
        let mut pause = Duration::from_millis(200);
        loop {
            if order.is_cancelled() && away_since.is_none() {
                return Ok(None);
            }
            let fault = match self.service.call(Call::SubmitJob, job).await {
                Ok(answer) => match answer["jobId"].as_str() {
                    Some(id) => return Ok(Some(id.to_owned())),
                    None => BatchFault::Invalid("the answer to SubmitJob has no job id".to_owned()),
                },
                Err(fault) => fault,
            };
            match &fault {
                BatchFault::Busy(_) => {
                    away_since = None;
                    continue; // the pace waits
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
                    }
                }
                fault => return Err(refusal("submit the job", "batch:SubmitJob", &self.service.place, fault)),
            }
        }
    }
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
