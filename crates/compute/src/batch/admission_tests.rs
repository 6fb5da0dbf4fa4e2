//! What is refused before anything starts, and the sentences that say so.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::*;

#[allow(clippy::needless_pass_by_value, reason = "literals read better")]
fn options(given: Value) -> BatchOptions {
    BatchOptions::resolve(given.as_object().expect("an object"), None, &BTreeMap::new()).expect("valid")
}

fn environment(name: &str, kind: &str, types: &[&str], most: u64) -> EnvironmentView {
    EnvironmentView::of(&json!({
        "computeEnvironmentName": name, "computeEnvironmentArn": format!("arn:{name}"), "state": "ENABLED",
        "status": "VALID", "computeResources": {"type": kind, "maxvCpus": most, "instanceTypes": types},
    }))
}

fn queue(name: &str, environments: &[EnvironmentView]) -> QueueView {
    let order: Vec<Value> = environments
        .iter()
        .enumerate()
        .map(|(order, e)| json!({"order": order, "computeEnvironment": e.name}))
        .collect();
    let queue = json!({
        "jobQueueName": name, "jobQueueArn": format!("arn:{name}"), "state": "ENABLED", "status": "VALID",
        "computeEnvironmentOrder": order,
    });
    QueueView::of(&queue, environments)
}

fn verdict(given: Value, queue: &QueueView) -> Option<String> {
    judge(&options(given), queue)
}

#[test]
fn what_no_compute_environment_can_hold_is_refused_with_the_nearest_fit() {
    let small = environment("small", "EC2", &["m5.xlarge"], 64);
    let big = environment("big", "SPOT", &["r5.4xlarge", "c5"], 256);
    let queue = queue("q", &[small, big]);
    assert_eq!(verdict(json!({"memory": 100_000}), &queue), None);
    assert_eq!(verdict(json!({"cpu": 90}), &queue), None);
    assert_eq!(
        verdict(json!({"memory": 512_000}), &queue),
        Some(
            " asks for cpu 1, memory 512000 MB, which no compute environment of the job queue `q` can ever \
             hold: `small` (m5.xlarge) has instances with up to 4 vCPUs, 16384 MB and at most 64 vCPUs in all; `big` \
             (r5.4xlarge, c5) has instances with up to 96 vCPUs, 196608 MB and at most 256 vCPUs in all. The nearest \
             fit is cpu 1, memory 196608 MB: ask for at most that, or add a larger compute environment"
                .to_owned()
        )
    );
    let text = verdict(json!({"gpu": 1}), &queue).expect("refused");
    assert!(text.contains("asks for cpu 1, memory 4096 MB, gpu 1"), "{text}");
}

#[test]
fn gangs_need_instances_that_aws_batch_manages() {
    let [fargate, spot] = ["FARGATE", "SPOT"].map(|kind| environment(&kind.to_lowercase(), kind, &["m5"], 16));
    let own = environment("own", "", &[], 16);
    assert_eq!(
        takes_no_gang(&queue("q", &[fargate, spot.clone(), own])).expect("refused"),
        " is a gang (num_parallel), which AWS Batch runs on managed EC2 instances only, neither on Fargate nor on Spot, and \
         the job queue `q` has `fargate` (FARGATE), `spot` (SPOT), `own` (not managed by AWS Batch): name another one \
         with @batch(queue=…)"
    );
    assert_eq!(takes_no_gang(&queue("q", &[spot, environment("e", "EC2", &["m5"], 16)])), None);
    assert_eq!(takes_no_gang(&queue("q", &[])), None);
}

#[test]
fn what_is_not_known_is_let_through() {
    let unknown = queue("q", &[environment("ce", "EC2", &["x99.large", "m5.large"], 256)]);
    assert_eq!(verdict(json!({"memory": 512_000}), &unknown), None);
    assert_eq!(verdict(json!({"memory": 512_000}), &queue("q", &[])), None);
    let text = verdict(json!({"cpu": 300}), &unknown).expect("more than all");
    assert!(text.contains("`ce` has x99.large, m5.large and at most 256 vCPUs in all"), "{text}");
}

