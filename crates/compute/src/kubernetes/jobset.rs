//! Gangs (`num_parallel`) as one JobSet (`jobset.x-k8s.io`), where the server has them: rank 0 is the
//! replicated job `control`, the others are `worker`. The object and its names, pure, and its deletion;
//! when that is done is the submitter's and the supervisor's work, and plain Jobs in its place are
//! `parallel`'s.

use ferroflow_core::id::{AttemptId, TaskId};
use serde_json::{Value, json};

use super::api::{ApiFault, Cluster, Target};
use super::job::{JobParts, REMOVE_AFTER};
use super::names::{ATTEMPT_LABEL, QUEUE_LABEL, attempt_label};
use super::parallel::{GANG_LABEL, MAIN_NAME, control_annotation};

/// The API's group and version.
pub const API: &str = "jobset.x-k8s.io/v1alpha2";
/// Its controller puts these on Jobs and pods.
pub const NAME_LABEL: &str = "jobset.sigs.k8s.io/jobset-name";
const REPLICATED_LABEL: &str = "jobset.sigs.k8s.io/replicatedjob-name";
const INDEX_LABEL: &str = "jobset.sigs.k8s.io/job-index";
/// Read by the container: which entry of the list of ranks is its own.
const INDEX_NAME: &str = "FERROFLOW_CHILD_INDEX";

const CONTROL: &str = "control";
const WORKER: &str = "worker";

/// The path of a namespace's JobSets.
pub fn jobsets(namespace: &str) -> String {
    format!("/apis/{API}/namespaces/{namespace}/jobsets")
}

/// The Job that a JobSet makes for a rank; its pod's host name ends with another `-0`.
pub fn job_of_rank(jobset: &str, rank: u64) -> String {
    match rank {
        0 => format!("{jobset}-{CONTROL}-0"),
        rank => format!("{jobset}-{WORKER}-{}", rank - 1),
    }
}

/// What a JobSet is made of.
pub struct Gang<'a> {
    pub name: &'a str,
    /// Of rank 0.
    pub id: AttemptId,
    /// How many ranks there are.
    pub nodes: u64,
    pub control: &'a JobParts<'a>,
    /// What is the same for all other ranks; what is not is a list in the store.
    pub worker: &'a JobParts<'a>,
}

impl Gang<'_> {
    /// The object for the API.
    pub fn manifest(&self) -> Value {
        let (control, worker) = (self.member(self.control), self.worker_member());
        let mut jobs = vec![replicated(CONTROL, 1, &control)];
        if self.nodes > 1 {
            jobs.push(replicated(WORKER, self.nodes - 1, &worker));
        }
        let mut jobset = json!({
            "apiVersion": API,
            "kind": "JobSet",
            "metadata": {
                "name": self.name,
                "namespace": self.control.options.namespace,
                "labels": worker["spec"]["template"]["metadata"]["labels"],
                "annotations": worker["spec"]["template"]["metadata"]["annotations"],
            },
            "spec": {
                "network": { "enableDNSHostnames": true, "publishNotReadyAddresses": true },
                "failurePolicy": { "maxRestarts": 0 },
                "ttlSecondsAfterFinished": REMOVE_AFTER,
                "replicatedJobs": jobs,
            },
        });
        if let Some(queue) = &self.control.options.queue {
            jobset["metadata"]["labels"][QUEUE_LABEL] = json!(queue);
            jobset["spec"]["suspend"] = json!(true); // Kueue admits it as a whole by taking that away
        }
        jobset
    }

    /// The Job of one rank as a member of the gang, with what its pod has.
    fn member(&self, parts: &JobParts<'_>) -> Value {
        let mut job = parts.manifest();
        let template = &mut job["spec"]["template"];
        template["metadata"]["labels"][GANG_LABEL] = json!(self.name);
        // All are selected by the attempt of rank 0: a JobSet is there as a whole or not at all.
        template["metadata"]["labels"][ATTEMPT_LABEL] = json!(attempt_label(self.id));
        let (annotation, control) = control_annotation(self.id.task);
        template["metadata"]["annotations"][annotation] = json!(control);
        let main = format!("{}-0.{}", job_of_rank(self.name, 0), self.name);
        add_variable(template, json!({ "name": MAIN_NAME, "value": main }));
        job
    }

    fn worker_member(&self) -> Value {
        let mut job = self.member(self.worker);
        let template = &mut job["spec"]["template"];
        let path = format!("metadata.labels['{INDEX_LABEL}']");
        add_variable(template, json!({ "name": INDEX_NAME, "valueFrom": { "fieldRef": { "fieldPath": path } } }));
        if let Some(annotations) = template["metadata"]["annotations"].as_object_mut() {
            annotations.shift_remove("metaflow/task_id");
        }
        job
    }
}

