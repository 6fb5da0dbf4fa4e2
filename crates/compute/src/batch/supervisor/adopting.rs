//! Attempts that this run's engine before had submitted (design D9): their jobs have names that can be
//! told, and array jobs say whose they are, so they are looked for and then followed like any other.

use std::collections::HashMap;
use std::time::Duration;

use ferroflow_core::id::{AttemptId, StepName};
use ferroflow_core::port::LayerEvent;
use ferroflow_core::task::{Cause, CauseKind};
use serde_json::{Value, json};

use super::super::api::{BatchFault, Call, DESCRIBED_AT_ONCE, Service};
use super::super::attempt::{Attempt, MOST_ROUNDS};
use super::super::names::{job_name, prefix_of_run};
use super::super::{array, multinode};
use super::{Message, Supervisor};
use crate::remote::RunIdentity;

/// A service that is away for longer is asked again, and the user is told.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_secs(2);

impl Supervisor {
    pub(super) fn adopt_attempt(&mut self, step: &StepName, id: AttemptId) {
        let mut launch = self.settings.identity.probe_launch(step);
        launch.id = id;
        (launch.spec.task, launch.spec.attempt) = (id.task, id.attempt);
        let plan = self.submitter.plan(&launch);
        self.attempts.insert(id, Attempt::adopted(launch, plan));
        self.remote.adopt(step, id);
        // The next tick looks for all of them together.
        self.adopted.push(id);
    }

    /// One look per queue for all that were not looked for yet.
    pub(super) fn look_for_adopted(&mut self) {
        let mut by_queue: HashMap<String, Vec<(StepName, AttemptId)>> = HashMap::new();
        for id in std::mem::take(&mut self.adopted) {
            let Some(attempt) = self.attempts.get(&id) else { continue };
            let sought = (attempt.launch.spec.step.clone(), id);
            by_queue.entry(attempt.plan.queue.name.clone()).or_default().push(sought);
        }
        for (queue, sought) in by_queue {
            self.look(queue, sought);
        }
    }

    /// Looks until the service has answered: whoever does not know whether a job is there must not
    /// run its task again.
    fn look(&self, queue: String, sought: Vec<(StepName, AttemptId)>) {
        let (service, sender, events) = (self.service.clone(), self.sender.clone(), self.events.clone());
        let identity = self.settings.identity.clone();
        tokio::spawn(async move {
            let mut told = false;
            let found = loop {
                match jobs_of(&service, &queue, &identity, &sought).await {
                    Err(fault) if fault.may_pass() && !sender.is_closed() => {
                        if !std::mem::replace(&mut told, true) {
                            events.send(LayerEvent::Notice { text: not_answered(&identity, &fault) });
                        }
                        tokio::time::sleep(PAUSE).await;
                    }
                    result => break result,
                }
            };
            for (_, id) in sought {
                let result = match &found {
                    Ok(jobs) => jobs.get(&id).cloned().map(Some).ok_or_else(nothing_left),
                    Err(fault) => Err(not_seen(&queue, fault)),
                };
                let _over = sender.send(Message::Submitted { id, round: 0, result });
            }
        });
    }
}

fn not_answered(of: &RunIdentity, fault: &BatchFault) -> String {
    format!("AWS Batch does not say what is left of run {} ({fault}). It is asked again until it does.", of.run)
}

fn nothing_left() -> Cause {
    Cause::new(CauseKind::LayerError, "nothing of it is left on AWS Batch")
}

fn not_seen(queue: &str, fault: &BatchFault) -> Cause {
    let text = format!("AWS Batch does not let you see what is left of it in queue `{queue}`: {fault}");
    Cause::new(CauseKind::LayerError, text)
}

/// The newest job of each attempt of which there is one.
async fn jobs_of(
    service: &Service,
    queue: &str,
    identity: &RunIdentity,
    sought: &[(StepName, AttemptId)],
) -> Result<HashMap<AttemptId, String>, BatchFault> {
    let filter = json!([{ "name": "JOB_NAME", "values": [format!("{}*", prefix_of_run(identity))] }]);
    let body = json!({ "jobQueue": queue, "filters": filter });
    let listed = service.all(Call::ListJobs, body, "jobSummaryList", PATIENCE).await?;
    let mut found = singles(identity, sought, &listed);
    if found.len() < sought.len() {
        let of_run = |name: &str| name.starts_with(&prefix_of_run(identity));
        let arrays = listed.iter().filter(|job| job["arrayProperties"]["size"].is_u64() || has_nodes(job));
        let arrays = arrays.filter(|job| job["jobName"].as_str().is_some_and(of_run));
        let ids: Vec<&str> = arrays.filter_map(|job| job["jobId"].as_str()).collect();
        for some in ids.chunks(DESCRIBED_AT_ONCE) {
            let answer = service.call_patiently(Call::DescribeJobs, &json!({ "jobs": some }), PATIENCE).await?;
            for array in answer["jobs"].as_array().into_iter().flatten() {
                add_children(&mut found, identity, sought, array);
            }
        }
    }
    Ok(found)
}

