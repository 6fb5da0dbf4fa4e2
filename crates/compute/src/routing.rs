//! One layer made of several: each task goes to the layer that its step asks for. `@catch`'s
//! fallbacks run on this machine, whatever the step asks for (behaviour.md K-8).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use ferroflow_core::id::{AttemptId, StepName};
use ferroflow_core::port::{ComputeLayer, Later, StopSignal};
use ferroflow_core::task::TaskLaunch;

/// Sends tasks on. All layers share the event sink.
pub struct RoutingLayer {
    local: Arc<dyn ComputeLayer>,
    /// In a fixed order, for ending them.
    remote: Vec<Arc<dyn ComputeLayer>>,
    /// Index into `remote` by step; steps that are missing run locally.
    routes: HashMap<StepName, usize>,
    /// Attempts that went to a remote layer; forgotten when they are stopped for good or the
    /// task's next attempt is submitted.
    went: Mutex<HashMap<AttemptId, usize>>,
}

impl RoutingLayer {
    /// `remote` holds each layer with the steps whose tasks go there.
    pub fn new(local: Arc<dyn ComputeLayer>, remote: Vec<(Arc<dyn ComputeLayer>, Vec<StepName>)>) -> Self {
        let mut routes = HashMap::new();
        let mut layers = Vec::new();
        for (layer, steps) in remote {
            routes.extend(steps.into_iter().map(|step| (step, layers.len())));
            layers.push(layer);
        }
        Self { local, remote: layers, routes, went: Mutex::default() }
    }

    fn route(&self, launch: &TaskLaunch) -> Option<usize> {
        self.routes.get(&launch.spec.step).copied().filter(|_| !launch.spec.fallback)
    }
}

impl ComputeLayer for RoutingLayer {
    fn name(&self) -> &'static str {
        "routing"
    }

    fn submit(&self, launch: TaskLaunch) {
        let route = self.route(&launch);
        let mut went = self.went.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = launch.id.attempt.checked_sub(1) {
            went.remove(&AttemptId { attempt: before, ..launch.id });
        }
        match route {
            Some(index) => {
                went.insert(launch.id, index);
                drop(went);
                self.remote[index].submit(launch);
            }
            None => {
                drop(went);
                self.local.submit(launch);
            }
        }
    }

    fn stop(&self, attempts: &[AttemptId], signal: StopSignal) {
        let mut by_layer: Vec<Vec<AttemptId>> = vec![Vec::new(); self.remote.len()];
        let mut local = Vec::new();
        {
            let went = self.went.lock().unwrap_or_else(PoisonError::into_inner);
            for id in attempts {
                match went.get(id) {
                    Some(index) => by_layer[*index].push(*id),
                    None => local.push(*id),
                }
            }
        }
        for (layer, ids) in self.remote.iter().zip(&by_layer).filter(|(_, ids)| !ids.is_empty()) {
            layer.stop(ids, signal);
        }
        if !local.is_empty() {
            self.local.stop(&local, signal);
        }
    }

    fn shut_down(&self) -> Later<'_, ()> {
        Box::pin(async {
            // All at once: each may take seconds. The local one last only in the list.
            let ends = self.remote.iter().map(|layer| layer.shut_down()).chain([self.local.shut_down()]);
            futures_util::future::join_all(ends).await;
        })
    }

    fn capacity(&self) -> usize {
        self.local.capacity()
    }
}
