//! Which compute layers a run's steps ask for, made from options and configuration, checked before
//! anything starts, and joined into one. The only place that names concrete layers.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use ferroflow_compute::batch::{BatchLayer, BatchSettings, Service};
use ferroflow_compute::kubernetes::{Cluster, KubernetesLayer, KubernetesSettings, admit};
use ferroflow_compute::local::{LocalLayer, LocalSettings};
use ferroflow_compute::remote::{Remote, RunIdentity};
use ferroflow_compute::routing::RoutingLayer;
use ferroflow_core::decorator::kubernetes::{CONTAINER_REGISTRY, KubernetesOptions, in_registry};
use ferroflow_core::decorator::{DecoratorKind, find};
use ferroflow_core::graph::{Graph, StepKind};
use ferroflow_core::id::{RunId, StepName};
use ferroflow_core::port::{ComputeLayer, EventSink};
use ferroflow_core::task::StoreLocation;
use ferroflow_store::remote::access::RemoteObjects;
use serde_json::Map;

use crate::adoption::LeftBehind;
use crate::again;
use crate::batch;
use crate::commands::active_tasks;
use crate::config::Lookup;
use crate::context::Context;
use crate::datastore;
use crate::remote;
use crate::report::Failure;

pub const HEADLINE: &str = "Kubernetes error";
/// A run must not start, or be refused, later than this.
const ADMISSION: Duration = Duration::from_secs(5);

/// What the run needs beside this machine.
#[derive(Default)]
pub struct Plan {
    kubernetes: Option<(Cluster, KubernetesSettings)>,
    batch: Option<(Service, BatchSettings)>,
    /// Earlier runs whose remote tasks this run goes on with.
    adopted: Vec<LeftBehind>,
}

/// Finds the layers that steps ask for and asks them whether the steps can run there.
pub async fn plan(context: &Context, graph: &Graph) -> Result<Plan, Failure> {
    refuse_remote_r(context, graph)?;
    let (kubernetes, batch) = tokio::join!(kubernetes(context, graph), batch::plan(context, graph));
    Ok(Plan { kubernetes: kubernetes?, batch: batch?, adopted: Vec::new() })
}

fn refuse_remote_r(context: &Context, graph: &Graph) -> Result<(), Failure> {
    let remote = graph.steps.iter().find_map(|step| Some((&step.name, step.policy.layer?)));
    match remote.filter(|_| context.hello.language == "R") {
        None => Ok(()),
        Some((step, layer)) => Err(Failure::new(
            "Not in this version",
            format!(
                "step `{step}` asks for {layer}, but R flows run on this machine only in this version: remove \
                 {layer}() from the step, or --with {layer} from the command"
            ),
        )),
    }
}

async fn kubernetes(context: &Context, graph: &Graph) -> Result<Option<(Cluster, KubernetesSettings)>, Failure> {
    let steps: Vec<&StepName> =
        graph.steps.iter().filter(|s| s.policy.layer == Some("kubernetes")).map(|s| &s.name).collect();
    let Some(first) = steps.first() else { return Ok(None) };
    if datastore::kind(&context.config, &context.top) == "local" {
        return Err(Failure::new(
            HEADLINE,
            format!(
                "step `{first}` runs on Kubernetes, which requires --datastore=s3, azure or gs: pods cannot reach a folder \
                 of this machine. Give it before the command, for example: {} --datastore s3 run --with kubernetes",
                context.hello.command()
            ),
        ));
    }
    let settings = kubernetes_settings(context, graph)?;
    let cluster = Cluster::connect().await.map_err(|fault| Failure::new(HEADLINE, fault.to_string()))?;
    let autoscaled = context.config.lookup.flag("METAFLOW_KUBERNETES_AUTOSCALED", false);
    let admission = tokio::time::timeout(ADMISSION, admit(&cluster, &settings, autoscaled)).await.map_err(|_| {
        Failure::new(HEADLINE, format!("the Kubernetes API server at {} does not answer", cluster.address))
    })?;
    for warning in &admission.warnings {
        eprintln!("{warning}");
    }
    if !admission.refusals.is_empty() {
        return Err(Failure::new(HEADLINE, again::said_once(&admission.refusals, graph)));
    }
    Ok(Some((cluster, settings)))
}

/// Steps whose tasks are ranks of a gang.
fn gangs(graph: &Graph) -> HashSet<StepName> {
    let splits = graph.steps.iter().filter(|step| step.kind == StepKind::Parallel);
    splits.flat_map(|step| &step.children).map(|rank| graph.steps[*rank].name.clone()).collect()
}

/// The configuration that decorators fall back to.
fn configured(lookup: &Lookup) -> BTreeMap<String, String> {
    let spec = find(DecoratorKind::Step, "kubernetes");
    let names = spec.into_iter().flat_map(|spec| spec.attributes.iter().filter_map(|a| a.configured));
    names.chain([CONTAINER_REGISTRY]).filter_map(|name| Some((name.to_owned(), lookup.value(name)?))).collect()
}

