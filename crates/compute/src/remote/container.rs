//! Turns a launch into what a container runs: the code package is built and uploaded once per run,
//! addresses are signed, and the task's spec put where the container finds it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use ferroflow_core::id::{AttemptId, RunId, StepName};
use ferroflow_core::log_segment::RunKeys;
use ferroflow_core::port::{
    EventSink, Later, LayerEvent, MetadataAnswers, NodeLine, ObjectAccess, ObjectError, RemoteContainer, RemoteTasks,
    TellSign,
};
use ferroflow_core::task::{AttemptReport, ProcessExit, StoreLocation, TaskLaunch, TaskSpec, Usage};
use ferroflow_core::wire::TerminationMessage;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::sync::OnceCell;

use super::logs::Follower;
use super::package::{Package, PackageSources};
use super::{bootstrap, ending, lease, spec, tail};

/// An address must outlast the wait in a queue; when it does not, the layer signs again.
const SIGNED_FOR: Duration = Duration::from_secs(24 * 3600);
/// A signature is handed out again until it is this old; to an attempt that comes back, because the
/// one it had was refused, only while it is new.
const SIGNATURE_REUSED: Duration = Duration::from_secs(3600);
const SIGNATURE_NEW: Duration = Duration::from_secs(10);

/// What the parts around a remote layer have decided.
#[derive(Clone, Debug)]
pub struct RemoteSettings {
    pub flow: String,
    pub run: RunId,
    /// The store as containers see it, but for `endpoints`.
    pub store: StoreLocation,
    /// Endpoint by which the containers of a layer reach the store, where it is not the engine's.
    pub endpoints: BTreeMap<String, String>,
    pub code: PackageSources,
    /// A container stops its task when no engine has renewed the run's lease for so long.
    pub lease: Duration,
    /// More variables for every container (`METAFLOW_SERVICE_URL` …). No secrets.
    pub environment: BTreeMap<String, String>,
}

/// Remote tasks of one run. Serves all its remote layers.
pub struct Remote {
    settings: RemoteSettings,
    keys: RunKeys,
    objects: Arc<dyn ObjectAccess>,
    events: Arc<dyn EventSink>,
    code: OnceCell<Uploaded>,
    signatures: tokio::sync::Mutex<HashMap<String, (Instant, String)>>,
    /// Steps of the attempts that were asked for, by which their logs are found.
    steps: Mutex<HashMap<AttemptId, String>>,
    follower: Follower,
    lease: OnceCell<lease::Renewal>,
    /// The run that adopts tasks of this one, and from then on renews its lease.
    adopter: Option<RunId>,
    adopted_lease: OnceLock<lease::Renewal>,
}

/// The code package in the store.
struct Uploaded {
    key: String,
    hash: String,
    sha256: String,
    /// Of the archive, in bytes: R has no SHA-256.
    size: usize,
}

impl Remote {
    /// To be called within the tokio runtime; does nothing until the first container is asked for.
    pub fn new(
        settings: RemoteSettings,
        objects: Arc<dyn ObjectAccess>,
        answers: Arc<dyn MetadataAnswers>,
        events: Arc<dyn EventSink>,
    ) -> Self {
        let keys = RunKeys::new(&settings.flow, &settings.run, &settings.store);
        let follower = Follower::start(keys.clone(), objects.clone(), answers, events.clone());
        Self {
            settings,
            keys,
            objects,
            events,
            code: OnceCell::new(),
            signatures: tokio::sync::Mutex::default(),
            steps: Mutex::default(),
            follower,
            lease: OnceCell::new(),
            adopter: None,
            adopted_lease: OnceLock::new(),
        }
    }

    /// Of a run whose engine is gone; `adopter` goes on with its tasks.
    pub fn adopted(
        settings: RemoteSettings,
        adopter: RunId,
        objects: Arc<dyn ObjectAccess>,
        answers: Arc<dyn MetadataAnswers>,
        events: Arc<dyn EventSink>,
    ) -> Self {
        Self { adopter: Some(adopter), ..Self::new(settings, objects, answers, events) }
    }

    /// Builds and uploads the code package ahead of the first container.
    pub async fn prepare(&self) -> Result<(), ObjectError> {
        self.code().await.map(|_| ())
    }

