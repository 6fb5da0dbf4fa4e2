//! The Job of one attempt, as JSON. A pure function of options, launch and container.

use std::collections::BTreeMap;

use ferroflow_core::decorator::kubernetes::{DEFAULT_TIME_LIMIT, KubernetesOptions};
use ferroflow_core::port::RemoteContainer;
use ferroflow_core::task::TaskLaunch;
use serde_json::{Map, Value, json};

use super::names::{ATTEMPT_LABEL, QUEUE_LABEL, attempt_label, container_name};
use crate::remote::RunIdentity;

/// Python acts on `@timeout` itself and process 1 of the container kills what ignores that, a minute
/// later. The pod's deadline is for when neither can; its clock runs while the image is pulled, too.
const DEADLINE_GRACE: f64 = 600.0;
/// How much longer than the pod the Job may live: so long it may wait for a node.
const LONGEST_WAIT: f64 = 432_000.0;
/// After SIGTERM.
pub const TERMINATION_GRACE: u32 = 5;
/// Servers that know it remove what an engine that died left behind; seconds.
pub const REMOVE_AFTER: u32 = 604_800;

/// What a Job is made of.
pub struct JobParts<'a> {
    pub identity: &'a RunIdentity,
    pub options: &'a KubernetesOptions,
    pub launch: &'a TaskLaunch,
    pub container: RemoteContainer,
    /// Where the options name none.
    pub default_image: &'a str,
    /// Submissions of this attempt before.
    pub round: u32,
}

