//! Runs the conformance suite of compute layers against a remote layer on its real part:
//! `remote_conformance kubernetes NAMESPACE IMAGE HOST` or `… batch QUEUE IMAGE HOST`, where `HOST` is this
//! machine's address in containers. An example and not a test, so that it is built and checked with
//! everything else but run only where there is such a part.
//!
//! Tasks are a few lines of Python given to the image. What they print and how they end comes back over a
//! connection to this process, because this crate knows no store.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ferroflow_compute::batch::{self, BatchSettings, QueuePlan, Service, StepPlan};
use ferroflow_compute::conformance::{Behaviour, run_suite};
use ferroflow_compute::kubernetes::{self, Cluster, KubernetesSettings};
use ferroflow_compute::remote::RunIdentity;
use ferroflow_compute::remote::ending::termination_message;
use ferroflow_core::decorator::batch::BatchOptions;
use ferroflow_core::decorator::kubernetes::KubernetesOptions;
use ferroflow_core::id::{AttemptId, StepName, TaskId};
use ferroflow_core::port::{
    ComputeLayer, EventSink, Later, LayerEvent, ObjectError, RemoteContainer, RemoteTasks, Stream,
};
use ferroflow_core::task::TaskLaunch;
use ferroflow_core::wire::TerminationMessage;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

const TASK: &str = include_str!("remote_conformance.py");
/// How long an ended task's lines may take; one that was stopped early may never have had any.
const LAST_LINES: Duration = Duration::from_secs(3);

/// Where tasks run, and what of.
struct Place {
    layer: String,
    /// Namespace or job queue.
    name: String,
    image: String,
    host: String,
    run: AtomicI64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Ok([layer, name, image, host]) = <[String; 4]>::try_from(arguments) else {
        eprintln!("usage: remote_conformance kubernetes|batch NAMESPACE|QUEUE IMAGE HOST");
        std::process::exit(2);
    };
    let place = Place { layer, name, image, host, run: AtomicI64::new(0) };
    match place.layer.as_str() {
        "kubernetes" => {
            let cluster = Cluster::connect().await.expect("KUBECONFIG names a cluster");
            run_suite(|events| on_kubernetes(&place, cluster.clone(), events)).await;
        }
        _ => {
            let service = Service::connect().await.expect("AWS_ENDPOINT_URL_BATCH names a service");
            run_suite(|events| on_batch(&place, service.clone(), events)).await;
        }
    }
    println!("the layer `{}` conforms", place.layer);
}

