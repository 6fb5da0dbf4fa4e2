//! The JobSet of a gang, whole, and what is read out of one again.

use std::collections::BTreeMap;

use ferroflow_core::decorator::kubernetes::KubernetesOptions;
use ferroflow_core::port::RemoteContainer;
use ferroflow_core::task::GangPlace;

use super::*;
use crate::conformance::{attempt, launch};
use crate::remote::RunIdentity;

fn identity() -> RunIdentity {
    RunIdentity {
        flow: "ConformanceFlow".into(),
        run: "1".into(),
        user: "tester".into(),
        metadata: "here".into(),
        created_at: 0,
    }
}

fn container(own: &str) -> RemoteContainer {
    RemoteContainer {
        command: vec!["python".into(), "-c".into(), "go()".into()],
        environment: BTreeMap::from([(own.to_owned(), "1".to_owned())]),
    }
}

/// A gang whose rank 0 is task 7.
fn manifest(attributes: &Value, nodes: u64) -> Value {
    let given = attributes.as_object().expect("an object");
    let options = KubernetesOptions::resolve(given, None, &BTreeMap::new()).expect("valid");
    let (identity, mut launch) = (identity(), launch(7, "train_it"));
    launch.spec.gang = Some(GangPlace { rank: 0, nodes, control_task: TaskId(7) });
    let parts = |own: &str| JobParts {
        identity: &identity,
        options: &options,
        launch: &launch,
        container: container(own),
        default_image: "python:3.11",
        round: 0,
    };
    Gang { name: "js-f-1", id: launch.id, nodes, control: &parts("A"), worker: &parts("B") }.manifest()
}

fn labels() -> Value {
    let mut labels = json!(identity().labels());
    labels["ferroflow/attempt"] = json!("7-0");
    labels["ferroflow/gang"] = json!("js-f-1");
    labels
}

fn annotations(task: bool) -> Value {
    let mut annotations = json!({
        "metaflow/attempt": "0", "metaflow/flow_name": "ConformanceFlow", "metaflow/run_id": "1",
        "metaflow/step_name": "train_it", "metaflow/control-task-id": "7", "metaflow/user": "tester",
    });
    if task {
        annotations["metaflow/task_id"] = json!("7");
    }
    annotations
}

fn replicated_job(name: &str, replicas: u64, own: &[Value], last: &[Value]) -> Value {
    let metadata = json!({ "labels": labels(), "annotations": annotations(name == "control") });
    let field = |name: &str, path: &str| json!({ "name": format!("METAFLOW_KUBERNETES_{name}"), "valueFrom": { "fieldRef": { "fieldPath": path } } });
    let variable = |name: &str, value: &str| json!({ "name": name, "value": value });
    let mut environment = own.to_vec();
    environment.extend([
        variable("METAFLOW_KUBERNETES_NAMESPACE", "default"),
        variable("METAFLOW_KUBERNETES_WORKLOAD", "1"),
        variable("METAFLOW_RUNTIME_ENVIRONMENT", "kubernetes"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("POD_NAME", "metadata.name"),
        field("POD_ID", "metadata.uid"),
        field("SERVICE_ACCOUNT_NAME", "spec.serviceAccountName"),
        field("NODE_IP", "status.hostIP"),
        variable("FERROFLOW_GANG_MAIN", "js-f-1-control-0-0.js-f-1"),
    ]);
    environment.extend_from_slice(last);
    json!({
        "name": name,
        "replicas": replicas,
        "template": {
            "metadata": metadata,
            "spec": {
                "backoffLimit": 0,
                "completions": 1,
                "parallelism": 1,
                "activeDeadlineSeconds": 864_000,
                "template": {
                    "metadata": metadata,
                    "spec": {
                        "restartPolicy": "Never",
                        "activeDeadlineSeconds": 432_000,
                        "terminationGracePeriodSeconds": 5,
                        "containers": [{
                            "name": "train-it",
                            "image": "python:3.11",
                            "command": ["python", "-c", "go()"],
                            "env": environment,
                            "resources": {
                                "requests": { "cpu": "1", "ephemeral-storage": "10240M", "memory": "4096M" },
                            },
                            "terminationMessagePolicy": "FallbackToLogsOnError",
                        }],
                    },
                },
                "completionMode": "Indexed",
            },
        },
    })
}

#[test]
fn a_gang_of_four_makes_this_jobset() {
    let index = json!({
        "name": "FERROFLOW_CHILD_INDEX",
        "valueFrom": { "fieldRef": { "fieldPath": "metadata.labels['jobset.sigs.k8s.io/job-index']" } },
    });
    let wanted = json!({
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": "js-f-1", "namespace": "default", "labels": labels(), "annotations": annotations(false),
        },
        "spec": {
            "network": { "enableDNSHostnames": true, "publishNotReadyAddresses": true },
            "failurePolicy": { "maxRestarts": 0 },
            "ttlSecondsAfterFinished": 604_800,
            "replicatedJobs": [
                replicated_job("control", 1, &[json!({ "name": "A", "value": "1" })], &[]),
                replicated_job("worker", 3, &[json!({ "name": "B", "value": "1" })], &[index]),
            ],
        },
    });
    assert_eq!(manifest(&json!({}), 4), wanted);
}

#[test]
fn kueue_admits_the_jobset_and_not_its_jobs() {
    let jobset = manifest(&json!({"queue": "fair", "labels": {"team": "a"}}), 2);
    assert_eq!(jobset["metadata"]["labels"]["kueue.x-k8s.io/queue-name"], "fair");
    assert_eq!(jobset["spec"]["suspend"], true);
    for job in jobset["spec"]["replicatedJobs"].as_array().expect("a list") {
        let template = &job["template"];
        assert_eq!(template["spec"]["suspend"], Value::Null);
        for metadata in [&template["metadata"], &template["spec"]["template"]["metadata"]] {
            assert_eq!(metadata["labels"]["kueue.x-k8s.io/queue-name"], Value::Null);
            assert_eq!(metadata["labels"]["team"], "a");
        }
    }
}

#[test]
fn a_gang_of_one_has_no_workers() {
    let jobset = manifest(&json!({}), 1);
    assert_eq!(jobset["spec"]["replicatedJobs"].as_array().map(Vec::len), Some(1));
    assert_eq!(members(&jobset).len(), 1);
}

#[test]
fn ranks_are_found_again_in_a_jobset_and_in_their_pods() {
    let found = members(&manifest(&json!({}), 3));
    let rank = |task, job: &str| Member { id: attempt(task), jobset: "js-f-1".to_owned(), job: job.to_owned() };
    assert_eq!(found, [rank(7, "js-f-1-control-0"), rank(8, "js-f-1-worker-0"), rank(9, "js-f-1-worker-1")]);
    let pod = |job: &str, index: &str| {
        let labels = json!({
            "jobset.sigs.k8s.io/jobset-name": "js-f-1",
            "jobset.sigs.k8s.io/replicatedjob-name": job,
            "jobset.sigs.k8s.io/job-index": index,
        });
        json!({ "metadata": { "labels": labels, "annotations": annotations(false) } })
    };
    assert_eq!(member_of(&pod("control", "0")).as_ref(), Some(&found[0]));
    assert_eq!(member_of(&pod("worker", "1")).as_ref(), Some(&found[2]));
    assert_eq!(member_of(&json!({"metadata": {"labels": {"job-name": "plain"}}})), None);
}