impl JobParts<'_> {
    pub fn name(&self) -> String {
        self.identity.job_name(self.launch.spec.step.as_str(), self.launch.id, self.round)
    }

    pub fn image(&self) -> &str {
        self.options.image.as_deref().unwrap_or(self.default_image)
    }

    /// The object for the API.
    pub fn manifest(&self) -> Value {
        let limit = self.launch.time_limit.map_or(DEFAULT_TIME_LIMIT, |limit| limit + DEADLINE_GRACE).ceil();
        let mut pod = self.pod(limit as u64);
        if let Some(overlay) = &self.options.pod_spec {
            lay_over(&mut pod, overlay);
        }
        let mut labels = self.labels();
        if let Some(queue) = &self.options.queue {
            labels.insert(QUEUE_LABEL.to_owned(), queue.clone());
        }
        let mut spec = json!({
            "backoffLimit": 0,
            "completions": 1,
            "parallelism": 1,
            "activeDeadlineSeconds": (limit + LONGEST_WAIT) as u64,
            "ttlSecondsAfterFinished": REMOVE_AFTER,
            "template": { "metadata": { "labels": self.labels(), "annotations": self.annotations() }, "spec": pod },
        });
        if self.options.queue.is_some() {
            spec["suspend"] = json!(true); // Kueue admits it by taking that away
        }
        json!({
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {
                "name": self.name(),
                "namespace": self.options.namespace,
                "labels": labels,
                "annotations": self.annotations(),
            },
            "spec": spec,
        })
    }

    fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.options.labels.clone();
        labels.extend(self.identity.labels());
        labels.insert(ATTEMPT_LABEL.to_owned(), attempt_label(self.launch.id));
        labels
    }

    fn annotations(&self) -> BTreeMap<String, String> {
        let spec = &self.launch.spec;
        let mut annotations = self.options.annotations.clone();
        let ours = [
            ("flow_name", spec.flow.clone()),
            ("run_id", spec.run.to_string()),
            ("step_name", spec.step.to_string()),
            ("task_id", spec.task.to_string()),
            ("attempt", spec.attempt.to_string()),
            ("user", spec.user.clone()),
        ];
        annotations.extend(ours.map(|(name, value)| (format!("metaflow/{name}"), value)));
        annotations
    }

    fn pod(&self, deadline: u64) -> Value {
        let options = self.options;
        let (volumes, mounts) = self.volumes();
        let mut pod = Map::new();
        let mut set = |name: &str, value: Value| {
            if !is_empty(&value) {
                pod.insert(name.to_owned(), value);
            }
        };
        set("restartPolicy", json!("Never"));
        set("activeDeadlineSeconds", json!(deadline));
        set("terminationGracePeriodSeconds", json!(TERMINATION_GRACE));
        set("serviceAccountName", json!(options.service_account));
        set("priorityClassName", json!(options.priority_class));
        set("nodeSelector", json!(options.node_selector));
        set("tolerations", json!(options.tolerations));
        let secrets: Vec<Value> = options.image_pull_secrets.iter().map(|name| json!({ "name": name })).collect();
        set("imagePullSecrets", json!(secrets));
        set("volumes", json!(volumes));
        set("containers", json!([self.container(&mounts)]));
        Value::Object(pod)
    }

    fn container(&self, mounts: &[Value]) -> Value {
        let options = self.options;
        let mut command = self.container.command.clone();
        if let (Some(executable), Some(first)) = (&options.executable, command.first_mut()) {
            first.clone_from(executable);
        }
        let mut container = Map::new();
        let mut set = |name: &str, value: Value| {
            if !is_empty(&value) {
                container.insert(name.to_owned(), value);
            }
        };
        set("name", json!(container_name(self.launch.spec.step.as_str())));
        set("image", json!(self.image()));
        set("imagePullPolicy", json!(options.image_pull_policy));
        set("command", json!(command));
        set("env", json!(self.environment()));
        let secrets: Vec<Value> = options.secrets.iter().map(|name| json!({ "secretRef": { "name": name } })).collect();
        set("envFrom", json!(secrets));
        set("resources", self.resources());
        set("volumeMounts", json!(mounts));
        set("securityContext", json!(options.security_context));
        if let Some(port) = options.port {
            set("ports", json!([{ "containerPort": port }]));
        }
        set("terminationMessagePolicy", json!("FallbackToLogsOnError"));
        Value::Object(container)
    }

    fn environment(&self) -> Vec<Value> {
        let mut variables = self.container.environment.clone();
        let mut own = |name: &str, value: &str| {
            variables.entry(name.to_owned()).or_insert_with(|| value.to_owned());
        };
        own("METAFLOW_KUBERNETES_WORKLOAD", "1");
        own("METAFLOW_RUNTIME_ENVIRONMENT", "kubernetes");
        own("METAFLOW_KUBERNETES_NAMESPACE", &self.options.namespace);
        if let Some(tmpfs) = self.options.tmpfs.as_ref().filter(|tmpfs| tmpfs.is_tempdir) {
            own("METAFLOW_TEMPDIR", &tmpfs.path);
        }
        let mut list: Vec<Value> =
            variables.iter().map(|(name, value)| json!({ "name": name, "value": value })).collect();
        let fields = [
            ("POD_NAMESPACE", "metadata.namespace"),
            ("POD_NAME", "metadata.name"),
            ("POD_ID", "metadata.uid"),
            ("SERVICE_ACCOUNT_NAME", "spec.serviceAccountName"),
            ("NODE_IP", "status.hostIP"),
        ];
        list.extend(fields.map(|(name, path)| {
            json!({ "name": format!("METAFLOW_KUBERNETES_{name}"), "valueFrom": { "fieldRef": { "fieldPath": path } } })
        }));
        list
    }

    fn resources(&self) -> Value {
        let requests = requests(self.options);
        let mut limits = Map::new();
        for (name, amount) in &requests {
            let always = !["cpu", "memory", "ephemeral-storage"].contains(&name.as_str());
            if always || self.options.guaranteed {
                limits.insert(name.clone(), json!(amount));
            }
        }
        let mut resources = json!({ "requests": requests });
        if !limits.is_empty() {
            resources["limits"] = Value::Object(limits);
        }
        resources
    }

    fn volumes(&self) -> (Vec<Value>, Vec<Value>) {
        let (mut volumes, mut mounts) = (Vec::new(), Vec::new());
        let mut add = |name: &str, source: Value, path: &str| {
            let mut volume = json!({ "name": name });
            lay_over(&mut volume, &source);
            volumes.push(volume);
            mounts.push(json!({ "name": name, "mountPath": path }));
        };
        if let Some(size) = self.options.shared_memory {
            add("shared-memory", in_memory(size), "/dev/shm");
        }
        if let Some(tmpfs) = &self.options.tmpfs {
            add("tmpfs", in_memory(tmpfs.size), &tmpfs.path);
        }
        for (index, (claim, path)) in self.options.persistent_volume_claims.iter().enumerate() {
            add(&format!("claim-{index}"), json!({ "persistentVolumeClaim": { "claimName": claim } }), path);
        }
        (volumes, mounts)
    }
}

fn in_memory(mebibytes: u64) -> Value {
    json!({ "emptyDir": { "medium": "Memory", "sizeLimit": format!("{mebibytes}Mi") } })
}

/// What a pod of a step requests, as Kubernetes writes amounts.
pub fn requests(options: &KubernetesOptions) -> BTreeMap<String, String> {
    let mut requests = BTreeMap::from([
        ("cpu".to_owned(), options.cpu.to_string()),
        ("memory".to_owned(), megabytes(options.memory)),
        ("ephemeral-storage".to_owned(), megabytes(options.disk)),
    ]);
    if options.gpu > 0 {
        requests.insert(format!("{}.com/gpu", options.gpu_vendor), options.gpu.to_string());
    }
    requests.extend(options.extended_resources.clone());
    requests
}

