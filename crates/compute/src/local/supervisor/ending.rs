//! How zygotes, the front end and the layer itself end, and that nothing is alive afterwards.

use std::collections::HashSet;
use std::time::Duration;

use ferroflow_core::id::{AttemptId, StepName};
use ferroflow_core::port::LayerEvent;
use ferroflow_core::task::{Cause, CauseKind};
use rustix::process::{Pid, Signal, WaitStatus, kill_process, kill_process_group};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, timeout, timeout_at};

use super::super::attempt::Told;
use super::{Message, Supervisor, to_pid};
use crate::processes::{Process, Swept, descendants, kill_descendants, look_at, name_list};

/// How long the end of a process whose socket is closed is waited for, to say how it ended.
const HOW_IT_ENDED: Duration = Duration::from_millis(50);
/// For followers to pass on the last lines once every process is dead.
const LAST_LINES: Duration = Duration::from_millis(500);

/// A zygote that ended.
impl Supervisor {
    pub(super) fn zygote_gone(&mut self, name: &StepName, generation: u64, fault: Option<String>) {
        // The front end's end is the greater news, and takes care of everything.
        if self.over.is_some() || self.front_end.is_closed() {
            return;
        }
        let Some(step) = self.steps.get_mut(name).filter(|step| step.generation == generation) else { return };
        if let Some(zygote) = &step.zygote {
            // One that talks nonsense may still live; this ends it.
            zygote.sender.close();
        }
        step.zygote_gone();
        let cause = self.zygote_cause(name, fault);
        let victims: Vec<AttemptId> = self
            .running
            .iter()
            .filter(|(_id, running)| running.generation == generation && &running.step == name)
            .map(|(id, _running)| *id)
            .collect();
        self.kill_at_once(&victims);
        for id in victims {
            self.tell(id, generation, Told::Lost(cause.clone()));
        }
        self.pump(name);
    }

    fn zygote_cause(&mut self, name: &StepName, fault: Option<String>) -> Cause {
        let what = format!("the process that starts tasks of step `{name}` ended, and its tasks with it");
        match fault {
            Some(fault) => Cause::new(CauseKind::LayerError, format!("{what}: {fault}")),
            None if self.memory.explains_a_kill() => {
                Cause::new(CauseKind::OutOfMemory, format!("{what}: the kernel killed it for lack of memory"))
            }
            None => Cause::new(CauseKind::LayerError, format!("{what}: something killed it, or it crashed")),
        }
    }

    /// For tasks whose zygote is not there to signal them. A number that is not in our family any
    /// more may be a stranger's.
    fn kill_at_once(&self, attempts: &[AttemptId]) {
        let family: HashSet<Pid> = self.family().into_iter().map(|process| process.pid).collect();
        let pids = attempts.iter().filter_map(|id| self.running.get(id)?.pid);
        for pid in pids.filter(|pid| family.contains(pid)) {
            // Either may be gone by now.
            let _gone = kill_process_group(pid, Signal::KILL);
            let _gone = kill_process(pid, Signal::KILL);
        }
    }

    /// Living processes below the front end.
    fn family(&self) -> Vec<Process> {
        let root = to_pid(self.front_end.pid());
        let mut family = root.map(descendants).unwrap_or_default();
        family.retain(|process| !process.ended);
        family
    }
}

/// The front end that ended.
impl Supervisor {
    pub(super) async fn front_end_gone(&mut self, text: String) {
        if self.over.is_some() {
            return;
        }
        // Its exit status is lost once the sweep reaps it.
        let ending = timeout(HOW_IT_ENDED, self.front_end.wait_for_process()).await.ok().flatten();
        let swept = kill_descendants(self.timings.sweep).await;
        self.front_end.close().await;
        let cause = Cause::new(CauseKind::FrontEndLost, self.how_it_went(text, ending));
        self.tell_of_survivors(&swept);
        self.over = Some(cause.clone());
        self.lose_all(&cause);
        self.tell_down();
    }

    fn how_it_went(&mut self, text: String, ending: Option<WaitStatus>) -> String {
        let killed = ending.and_then(WaitStatus::terminating_signal);
        match (killed, ending.and_then(WaitStatus::exit_status)) {
            (Some(signal), _) if signal == Signal::KILL.as_raw() && self.memory.explains_a_kill() => {
                format!("{text}: the kernel killed it for lack of memory")
            }
            (Some(signal), _) => format!("{text}: it was killed by signal {signal}"),
            (None, Some(code)) => format!("{text}: it exited with code {code}"),
            (None, None) => text,
        }
    }