    /// How an attempt ended, from the store: for layers whose containers have no termination
    /// message (AWS Batch). `None` when the container ended without saying anything, and nobody had
    /// marked it as killed by hand.
    pub async fn ending(&self, id: AttemptId) -> Result<Option<TerminationMessage>, ObjectError> {
        let Some(step) = self.step_of(id) else { return Ok(None) };
        let key = format!("{}end", self.keys.log_prefix(&step, id));
        let said = self.objects.get_from(&key, 0).await?;
        if let Some(message) = said.and_then(|data| ending::termination_message(&String::from_utf8_lossy(&data))) {
            return Ok(Some(message));
        }
        let mark = self.objects.get_from(&self.keys.killed(&step, id), 0).await?;
        Ok(mark.map(|reason| ending::killed_by_hand(&String::from_utf8_lossy(&reason))))
    }

    async fn code(&self) -> Result<&Uploaded, ObjectError> {
        self.code.get_or_try_init(|| self.upload()).await
    }

    async fn upload(&self) -> Result<Uploaded, ObjectError> {
        let sources = self.settings.code.clone();
        let built = tokio::task::spawn_blocking(move || Package::build(&sources)).await;
        let package = built.map_err(not_built)?.map_err(|fault| ObjectError::NotFound(fault.to_string()))?;
        for text in &package.warnings {
            self.events.send(LayerEvent::Notice { text: text.clone() });
        }
        let (key, hash, sha256) = (package.key(), package.hash.clone(), package.sha256.clone());
        let size = package.archive.len();
        if !self.objects.list(&key).await?.iter().any(|entry| entry.key == key) {
            let compressed = tokio::task::spawn_blocking(move || package.compressed()).await.map_err(not_built)?;
            self.objects.put(&key, compressed, true).await?;
        }
        Ok(Uploaded { key, hash, sha256, size })
    }

    /// An address for a layer's containers.
    async fn sign(&self, key: &str, layer: &str) -> Result<String, ObjectError> {
        let endpoint = self.settings.endpoints.get(layer).map(String::as_str);
        self.objects.presigned(key, SIGNED_FOR.as_secs(), endpoint).await
    }

    async fn code_address(&self, key: &str, layer: &str, comes_back: bool) -> Result<String, ObjectError> {
        let oldest = if comes_back { SIGNATURE_NEW } else { SIGNATURE_REUSED };
        let mut signatures = self.signatures.lock().await;
        if let Some((at, address)) = signatures.get(layer)
            && at.elapsed() < oldest
        {
            return Ok(address.clone());
        }
        let address = self.sign(key, layer).await?;
        signatures.insert(layer.to_owned(), (Instant::now(), address.clone()));
        Ok(address)
    }

    fn store_for(&self, layer: &str) -> StoreLocation {
        let mut store = self.settings.store.clone();
        // Folders of this machine.
        store.options.retain(|name, _| !["cache", "metadata"].contains(&name.as_str()));
        if let Some(endpoint) = self.settings.endpoints.get(layer) {
            store.options.insert("endpoint".to_owned(), endpoint.clone());
        }
        store
    }

    async fn put_spec(
        &self,
        id: AttemptId,
        task: &TaskSpec,
        layer: &str,
        environment: &mut BTreeMap<String, String>,
    ) -> Result<(), ObjectError> {
        let text = spec::encode(task);
        if text.len() <= spec::most_in_variable(layer) {
            environment.insert("FERROFLOW_TASK_SPEC".to_owned(), text);
            return Ok(());
        }
        let key = self.keys.spec(task.step.as_str(), id);
        let digest = hex(&Sha256::digest(text.as_bytes()));
        self.objects.put(&key, text.into_bytes(), false).await?;
        environment.insert("FERROFLOW_TASK_SPEC_URL".to_owned(), self.sign(&key, layer).await?);
        environment.insert("FERROFLOW_TASK_SPEC_SHA256".to_owned(), digest);
        Ok(())
    }

