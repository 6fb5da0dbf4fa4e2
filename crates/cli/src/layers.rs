//! Which compute layers a run's steps ask for, made from options and configuration, checked before
//! anything starts, and joined into one. The only place that names concrete layers.

pub mod batch;
pub mod kubernetes;
mod steps;

use std::sync::Arc;
use std::time::Duration;

use ferroflow_compute::batch::{BatchSettings, Service};
use ferroflow_compute::kubernetes::{Cluster, KubernetesSettings};
use ferroflow_compute::local::{LocalLayer, LocalSettings};
use ferroflow_compute::remote::Remote;
use ferroflow_compute::routing::RoutingLayer;
use ferroflow_core::graph::Graph;
use ferroflow_core::id::{RunId, StepName};
use ferroflow_core::port::{ComputeLayer, EventSink};
use ferroflow_core::task::StoreLocation;
use ferroflow_store::remote::access::RemoteObjects;

use crate::adoption::LeftBehind;
use crate::context::Context;
use crate::remote;
use crate::report::Failure;

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
    let (kubernetes, batch) = tokio::join!(kubernetes::plan(context, graph), batch::plan(context, graph));
    Ok(Plan { kubernetes: kubernetes?, batch: batch?, adopted: Vec::new() })
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
        let settings = LocalSettings {
            spawn: context.config.spawn,
            learn_imports: context.config.learn_imports,
            environments: steps::environments(graph),
        };
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
        let used = [("kubernetes", self.kubernetes.is_some()), ("batch", self.batch.is_some())];
        for (layer, _) in used.iter().filter(|(_, used)| *used) {
            remote::warn_of_loopback(context, of.store, layer);
        }
        let mut layers: Vec<(Arc<dyn ComputeLayer>, Vec<StepName>)> = Vec::new();
        if let Some((cluster, mut settings)) = self.kubernetes {
            kubernetes::identify(context, &mut settings, of.run, of.created_at)?;
            let steps = settings.steps.keys().cloned().collect();
            let layer = ferroflow_compute::kubernetes::start_layer(cluster, settings, remote.clone(), events.clone());
            layers.push((Arc::new(layer), steps));
        }
        if let Some((service, mut settings)) = self.batch {
            batch::identify(context, &mut settings, of.run, of.created_at)?;
            let steps = settings.steps.keys().cloned().collect();
            let layer = ferroflow_compute::batch::start_layer(service, settings, remote, events.clone());
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
    let settings = remote::settings(context, of.run, of.store)?;
    Ok(Arc::new(Remote::new(settings, Arc::new(objects), remote::answers(context), events.clone())))
}
