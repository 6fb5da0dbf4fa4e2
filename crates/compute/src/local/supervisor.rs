//! The one place that decides in the local layer: an asynchronous task that owns all state and
//! takes messages from the engine, the zygotes, the followers of attempts, and the clock. How
//! the layer ends is in `ending`.

mod ending;
mod zygotes;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use ferroflow_core::id::{AttemptId, StepName};
use ferroflow_core::port::{EventSink, LayerEvent, StopSignal};
use ferroflow_core::task::{Cause, CauseKind, TaskLaunch};
use ferroflow_core::wire::{ZygoteEvent, ZygoteRequest};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::sync::oneshot;

use super::attempt::{Ending, Following, OurEnds, Told, follow, open_descriptors};
use super::imports::{Gate, Hold};
use super::memory::{MemoryKeeper, Occupant};
use super::outcome::{Facts, out_of_memory, report};
use super::step::{Queued, Ready, Step};
use super::{LocalSettings, Timings};
use crate::frontend::{FrontEnd, OutgoingFrame};
use crate::resources::MemoryGauge;

/// What the supervisor is told.
pub enum Message {
    Submit(Box<TaskLaunch>),
    Prepare(StepName),
    Stop(Vec<AttemptId>, StopSignal),
    Zygote {
        step: StepName,
        generation: u64,
        event: ZygoteEvent,
    },
    /// A zygote's socket is at its end; `ZygoteGone` follows.
    ZygoteEnding {
        step: StepName,
        generation: u64,
    },
    ZygoteGone {
        step: StepName,
        generation: u64,
        fault: Option<String>,
    },
    Imported {
        id: AttemptId,
        packages: Vec<String>,
    },
    Overran(AttemptId),
    Ended {
        id: AttemptId,
        ending: Ending,
    },
    HoldOver {
        step: StepName,
        hold: u64,
    },
    LookAtMemory,
    FrontEndGone(String),
    ShutDown(oneshot::Sender<()>),
}

pub struct Supervisor {
    front_end: FrontEnd,
    settings: LocalSettings,
    events: Arc<dyn EventSink>,
    timings: Timings,
    memory: MemoryKeeper,
    sender: UnboundedSender<Message>,
    steps: HashMap<StepName, Step>,
    running: HashMap<AttemptId, Running>,
    /// Steps with tasks that wait for memory or descriptors.
    held: BTreeSet<StepName>,
    memory_alarm: bool,
    /// Why nothing starts any more.
    over: Option<Cause>,
    down_told: bool,
    /// Every follower holds one end, so that their end can be waited for.
    followers: (mpsc::Sender<()>, mpsc::Receiver<()>),
}

/// An attempt that a zygote was asked to start, until its streams are drained.
struct Running {
    step: StepName,
    generation: u64,
    told: UnboundedSender<Told>,
    pid: Option<Pid>,
    inherited: u64,
    facts: Facts,
}

impl Supervisor {
    pub fn new(
        front_end: FrontEnd,
        settings: LocalSettings,
        events: Arc<dyn EventSink>,
        timings: Timings,
        gauge: MemoryGauge,
        sender: UnboundedSender<Message>,
    ) -> Self {
        Self {
            front_end,
            settings,
            events,
            timings,
            memory: MemoryKeeper::new(gauge),
            sender,
            steps: HashMap::new(),
            running: HashMap::new(),
            held: BTreeSet::new(),
            memory_alarm: false,
            over: None,
            down_told: false,
            followers: mpsc::channel(1),
        }
    }

    pub async fn run(mut self, mut messages: UnboundedReceiver<Message>) {
        while let Some(message) = messages.recv().await {
            match message {
                Message::FrontEndGone(text) => self.front_end_gone(text).await,
                Message::ShutDown(done) => {
                    self.shut_down(&mut messages).await;
                    // Whoever asked may have stopped waiting.
                    let _unheard = done.send(());
                    return;
                }
                message => self.take(message),
            }
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Submit(launch) => self.submit(*launch),
            Message::Prepare(step) => self.prepare(&step),
            Message::Stop(attempts, signal) => attempts.into_iter().for_each(|id| self.stop(id, signal)),
            Message::Zygote { step, generation, event } => self.zygote_said(&step, generation, event),
            Message::ZygoteEnding { step, generation } => self.zygote_ending(&step, generation),
            Message::ZygoteGone { step, generation, fault } => self.zygote_gone(&step, generation, fault),
            Message::Imported { id, packages } => self.imported(id, &packages),
            Message::Overran(id) => self.overran(id),
            Message::Ended { id, ending } => self.ended(id, ending),
            Message::HoldOver { step, hold } => self.hold_over(&step, hold),
            Message::LookAtMemory => self.look_at_memory(),
            Message::FrontEndGone(_) | Message::ShutDown(_) => {}
        }
    }

    fn lost(&self, id: AttemptId, cause: Cause) {
        self.events.send(LayerEvent::Lost { id, cause });
    }

    fn after(&self, wait: Duration, message: Message) {
        let sender = self.sender.clone();
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            let _over = sender.send(message);
        });
    }
}

