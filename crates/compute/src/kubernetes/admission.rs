//! Admission (design D7): what no node of the cluster can ever hold is refused before anything
//! starts; what cannot be known is let through with a warning. The judgement is pure; reading the
//! nodes and trying the Jobs' specs on the server is around it.

use std::collections::BTreeMap;

use ferroflow_core::decorator::kubernetes::KubernetesOptions;
use ferroflow_core::id::StepName;
use ferroflow_core::port::RemoteContainer;
use ferroflow_core::task::TaskLaunch;
use serde_json::Value;

use super::KubernetesSettings;
use super::api::{ApiFault, Cluster};
use super::job::{JobParts, requests};
use super::jobset::{Gang, jobsets};
use super::parallel::{no_service as without_service, try_service};
use super::submit::refusal;
use crate::remote::refusal::Refusal;

/// What became of asking for admission.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admission {
    /// The run must not start if there is one.
    pub refusals: Vec<Refusal>,
    pub warnings: Vec<String>,
}

/// Asks the cluster whether the steps can ever run there. `autoscaled`: the user says that nodes
/// come when they are needed.
pub async fn admit(cluster: &Cluster, settings: &KubernetesSettings, autoscaled: bool) -> Admission {
    let mut found = Admission::default();
    let mut steps: Vec<(&StepName, &KubernetesOptions)> = settings.steps.iter().collect();
    steps.sort_by_key(|(name, _)| (*name).clone());
    for (step, options) in &steps {
        match denied(cluster, settings, step, options).await {
            Ok(texts) => found.refusals.extend(texts.into_iter().map(|text| Refusal::of(step, format!(": {text}")))),
            Err(fault) => {
                let text = format!("the Kubernetes API server at {} cannot be reached: {fault}", cluster.address);
                found.refusals.push(Refusal::of_all(text));
                return found;
            }
        }
    }
    if !found.refusals.is_empty() || autoscaled {
        return found;
    }
    let nodes: Vec<Node> = match cluster.list_nodes().await {
        Ok(nodes) => nodes.iter().map(Node::of).collect(),
        Err(fault) => {
            found.warnings.push(format!(
                "Whether the cluster's nodes can hold the steps is not known: {fault}. A step that none can hold will wait."
            ));
            return found;
        }
    };
    for (step, options) in &steps {
        found.refusals.extend(judge(options, &nodes).map(|text| Refusal::of(step, text)));
    }
    if !found.refusals.is_empty() && has_autoscaler(cluster).await {
        found.refusals.clear(); // nodes larger than those that are here now may come
    }
    found
}

/// Why the server does not take what a step is made of; an error where it does not answer.
async fn denied(
    cluster: &Cluster,
    settings: &KubernetesSettings,
    step: &StepName,
    options: &KubernetesOptions,
) -> Result<Vec<String>, ApiFault> {
    let is_denied = |fault: &ApiFault| matches!(fault, ApiFault::Denied(_));
    let no_job = match try_job(cluster, settings, step, options).await {
        Err(fault) if fault.may_pass() => return Err(fault),
        tried => tried.err(),
    };
    let is_gang = settings.gangs.contains(step);
    let no_service = match is_gang {
        true => try_service(cluster, &options.namespace).await.err().filter(is_denied),
        false => None,
    };
    let may_not = no_service.is_some() || no_job.as_ref().is_some_and(is_denied);
    if is_gang && may_not && try_jobset(cluster, settings, step, options).await.is_ok() {
        return Ok(Vec::new()); // its controller makes Jobs and Service
    }
    let no_job = no_job.map(|fault| refusal(&options.namespace, &fault).text);
    let no_service = no_service.map(|fault| without_service(&options.namespace, &fault));
    Ok(no_job.into_iter().chain(no_service).collect())
}

/// Lets the server check a Job of the step without keeping it: permission, namespace, spec.
async fn try_job(
    cluster: &Cluster,
    settings: &KubernetesSettings,
    step: &StepName,
    options: &KubernetesOptions,
) -> Result<(), ApiFault> {
    let launch = settings.identity.probe_launch(step);
    let parts = probe(settings, options, &launch);
    cluster.create_job(&options.namespace, &parts.manifest(), true).await
}