    async fn make_container(&self, launch: &TaskLaunch, layer: &str) -> Result<RemoteContainer, ObjectError> {
        let code = self.code().await?;
        self.lease.get_or_init(|| self.start_lease()).await;
        let comes_back = self.remember(launch);
        let store = self.store_for(layer);
        if !comes_back {
            self.note_code(launch.id, code);
        }
        let mut environment = self.settings.environment.clone();
        let mut set = |name: &str, value: String| environment.insert(name.to_owned(), value);
        set("FERROFLOW_CODE_URL", self.code_address(&code.key, layer, comes_back).await?);
        set("FERROFLOW_CODE_SHA256", code.sha256.clone());
        set("FERROFLOW_CODE_SIZE", code.size.to_string());
        set("FERROFLOW_FLOW_FILE", self.flow_file());
        if let Some(module) = &self.settings.code.module {
            set("FERROFLOW_FLOW_MODULE", module.clone());
        }
        set("FERROFLOW_LAYER", layer.to_owned());
        set("FERROFLOW_LOG_PREFIX", self.keys.log_prefix(launch.spec.step.as_str(), launch.id));
        set("FERROFLOW_LEASE_KEY", self.keys.lease());
        set("FERROFLOW_LEASE_SECONDS", self.settings.lease.as_secs_f64().to_string());
        if let Some(image) = bootstrap::attribute(launch, layer, "image") {
            set("FERROFLOW_IMAGE", image);
        }
        if let Some(limit) = launch.time_limit {
            set("FERROFLOW_TIME_LIMIT", limit.to_string());
        }
        for (name, value) in visible_to_users(launch, layer, &store, code, &self.flow_file()) {
            set(&name, value);
        }
        let task = TaskSpec { store, ..launch.spec.clone() };
        self.put_spec(launch.id, &task, layer, &mut environment).await?;
        let mut command = bootstrap::command(self.settings.code.language, launch, layer);
        if environment.contains_key(bootstrap::INIT_SCRIPT) {
            command = bootstrap::after_init_script(command);
        }
        Ok(RemoteContainer { command, environment })
    }

    /// For clients: the package that the attempt runs with.
    fn note_code(&self, id: AttemptId, code: &Uploaded) {
        let store = &self.settings.store;
        let described = json!({
            "ds_type": store.kind, "sha": code.hash, "location": address_of(store, code), "script": self.flow_file(),
        });
        self.events.metadata(id, "code-package".to_owned(), described.to_string());
    }

    fn flow_file(&self) -> String {
        self.settings.code.flow_file().to_string_lossy().into_owned()
    }

    async fn start_lease(&self) -> lease::Renewal {
        lease::Renewal::start(self.lease()).await
    }

    fn lease(&self) -> lease::Lease {
        lease::Lease {
            key: self.keys.lease(),
            run: self.settings.run.clone(),
            holder: self.adopter.clone().unwrap_or_else(|| self.settings.run.clone()),
            length: self.settings.lease,
            objects: self.objects.clone(),
            events: self.events.clone(),
        }
    }

    async fn report_in_store(&self, id: AttemptId) -> Option<AttemptReport> {
        // What cannot be read now is run again, which is never wrong.
        if let Ok(Some(message)) = self.ending(id).await {
            let TerminationMessage { outcome, exit, usage, cause, .. } = message;
            return Some(AttemptReport { outcome, exit, usage, cause });
        }
        let step = self.step_of(id)?;
        let outcome = self.objects.outcome(&self.settings.flow, &self.settings.run, &step, id).await.ok().flatten()?;
        let exit = ProcessExit::Code(i32::from(!outcome.ok));
        Some(AttemptReport { outcome: Some(outcome), exit, usage: Usage::default(), cause: None })
    }

    /// Whether a container was asked for the attempt before.
    fn remember(&self, launch: &TaskLaunch) -> bool {
        self.steps().insert(launch.id, launch.spec.step.to_string()).is_some()
    }

    fn steps(&self) -> std::sync::MutexGuard<'_, HashMap<AttemptId, String>> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn step_of(&self, id: AttemptId) -> Option<String> {
        self.steps().get(&id).cloned()
    }
}

fn address_of(store: &StoreLocation, code: &Uploaded) -> String {
    format!("{}/{}", store.root.trim_end_matches('/'), code.key)
}