impl Place {
    /// Of another run each time.
    fn identity(&self) -> RunIdentity {
        RunIdentity {
            flow: "ConformanceFlow".to_owned(),
            run: "1".into(),
            user: "tester".to_owned(),
            metadata: format!("{}/{}", self.name, std::process::id()),
            created_at: self.run.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// The same for the steps of all tasks.
    fn steps<T: Clone>(&self, options: &T) -> HashMap<StepName, T> {
        Behaviour::ALL.map(|kind| (StepName::from(kind.step()), options.clone())).into()
    }
}

async fn on_kubernetes(place: &Place, cluster: Cluster, events: Arc<dyn EventSink>) -> Arc<dyn ComputeLayer> {
    let given = json!({ "namespace": place.name, "image": place.image, "cpu": 0.02, "memory": 40, "disk": 10 });
    let given = given.as_object().expect("an object");
    let options = KubernetesOptions::resolve(given, None, &BTreeMap::new()).expect("valid options");
    let settings = KubernetesSettings {
        identity: place.identity(),
        steps: place.steps(&options),
        gangs: HashSet::new(),
        default_image: place.image.clone(),
        environments: HashMap::new(),
        kill_command: "kubectl delete".to_owned(),
    };
    let remote = Listener::start(&place.host, events.clone()).await;
    Arc::new(kubernetes::start_layer(cluster, settings, remote, events))
}

async fn on_batch(place: &Place, service: Service, events: Arc<dyn EventSink>) -> Arc<dyn ComputeLayer> {
    let queue = QueuePlan { name: place.name.clone(), ..QueuePlan::default() };
    let given = json!({ "image": place.image, "memory": 64 });
    let given = given.as_object().expect("an object");
    let options = BatchOptions::resolve(given, None, &BTreeMap::new()).expect("valid options");
    let settings = BatchSettings {
        identity: place.identity(),
        steps: place.steps(&StepPlan { options, queue: queue.clone() }),
        default_queue: queue,
        default_image: place.image.clone(),
        environments: HashMap::new(),
        emit_tags: false,
        array_jobs: false,
        kill_command: "batch kill".to_owned(),
    };
    let remote = Listener::start(&place.host, events.clone()).await;
    Arc::new(batch::start_layer(service, settings, remote, events))
}

/// Hears of all tasks of a layer.
struct Listener {
    /// As containers reach it.
    address: String,
    events: Arc<dyn EventSink>,
    heard: Mutex<HashMap<AttemptId, Heard>>,
    news: Notify,
}

/// What a task said.
#[derive(Default)]
struct Heard {
    /// Until the layer says that the task has started.
    kept: Vec<(Stream, Vec<u8>)>,
    followed: bool,
    over: bool,
    ending: Option<TerminationMessage>,
}

impl Listener {
    async fn start(host: &str, events: Arc<dyn EventSink>) -> Arc<Self> {
        let listener = TcpListener::bind("0.0.0.0:0").await.expect("a port is free");
        let port = listener.local_addr().expect("it is bound").port();
        let (heard, news) = (Mutex::default(), Notify::new());
        let found = Arc::new(Self { address: format!("{host}:{port}"), events, heard, news });
        let weak = Arc::downgrade(&found);
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let Some(listener) = weak.upgrade() else { return };
                tokio::spawn(async move { listener.hear(connection).await });
            }
        });
        found
    }

    fn heard(&self) -> MutexGuard<'_, HashMap<AttemptId, Heard>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn hear(&self, connection: TcpStream) {
        let mut lines = BufReader::new(connection).lines();
        let Ok(Some(first)) = lines.next_line().await else { return };
        let (task, attempt) = first.split_once(' ').expect("a task says which it is");
        let id = AttemptId {
            task: TaskId(task.parse().expect("the number of a task")),
            attempt: attempt.parse().expect("the number of an attempt"),
        };
        while let Ok(Some(line)) = lines.next_line().await {
            let text = line.get(2..).unwrap_or_default();
            match line.chars().next() {
                Some('x') => self.heard().entry(id).or_default().ending = termination_message(text),
                Some('e') => self.line(id, Stream::Stderr, text),
                _ => self.line(id, Stream::Stdout, text),
            }
        }
        self.heard().entry(id).or_default().over = true;
        self.news.notify_waiters();
    }

    fn line(&self, id: AttemptId, stream: Stream, text: &str) {
        let mut heard = self.heard();
        let heard = heard.entry(id).or_default();
        if heard.followed {
            self.tell(id, stream, text.as_bytes().to_vec());
        } else {
            heard.kept.push((stream, text.as_bytes().to_vec()));
        }
    }

    fn tell(&self, id: AttemptId, stream: Stream, line: Vec<u8>) {
        self.events.send(LayerEvent::Log { id, stream, at: 0, lines: vec![line] });
    }
}

impl RemoteTasks for Listener {
    fn container<'a>(&'a self, launch: &'a TaskLaunch, _: &'a str) -> Later<'a, Result<RemoteContainer, ObjectError>> {
        let (task, attempt) = (launch.id.task.to_string(), launch.id.attempt.to_string());
        // On AWS Batch the command is that of all tasks of a step; what is each one's own is in a variable.
        let command = ["python3", "-u", "-c", TASK].map(str::to_owned).to_vec();
        let own = [launch.spec.step.as_str(), &task, &attempt, &self.address].join(" ");
        let environment = BTreeMap::from([("TASK".to_owned(), own)]);
        Box::pin(async { Ok(RemoteContainer { command, environment }) })
    }

    fn follow(&self, id: AttemptId) {
        let mut heard = self.heard();
        let heard = heard.entry(id).or_default();
        heard.followed = true;
        for (stream, line) in std::mem::take(&mut heard.kept) {
            self.tell(id, stream, line);
        }
    }

    fn drained(&self, id: AttemptId) -> Later<'_, ()> {
        Box::pin(async move {
            let over = async {
                loop {
                    let mut news = std::pin::pin!(self.news.notified());
                    news.as_mut().enable();
                    if self.heard().get(&id).is_some_and(|heard| heard.over) {
                        return;
                    }
                    news.await;
                }
            };
            let _never_began = tokio::time::timeout(LAST_LINES, over).await;
        })
    }

    fn ending(&self, id: AttemptId) -> Later<'_, Result<Option<TerminationMessage>, ObjectError>> {
        Box::pin(async move {
            self.drained(id).await;
            Ok(self.heard().get(&id).and_then(|heard| heard.ending.clone()))
        })
    }
}