/// The same for a gang of the step as a JobSet.
async fn try_jobset(
    cluster: &Cluster,
    settings: &KubernetesSettings,
    step: &StepName,
    options: &KubernetesOptions,
) -> Result<(), ApiFault> {
    let launch = settings.identity.probe_launch(step);
    let parts = probe(settings, options, &launch);
    let name = settings.identity.jobset_name(step.as_str(), launch.id);
    let gang = Gang { name: &name, id: launch.id, nodes: 2, control: &parts, worker: &parts };
    cluster.create(&jobsets(&options.namespace), &gang.manifest(), true).await
}

fn probe<'a>(settings: &'a KubernetesSettings, options: &'a KubernetesOptions, launch: &'a TaskLaunch) -> JobParts<'a> {
    let container = RemoteContainer { command: vec!["python".to_owned()], environment: BTreeMap::new() };
    let (identity, default_image) = (&settings.identity, settings.default_image.as_str());
    JobParts { identity, options, launch, container, default_image, round: u32::MAX }
}

async fn has_autoscaler(cluster: &Cluster) -> bool {
    cluster.has("/apis/karpenter.sh/v1/nodepools").await
        || cluster.has("/apis/karpenter.sh/v1beta1/nodepools").await
        || cluster.has_named("/api/v1/namespaces/kube-system/configmaps", "cluster-autoscaler-status").await
}

#[derive(Clone, Debug, Default)]
struct Node {
    name: String,
    labels: BTreeMap<String, String>,
    taints: Vec<Taint>,
    allocatable: BTreeMap<String, f64>,
}

#[derive(Clone, Debug)]
struct Taint {
    key: String,
    value: String,
    effect: String,
}

impl Node {
    fn of(node: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let pairs = |value: &Value| -> BTreeMap<String, String> {
            value.as_object().into_iter().flatten().map(|(k, v)| (k.clone(), text(v))).collect()
        };
        let taints = node["spec"]["taints"].as_array().into_iter().flatten();
        Self {
            name: text(&node["metadata"]["name"]),
            labels: pairs(&node["metadata"]["labels"]),
            // A node that is cordoned or not ready will be back.
            taints: taints
                .map(|t| Taint { key: text(&t["key"]), value: text(&t["value"]), effect: text(&t["effect"]) })
                .filter(|t| !t.key.starts_with("node.kubernetes.io/") && t.effect != "PreferNoSchedule")
                .collect(),
            allocatable: pairs(&node["status"]["allocatable"])
                .into_iter()
                .filter_map(|(name, amount)| Some((name, quantity(&amount)?)))
                .collect(),
        }
    }

    fn has(&self, resource: &str) -> f64 {
        self.allocatable.get(resource).copied().unwrap_or(0.0)
    }

    fn may_hold_pods_of(&self, options: &KubernetesOptions) -> bool {
        let selected = options.node_selector.iter().all(|(k, v)| self.labels.get(k) == Some(v));
        // Pods that ask for what a node is tainted for are let in by the server (GPUs of hosted clusters).
        let asked = requests(options);
        let may =
            |taint: &Taint| asked.contains_key(&taint.key) || options.tolerations.iter().any(|t| tolerates(t, taint));
        selected && self.taints.iter().all(may)
    }

    /// How much of the request it holds at most, by the scarcest resource; 1 is all of it.
    fn share(&self, wanted: &BTreeMap<String, f64>) -> f64 {
        wanted.iter().map(|(name, amount)| self.has(name) / amount).fold(f64::INFINITY, f64::min)
    }
}

fn tolerates(toleration: &Value, taint: &Taint) -> bool {
    let is = |name: &str, text: &str| toleration[name].as_str().is_none_or(|value| value == text);
    let exists = toleration["operator"] == "Exists";
    let value = toleration["value"].as_str().unwrap_or_default();
    (toleration["key"].is_null() && exists || toleration["key"] == taint.key.as_str())
        && (exists || value == taint.value)
        && is("effect", &taint.effect)
}