fn add_variable(template: &mut Value, variable: Value) {
    if let Some(variables) = template["spec"]["containers"][0]["env"].as_array_mut() {
        variables.push(variable);
    }
}

fn replicated(name: &str, replicas: u64, job: &Value) -> Value {
    let mut spec = job["spec"].clone();
    if let Some(spec) = spec.as_object_mut() {
        // The JobSet's own, for all of them.
        spec.shift_remove("suspend");
        spec.shift_remove("ttlSecondsAfterFinished");
    }
    // Pods of such Jobs have host names.
    spec["completionMode"] = json!("Indexed");
    let metadata = &job["spec"]["template"]["metadata"];
    json!({ "name": name, "replicas": replicas, "template": { "metadata": metadata, "spec": spec } })
}

/// Deletes a JobSet with its Jobs and, `grace` seconds after SIGTERM, its pods.
pub async fn delete_jobset(cluster: &Cluster, namespace: &str, name: &str, grace: u32) -> Result<(), ApiFault> {
    cluster.delete_named(&jobsets(namespace), name).await?;
    let selector = format!("{GANG_LABEL}={name}");
    // The collector takes these too, but later: and while a Job is there, it puts a pod in place of
    // one that is deleted.
    if cluster.delete_jobs(namespace, Target::Selector(&selector)).await.is_ok() {
        let _propagated = cluster.delete_pods(namespace, Target::Selector(&selector), grace).await;
    }
    Ok(())
}

/// The JobSet that an object is a part of.
pub fn whole_of(object: &Value) -> Option<&str> {
    object["metadata"]["labels"][NAME_LABEL].as_str().filter(|name| !name.is_empty())
}

/// A rank that was found on the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub id: AttemptId,
    pub jobset: String,
    pub job: String,
}

/// The ranks of a JobSet of ours.
pub fn members(jobset: &Value) -> Vec<Member> {
    let name = jobset["metadata"]["name"].as_str().unwrap_or_default();
    let jobs = jobset["spec"]["replicatedJobs"].as_array().into_iter().flatten();
    let ranks: u64 = jobs.filter_map(|job| job["replicas"].as_u64()).sum();
    (0..ranks).filter_map(|rank| member(jobset, name, rank)).collect()
}

/// The rank whose pod that is.
pub fn member_of(pod: &Value) -> Option<Member> {
    let index: u64 = pod["metadata"]["labels"][INDEX_LABEL].as_str()?.parse().ok()?;
    let is_control = pod["metadata"]["labels"][REPLICATED_LABEL] == CONTROL;
    member(pod, whole_of(pod)?, if is_control { 0 } else { index + 1 })
}

/// Ranks are tasks with consecutive numbers.
fn member(object: &Value, jobset: &str, rank: u64) -> Option<Member> {
    let annotations = &object["metadata"]["annotations"];
    let control: u64 = annotations[control_annotation(TaskId(0)).0].as_str()?.parse().ok()?;
    let attempt: u32 = annotations["metaflow/attempt"].as_str()?.parse().ok()?;
    let id = AttemptId { task: TaskId(control + rank), attempt };
    Some(Member { id, jobset: jobset.to_owned(), job: job_of_rank(jobset, rank) })
}

/// Whether it has ended, whichever way.
pub fn is_over(jobset: &Value) -> bool {
    let conditions = jobset["status"]["conditions"].as_array().into_iter().flatten();
    let ends = |name: &Value| *name == "Completed" || *name == "Failed";
    conditions.into_iter().any(|condition| condition["status"] == "True" && ends(&condition["type"]))
}

#[cfg(test)]
#[path = "jobset_tests.rs"]
mod tests;
