//! `@kubernetes`: its attributes (one table that decorator, `--with`, help and configuration read)
//! and what they come to once configuration and `@resources` are merged in. How a Job is made of
//! that is the Kubernetes layer's work.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

pub use super::values::Tmpfs;
use super::values::{Values, unquoted};
use super::{AttributeSpec, attribute};

/// Longest task without `@timeout`: five days, in seconds.
pub const DEFAULT_TIME_LIMIT: f64 = 432_000.0;
/// Shortest `@timeout` of a remote task, in seconds.
pub const SHORTEST_TIME_LIMIT: f64 = 60.0;

pub(super) static ATTRIBUTES: &[AttributeSpec] = &[
    attribute("cpu", "float", "1", "Processors to request.").configured("METAFLOW_KUBERNETES_CPU"),
    attribute("memory", "int", "4096", "Memory to request, in MB.").configured("METAFLOW_KUBERNETES_MEMORY"),
    attribute("disk", "int", "10240", "Disk space to request, in MB.").configured("METAFLOW_KUBERNETES_DISK"),
    attribute(
        "image",
        "str",
        "null",
        "Container image; the default is python:X.Y of the interpreter that starts the run.",
    )
    .configured("METAFLOW_KUBERNETES_CONTAINER_IMAGE"),
    attribute("image_pull_policy", "str", "null", "Always, IfNotPresent or Never.")
        .configured("METAFLOW_KUBERNETES_IMAGE_PULL_POLICY"),
    attribute("image_pull_secrets", "list", "null", "Names of the secrets that open the image's registry.")
        .configured("METAFLOW_KUBERNETES_IMAGE_PULL_SECRETS"),
    attribute("service_account", "str", "null", "Service account of the pod.")
        .configured("METAFLOW_KUBERNETES_SERVICE_ACCOUNT"),
    attribute("secrets", "list", "null", "Names of secrets whose keys become environment variables.")
        .configured("METAFLOW_KUBERNETES_SECRETS"),
    attribute("node_selector", "dict", "null", "Labels that the node must have.")
        .configured("METAFLOW_KUBERNETES_NODE_SELECTOR"),
    attribute("namespace", "str", "null", "Namespace of the Job; default `default`.")
        .configured("METAFLOW_KUBERNETES_NAMESPACE"),
    attribute("gpu", "int", "null", "GPUs."),
    attribute("gpu_vendor", "str", "null", "nvidia or amd.").configured("METAFLOW_KUBERNETES_GPU_VENDOR"),
    attribute("tolerations", "list", "null", "Taints that the pod tolerates, as Kubernetes writes them.")
        .configured("METAFLOW_KUBERNETES_TOLERATIONS"),
    attribute("labels", "dict", "null", "Labels for Job and pod.").configured("METAFLOW_KUBERNETES_LABELS"),
    attribute("annotations", "dict", "null", "Annotations for Job and pod.")
        .configured("METAFLOW_KUBERNETES_ANNOTATIONS"),
    attribute("use_tmpfs", "bool", "false", "Mount a file system in memory."),
    attribute("tmpfs_tempdir", "bool", "true", "Make that file system `current.tempdir`."),
    attribute("tmpfs_size", "int", "null", "Its size in MiB; the default is half of `memory`."),
    attribute("tmpfs_path", "str", "\"/metaflow_temp\"", "Where it is mounted."),
    attribute("persistent_volume_claims", "dict", "null", "Claims and the paths where they are mounted.")
        .configured("METAFLOW_KUBERNETES_PERSISTENT_VOLUME_CLAIMS"),
    attribute("shared_memory", "int", "null", "Size of /dev/shm in MiB.")
        .configured("METAFLOW_KUBERNETES_SHARED_MEMORY"),
    attribute("port", "int", "null", "Port that the container opens.").configured("METAFLOW_KUBERNETES_PORT"),
    attribute("compute_pool", "str", "null", "Value of the node label `compute-pool` that the node must have."),
    attribute("executable", "str", "null", "Python in the image; the default is `python`."),
    attribute("hostname_resolution_timeout", "int", "600", "Seconds that ranks of a gang wait for the first."),
    attribute("qos", "str", "\"burstable\"", "burstable, or guaranteed: limits equal to the requests.")
        .configured("METAFLOW_KUBERNETES_QOS"),
    attribute("extended_resources", "dict", "{}", "Further resources to request and limit, by name."),
    attribute("security_context", "dict", "null", "The container's security context."),
    attribute("queue", "str", "null", "Local queue of Kueue.").configured("METAFLOW_KUBERNETES_QUEUE"),
    attribute("priority_class", "str", "null", "Priority class of the pod.")
        .configured("METAFLOW_KUBERNETES_PRIORITY_CLASS"),
    attribute("pod_spec", "dict", "null", "Merged over the pod's spec as it is; for what has no attribute."),
];