/// Attempts that were submitted alone: in the first round, or again in a later one.
fn singles(identity: &RunIdentity, sought: &[(StepName, AttemptId)], listed: &[Value]) -> HashMap<AttemptId, String> {
    let pairs = listed.iter().filter_map(|job| Some((job["jobName"].as_str()?, job["jobId"].as_str()?)));
    let by_name: HashMap<&str, &str> = pairs.collect();
    let newest = |step: &StepName, id: AttemptId| {
        let names = (0..=MOST_ROUNDS).rev().map(|round| job_name(identity, step.as_str(), id, round));
        names.filter_map(|name| by_name.get(name.as_str()).copied()).next()
    };
    sought.iter().filter_map(|(step, id)| Some((*id, newest(step, *id)?.to_owned()))).collect()
}

fn has_nodes(job: &Value) -> bool {
    job["nodeProperties"]["numNodes"].is_u64()
}

/// Attempts that were submitted as children of an array job, or as nodes of a gang's.
fn add_children(
    found: &mut HashMap<AttemptId, String>,
    identity: &RunIdentity,
    sought: &[(StepName, AttemptId)],
    job: &Value,
) {
    let parameters = &job["parameters"];
    let (Some(array), true) = (job["jobId"].as_str(), parameters["metaflow.run"] == identity.run_label()) else {
        return;
    };
    let child_id = if has_nodes(job) { multinode::node_id } else { array::child_id };
    for (index, child) in array::members(parameters).into_iter().enumerate() {
        let of_step =
            |(step, id): &(StepName, AttemptId)| *id == child && parameters["metaflow.step_name"] == step.as_str();
        if sought.iter().any(of_step) {
            // One that was submitted again, alone, is newer.
            found.entry(child).or_insert_with(|| child_id(array, index));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::names::tests::{id, identity};
    use super::*;

    fn sought() -> Vec<(StepName, AttemptId)> {
        [7, 8, 9].map(|task| (StepName::from("train"), id(task, 0))).to_vec()
    }

    fn array(run: &str, children: &[AttemptId]) -> Value {
        let first = json!({"parameters": {"metaflow.run": run, "metaflow.step_name": "train"}});
        let mut job = array::request(first, "many", children, &Default::default());
        job["jobId"] = json!("a-1");
        job
    }

    #[test]
    fn the_newest_job_of_an_attempt_is_found_by_its_name() {
        let name = |task, round| job_name(&identity(), "train", id(task, 0), round);
        let listed = [
            json!({"jobName": name(7, 0), "jobId": "old"}),
            json!({"jobName": name(7, 2), "jobId": "new"}),
            json!({"jobName": name(8, 0), "jobId": "other"}),
            json!({"jobName": job_name(&identity(), "test", id(9, 0), 0), "jobId": "of another step"}),
        ];
        let expected = [(id(7, 0), "new".to_owned()), (id(8, 0), "other".to_owned())];
        assert_eq!(singles(&identity(), &sought(), &listed), HashMap::from(expected));
        assert!(listed.iter().all(|job| job["jobName"].as_str().unwrap().starts_with(&prefix_of_run(&identity()))));
    }

    #[test]
    fn children_are_found_by_their_array_unless_they_were_submitted_again() {
        let ours = array(&identity().run_label(), &[id(6, 0), id(8, 0), id(7, 0), id(9, 1)]);
        let mut found = HashMap::from([(id(7, 0), "again".to_owned())]);
        add_children(&mut found, &identity(), &sought(), &ours);
        assert_eq!(found, HashMap::from([(id(7, 0), "again".to_owned()), (id(8, 0), "a-1:1".to_owned())]));
        let mut gang = array(&identity().run_label(), &[id(7, 0), id(8, 0)]);
        gang["nodeProperties"] = json!({"numNodes": 2});
        let mut found = HashMap::new();
        add_children(&mut found, &identity(), &sought(), &gang);
        assert_eq!(found, HashMap::from([(id(7, 0), "a-1#0".to_owned()), (id(8, 0), "a-1#1".to_owned())]));
        let mut none = HashMap::new();
        add_children(&mut none, &identity(), &sought(), &array("another run", &[id(8, 0)]));
        assert!(none.is_empty());
    }
}