    /// Tasks that wait are lost at once, those that ran when their last lines are read.
    fn lose_all(&mut self, cause: &Cause) {
        let queued: Vec<_> = self.steps.values_mut().flat_map(|step| std::mem::take(&mut step.queue)).collect();
        self.lose_queued(queued, cause);
        for running in self.running.values() {
            let _ended = running.told.send(Told::Lost(cause.clone()));
        }
    }

    /// `Down` comes after everything else there is to tell.
    pub(super) fn tell_down(&mut self) {
        let Some(cause) = self.over.clone().filter(|cause| cause.kind == CauseKind::FrontEndLost) else { return };
        if self.running.is_empty() && !self.down_told {
            self.down_told = true;
            self.events.send(LayerEvent::Down { cause });
        }
    }

    fn tell_of_survivors(&self, swept: &Swept) {
        if !swept.alive.is_empty() {
            let text = format!(
                "{} of the run could not be killed and may still run: {}",
                count_of("process", "processes", swept.alive.len()),
                name_list(swept.alive.iter().cloned())
            );
            self.events.send(LayerEvent::Notice { text });
        }
    }
}

/// The layer's own end.
impl Supervisor {
    pub(super) async fn shut_down(&mut self, messages: &mut UnboundedReceiver<Message>) {
        let cause = Cause::new(CauseKind::Cancelled, "the run ended before the task did");
        self.tell_of_leftovers();
        self.over.get_or_insert_with(|| cause.clone());
        for zygote in self.steps.values().filter_map(|step| step.zygote.as_ref()) {
            zygote.sender.close();
        }
        self.front_end.close().await;
        let swept = kill_descendants(self.timings.sweep).await;
        self.tell_of_survivors(&swept);
        self.lose_all(&cause);
        self.hear_last_words(messages, &cause).await;
    }

    /// Processes that ended tasks left behind are stopped with the run; the user should know.
    fn tell_of_leftovers(&self) {
        if self.over.is_some() || self.front_end.is_closed() {
            return;
        }
        let names: Vec<String> = self.leftovers().into_iter().map(|process| process.name).collect();
        if !names.is_empty() {
            let count = count_of("background process", "background processes", names.len());
            let text = format!("stopped {count} that tasks had left behind: {}", name_list(names));
            self.events.send(LayerEvent::Notice { text });
        }
    }

    /// The front end's own helpers and zygotes are in its process group; tasks lead their own.
    fn leftovers(&self) -> Vec<Process> {
        let Some(front_end) = to_pid(self.front_end.pid()).and_then(look_at) else { return Vec::new() };
        let mut running: HashSet<i32> =
            self.running.values().filter_map(|running| running.pid).map(Pid::as_raw_pid).collect();
        let mut left = Vec::new();
        // Parents come before their children.
        for process in self.family() {
            if running.contains(&process.pid.as_raw_pid()) || running.contains(&process.parent) {
                running.insert(process.pid.as_raw_pid());
            } else if process.group != front_end.group {
                left.push(process);
            }
        }
        left
    }

    async fn hear_last_words(&mut self, messages: &mut UnboundedReceiver<Message>, cause: &Cause) {
        let until = Instant::now() + LAST_LINES;
        while !self.running.is_empty() {
            match timeout_at(until, messages.recv()).await {
                Ok(Some(message)) => self.take_last(message),
                Ok(None) | Err(_) => break,
            }
        }
        // What is sent from here on finds no receiver, and its sender is told so.
        messages.close();
        while let Ok(message) = messages.try_recv() {
            self.take_last(message);
        }
        for (id, running) in std::mem::take(&mut self.running) {
            drop(running.told);
            self.lost(id, cause.clone());
        }
        // Ours is the last end but for the followers'.
        let (ours, mut all_ended) = std::mem::replace(&mut self.followers, tokio::sync::mpsc::channel(1));
        drop(ours);
        let _late = timeout_at(until, all_ended.recv()).await;
    }

    fn take_last(&mut self, message: Message) {
        match message {
            Message::ShutDown(also_waiting) => {
                // Whoever asked may have stopped waiting.
                let _unheard = also_waiting.send(());
            }
            message => self.take(message),
        }
    }
}

fn count_of(one: &str, many: &str, count: usize) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {many}") }
}