/// `100Mi`, `2`, `1500m`, `16e9` as a number.
pub(super) fn quantity(text: &str) -> Option<f64> {
    let units = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("m", 0.001),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
    ];
    let unit = units.iter().find(|(unit, _)| text.ends_with(unit));
    let (number, factor) = unit.map_or((text, 1.0), |(unit, factor)| (&text[..text.len() - unit.len()], *factor));
    number.parse::<f64>().ok().map(|number| number * factor)
}

/// What refuses a step, to follow its name, if no node can ever hold it.
fn judge(options: &KubernetesOptions, nodes: &[Node]) -> Option<String> {
    if nodes.is_empty() {
        return None; // nodes will have to come; which, nobody can know
    }
    let wanted: BTreeMap<String, f64> =
        requests(options).into_iter().filter_map(|(name, amount)| Some((name, quantity(&amount)?))).collect();
    let candidates: Vec<&Node> = nodes.iter().filter(|node| node.may_hold_pods_of(options)).collect();
    if let Some(name) = wanted.keys().find(|name| name.contains('/') && nodes.iter().all(|n| n.has(name) == 0.0)) {
        return Some(format!(
            " asks for {}, but none of the cluster's nodes ({}) has any. Add a node with it, and the device plugin \
             that makes the node advertise it, or take it off the step",
            show(name, wanted[name]),
            nodes.len(),
        ));
    }
    if candidates.is_empty() {
        let names: Vec<String> = nodes.iter().take(8).map(|node| format!("`{}`", node.name)).collect();
        return Some(format!(
            " can run on no node of the cluster: none of {} ({}) has the labels of its node selector{} and \
             taints that it tolerates. Change `node_selector`, `compute_pool` or `tolerations`",
            nodes.len(),
            names.join(", "),
            selector(options),
        ));
    }
    let nearest = candidates.iter().max_by(|a, b| a.share(&wanted).total_cmp(&b.share(&wanted)))?;
    let lacking: Vec<&String> =
        wanted.iter().filter(|(name, amount)| nearest.has(name) < **amount).map(|(n, _)| n).collect();
    if lacking.is_empty() {
        return None;
    }
    let asks: Vec<String> = wanted.iter().map(|(name, amount)| show(name, *amount)).collect();
    let shapes: Vec<String> = shapes(&candidates, &wanted);
    let lower: Vec<String> = lacking.iter().map(|name| show(name, nearest.has(name))).collect();
    Some(format!(
        " asks for {}, which no node of the cluster can ever hold. Nodes: {}. The nearest fit is `{}`: ask \
         for at most {}, or add a larger node",
        asks.join(", "),
        shapes.join("; "),
        nearest.name,
        lower.join(", "),
    ))
}

fn selector(options: &KubernetesOptions) -> String {
    let pairs: Vec<String> = options.node_selector.iter().map(|(k, v)| format!("{k}={v}")).collect();
    if pairs.is_empty() { String::new() } else { format!(" ({})", pairs.join(", ")) }
}

/// Nodes of the same shape together.
fn shapes(nodes: &[&Node], wanted: &BTreeMap<String, f64>) -> Vec<String> {
    let mut by_shape: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for node in nodes {
        let shape: Vec<String> = wanted.keys().map(|name| show(name, node.has(name))).collect();
        by_shape.entry(shape.join(", ")).or_default().push(&node.name);
    }
    let line = |(shape, names): (String, Vec<&str>)| match names.len() {
        1 => format!("`{}` has {shape}", names[0]),
        count => format!("{count} like `{}` have {shape} each", names[0]),
    };
    by_shape.into_iter().map(line).take(8).collect()
}

