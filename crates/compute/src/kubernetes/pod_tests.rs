//! Pods as servers of several versions wrote them, and what is made of them.

use super::*;
use serde_json::json;

#[allow(clippy::needless_pass_by_value, reason = "literals read better")]
fn pod(status: Value) -> Value {
    json!({
        "metadata": { "name": "job-x", "uid": "u", "labels": { "job-name": "job" } },
        "spec": {
            "nodeName": "n1",
            "containers": [{
                "name": "train", "image": "team/x:1", "command": ["python", "-c", "x"],
                "resources": { "requests": { "memory": "64M" }, "limits": { "memory": "64M" } },
            }],
        },
        "status": status,
    })
}

fn phase(status: Value) -> Phase {
    PodView::of(&pod(status)).phase()
}

fn waiting(reason: &str, message: &str) -> Phase {
    let state = json!({ "waiting": { "reason": reason, "message": message } });
    phase(json!({ "phase": "Pending", "containerStatuses": [{ "name": "train", "state": state }] }))
}

fn ended(code: i32, reason: &str, message: &str) -> Phase {
    let state = json!({ "terminated": { "exitCode": code, "reason": reason, "message": message } });
    phase(json!({ "phase": "Failed", "containerStatuses": [{ "name": "train", "state": state }] }))
}

fn report(phase: Phase) -> AttemptReport {
    match phase {
        Phase::Ended(Ending::Report { report, .. }) => *report,
        other => panic!("no report: {other:?}"),
    }
}

fn cause(phase: Phase) -> Cause {
    match phase {
        Phase::Ended(Ending::NeverRan(cause) | Ending::Taken(cause)) | Phase::Stuck { cause, .. } => cause,
        other => report(other).cause.expect("a cause"),
    }
}

#[test]
fn a_pod_that_is_unready_for_no_reason_of_its_own_has_a_silent_node() {
    let silent = |ready: &str, containers: &str| {
        let condition = |kind: &str, status: &str| json!({ "type": kind, "status": status });
        let conditions = json!([condition("Ready", ready), condition("ContainersReady", containers)]);
        PodView::of(&pod(json!({ "phase": "Running", "conditions": conditions }))).node_is_silent
    };
    assert!(silent("False", "True"));
    assert!(!silent("True", "True") && !silent("False", "False"));
}

#[test]
fn the_scheduler_says_why_a_pod_waits() {
    let condition = json!({
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
        "message": "0/1 nodes are available: 1 Insufficient memory.",
    });
    assert_eq!(
        phase(json!({ "phase": "Pending", "conditions": [condition] })),
        Phase::Waiting("no node fits yet: 0/1 nodes are available: 1 Insufficient memory.".into())
    );
}

#[test]
fn images_that_are_missing_are_told_from_registries_in_trouble() {
    let missing = waiting("ErrImagePull", "rpc error: code = NotFound desc = failed to pull: team/x:1: not found");
    assert!(matches!(&missing, Phase::Stuck { certain: true, .. }));
    assert_eq!(
        cause(missing).text,
        "the image `team/x:1` cannot be pulled: rpc error: code = NotFound desc = failed to pull: team/x:1: not found. \
         Check its name, and `image_pull_secrets`"
    );
    assert!(matches!(waiting("ErrImagePull", "dial tcp: i/o timeout"), Phase::Stuck { certain: false, .. }));
    assert!(matches!(waiting("InvalidImageName", "x"), Phase::Stuck { certain: true, .. }));
    assert_eq!(waiting("ContainerCreating", ""), Phase::Preparing);
}

#[test]
fn an_image_without_python_is_an_image_error() {
    let said = "failed to create containerd task: OCI runtime create failed: exec: \"python\": executable file not \
                found in $PATH: unknown";
    assert_eq!(
        cause(ended(128, "StartError", said)),
        Cause::new(
            CauseKind::Image,
            "the image `team/x:1` has no `python`: a task needs an image with Python 3.11 or newer, such as `python:3.11`"
        )
    );
}

#[test]
fn out_of_memory_says_what_was_asked_and_allowed() {
    let report = report(ended(137, "OOMKilled", ""));
    assert_eq!(report.exit, ProcessExit::Signal(9));
    assert_eq!(
        report.cause,
        Some(Cause::new(
            CauseKind::OutOfMemory,
            "out of memory: it asked for 64M and its limit is 64M. Raise `memory` of @resources or @kubernetes"
        ))
    );
}

#[test]
fn the_containers_last_words_are_the_outcome() {
    let words =
        r#"{"outcome":{"ok":true,"success":true},"exit":{"code":0},"usage":{"cpu_seconds":1.5,"peak_memory":7}}"#;
    let Phase::Ended(Ending::Report { report, sign_again, .. }) = ended(0, "Completed", words) else {
        panic!("it ended")
    };
    assert!(!sign_again && report.outcome.is_some_and(|outcome| outcome.ok));
    assert_eq!((report.exit, report.usage.peak_memory), (ProcessExit::Code(0), 7));
}

#[test]
fn a_container_killed_after_its_last_words_was_killed() {
    let words = r#"{"outcome":null,"exit":{"code":0},"usage":{"cpu_seconds":0.0,"peak_memory":0}}"#;
    assert_eq!(report(ended(137, "Error", words)).exit, ProcessExit::Signal(9));
    let words = r#"{"outcome":null,"exit":{"signal":11},"usage":{"cpu_seconds":0.0,"peak_memory":0}}"#;
    assert_eq!(report(ended(139, "Error", words)).exit, ProcessExit::Signal(11));
    assert_eq!(report(ended(3, "Error", "the last lines of a log")).exit, ProcessExit::Code(3));
}

#[test]
fn what_the_cluster_takes_away_is_not_the_tasks_failure() {
    let evicted = phase(json!({
        "phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory. ",
    }));
    assert_eq!(
        evicted,
        Phase::Ended(Ending::Taken(Cause::new(
            CauseKind::Evicted,
            "evicted from node `n1`: The node was low on resource: memory"
        )))
    );
    let lost = phase(json!({ "phase": "Running", "reason": "NodeLost", "message": "Node n1 is unresponsive" }));
    assert!(cause(lost).text.starts_with("node `n1` does not answer any more"));
    let preempted = json!([{
        "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
        "message": "default-scheduler: preempting to accommodate a higher priority pod",
    }]);
    let state = json!({ "terminated": { "exitCode": 143, "reason": "Error" } });
    let statuses = json!([{ "name": "train", "state": state }]);
    let preempted = phase(json!({ "phase": "Failed", "conditions": preempted, "containerStatuses": statuses }));
    assert_eq!(
        preempted,
        Phase::Ended(Ending::Taken(Cause::new(
            CauseKind::Evicted,
            "taken off node `n1` (PreemptionByScheduler): default-scheduler: preempting to accommodate a higher priority pod"
        )))
    );
}

#[test]
fn a_pod_that_filled_its_own_disk_failed() {
    let message = "Pod ephemeral local storage usage exceeds the total limit of containers 10240M.";
    let full = report(phase(json!({ "phase": "Failed", "reason": "Evicted", "message": message })));
    let text = full.cause.expect("a cause").text;
    assert!(text.ends_with("exceeds the total limit of containers 10240M. Raise `disk`"), "{text}");
}

#[test]
fn a_deadline_is_a_timeout() {
    let late = phase(json!({
        "phase": "Failed", "reason": "DeadlineExceeded",
        "message": "Pod was active on the node longer than the specified deadline",
    }));
    assert_eq!(report(late).cause.map(|cause| cause.kind), Some(CauseKind::TimedOut));
}
