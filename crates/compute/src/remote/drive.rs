//! The loop in which a remote layer's supervisor lives: commands of the engine, messages of the work
//! that it spawned, and the clock, one after the other, until it is shut down or lets go. What any of
//! them comes to is the layer's.

use std::time::Duration;

use ferroflow_core::id::{AttemptId, StepName};
use ferroflow_core::port::{EventSink, StopSignal};
use ferroflow_core::task::TaskLaunch;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior};

use super::layer::{Command, refuse, refuse_rest};

const TICK: Duration = Duration::from_millis(500);
/// How long ending a layer may take.
pub(crate) const CLOSING: Duration = Duration::from_millis(4500);

/// The owner of a run's attempts on a layer. No call waits: what takes time is spawned, and comes
/// back as a message.
pub(crate) trait Supervise {
    type Message;

    fn submit(&mut self, launch: TaskLaunch);
    fn stop(&mut self, ids: &[AttemptId], signal: StopSignal);
    /// The user ended the run.
    fn run_ends(&mut self);
    fn adopt(&mut self, step: &StepName, id: AttemptId);
    fn take(&mut self, message: Self::Message);
    /// Twice a second.
    fn tick(&mut self);
    /// When to call `poll` next; `None` while there is no reason to.
    fn next_poll(&self) -> Option<Instant> {
        None
    }
    fn poll(&mut self) {}
    /// The engine wants nothing any more: everything is to end.
    fn end_all(&mut self);
    /// Nothing is left to wait for.
    fn is_idle(&self) -> bool;
    /// The last words: nothing of the run is left, or it is said what is.
    async fn close(&mut self);
}

/// Returns when the layer was shut down, or let go.
pub(crate) async fn drive<S: Supervise>(
    mut supervisor: S,
    events: &dyn EventSink,
    mut commands: UnboundedReceiver<Command>,
    mut messages: UnboundedReceiver<S::Message>,
) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Ending until then, and who waits for it.
    let mut closing: Option<(Instant, Vec<oneshot::Sender<()>>)> = None;
    loop {
        let next_poll = supervisor.next_poll();
        tokio::select! {
            Some(command) = commands.recv() => match command {
                Command::Submit(launch) if closing.is_some() => refuse(events, launch.id),
                Command::Submit(launch) => supervisor.submit(*launch),
                Command::Stop(ids, signal) => supervisor.stop(&ids, signal),
                Command::RunEnds => supervisor.run_ends(),
                Command::ShutDown(done) => {
                    closing.get_or_insert_with(|| (Instant::now() + CLOSING, Vec::new())).1.push(done);
                    supervisor.end_all();
                }
                Command::Adopt(_, id) if closing.is_some() => refuse(events, id),
                Command::Adopt(step, id) => supervisor.adopt(&step, id),
                Command::LetGo(done) => {
                    let _nobody_waits = done.send(());
                    return;
                }
            },
            Some(message) = messages.recv() => supervisor.take(message),
            _ = tick.tick() => supervisor.tick(),
            () = tokio::time::sleep_until(next_poll.unwrap_or_else(Instant::now)), if next_poll.is_some() => supervisor.poll(),
        }
        if closing.as_ref().is_some_and(|(until, _)| supervisor.is_idle() || Instant::now() >= *until) {
            break;
        }
    }
    supervisor.close().await;
    refuse_rest(commands, events);
    for waiting in closing.into_iter().flat_map(|(_, waiting)| waiting) {
        let _nobody_waits = waiting.send(());
    }
}