fn show(name: &str, amount: f64) -> String {
    match name {
        "memory" => format!("memory {} MB", (amount / 1e6).floor()),
        "ephemeral-storage" => format!("disk {} MB", (amount / 1e6).floor()),
        _ => format!("{name} {amount}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[allow(clippy::needless_pass_by_value, reason = "literals read better")]
    fn node(name: &str, cpu: &str, memory: &str, more: Value) -> Node {
        let mut node = json!({
            "metadata": { "name": name, "labels": {} },
            "spec": {},
            "status": { "allocatable": { "cpu": cpu, "memory": memory, "ephemeral-storage": "100Gi" } },
        });
        for (path, value) in more.as_object().expect("an object") {
            *node.pointer_mut(path).expect("a place") = value.clone();
        }
        Node::of(&node)
    }

    #[allow(clippy::needless_pass_by_value, reason = "literals read better")]
    fn options(given: Value) -> KubernetesOptions {
        KubernetesOptions::resolve(given.as_object().expect("an object"), None, &BTreeMap::new()).expect("valid")
    }

    fn verdict(given: Value, nodes: &[Node]) -> Option<String> {
        judge(&options(given), nodes)
    }

    #[test]
    fn what_no_node_can_hold_is_refused_with_the_nearest_fit() {
        let nodes = [node("small", "2", "8Gi", json!({})), node("big", "4", "24581696Ki", json!({}))];
        assert_eq!(verdict(json!({"memory": 16000}), &nodes), None);
        assert_eq!(
            verdict(json!({"memory": 512_000}), &nodes),
            Some(
                " asks for cpu 1, disk 10240 MB, memory 512000 MB, which no node of the cluster can ever \
                 hold. Nodes: `small` has cpu 2, disk 107374 MB, memory 8589 MB; `big` has cpu 4, disk 107374 MB, \
                 memory 25171 MB. The nearest fit is `big`: ask for at most memory 25171 MB, or add a larger node"
                    .to_owned()
            )
        );
    }

    #[test]
    fn a_gpu_that_no_node_has_is_refused() {
        let text = verdict(json!({"gpu": 1}), &[node("n", "2", "8Gi", json!({}))]).expect("refused");
        assert_eq!(
            text,
            " asks for nvidia.com/gpu 1, but none of the cluster's nodes (1) has any. Add a node with it, and \
             the device plugin that makes the node advertise it, or take it off the step"
        );
    }

    #[test]
    fn nodes_tainted_for_their_gpus_count_for_steps_that_ask_for_some() {
        let gpus = json!({
            "/spec": {"taints": [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}]},
            "/status/allocatable": {"cpu": "8", "memory": "64Gi", "ephemeral-storage": "100Gi", "nvidia.com/gpu": "2"},
        });
        let nodes = [node("plain", "2", "8Gi", json!({})), node("gpus", "8", "64Gi", gpus)];
        assert_eq!(verdict(json!({"gpu": 2}), &nodes), None);
        let text = verdict(json!({"gpu": 4}), &nodes).expect("refused");
        assert!(text.contains("The nearest fit is `gpus`: ask for at most nvidia.com/gpu 2,"), "{text}");
        let text = verdict(json!({"cpu": 4}), &nodes).expect("the node with GPUs is not for others");
        assert!(text.contains("The nearest fit is `plain`"), "{text}");
    }

    #[test]
    fn selectors_and_taints_decide_which_nodes_count() {
        let big = json!({"/metadata/labels": {"pool": "big"}});
        let tainted = json!({"/spec": {"taints": [{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]}});
        let nodes = [node("a", "2", "8Gi", big), node("b", "64", "512Gi", tainted)];
        assert_eq!(verdict(json!({"node_selector": "pool=big"}), &nodes), None);
        assert!(verdict(json!({"cpu": 32}), &nodes).is_some());
        assert_eq!(verdict(json!({"cpu": 32, "tolerations": [{"key": "gpu", "operator": "Exists"}]}), &nodes), None);
        let text = verdict(json!({"node_selector": {"pool": "none"}}), &nodes).expect("refused");
        assert!(text.contains("none of 2 (`a`, `b`) has the labels of its node selector (pool=none)"), "{text}");
    }

    #[test]
    fn amounts_are_read_as_kubernetes_writes_them() {
        let read = ["2", "1500m", "24581696Ki", "1Gi", "5M", "1e3", "x"].map(quantity);
        let wanted =
            [Some(2.0), Some(1.5), Some(25_171_656_704.0), Some(1_073_741_824.0), Some(5e6), Some(1000.0), None];
        assert_eq!(read, wanted);
    }
}
