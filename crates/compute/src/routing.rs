//! One layer made of several: each task goes to the layer that its step asks for. `@catch`'s
//! fallbacks run on this machine, whatever the step asks for (behaviour.md K-8).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use ferroflow_core::id::{AttemptId, RunId, StepName};
use ferroflow_core::port::{Adoption, ComputeLayer, Later, StopSignal};
use ferroflow_core::task::TaskLaunch;

/// A layer that was made for another run.
pub type LayerOfRun = (RunId, Arc<dyn ComputeLayer>);

/// Sends tasks on. All layers share the event sink.
pub struct RoutingLayer {
    local: Arc<dyn ComputeLayer>,
    /// In a fixed order, for ending them.
    remote: Vec<Arc<dyn ComputeLayer>>,
    /// Index into `remote` by step; steps that are missing run locally.
    routes: HashMap<StepName, usize>,
    /// Layers of other runs, by run and by the layer's name: they follow what those runs left behind.
    adopters: Vec<LayerOfRun>,
    /// Attempts that went to a remote layer (those of `adopters` come after `remote`); forgotten when they are stopped for good or the
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
        Self { local, remote: layers, routes, adopters: Vec::new(), went: Mutex::default() }
    }

    /// The same, able to take up what the engines of other runs left behind.
    pub fn adopting(self, adopters: Vec<LayerOfRun>) -> Self {
        Self { adopters, ..self }
    }

    /// All layers but the local one, in the order that `went` counts.
    fn elsewhere(&self) -> impl Iterator<Item = &Arc<dyn ComputeLayer>> {
        self.remote.iter().chain(self.adopters.iter().map(|(_, layer)| layer))
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
        let mut by_layer: Vec<Vec<AttemptId>> = vec![Vec::new(); self.remote.len() + self.adopters.len()];
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
        for (layer, ids) in self.elsewhere().zip(&by_layer).filter(|(_, ids)| !ids.is_empty()) {
            layer.stop(ids, signal);
        }
        if !local.is_empty() {
            self.local.stop(&local, signal);
        }
    }

    fn run_ends(&self) {
        self.elsewhere().chain([&self.local]).for_each(|layer| layer.run_ends());
    }

    fn shut_down(&self) -> Later<'_, ()> {
        Box::pin(async {
            // All at once: each may take seconds. The local one last only in the list.
            let ends = self.elsewhere().map(|layer| layer.shut_down()).chain([self.local.shut_down()]);
            futures_util::future::join_all(ends).await;
        })
    }

    fn outlives_engine(&self, launch: &TaskLaunch) -> bool {
        self.route(launch).is_some_and(|index| self.remote[index].outlives_engine(launch))
    }

    fn adopt(&self, adoption: Adoption) -> bool {
        let found =
            self.adopters.iter().position(|(run, layer)| *run == adoption.run && layer.name() == adoption.layer);
        let Some(index) = found else { return false };
        let mut went = self.went.lock().unwrap_or_else(PoisonError::into_inner);
        went.extend(adoption.id.map(|id| (id, self.remote.len() + index)));
        drop(went);
        self.adopters[index].1.adopt(adoption)
    }

    fn let_go(&self) -> Later<'_, ()> {
        Box::pin(async {
            let ends = self.elsewhere().map(|layer| layer.let_go()).chain([self.local.shut_down()]);
            futures_util::future::join_all(ends).await;
        })
    }

    fn capacity(&self) -> usize {
        self.local.capacity()
    }
}