/// A registry to put before images that name none; no attribute.
pub const CONTAINER_REGISTRY: &str = "METAFLOW_KUBERNETES_CONTAINER_REGISTRY";

/// What `@kubernetes`, `@resources` and the configuration come to for one step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KubernetesOptions {
    pub cpu: f64,
    /// MB.
    pub memory: f64,
    /// MB.
    pub disk: f64,
    pub gpu: u64,
    pub gpu_vendor: String,
    /// `None`: the default of the launching interpreter.
    pub image: Option<String>,
    pub image_pull_policy: Option<String>,
    pub image_pull_secrets: Vec<String>,
    pub service_account: Option<String>,
    pub secrets: Vec<String>,
    pub node_selector: BTreeMap<String, String>,
    pub namespace: String,
    pub tolerations: Vec<Value>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub tmpfs: Option<Tmpfs>,
    /// Claim → mount path.
    pub persistent_volume_claims: BTreeMap<String, String>,
    /// MiB.
    pub shared_memory: Option<u64>,
    pub port: Option<u64>,
    pub executable: Option<String>,
    pub guaranteed: bool,
    pub extended_resources: BTreeMap<String, String>,
    pub security_context: Option<Value>,
    pub queue: Option<String>,
    pub priority_class: Option<String>,
    pub pod_spec: Option<Value>,
}

impl KubernetesOptions {
    /// Of `@kubernetes`' attributes as given, those of `@resources` on the same step, and the
    /// configuration by variable. A mistake is a sentence that begins with the attribute.
    pub fn resolve(
        given: &Map<String, Value>,
        resources: Option<&Map<String, Value>>,
        configured: &BTreeMap<String, String>,
    ) -> Result<Self, String> {
        let values = Values { attributes: ATTRIBUTES, given, configured };
        let mut options = Self {
            cpu: values.amount("cpu")?,
            memory: values.amount("memory")?,
            disk: values.amount("disk")?,
            gpu: values.whole("gpu")?.unwrap_or(0),
            gpu_vendor: values.text("gpu_vendor")?.unwrap_or_else(|| "nvidia".to_owned()).to_ascii_lowercase(),
            image: values.image(CONTAINER_REGISTRY)?,
            image_pull_policy: values.choice("image_pull_policy", &["Always", "IfNotPresent", "Never"])?,
            image_pull_secrets: values.names("image_pull_secrets")?,
            service_account: values.text("service_account")?,
            secrets: values.names("secrets")?,
            node_selector: values.pairs("node_selector")?,
            namespace: values.text("namespace")?.unwrap_or_else(|| "default".to_owned()),
            tolerations: tolerations(&values)?,
            labels: values.merged_pairs("labels")?,
            annotations: values.merged_pairs("annotations")?,
            tmpfs: None,
            persistent_volume_claims: values.pairs("persistent_volume_claims")?,
            shared_memory: values.positive("shared_memory")?,
            port: values.positive("port")?,
            executable: values.text("executable")?,
            guaranteed: values.choice("qos", &["Guaranteed", "Burstable"])?.as_deref() == Some("Guaranteed"),
            extended_resources: values.pairs("extended_resources")?,
            security_context: values.object("security_context")?,
            queue: values.text("queue")?,
            priority_class: values.text("priority_class")?,
            pod_spec: values.object("pod_spec")?,
        };
        if let Some(pool) = values.text("compute_pool")? {
            options.node_selector.insert("compute-pool".to_owned(), pool);
        }
        if let Some(resources) = resources {
            options.merge(resources)?;
        }
        options.tmpfs = values.tmpfs(options.memory)?;
        options.check()?;
        Ok(options)
    }

