//! Opening zygotes and taking in what they say. How they end is in `ending`.

use std::time::Duration;

use ferroflow_core::id::{AttemptId, StepName};
use ferroflow_core::port::LayerEvent;
use ferroflow_core::task::{Cause, CauseKind};
use ferroflow_core::wire::{ZygoteEvent, ZygoteSettings};
use tokio::sync::mpsc::UnboundedSender;

use super::super::attempt::Told;
use super::super::step::{Queued, Ready, Zygote};
use super::{Message, Supervisor, to_pid};
use crate::frontend::FrameReceiver;
use crate::processes::anonymous_memory;

/// A front end that dies takes its zygotes with it. News of it is waited for this long, so that
/// tasks are not said to have died of the lesser cause.
const FRONT_END_NEWS: Duration = Duration::from_millis(50);

impl Supervisor {
    pub(super) fn open_zygote(&mut self, name: &StepName) {
        let environment = self.settings.environments.get(name).cloned().unwrap_or_default();
        let (learn_imports, spawn) = (self.settings.learn_imports, self.settings.spawn);
        let front_end = self.front_end.clone();
        let step = self.step(name);
        step.generation += 1;
        let generation = step.generation;
        let learned = step.imports.for_new_zygote();
        let settings = ZygoteSettings { environment, learned, learn_imports, spawn: spawn || step.must_spawn() };
        match front_end.open_zygote(name, settings) {
            Ok((sender, receiver)) => {
                step.zygote = Some(Zygote { sender, ready: None });
                let closed = front_end.closed();
                tokio::spawn(read_zygote(name.clone(), generation, receiver, self.sender.clone(), closed));
            }
            Err(fault) => {
                step.zygote_gone();
                let queued = std::mem::take(&mut step.queue);
                self.lose_queued(queued, &Cause::new(CauseKind::LayerError, fault.to_string()));
            }
        }
    }

    pub(super) fn zygote_said(&mut self, name: &StepName, generation: u64, event: ZygoteEvent) {
        match event {
            ZygoteEvent::Ready { pid, spawn_reason } => self.zygote_ready(name, generation, pid, spawn_reason),
            ZygoteEvent::Started { attempt, pid } => {
                if let Some(running) = self.running.get_mut(&attempt) {
                    running.pid = to_pid(pid);
                }
                self.tell(attempt, generation, Told::Started { pid });
            }
            ZygoteEvent::Exited { attempt, exit, usage, leftover: _ } => {
                self.tell(attempt, generation, Told::Exited { exit, usage });
            }
            ZygoteEvent::StartFailed { attempt, message } => {
                let text = format!("the task could not be started: {message}");
                self.tell(attempt, generation, Told::Lost(Cause::new(CauseKind::LayerError, text)));
            }
            ZygoteEvent::Learned { packages, refused: _ } => self.learned(name, packages),
        }
    }

    pub(super) fn tell(&self, id: AttemptId, generation: u64, news: Told) {
        if let Some(running) = self.running.get(&id).filter(|running| running.generation == generation) {
            // A follower that ended has sent its `Ended` already.
            let _ended = running.told.send(news);
        }
    }

    fn zygote_ready(&mut self, name: &StepName, generation: u64, pid: u32, spawn_reason: Option<String>) {
        let spawn_wanted = self.settings.spawn;
        let Some(step) = self.steps.get_mut(name).filter(|step| step.generation == generation) else { return };
        let spawns = spawn_wanted || step.must_spawn() || spawn_reason.is_some();
        let Some(zygote) = step.zygote.as_mut() else { return };
        let pid = to_pid(pid);
        let inherited = if spawns { 0 } else { pid.and_then(anonymous_memory).unwrap_or(0) };
        zygote.ready = Some(Ready { pid, spawns, inherited });
        // Whoever turned spawning on need not be told of it again and again.
        if let Some(reason) = spawn_reason.filter(|_| !spawn_wanted && !step.spawn_told) {
            step.spawn_told = true;
            let text = format!("step `{name}`: every task starts a new interpreter, because {reason}");
            self.events.send(LayerEvent::Notice { text });
        }
        self.pump(name);
    }

    fn learned(&mut self, name: &StepName, packages: Vec<String>) {
        let Some(step) = self.steps.get_mut(name) else { return };
        step.imports.learned(packages);
        if let Some(ready) = step.zygote.as_mut().and_then(|zygote| zygote.ready.as_mut()) {
            // Its children inherit what it imported.
            ready.inherited = ready.pid.and_then(anonymous_memory).unwrap_or(ready.inherited);
        }
        self.pump(name);
    }

    pub(super) fn zygote_ending(&mut self, name: &StepName, generation: u64) {
        let step = self.steps.get_mut(name).filter(|step| step.generation == generation);
        if let Some(zygote) = step.and_then(|step| step.zygote.as_mut()) {
            zygote.ready = None;
        }
    }

    pub(super) fn give_up(&mut self, name: &StepName) {
        let Some(step) = self.steps.get_mut(name) else { return };
        let text = format!(
            "the process that starts tasks of step `{name}` ended {} times in a row before a task did; an import or \
             `@environment` of the step may crash the interpreter",
            step.deaths
        );
        let queued = std::mem::take(&mut step.queue);
        self.lose_queued(queued, &Cause::new(CauseKind::LayerError, text));
    }

    pub(super) fn lose_queued(&self, queued: impl IntoIterator<Item = Queued>, cause: &Cause) {
        for queued in queued {
            self.lost(queued.launch.id, cause.clone());
        }
    }
}

async fn read_zygote(
    step: StepName,
    generation: u64,
    mut receiver: FrameReceiver,
    supervisor: UnboundedSender<Message>,
    front_end_closed: impl Future<Output = String>,
) {
    let fault = loop {
        match receiver.next::<ZygoteEvent>().await {
            Ok(Some(event)) => {
                let _over = supervisor.send(Message::Zygote { step: step.clone(), generation, event });
            }
            Ok(None) => break None,
            Err(fault) => break Some(fault.to_string()),
        }
    };
    let _over = supervisor.send(Message::ZygoteEnding { step: step.clone(), generation });
    let _either_way = tokio::time::timeout(FRONT_END_NEWS, front_end_closed).await;
    let _over = supervisor.send(Message::ZygoteGone { step, generation, fault });
}