/// Variables that the peer's containers have and user code may read (behaviour.md K-33).
fn visible_to_users(
    launch: &TaskLaunch,
    layer: &str,
    store: &StoreLocation,
    code: &Uploaded,
    flow_file: &str,
) -> Vec<(String, String)> {
    let spec = &launch.spec;
    let root = match store.kind.as_str() {
        "s3" => "METAFLOW_DATASTORE_SYSROOT_S3",
        "azure" => "METAFLOW_DATASTORE_SYSROOT_AZURE",
        "gs" => "METAFLOW_DATASTORE_SYSROOT_GS",
        _ => "METAFLOW_DATASTORE_SYSROOT",
    };
    let metadata = r#"{"version":0,"archive_format":"tgz","mfcontent_version":1}"#;
    let mut found = vec![
        ("METAFLOW_CODE_METADATA", metadata.to_owned()),
        ("METAFLOW_CODE_SHA", code.hash.clone()),
        ("METAFLOW_CODE_URL", address_of(store, code)),
        ("METAFLOW_CODE_DS", store.kind.clone()),
        ("METAFLOW_FLOW_FILENAME", flow_file.to_owned()),
        ("METAFLOW_USER", spec.user.clone()),
        ("METAFLOW_RUN_ID", spec.run.to_string()),
        ("METAFLOW_DEFAULT_DATASTORE", store.kind.clone()),
        ("METAFLOW_RUNTIME_ENVIRONMENT", layer.to_owned()),
        (root, store.root.clone()),
    ];
    if let Some(endpoint) = store.options.get("endpoint").filter(|_| store.kind == "s3") {
        found.push(("METAFLOW_S3_ENDPOINT_URL", endpoint.clone()));
    }
    if layer == "kubernetes" {
        found.push(("METAFLOW_KUBERNETES_WORKLOAD", "1".to_owned()));
    }
    found.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

#[allow(clippy::needless_pass_by_value, reason = "it is handed to map_err")]
fn not_built(error: tokio::task::JoinError) -> ObjectError {
    ObjectError::Unavailable(format!("the code package could not be built: {error}"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl RemoteTasks for Remote {
    fn container<'a>(
        &'a self,
        launch: &'a TaskLaunch,
        layer: &'a str,
    ) -> Later<'a, Result<RemoteContainer, ObjectError>> {
        Box::pin(self.make_container(launch, layer))
    }

    fn expect(&self, id: AttemptId, tell: TellSign) {
        if let Some(step) = self.step_of(id) {
            self.follower.expect(id, step, tell);
        }
    }

    fn follow(&self, id: AttemptId) {
        if let Some(step) = self.step_of(id) {
            self.follower.follow(id, step);
        }
    }

    fn drained(&self, id: AttemptId) -> Later<'_, ()> {
        let step = self.step_of(id);
        Box::pin(async move {
            if let Some(step) = step {
                self.follower.drained(id, step).await;
            }
        })
    }

    fn complete(&self, id: AttemptId, of_node: Vec<NodeLine>) -> Later<'_, ()> {
        Box::pin(async move {
            let Some(step) = self.step_of(id) else { return };
            let added = tail::complete(&self.keys, &*self.objects, &*self.events, (&step, id), &of_node).await;
            if let Err(error) = added {
                let text = format!("the last lines of task {} may be missing: {error}", id.task);
                self.events.send(LayerEvent::Notice { text });
            }
        })
    }

    fn publish<'a>(
        &'a self,
        launch: &'a TaskLaunch,
        data: Vec<u8>,
        layer: &'a str,
    ) -> Later<'a, Result<(String, String), ObjectError>> {
        Box::pin(async move {
            let digest = hex(&Sha256::digest(&data));
            let key = format!("{}shared-{digest}", self.keys.step_prefix(launch.spec.step.as_str()));
            self.objects.put(&key, data, false).await?;
            Ok((self.sign(&key, layer).await?, digest))
        })
    }

    fn ending(&self, id: AttemptId) -> Later<'_, Result<Option<TerminationMessage>, ObjectError>> {
        Box::pin(Remote::ending(self, id))
    }

    fn adopt(&self, step: &StepName, id: AttemptId) {
        self.steps().insert(id, step.to_string());
        self.adopted_lease.get_or_init(|| lease::Renewal::begin(self.lease()));
    }

    fn kept_report(&self, id: AttemptId) -> Later<'_, Option<AttemptReport>> {
        Box::pin(self.report_in_store(id))
    }
}
