//! Replies about queues and compute environments as AWS gives them, and what a user reads of them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::*;

fn options(given: &Value) -> BatchOptions {
    BatchOptions::resolve(given.as_object().expect("an object"), None, &BTreeMap::new()).expect("valid")
}

#[allow(clippy::needless_pass_by_value, reason = "literals read better")]
fn environment(more: Value) -> Value {
    let mut environment = json!({
        "computeEnvironmentName": "small",
        "computeEnvironmentArn": "arn:aws:batch:us-east-1:1:compute-environment/small",
        "type": "MANAGED", "state": "ENABLED", "status": "VALID", "statusReason": "ComputeEnvironment Healthy",
        "computeResources": {
            "type": "EC2", "minvCpus": 0, "maxvCpus": 16, "desiredvCpus": 0, "instanceTypes": ["m5.xlarge"],
        },
    });
    for (path, value) in more.as_object().expect("an object") {
        *environment.pointer_mut(path).expect("a place") = value.clone();
    }
    environment
}

fn queue(more: &Value, environments: &[Value]) -> QueueView {
    let mut queue = json!({
        "jobQueueName": "default", "jobQueueArn": "arn:aws:batch:us-east-1:1:job-queue/default", "state": "ENABLED",
        "status": "VALID", "statusReason": "JobQueue Healthy", "priority": 1,
        "computeEnvironmentOrder": [
            {"order": 1, "computeEnvironment": "arn:aws:batch:us-east-1:1:compute-environment/small"}
        ],
    });
    for (name, value) in more.as_object().expect("an object") {
        queue[name] = value.clone();
    }
    let environments: Vec<EnvironmentView> = environments.iter().map(EnvironmentView::of).collect();
    QueueView::of(&queue, &environments)
}

fn told(queue: &QueueView, given: &Value, said: &str) -> String {
    reason(Some(queue), &options(given), Status::Runnable, said).expect("a reason")
}

#[test]
fn a_queue_that_takes_or_runs_nothing() {
    let healthy = [environment(json!({}))];
    assert_eq!(
        told(&queue(&json!({"state": "DISABLED"}), &healthy), &json!({}), ""),
        "the job queue `default` is disabled: enable it, or name another one with @batch(queue=…)"
    );
    let invalid = json!({"status": "INVALID", "statusReason": "JobQueue has no valid compute environment."});
    assert_eq!(
        told(&queue(&invalid, &healthy), &json!({}), ""),
        "the job queue `default` is not valid: JobQueue has no valid compute environment"
    );
}

#[test]
fn compute_environments_that_take_nothing() {
    let disabled = [environment(json!({"/state": "DISABLED"}))];
    assert_eq!(
        told(&queue(&json!({}), &disabled), &json!({}), ""),
        "no compute environment of the job queue `default` takes jobs: `small` is disabled"
    );
    let said = "CLIENT_ERROR - Not authorized to perform sts:AssumeRole (Service: AWSSecurityTokenService)";
    let invalid = [environment(json!({"/status": "INVALID", "/statusReason": said}))];
    assert_eq!(
        told(&queue(&json!({}), &invalid), &json!({}), ""),
        format!("no compute environment of the job queue `default` takes jobs: `small` is not valid: {said}")
    );
}

#[test]
fn no_instance_type_fits() {
    let small = [environment(json!({}))];
    assert_eq!(
        told(&queue(&json!({}), &small), &json!({"cpu": 2, "memory": 32_000}), ""),
        "no instance type of the job queue `default` fits: it asks for cpu 2, memory 32000 MB, and `small` (m5.xlarge) \
         has instances with up to 4 vCPUs, 16384 MB and at most 16 vCPUs in all"
    );
}

#[test]
fn the_maximum_is_reached() {
    let full = [environment(json!({"/computeResources/desiredvCpus": 15}))];
    assert_eq!(
        told(&queue(&json!({}), &full), &json!({"cpu": 2}), ""),
        "the compute environment `small` is at its maximum: 15 of 16 vCPUs are in use"
    );
}

#[test]
fn the_services_own_words_with_a_hint() {
    let healthy = queue(&json!({}), &[environment(json!({}))]);
    let cases = [
        (
            "CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY - Service cannot fulfill the capacity requested for instance type \
             p3.2xlarge.",
            "AWS Batch says: Service cannot fulfill the capacity requested for instance type p3.2xlarge. AWS has no \
             such instances at the moment: allow more instance types, or wait",
        ),
        (
            "MISCONFIGURATION:COMPUTE_ENVIRONMENT_MAX_RESOURCE - CE(s) associated with the job queue reached their \
             maximum vCPUs.",
            "AWS Batch says: CE(s) associated with the job queue reached their maximum vCPUs. Raise the compute \
             environment's maximum vCPUs, or wait for other jobs",
        ),
        (
            "MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT - The job resource requirement (vCPU/memory/GPU) is higher than \
             that can be met by the CE(s) attached to the job queue.",
            "AWS Batch says: The job resource requirement (vCPU/memory/GPU) is higher than that can be met by the CE(s) \
             attached to the job queue. Ask for less, or add a compute environment with larger instances",
        ),
        ("Waiting for quota.", "AWS Batch says: Waiting for quota."),
        ("Job submitted", "for its turn in the job queue `default`"),
        ("", "for its turn in the job queue `default`"),
    ];
    for (said, text) in cases {
        assert_eq!(told(&healthy, &json!({}), said), text);
    }
}

#[test]
fn without_a_look_at_the_queue_only_the_job_speaks() {
    let said = "CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY - No capacity.";
    let text = reason(None, &options(&json!({})), Status::Runnable, said);
    let hint = "AWS has no such instances at the moment: allow more instance types, or wait";
    assert_eq!(text, Some(format!("AWS Batch says: No capacity. {hint}")));
    assert_eq!(reason(None, &options(&json!({})), Status::Runnable, ""), None);
}