/// What the steps of a graph that run on Kubernetes ask for; which run it is comes later.
pub fn kubernetes_settings(context: &Context, graph: &Graph) -> Result<KubernetesSettings, Failure> {
    let configured = configured(&context.config.lookup);
    let mut steps = HashMap::new();
    for step in graph.steps.iter().filter(|s| s.policy.layer == Some("kubernetes")) {
        let attributes = |name: &str| step.policy.decorators.iter().find(|d| d.name == name).map(|d| &d.attributes);
        let nothing = Map::new();
        let own = attributes("kubernetes").unwrap_or(&nothing);
        let options = KubernetesOptions::resolve(own, attributes("resources"), &configured)
            .map_err(|mistake| Failure::new(HEADLINE, format!("@kubernetes of step `{}`: {mistake}.", step.name)))?;
        steps.insert(step.name.clone(), options);
    }
    let version: Vec<&str> = context.hello.language_version.split('.').take(2).collect();
    let mut default_image = match context.hello.language.as_str() {
        "R" => format!("rocker/ml:{}", context.hello.language_version),
        _ => format!("python:{}", version.join(".")),
    };
    if let Some(registry) = configured.get(CONTAINER_REGISTRY) {
        default_image = in_registry(&default_image, registry);
    }
    let identity = RunIdentity {
        flow: context.flow.name.clone(),
        run: RunId::from("0"),
        user: context.config.user.clone(),
        metadata: String::new(),
        created_at: 0,
    };
    let environments = graph.steps.iter().map(|step| (step.name.clone(), step.policy.environment.clone())).collect();
    Ok(KubernetesSettings {
        identity,
        steps,
        gangs: gangs(graph),
        default_image,
        environments,
        kill_command: String::new(),
    })
}

/// Says which run the layer's objects are of.
pub fn identify(
    context: &Context,
    settings: &mut KubernetesSettings,
    run: &RunId,
    created_at: i64,
) -> Result<(), Failure> {
    settings.identity.run = run.clone();
    settings.identity.metadata = datastore::scope(&context.root)?;
    settings.identity.created_at = created_at;
    let namespaces = settings.steps.values().map(|options| options.namespace.as_str()).collect();
    settings.kill_command = active_tasks::kubernetes::kill_command(context, &namespaces, run);
    Ok(())
}

/// A registered run.
pub struct Registered<'a> {
    pub run: &'a RunId,
    pub created_at: i64,
    pub store: &'a StoreLocation,
}

impl Plan {
    /// The same, going on with what earlier runs left behind.
    pub fn adopting(self, adopted: Vec<LeftBehind>) -> Self {
        Self { adopted, ..self }
    }

    /// The runs that are to be taken over.
    pub fn taken(&self) -> Vec<RunId> {
        self.adopted.iter().map(|left| left.run().clone()).collect()
    }

    /// The layer that carries the run out: this machine, and what the steps ask for.
    pub fn layer(
        self,
        context: &Context,
        graph: &Graph,
        of: &Registered,
        events: &Arc<dyn EventSink>,
    ) -> Result<Arc<dyn ComputeLayer>, Failure> {
        let environments = graph.steps.iter().map(|s| (s.name.clone(), s.policy.environment.clone())).collect();
        let settings =
            LocalSettings { spawn: context.config.spawn, learn_imports: context.config.learn_imports, environments };
        let local = Arc::new(LocalLayer::new(context.front_end.clone(), settings, events.clone()));
        let mut adopters = Vec::new();
        for left in self.adopted {
            adopters.extend(left.layers(context, of.run, events)?);
        }
        if self.kubernetes.is_none() && self.batch.is_none() {
            return Ok(if adopters.is_empty() {
                local
            } else {
                Arc::new(RoutingLayer::new(local, Vec::new()).adopting(adopters))
            });
        }
        let remote = remote_tasks(context, of, events)?;
        let mut layers: Vec<(Arc<dyn ComputeLayer>, Vec<StepName>)> = Vec::new();
        if let Some((cluster, mut settings)) = self.kubernetes {
            identify(context, &mut settings, of.run, of.created_at)?;
            let steps = settings.steps.keys().cloned().collect();
            let layer = KubernetesLayer::new(cluster, settings, remote.clone(), events.clone());
            layers.push((Arc::new(layer), steps));
        }
        if let Some((service, mut settings)) = self.batch {
            batch::identify(context, &mut settings, of.run, of.created_at)?;
            let steps = settings.steps.keys().cloned().collect();
            let layer = BatchLayer::new(service, settings, remote, events.clone());
            layers.push((Arc::new(layer), steps));
        }
        Ok(Arc::new(RoutingLayer::new(local, layers).adopting(adopters)))
    }
}

fn remote_tasks(context: &Context, of: &Registered, events: &Arc<dyn EventSink>) -> Result<Arc<Remote>, Failure> {
    let Some(objects) = RemoteObjects::of(of.store)? else {
        return Err(Failure::new(
            "Datastore error",
            "the run's datastore is a folder of this machine; containers cannot reach it",
        ));
    };
    let store = datastore::recorded(of.store).unwrap_or_else(|| of.store.clone());
    Ok(Arc::new(Remote::new(remote::settings(context, of.run, &store)?, Arc::new(objects), events.clone())))
}