fn megabytes(amount: f64) -> String {
    // A fraction of a byte is refused by the server.
    if amount.fract() == 0.0 { format!("{amount}M") } else { format!("{}", (amount * 1e6).round()) }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
        _ => false,
    }
}

/// Merges `over` into `base`: objects by key, lists of named things by name, all else replaced.
fn lay_over(base: &mut Value, over: &Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                if value.is_null() {
                    base.shift_remove(key);
                } else {
                    lay_over(base.entry(key.clone()).or_insert(Value::Null), value);
                }
            }
        }
        (Value::Array(base), Value::Array(over)) if over.iter().all(|item| item["name"].is_string()) => {
            for item in over {
                match base.iter_mut().find(|known| known["name"] == item["name"]) {
                    Some(known) => lay_over(known, item),
                    None => base.push(item.clone()),
                }
            }
        }
        (base, over) => base.clone_from(over),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::launch;

    fn identity() -> RunIdentity {
        RunIdentity {
            flow: "ConformanceFlow".into(),
            run: "1".into(),
            user: "tester".into(),
            metadata: "here".into(),
            created_at: 0,
        }
    }

    fn manifest(attributes: &Value, change: impl Fn(&mut TaskLaunch)) -> Value {
        let given = attributes.as_object().expect("an object");
        let options = KubernetesOptions::resolve(given, None, &BTreeMap::new()).expect("valid");
        let mut launch = launch(3, "train_it");
        change(&mut launch);
        let container = RemoteContainer {
            command: vec!["python".into(), "-c".into(), "go()".into()],
            environment: BTreeMap::from([("METAFLOW_USER".to_owned(), "tester".to_owned())]),
        };
        let identity = identity();
        let parts = JobParts {
            identity: &identity,
            options: &options,
            launch: &launch,
            container,
            default_image: "python:3.11",
            round: 0,
        };
        parts.manifest()
    }

    #[test]
    fn a_plain_step_makes_this_job() {
        let job = manifest(&json!({}), |_| {});
        let labels = json!({
            "app.kubernetes.io/name": "metaflow-task",
            "app.kubernetes.io/part-of": "metaflow",
            "ferroflow/attempt": "3-0",
            "ferroflow/flow": "ConformanceFlow",
            "ferroflow/metadata": identity().labels()["ferroflow/metadata"],
            "ferroflow/run": identity().run_label(),
            "ferroflow/user": "tester",
        });
        let annotations = json!({
            "metaflow/attempt": "0", "metaflow/flow_name": "ConformanceFlow", "metaflow/run_id": "1",
            "metaflow/step_name": "train_it", "metaflow/task_id": "3", "metaflow/user": "tester",
        });
        let field = |name: &str, path: &str| json!({ "name": format!("METAFLOW_KUBERNETES_{name}"), "valueFrom": { "fieldRef": { "fieldPath": path } } });
        let name = identity().job_name("train_it", crate::conformance::attempt(3), 0);
        let wanted = json!({
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": { "name": name, "namespace": "default", "labels": labels, "annotations": annotations },
            "spec": {
                "backoffLimit": 0,
                "completions": 1,
                "parallelism": 1,
                "activeDeadlineSeconds": 864_000,
                "ttlSecondsAfterFinished": 604_800,
                "template": {
                    "metadata": { "labels": labels, "annotations": annotations },
                    "spec": {
                        "restartPolicy": "Never",
                        "activeDeadlineSeconds": 432_000,
                        "terminationGracePeriodSeconds": 5,
                        "containers": [{
                            "name": "train-it",
                            "image": "python:3.11",
                            "command": ["python", "-c", "go()"],
                            "env": [
                                { "name": "METAFLOW_KUBERNETES_NAMESPACE", "value": "default" },
                                { "name": "METAFLOW_KUBERNETES_WORKLOAD", "value": "1" },
                                { "name": "METAFLOW_RUNTIME_ENVIRONMENT", "value": "kubernetes" },
                                { "name": "METAFLOW_USER", "value": "tester" },
                                field("POD_NAMESPACE", "metadata.namespace"),
                                field("POD_NAME", "metadata.name"),
                                field("POD_ID", "metadata.uid"),
                                field("SERVICE_ACCOUNT_NAME", "spec.serviceAccountName"),
                                field("NODE_IP", "status.hostIP"),
                            ],
                            "resources": {
                                "requests": { "cpu": "1", "ephemeral-storage": "10240M", "memory": "4096M" },
                            },
                            "terminationMessagePolicy": "FallbackToLogsOnError",
                        }],
                    },
                },
            },
        });
        assert_eq!(job, wanted);
    }

    #[test]
    fn every_option_finds_its_place() {
        let options = json!({
            "cpu": 2.5, "memory": 8000, "disk": 500, "gpu": 1, "qos": "Guaranteed", "image": "team/x:1",
            "image_pull_policy": "Always", "image_pull_secrets": ["pull"], "service_account": "robot",
            "secrets": "one,two", "node_selector": {"pool": "big"}, "namespace": "team", "tolerations": [{"key": "gpu"}],
            "labels": {"team": "a"}, "annotations": {"note": "b"}, "tmpfs_size": 64, "shared_memory": 32, "port": 8080,
            "persistent_volume_claims": {"data": "/data"}, "executable": "python3.12", "queue": "fair",
            "priority_class": "high", "extended_resources": {"acme.com/chip": 2}, "security_context": {"runAsUser": 7},
        });
        let job = manifest(&options, |launch| launch.time_limit = Some(90.0));
        assert_eq!(job["metadata"]["namespace"], "team");
        assert_eq!(job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"], "fair");
        assert_eq!((&job["spec"]["suspend"], &job["metadata"]["labels"]["team"]), (&json!(true), &json!("a")));
        assert_eq!(job["spec"]["activeDeadlineSeconds"], 432_690);
        let pod = &job["spec"]["template"]["spec"];
        assert_eq!(pod["activeDeadlineSeconds"], 690);
        assert_eq!((&pod["serviceAccountName"], &pod["priorityClassName"]), (&json!("robot"), &json!("high")));
        assert_eq!(pod["nodeSelector"], json!({"pool": "big"}));
        assert_eq!(
            (&pod["tolerations"], &pod["imagePullSecrets"]),
            (&json!([{"key": "gpu"}]), &json!([{"name": "pull"}]))
        );
        assert_eq!(
            pod["volumes"],
            json!([
                {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "32Mi"}},
                {"name": "tmpfs", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}},
                {"name": "claim-0", "persistentVolumeClaim": {"claimName": "data"}},
            ])
        );
        let container = &pod["containers"][0];
        assert_eq!(container["command"][0], "python3.12");
        assert_eq!((&container["image"], &container["imagePullPolicy"]), (&json!("team/x:1"), &json!("Always")));
        assert_eq!(container["envFrom"], json!([{"secretRef": {"name": "one"}}, {"secretRef": {"name": "two"}}]));
        assert_eq!(container["ports"], json!([{"containerPort": 8080}]));
        assert_eq!(container["securityContext"], json!({"runAsUser": 7}));
        let mounts: Vec<&Value> =
            container["volumeMounts"].as_array().expect("mounts").iter().map(|m| &m["mountPath"]).collect();
        assert_eq!(mounts, ["/dev/shm", "/metaflow_temp", "/data"]);
        let amounts = json!({
            "acme.com/chip": "2", "cpu": "2.5", "ephemeral-storage": "500M", "memory": "8000M", "nvidia.com/gpu": "1",
        });
        assert_eq!(container["resources"], json!({"requests": amounts, "limits": amounts}));
        let environment = container["env"].as_array().expect("variables");
        assert!(environment.contains(&json!({"name": "METAFLOW_TEMPDIR", "value": "/metaflow_temp"})));
    }

    #[test]
    fn gpus_are_limits_too_even_where_nothing_else_is() {
        let job = manifest(&json!({"gpu": 2, "gpu_vendor": "amd"}), |_| {});
        let resources = &job["spec"]["template"]["spec"]["containers"][0]["resources"];
        assert_eq!(resources["limits"], json!({"amd.com/gpu": "2"}));
    }

    #[test]
    fn a_pod_spec_is_merged_over_ours() {
        let overlay = json!({
            "dnsPolicy": "None",
            "terminationGracePeriodSeconds": 30,
            "containers": [
                {"name": "train-it", "stdin": true, "terminationMessagePolicy": null},
                {"name": "side", "image": "side:1"},
            ],
        });
        let job = manifest(&json!({ "pod_spec": overlay }), |_| {});
        let pod = &job["spec"]["template"]["spec"];
        assert_eq!((&pod["dnsPolicy"], &pod["terminationGracePeriodSeconds"]), (&json!("None"), &json!(30)));
        let containers = pod["containers"].as_array().expect("containers");
        assert_eq!((containers.len(), &containers[0]["stdin"]), (2, &json!(true)));
        assert_eq!(
            (&containers[0]["image"], &containers[0]["terminationMessagePolicy"]),
            (&json!("python:3.11"), &Value::Null)
        );
    }
}
