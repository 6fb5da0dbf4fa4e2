//! What the engine of another run left behind, followed by this run (design D9). A layer is made for
//! the other run, as that run's own engine would make it; here its attempts get the ids they have in
//! this run. What is adopted, and what becomes of it, the run machine decides.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use ferroflow_core::id::AttemptId;
use ferroflow_core::port::{Adoption, ComputeLayer, EventSink, Later, LayerEvent, RemoteTasks, StopSignal};
use ferroflow_core::task::{Cause, CauseKind, TaskLaunch};

/// Events of another run's layer, told under this run's ids. Made first, because the layer wants it.
pub struct AdoptedEvents {
    events: Arc<dyn EventSink>,
    remote: OnceLock<Arc<dyn RemoteTasks>>,
    /// Attempt of the other run → attempt of this one.
    ids: Mutex<HashMap<AttemptId, AttemptId>>,
}

impl AdoptedEvents {
    pub fn new(events: Arc<dyn EventSink>) -> Arc<Self> {
        Arc::new(Self { events, remote: OnceLock::new(), ids: Mutex::default() })
    }

    fn ids(&self) -> MutexGuard<'_, HashMap<AttemptId, AttemptId>> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, theirs: AttemptId) -> Option<AttemptId> {
        self.ids().get(&theirs).copied()
    }

    /// Nobody saw how it ended; but if it was done, its pack is in the store.
    fn look_in_store(&self, theirs: AttemptId, ours: AttemptId, cause: Cause) {
        let (Some(remote), events) = (self.remote.get().cloned(), self.events.clone()) else {
            self.events.send(LayerEvent::Lost { id: ours, cause });
            return;
        };
        tokio::spawn(async move {
            events.send(match remote.kept_report(theirs).await {
                Some(report) => LayerEvent::Finished { id: ours, report },
                None => LayerEvent::Lost { id: ours, cause },
            });
        });
    }
}

impl EventSink for AdoptedEvents {
    fn send(&self, event: LayerEvent) {
        let id = match &event {
            LayerEvent::Waiting { id, .. }
            | LayerEvent::Starting { id, .. }
            | LayerEvent::Started { id, .. }
            | LayerEvent::Log { id, .. }
            | LayerEvent::Finished { id, .. }
            | LayerEvent::Lost { id, .. } => *id,
            LayerEvent::Notice { .. } => return self.events.send(event),
            LayerEvent::Down { cause } => return self.all_lost(cause),
        };
        let Some(ours) = self.of(id) else { return };
        let told = match event {
            LayerEvent::Waiting { reason, .. } => LayerEvent::Waiting { id: ours, reason },
            LayerEvent::Starting { detail, .. } => LayerEvent::Starting { id: ours, detail },
            LayerEvent::Started { pid, .. } => LayerEvent::Started { id: ours, pid },
            LayerEvent::Log { stream, at, lines, .. } => LayerEvent::Log { id: ours, stream, at, lines },
            LayerEvent::Finished { report, .. } => LayerEvent::Finished { id: ours, report },
            LayerEvent::Lost { cause, .. } if cause.kind != CauseKind::Cancelled => {
                return self.look_in_store(id, ours, cause);
            }
            LayerEvent::Lost { cause, .. } => LayerEvent::Lost { id: ours, cause },
            LayerEvent::Notice { .. } | LayerEvent::Down { .. } => return,
        };
        self.events.send(told);
    }

    fn metadata(&self, id: AttemptId, name: String, value: String) {
        if let Some(ours) = self.of(id) {
            self.events.metadata(ours, name, value);
        }
    }

    fn taken_over(&self, text: String) {
        self.events.taken_over(text);
    }

    fn ready(&self) -> Later<'_, ()> {
        self.events.ready()
    }
}

impl AdoptedEvents {
    /// The other run's layer is gone; this run's own may well go on.
    fn all_lost(&self, cause: &Cause) {
        let ids: Vec<AttemptId> = self.ids().values().copied().collect();
        for id in ids {
            self.events.send(LayerEvent::Lost { id, cause: cause.clone() });
        }
    }
}

/// The layer of another run, as a layer of this one.
pub struct Adopter {
    layer: Arc<dyn ComputeLayer>,
    events: Arc<AdoptedEvents>,
}

impl Adopter {
    /// `layer` and `remote` are the other run's and tell `events`.
    pub fn new(layer: Arc<dyn ComputeLayer>, remote: Arc<dyn RemoteTasks>, events: Arc<AdoptedEvents>) -> Self {
        let _set_once = events.remote.set(remote);
        Self { layer, events }
    }
}

impl ComputeLayer for Adopter {
    fn name(&self) -> &'static str {
        self.layer.name()
    }

    fn submit(&self, launch: TaskLaunch) {
        let text = format!("the {} layer of another run takes no new tasks", self.layer.name());
        let cause = Cause::new(CauseKind::LayerError, text);
        self.events.events.send(LayerEvent::Lost { id: launch.id, cause });
    }

    fn stop(&self, attempts: &[AttemptId], signal: StopSignal) {
        let theirs: Vec<AttemptId> =
            self.events.ids().iter().filter(|(_, ours)| attempts.contains(ours)).map(|(theirs, _)| *theirs).collect();
        self.layer.stop(&theirs, signal);
    }

    fn run_ends(&self) {
        self.layer.run_ends();
    }

    fn shut_down(&self) -> Later<'_, ()> {
        self.layer.shut_down()
    }

    fn capacity(&self) -> usize {
        self.layer.capacity()
    }

    fn adopt(&self, adoption: Adoption) -> bool {
        let theirs = adoption.attempt;
        match adoption.id {
            Some(ours) => {
                self.events.ids().insert(theirs, ours);
                self.layer.adopt(adoption)
            }
            None => {
                let taken = self.layer.adopt(adoption);
                self.layer.stop(&[theirs], StopSignal::Kill);
                taken
            }
        }
    }

    fn let_go(&self) -> Later<'_, ()> {
        self.layer.let_go()
    }
}