    /// The larger of both for cpu, memory and disk; `gpu` and `shared_memory` of `@resources`
    /// replace (behaviour.md D-50).
    fn merge(&mut self, resources: &Map<String, Value>) -> Result<(), String> {
        let nothing = BTreeMap::new();
        let theirs = Values { attributes: ATTRIBUTES, given: resources, configured: &nothing };
        for (name, ours) in [("cpu", &mut self.cpu), ("memory", &mut self.memory), ("disk", &mut self.disk)] {
            if theirs.value(name).is_some() {
                *ours = ours.max(theirs.amount(name)?);
            }
        }
        if let Some(gpu) = theirs.whole("gpu")? {
            self.gpu = gpu;
        }
        if let Some(size) = theirs.positive("shared_memory")? {
            self.shared_memory = Some(size);
        }
        Ok(())
    }

    fn check(&self) -> Result<(), String> {
        if !["nvidia", "amd"].contains(&self.gpu_vendor.as_str()) {
            return Err(format!("`gpu_vendor` must be nvidia or amd, not `{}`", self.gpu_vendor));
        }
        for (name, value) in &self.labels {
            let rule =
                "at most 63 characters: letters, digits, `-`, `_` and `.`, with a letter or digit first and last";
            if !is_label_value(value) {
                return Err(format!("the value `{value}` of the label `{name}` is not valid; it must have {rule}"));
            }
        }
        let relative = self.persistent_volume_claims.iter().find(|(_, path)| !path.starts_with('/'));
        if let Some((claim, path)) = relative {
            return Err(format!("the mount path `{path}` of the claim `{claim}` must begin with `/`"));
        }
        Ok(())
    }
}