/// What the engine asks for.
impl Supervisor {
    fn submit(&mut self, launch: TaskLaunch) {
        if let Some(cause) = &self.over {
            self.lost(launch.id, cause.clone());
            return;
        }
        let name = launch.spec.step.clone();
        self.step(&name).queue.push_back(Queued { launch, told: false });
        self.pump(&name);
    }

    fn prepare(&mut self, name: &StepName) {
        if self.over.is_none() && self.step(name).zygote.is_none() {
            self.open_zygote(name);
        }
    }

    fn step(&mut self, name: &StepName) -> &mut Step {
        if !self.steps.contains_key(name) {
            self.steps.insert(name.clone(), Step::new(self.settings.learn_imports));
        }
        self.steps.get_mut(name).expect("it was inserted just now")
    }

    fn stop(&mut self, id: AttemptId, signal: StopSignal) {
        if let Some(running) = self.running.get_mut(&id) {
            running.facts.killed |= signal == StopSignal::Kill;
            let signal = if signal == StopSignal::Kill { Signal::KILL } else { Signal::TERM };
            self.signal(id, signal);
        } else if self.steps.values_mut().any(|step| step.take_queued(id).is_some()) {
            self.lost(id, Cause::new(CauseKind::Cancelled, "it was stopped before it started"));
        }
    }

    fn signal(&self, id: AttemptId, signal: Signal) {
        let Some(running) = self.running.get(&id) else { return };
        self.ask_zygote(&running.step, &ZygoteRequest::Signal { attempt: id, signal: signal.as_raw() });
    }

    fn ask_zygote(&self, step: &StepName, request: &ZygoteRequest) {
        let Some(zygote) = self.steps.get(step).and_then(|step| step.zygote.as_ref()) else { return };
        match OutgoingFrame::new(request, Vec::new()) {
            Ok(frame) => zygote.sender.send(frame),
            Err(fault) => self.events.send(LayerEvent::Notice { text: format!("step `{step}`: {fault}") }),
        }
    }
}

/// Starting tasks.
impl Supervisor {
    /// Starts what can start of a step.
    fn pump(&mut self, name: &StepName) {
        while self.over.is_none() {
            let Some(step) = self.steps.get(name).filter(|step| !step.queue.is_empty()) else { return };
            if step.zygote.is_none() {
                return if step.given_up() { self.give_up(name) } else { self.open_zygote(name) };
            }
            let Some(ready) = step.ready() else { return };
            if !self.fits_memory(name) || !self.passes_imports(name, ready) || !self.start_next(name, ready) {
                return;
            }
        }
    }

    fn fits_memory(&mut self, name: &StepName) -> bool {
        // The first ranks of a gang wait for the others, however little memory is left.
        let next = self.steps.get(name).and_then(|step| step.queue.front());
        let follows_rank = next.and_then(|queued| queued.launch.spec.gang).is_some_and(|gang| gang.rank > 0);
        if self.running.is_empty() || follows_rank {
            return true;
        }
        let occupants = self.running.values().map(|running| Occupant {
            step: &running.step,
            pid: running.pid,
            inherited: running.inherited,
        });
        match self.memory.admit(name, occupants) {
            Ok(()) => true,
            Err(reason) => {
                self.hold(name, &format!("for memory: {reason}"));
                false
            }
        }
    }

    /// Tells once, of each task of a step, why it waits, and looks again when something changes.
    fn hold(&mut self, name: &StepName, reason: &str) {
        self.held.insert(name.clone());
        let Some(step) = self.steps.get_mut(name) else { return };
        for queued in step.queue.iter_mut().filter(|queued| !queued.told) {
            queued.told = true;
            self.events.send(LayerEvent::Waiting { id: queued.launch.id, reason: reason.to_owned() });
        }
        if !self.memory_alarm {
            self.memory_alarm = true;
            self.after(self.timings.memory_look, Message::LookAtMemory);
        }
    }

    fn look_at_memory(&mut self) {
        self.memory_alarm = false;
        self.pump_held();
    }

    fn pump_held(&mut self) {
        for name in std::mem::take(&mut self.held) {
            self.pump(&name);
        }
    }

    fn passes_imports(&mut self, name: &StepName, ready: Ready) -> bool {
        if ready.spawns {
            return true;
        }
        let Some(step) = self.steps.get_mut(name) else { return false };
        let Some(next) = step.queue.front() else { return false };
        match step.imports.gate(next.launch.id, next.launch.has_imports) {
            Gate::Start => true,
            Gate::StartAlone => {
                self.alarm_for(name, Hold::FirstImport);
                true
            }
            Gate::Learn(packages) => {
                self.ask_zygote(name, &ZygoteRequest::Learn { packages });
                self.alarm_for(name, Hold::Learning);
                false
            }
            Gate::Wait => false,
        }
    }

