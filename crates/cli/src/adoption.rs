//! What a resumed run needs to go on with remote tasks that the engine of an earlier run left behind:
//! for each such run its layers, made as its own engine would make them.

use std::sync::Arc;

use ferroflow_compute::adoption::{AdoptedEvents, Adopter};
use ferroflow_compute::batch::{self, BatchSettings, Service};
use ferroflow_compute::kubernetes::{self, Cluster, KubernetesSettings};
use ferroflow_compute::remote::Remote;
use ferroflow_compute::routing::LayerOfRun;
use ferroflow_core::graph::Graph;
use ferroflow_core::id::RunId;
use ferroflow_core::metadata::RunRow;
use ferroflow_core::port::{ComputeLayer, EventSink, MetadataStore};
use ferroflow_core::run::ResumePlan;
use ferroflow_engine::resume::left_behind;
use ferroflow_store::remote::access::RemoteObjects;

use crate::context::Context;
use crate::datastore;
use crate::layers;
use crate::remote;
use crate::report::Failure;

/// The layer of tasks that end with their engine.
pub const LOCAL: &str = "local";

/// A run whose remote tasks may still run.
pub struct LeftBehind {
    row: RunRow,
    kubernetes: Option<(Cluster, KubernetesSettings)>,
    batch: Option<(Service, BatchSettings)>,
}

/// The runs that a resume takes over; none when nothing of them can still run.
pub async fn find(
    context: &Context,
    metadata: &dyn MetadataStore,
    plan: &ResumePlan,
    graph: &Graph,
) -> Result<Vec<LeftBehind>, Failure> {
    let mut found = Vec::new();
    for (run, on) in left_behind(plan, LOCAL) {
        let row = metadata.run(&context.flow.name, &run)?;
        let theirs = graph_of(&row);
        let graph = theirs.as_ref().unwrap_or(graph);
        let kubernetes = match on.contains("kubernetes") {
            true => Some(layers::kubernetes::left_behind(context, graph).await?),
            false => None,
        };
        let batch = if on.contains("batch") { layers::batch::plan(context, graph).await? } else { None };
        found.push(LeftBehind { row, kubernetes, batch });
    }
    Ok(found)
}

/// The flow as that run had it: with the namespaces that it used.
fn graph_of(row: &RunRow) -> Option<Graph> {
    Graph::build(serde_json::from_str(&row.graph).ok()?).ok()
}

impl LeftBehind {
    pub fn run(&self) -> &RunId {
        &self.row.run
    }

    /// The run's layers, for run `adopter`.
    pub fn layers(
        self,
        context: &Context,
        adopter: &RunId,
        events: &Arc<dyn EventSink>,
    ) -> Result<Vec<LayerOfRun>, Failure> {
        let run = self.row.run.clone();
        let location = datastore::of_run(&context.config, &self.row, &context.root);
        let Some(objects) = RemoteObjects::of(&location)? else { return Ok(Vec::new()) };
        let events = AdoptedEvents::new(events.clone());
        let remote = remote::settings(context, &run, &location)?;
        let (objects, answers) = (Arc::new(objects), remote::answers(context));
        let remote = Arc::new(Remote::adopted(remote, adopter.clone(), objects, answers, events.clone()));
        let mut found: Vec<Arc<dyn ComputeLayer>> = Vec::new();
        if let Some((cluster, mut settings)) = self.kubernetes {
            layers::kubernetes::identify(context, &mut settings, &run, self.row.created_at)?;
            settings.identity.user.clone_from(&self.row.user);
            found.push(Arc::new(kubernetes::start_layer(cluster, settings, remote.clone(), events.clone())));
        }
        if let Some((service, mut settings)) = self.batch {
            layers::batch::identify(context, &mut settings, &run, self.row.created_at)?;
            settings.identity.user.clone_from(&self.row.user);
            found.push(Arc::new(batch::start_layer(service, settings, remote.clone(), events.clone())));
        }
        let adopter = |layer| Adopter::new(layer, remote.clone(), events.clone());
        Ok(found.into_iter().map(|layer| (run.clone(), Arc::new(adopter(layer)) as Arc<dyn ComputeLayer>)).collect())
    }
}