/// As Kubernetes demands of a label's value.
pub fn is_label_value(value: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    value.is_empty()
        || value.len() <= 63
            && edge(value.chars().next())
            && edge(value.chars().last())
            && value.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

fn tolerations(values: &Values) -> Result<Vec<Value>, String> {
    const KEYS: [&str; 5] = ["key", "operator", "value", "effect", "tolerationSeconds"];
    let Some(value) = values.value("tolerations").map(unquoted) else { return Ok(Vec::new()) };
    let Value::Array(list) = value else {
        return Err(format!("`tolerations` must be a list of dictionaries, not {value}"));
    };
    for item in &list {
        let Value::Object(toleration) = item else {
            return Err(format!("`tolerations` must be a list of dictionaries; {item} is none"));
        };
        if let Some(key) = toleration.keys().find(|key| !KEYS.contains(&key.as_str())) {
            return Err(format!("`tolerations`: a toleration has no `{key}`; it has {}", KEYS.join(", ")));
        }
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[allow(clippy::needless_pass_by_value, reason = "literals read better")]
    fn map(value: Value) -> Map<String, Value> {
        value.as_object().expect("an object").clone()
    }

    fn resolve(
        given: Value,
        resources: Option<Value>,
        configured: &[(&str, &str)],
    ) -> Result<KubernetesOptions, String> {
        let configured = configured.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        KubernetesOptions::resolve(&map(given), resources.map(map).as_ref(), &configured)
    }

    #[test]
    fn nothing_given_means_the_defaults() {
        let options = resolve(json!({}), None, &[]).expect("defaults");
        assert_eq!((options.cpu, options.memory, options.disk, options.gpu), (1.0, 4096.0, 10240.0, 0));
        assert_eq!((options.namespace.as_str(), options.image, options.guaranteed), ("default", None, false));
        assert_eq!(options.tmpfs, None);
    }

    #[test]
    fn the_larger_request_wins_and_gpus_of_resources_replace() {
        let given = json!({"cpu": 4, "memory": 1000, "gpu": 3, "shared_memory": 5});
        let resources = json!({"cpu": 2, "memory": "16000", "gpu": 1, "disk": null, "shared_memory": 64});
        let options = resolve(given, Some(resources), &[]).expect("valid");
        assert_eq!((options.cpu, options.memory, options.disk), (4.0, 16000.0, 10240.0));
        assert_eq!((options.gpu, options.shared_memory), (1, Some(64)));
    }

    #[test]
    fn configuration_fills_what_the_decorator_leaves_open() {
        let configured = [
            ("METAFLOW_KUBERNETES_MEMORY", "8000"),
            ("METAFLOW_KUBERNETES_CPU", "2"),
            ("METAFLOW_KUBERNETES_NAMESPACE", "team"),
            ("METAFLOW_KUBERNETES_NODE_SELECTOR", "pool=big,zone=a"),
            ("METAFLOW_KUBERNETES_SECRETS", "one, two"),
            ("METAFLOW_KUBERNETES_LABELS", "a=1,b=2"),
            ("METAFLOW_KUBERNETES_IMAGE_PULL_SECRETS", "[\"pull\"]"),
            ("METAFLOW_KUBERNETES_TOLERATIONS", "[{\"key\": \"gpu\", \"operator\": \"Exists\"}]"),
            ("METAFLOW_KUBERNETES_CONTAINER_IMAGE", "team/train:1"),
            ("METAFLOW_KUBERNETES_CONTAINER_REGISTRY", "registry.example/"),
        ];
        let options = resolve(json!({"cpu": 8, "labels": {"b": "3"}}), None, &configured).expect("valid");
        assert_eq!((options.cpu, options.memory, options.namespace.as_str()), (8.0, 8000.0, "team"));
        assert_eq!(options.node_selector["zone"], "a");
        assert_eq!(options.secrets, ["one", "two"]);
        assert_eq!((options.labels["a"].as_str(), options.labels["b"].as_str()), ("1", "3"));
        assert_eq!(options.image_pull_secrets, ["pull"]);
        assert_eq!(options.tolerations, [json!({"key": "gpu", "operator": "Exists"})]);
        assert_eq!(options.image.as_deref(), Some("registry.example/team/train:1"));
    }

    #[test]
    fn a_file_system_in_memory_takes_half_of_the_memory() {
        let options = resolve(json!({"use_tmpfs": true, "memory": 1000}), None, &[]).expect("valid");
        let path = "/metaflow_temp".to_owned();
        assert_eq!(options.tmpfs, Some(Tmpfs { size: 500, path, is_tempdir: true }));
        let options = resolve(json!({"tmpfs_size": 64, "tmpfs_tempdir": false}), None, &[]).expect("valid");
        assert_eq!(options.tmpfs.map(|t| (t.size, t.is_tempdir)), Some((64, false)));
    }

    #[test]
    fn mistakes_are_sentences() {
        let cases = [
            (json!({"cpu": 0}), "`cpu` must be a number above 0, not 0"),
            (json!({"memory": "lots"}), "`memory` must be a number above 0, not \"lots\""),
            (json!({"gpu": 1.5}), "`gpu` must be a whole number, 0 or more, not 1.5"),
            (json!({"gpu_vendor": "acme"}), "`gpu_vendor` must be nvidia or amd, not `acme`"),
            (json!({"shared_memory": 0}), "`shared_memory` must be a whole number above 0, not 0"),
            (json!({"tmpfs_size": -1}), "`tmpfs_size` must be a whole number above 0, not -1"),
            (json!({"qos": "BestEffort"}), "`qos` must be Guaranteed or Burstable, not `BestEffort`"),
            (
                json!({"image_pull_policy": "often"}),
                "`image_pull_policy` must be Always, IfNotPresent or Never, not `often`",
            ),
            (
                json!({"tolerations": [{"taint": "x"}]}),
                "`tolerations`: a toleration has no `taint`; it has key, operator, value, effect, tolerationSeconds",
            ),
            (
                json!({"labels": {"a": "-b"}}),
                "the value `-b` of the label `a` is not valid; it must have at most 63 characters: letters, digits, \
                 `-`, `_` and `.`, with a letter or digit first and last",
            ),
            (
                json!({"node_selector": 3}),
                "`node_selector` must be a dictionary of names and values (or `name=value,…`), not 3",
            ),
            (
                json!({"persistent_volume_claims": {"c": "data"}}),
                "the mount path `data` of the claim `c` must begin with `/`",
            ),
            (json!({"pod_spec": [1]}), "`pod_spec` must be a dictionary, not [1]"),
        ];
        for (given, sentence) in cases {
            assert_eq!(resolve(given.clone(), None, &[]), Err(sentence.to_owned()), "{given}");
        }
    }

    #[test]
    fn a_registry_goes_before_images_that_name_none() {
        let images = ["python:3.11", "team/x", "ghcr.io/x", "localhost/x", "host:5000/x"];
        let placed: Vec<String> = images.iter().map(|image| super::super::in_registry(image, "r.example")).collect();
        assert_eq!(placed, ["r.example/python:3.11", "r.example/team/x", "ghcr.io/x", "localhost/x", "host:5000/x"]);
    }
}