    fn alarm_for(&self, name: &StepName, hold: Hold) {
        let wait = match hold {
            Hold::FirstImport => self.timings.first_import,
            Hold::Learning => self.timings.learning,
        };
        if let Some(step) = self.steps.get(name) {
            self.after(wait, Message::HoldOver { step: name.clone(), hold: step.imports.current_hold() });
        }
    }

    fn hold_over(&mut self, name: &StepName, hold: u64) {
        if self.steps.get_mut(name).is_some_and(|step| step.imports.hold_over(hold)) {
            self.pump(name);
        }
    }

    /// Sends the next task to the zygote. `false` when no more can start now.
    fn start_next(&mut self, name: &StepName, ready: Ready) -> bool {
        let descriptors = match open_descriptors() {
            Err(error) if out_of_descriptors(&error) && !self.running.is_empty() => {
                self.hold(
                    name,
                    &format!("for a running task to end: {error} (`ulimit -n` sets how many files may be open)"),
                );
                return false;
            }
            other => other,
        };
        let Some(launch) = self.steps.get_mut(name).and_then(|step| step.queue.pop_front()) else { return false };
        let id = launch.launch.id;
        let started = descriptors
            .map_err(|error| format!("the task's pipes could not be opened: {error}"))
            .and_then(|(ends, theirs)| self.send_task(launch.launch, ready, ends, theirs));
        if let Err(text) = started {
            self.lost(id, Cause::new(CauseKind::LayerError, text));
        }
        true
    }

    fn send_task(
        &mut self,
        launch: TaskLaunch,
        ready: Ready,
        ends: OurEnds,
        theirs: Vec<std::os::fd::OwnedFd>,
    ) -> Result<(), String> {
        let (id, name, facts) = (launch.id, launch.spec.step.clone(), Facts::of(&launch));
        let step = self.steps.get(&name).ok_or("the step is unknown")?;
        let zygote = step.zygote.as_ref().ok_or("the step's process is gone")?;
        if ready.spawns {
            let frame = OutgoingFrame::new(&launch.spec, Vec::new()).map_err(|fault| fault.to_string())?;
            let control = Arc::clone(&ends.control);
            self.events.send(LayerEvent::Starting { id, detail: "starting an interpreter".to_owned() });
            // A task that ends without reading it is told of by its zygote.
            tokio::spawn(async move { frame.send(&control).await.ok() });
        }
        let request = ZygoteRequest::Task { attempt: id, spec: Box::new(launch.spec) };
        zygote.sender.send(OutgoingFrame::new(&request, theirs).map_err(|fault| fault.to_string())?);
        let (told, news) = mpsc::unbounded_channel();
        let generation = step.generation;
        let deadline = launch.time_limit.and_then(|limit| Duration::try_from_secs_f64(limit).ok());
        self.follow(Following {
            id,
            ends,
            told: news,
            supervisor: self.sender.clone(),
            events: self.events.clone(),
            deadline: deadline.map(|limit| limit + self.timings.timeout_grace),
            drain: self.timings.drain,
        });
        let running = Running { step: name, generation, told, pid: None, inherited: ready.inherited, facts };
        self.running.insert(id, running);
        Ok(())
    }

    fn follow(&self, following: Following) {
        let alive = self.followers.0.clone();
        tokio::spawn(async move {
            follow(following).await;
            drop(alive);
        });
    }
}

fn out_of_descriptors(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

/// Running tasks.
impl Supervisor {
    fn imported(&mut self, id: AttemptId, packages: &[String]) {
        let Some(name) = self.running.get(&id).map(|running| running.step.clone()) else { return };
        if !self.settings.learn_imports {
            return;
        }
        self.step(&name).imports.imported(id, packages);
        self.pump(&name);
    }

    fn overran(&mut self, id: AttemptId) {
        if let Some(running) = self.running.get_mut(&id) {
            running.facts.overran = Some(self.timings.timeout_grace);
            self.signal(id, Signal::KILL);
        }
    }

    fn ended(&mut self, id: AttemptId, ending: Ending) {
        let Some(running) = self.running.remove(&id) else { return };
        let name = running.step.clone();
        match ending {
            Ending::Lost(cause) => self.lost(id, cause),
            ending => self.finished(id, &running, ending),
        }
        self.step(&name).imports.ended(id);
        self.pump(&name);
        self.pump_held();
        self.tell_down();
    }

    fn finished(&mut self, id: AttemptId, running: &Running, ending: Ending) {
        let Ending::Exited { exit, usage, outcome, control_fault } = ending else { return };
        self.memory.note(&running.step, &usage, running.inherited);
        let killed = running.facts.killed_from_outside(exit) && self.memory.explains_a_kill();
        let no_memory = killed.then(|| out_of_memory(&running.facts, &usage, self.memory.gauge().limit()));
        let learn = self.settings.learn_imports;
        let step = self.step(&running.step);
        step.deaths = 0;
        if let Some(outcome) = outcome.as_ref().filter(|_| learn) {
            step.imports.imported(id, &outcome.imports);
        }
        let report = report(&running.facts, exit, usage, outcome, control_fault, no_memory);
        self.events.send(LayerEvent::Finished { id, report });
    }
}

fn to_pid(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}
