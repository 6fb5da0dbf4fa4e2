//! Runs the conformance suite of compute layers against the Kubernetes layer on a real cluster:
//! `KUBECONFIG=… kubernetes_conformance NAMESPACE IMAGE`. An example and not a test, so that it is
//! built and checked with everything else but run only where there is a cluster.
//!
//! Tasks are a few lines of Python given to the image; their output comes back by the nodes' own
//! logs, because this crate knows no store.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ferroflow_compute::conformance::{Behaviour, run_suite};
use ferroflow_compute::kubernetes::{Cluster, KubernetesSettings, start_layer};
use ferroflow_compute::remote::RunIdentity;
use ferroflow_core::decorator::kubernetes::KubernetesOptions;
use ferroflow_core::id::{AttemptId, StepName};
use ferroflow_core::port::{
    ComputeLayer, EventSink, Later, LayerEvent, ObjectError, RemoteContainer, RemoteTasks, Stream,
};
use ferroflow_core::task::TaskLaunch;
use serde_json::json;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

const TASK: &str = include_str!("kubernetes_conformance.py");
/// More lines than any task of the suite prints.
const ALL_LINES: i64 = 100_000;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let (Some(namespace), Some(image)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: kubernetes_conformance NAMESPACE IMAGE");
        std::process::exit(2);
    };
    let cluster = Cluster::connect().await.expect("KUBECONFIG names a cluster");
    let run = AtomicI64::new(0);
    run_suite(|events| {
        let settings = settings(&namespace, &image, run.fetch_add(1, Ordering::Relaxed));
        let layer = layer(cluster.clone(), settings, namespace.clone(), events);
        async move { layer }
    })
    .await;
    println!("the Kubernetes layer conforms");
}

fn settings(namespace: &str, image: &str, created_at: i64) -> KubernetesSettings {
    let given = json!({ "namespace": namespace, "image": image, "cpu": 0.02, "memory": 40, "disk": 10 });
    let given = given.as_object().expect("an object");
    let options = KubernetesOptions::resolve(given, None, &BTreeMap::new()).expect("valid options");
    KubernetesSettings {
        identity: RunIdentity {
            flow: "ConformanceFlow".to_owned(),
            run: "1".into(),
            user: "tester".to_owned(),
            metadata: namespace.to_owned(),
            created_at,
        },
        steps: Behaviour::ALL.map(|kind| (StepName::from(kind.step()), options.clone())).into(),
        gangs: HashSet::new(),
        default_image: image.to_owned(),
        environments: HashMap::new(),
        kill_command: "kubectl delete".to_owned(),
    }
}

fn layer(
    cluster: Cluster,
    settings: KubernetesSettings,
    namespace: String,
    events: Arc<dyn EventSink>,
) -> Arc<dyn ComputeLayer> {
    let selector = settings.identity.selector();
    let remote =
        NodeLogs { cluster: cluster.clone(), namespace, selector, events: events.clone(), ends: Mutex::default() };
    Arc::new(start_layer(cluster, settings, Arc::new(remote), events))
}

/// Containers whose output is read from their nodes, once a second.
struct NodeLogs {
    cluster: Cluster,
    namespace: String,
    selector: String,
    events: Arc<dyn EventSink>,
    /// By attempt: where to say that it has ended.
    ends: Mutex<HashMap<AttemptId, UnboundedSender<oneshot::Sender<()>>>>,
}

impl RemoteTasks for NodeLogs {
    fn container<'a>(&'a self, launch: &'a TaskLaunch, _: &'a str) -> Later<'a, Result<RemoteContainer, ObjectError>> {
        let words = ["python3", "-u", "-c", TASK, launch.spec.step.as_str(), &launch.id.task.to_string()];
        let command = words.map(str::to_owned).to_vec();
        Box::pin(async { Ok(RemoteContainer { command, environment: BTreeMap::new() }) })
    }

    fn follow(&self, id: AttemptId) {
        let (sender, ends) = unbounded_channel();
        self.ends.lock().unwrap_or_else(PoisonError::into_inner).insert(id, sender);
        let selector = format!("{},ferroflow/attempt={}-{}", self.selector, id.task, id.attempt);
        let follower = Follower {
            cluster: self.cluster.clone(),
            namespace: self.namespace.clone(),
            selector,
            events: self.events.clone(),
            id,
            told: 0,
        };
        tokio::spawn(follower.run(ends));
    }

    fn drained(&self, id: AttemptId) -> Later<'_, ()> {
        let ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        Box::pin(async move {
            let (done, wait) = oneshot::channel();
            if ends.is_some_and(|ends| ends.send(done).is_ok()) {
                let _over = wait.await;
            }
        })
    }
}

struct Follower {
    cluster: Cluster,
    namespace: String,
    selector: String,
    events: Arc<dyn EventSink>,
    id: AttemptId,
    told: usize,
}

impl Follower {
    async fn run(mut self, mut ends: UnboundedReceiver<oneshot::Sender<()>>) {
        loop {
            let end = tokio::time::timeout(Duration::from_secs(1), ends.recv()).await;
            self.look().await;
            if let Ok(end) = end {
                let _nobody_waits = end.map(|done| done.send(()));
                return;
            }
        }
    }

    /// What is new. The task prints `o` or `e` before each line: a node's log mixes the streams.
    async fn look(&mut self) {
        let Ok((pods, _)) = self.cluster.list_pods(&self.namespace, &self.selector).await else { return };
        let Some(pod) = pods.first() else { return };
        let name = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let (pod, container) = (name(&pod["metadata"]["name"]), name(&pod["spec"]["containers"][0]["name"]));
        let Ok(text) = self.cluster.log_tail(&self.namespace, &pod, &container, ALL_LINES).await else { return };
        // A line without its end is still on its way.
        let complete = text.rfind('\n').map_or("", |end| &text[..end]);
        for line in complete.lines().skip(self.told) {
            let stream = if line.starts_with('e') { Stream::Stderr } else { Stream::Stdout };
            let lines = vec![line.as_bytes().get(2..).unwrap_or_default().to_vec()];
            self.events.send(LayerEvent::Log { id: self.id, stream, at: 0, lines });
            self.told += 1;
        }
    }
}