#[test]
fn fargate_has_its_own_limits() {
    let queue = queue("q", &[environment("ce", "FARGATE", &[], 64)]);
    let role = |given: Value| {
        let mut given = given;
        given["execution_role"] = json!("arn:start");
        given
    };
    assert_eq!(verdict(role(json!({"cpu": 2, "memory": 16_000})), &queue), None);
    assert_eq!(
        verdict(role(json!({"memory": 16_000})), &queue),
        Some(
            " asks for cpu 1, memory 16000 MB, which no compute environment of the job queue `q` can ever \
             hold: `ce` is Fargate: up to 16 vCPUs with 32768 to 122880 MB, fewer vCPUs with less memory and at most 64 \
             vCPUs in all. The nearest fit is cpu 2 with that memory"
                .to_owned()
        )
    );
    assert_eq!(
        verdict(json!({}), &queue),
        Some(
            ": Fargate needs a role to start containers by: set METAFLOW_ECS_FARGATE_EXECUTION_ROLE or \
             `execution_role`; the job queue `q` is on Fargate"
                .to_owned()
        )
    );
    for (given, word) in [
        (json!({"gpu": 1}), "no GPUs"),
        (json!({"use_tmpfs": true}), "file system in memory"),
        (json!({"inferentia": 1}), "Inferentia"),
        (json!({"efa": 1}), "fabric"),
        (json!({"host_volumes": "/a"}), "host_volumes"),
        (json!({"privileged": true}), "privileged"),
        (json!({"shared_memory": 5}), "shared memory"),
    ] {
        let text = verdict(role(given.clone()), &queue).expect("refused");
        assert!(text.contains(word), "{given}: {text}");
    }
}

#[test]
fn ephemeral_storage_is_fargates_and_disk_on_ec2_a_warning() {
    let ec2 = queue("q", &[environment("ce", "EC2", &["optimal"], 64)]);
    assert_eq!(
        verdict(json!({"ephemeral_storage": 50}), &ec2),
        Some(": `ephemeral_storage` is Fargate's: remove it; the job queue `q` is on EC2".to_owned())
    );
    assert_eq!(verdict(json!({"disk": 50_000}), &ec2), None);
    let step = StepName::from("train");
    assert_eq!(
        warning(&step, &options(json!({"disk": 50_000})), Platform::Ec2).as_deref(),
        Some(
            "Step `train` asks for disk space; on EC2 that is the instance's, and AWS Batch cannot promise any. Choose \
             instances with enough of it."
        )
    );
    assert_eq!(warning(&step, &options(json!({})), Platform::Ec2), None);
}

#[test]
fn queues_are_found_by_name_or_arn_or_are_the_first_that_can_be_used() {
    let mut off = queue("off", &[]);
    off.enabled = false;
    let queues = [off, queue("on", &[])];
    let named = |name: Value| place(&options(json!({ "queue": name })), &queues).map(|queue| queue.name.clone());
    assert_eq!(named(json!(null)).as_deref(), Ok("on"));
    assert_eq!(named(json!("on")).as_deref(), Ok("on"));
    assert_eq!(named(json!("arn:on")).as_deref(), Ok("on"));
    assert_eq!(
        named(json!("off")),
        Err("the job queue `off` is disabled and takes no jobs: enable it, or name another one with @batch(queue=…)"
            .to_owned())
    );
    assert_eq!(
        named(json!("of")),
        Err("there is no job queue `of` in this account and region (there are `off`, `on`): name one with \
             METAFLOW_BATCH_JOB_QUEUE or @batch(queue=…)"
            .to_owned())
    );
    assert_eq!(
        place(&options(json!({})), &queues[..1]).map(|_| ()),
        Err("there is no job queue that is enabled and valid: create one, and name it with METAFLOW_BATCH_JOB_QUEUE or \
             @batch(queue=…)"
            .to_owned())
    );
}
