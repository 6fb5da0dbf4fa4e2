//! The local layer (design D3): tasks are forked from a step's zygote, which the flow's own process
//! forked. This folder starts them, follows them, holds them back for imports and memory, and
//! leaves nothing alive. What the processes do inside is the front end's part.

mod attempt;
mod imports;
mod memory;
mod outcome;
mod step;
mod supervisor;

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ferroflow_core::id::{AttemptId, StepName};
use ferroflow_core::port::{ComputeLayer, EventSink, Later, LayerEvent, StopSignal};
use ferroflow_core::task::{Cause, CauseKind, TaskLaunch};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

pub use crate::frontend::{FrontEnd, FrontEndFault};
use crate::processes::become_subreaper;
use crate::resources::MemoryGauge;
use supervisor::{Message, Supervisor};

/// What a user may choose.
#[derive(Clone, Debug, Default)]
pub struct LocalSettings {
    /// Start every task as a new interpreter.
    pub spawn: bool,
    /// Import what a step's first task imported before its other tasks are forked.
    pub learn_imports: bool,
    /// `@environment` by step; steps without one may be missing.
    pub environments: HashMap<StepName, BTreeMap<String, String>>,
}

/// How long things may take. The defaults are for users, other values for tests.
#[derive(Clone, Copy, Debug)]
pub struct Timings {
    /// Others of a step wait this long for its first task's first import.
    pub first_import: Duration,
    /// And this long for the zygote to import it.
    pub learning: Duration,
    /// Streams of an ended task are drained this long when a process left behind holds them open.
    pub drain: Duration,
    /// A task that has not ended this long after its `@timeout` (which Python raises itself) hangs
    /// in native code and is killed.
    pub timeout_grace: Duration,
    /// How often memory is looked at while tasks wait for some.
    pub memory_look: Duration,
    /// For killing what is left when the layer ends.
    pub sweep: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            first_import: Duration::from_millis(300),
            learning: Duration::from_secs(2),
            drain: Duration::from_millis(200),
            timeout_grace: Duration::from_secs(60),
            memory_look: Duration::from_millis(250),
            sweep: Duration::from_secs(2),
        }
    }
}

/// Tasks on this machine. Its process must have nothing to do but the run: when the layer ends,
/// every descendant of the process is killed.
pub struct LocalLayer {
    supervisor: UnboundedSender<Message>,
    events: Arc<dyn EventSink>,
    capacity: usize,
}

impl LocalLayer {
    /// Starts the layer within the current tokio runtime. From here on this process adopts its
    /// descendants' orphans and may open as many files as the system lets it.
    pub fn new(front_end: FrontEnd, settings: LocalSettings, events: Arc<dyn EventSink>) -> Self {
        Self::with(front_end, settings, events, Timings::default(), MemoryGauge::discover())
    }

    /// The same with other timings and another place to read memory from.
    pub fn with(
        front_end: FrontEnd,
        settings: LocalSettings,
        events: Arc<dyn EventSink>,
        timings: Timings,
        gauge: MemoryGauge,
    ) -> Self {
        if let Err(error) = become_subreaper() {
            events.send(LayerEvent::Notice {
                text: format!("processes that tasks leave behind may outlive the run: {error} (child subreaper)"),
            });
        }
        raise_file_limit();
        let (sender, messages) = unbounded_channel();
        let watch = sender.clone();
        let closed = front_end.closed();
        tokio::spawn(async move {
            let text = closed.await;
            let _over = watch.send(Message::FrontEndGone(text));
        });
        let supervisor = Supervisor::new(front_end, settings, events.clone(), timings, gauge, sender.clone());
        tokio::spawn(supervisor.run(messages));
        // Affinity and the control group's quota, of versions 1 and 2, are what the library asks.
        let capacity = std::thread::available_parallelism().map_or(1, usize::from);
        Self { supervisor: sender, events, capacity }
    }

    /// Opens a step's zygote ahead of its first task.
    pub fn prepare(&self, step: &StepName) {
        let _over = self.supervisor.send(Message::Prepare(step.clone()));
    }
}

impl ComputeLayer for LocalLayer {
    fn name(&self) -> &'static str {
        "local"
    }

    fn submit(&self, launch: TaskLaunch) {
        let id = launch.id;
        if self.supervisor.send(Message::Submit(Box::new(launch))).is_err() {
            let cause = Cause::new(CauseKind::LayerError, "the local layer has ended already");
            self.events.send(LayerEvent::Lost { id, cause });
        }
    }

    fn stop(&self, attempts: &[AttemptId], signal: StopSignal) {
        let _over = self.supervisor.send(Message::Stop(attempts.to_vec(), signal));
    }

    fn shut_down(&self) -> Later<'_, ()> {
        Box::pin(async {
            let (done, wait) = oneshot::channel();
            if self.supervisor.send(Message::ShutDown(done)).is_ok() {
                // An error means that an earlier call has ended the layer.
                let _ended = wait.await;
            }
        })
    }

    fn capacity(&self) -> usize {
        self.capacity
    }
}

/// Three descriptors a task add up. Processes of the run were forked before and keep their limit.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    // Where it is refused, tasks wait for descriptors instead.
    let _refused = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}
