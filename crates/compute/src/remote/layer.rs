//! The handle of a remote layer: commands go to the task that owns the attempts (each layer's
//! supervisor), which answers by events. What a command comes to is the layer's.

use std::sync::Arc;

use ferroflow_core::id::{AttemptId, StepName};
use ferroflow_core::port::{Adoption, ComputeLayer, EventSink, Later, LayerEvent, StopSignal};
use ferroflow_core::task::{Cause, CauseKind, TaskLaunch};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

/// What the engine asks of a layer, in the order that it asked.
pub enum Command {
    Submit(Box<TaskLaunch>),
    Stop(Vec<AttemptId>, StopSignal),
    /// The user ended the run: everything is being stopped.
    RunEnds,
    /// Everything is ended; then who asked is told.
    ShutDown(oneshot::Sender<()>),
    /// An attempt that this run's engine before had submitted.
    Adopt(StepName, AttemptId),
    /// The engine lost the run: nothing is touched any more.
    LetGo(oneshot::Sender<()>),
}

/// Tasks that run elsewhere, and go on when the engine dies.
pub struct RemoteLayer {
    name: &'static str,
    commands: UnboundedSender<Command>,
    events: Arc<dyn EventSink>,
}

impl RemoteLayer {
    /// The handle, and what its supervisor takes commands from.
    pub(crate) fn new(name: &'static str, events: Arc<dyn EventSink>) -> (Self, UnboundedReceiver<Command>) {
        let (commands, inbox) = unbounded_channel();
        (Self { name, commands, events }, inbox)
    }

    /// Sends a command that is answered; an error means that an earlier one has ended the layer.
    async fn ask(&self, command: impl FnOnce(oneshot::Sender<()>) -> Command) {
        let (done, wait) = oneshot::channel();
        if self.commands.send(command(done)).is_ok() {
            let _ended = wait.await;
        }
    }
}

/// Refuses an attempt that came after the layer's end had begun.
pub(crate) fn refuse(events: &dyn EventSink, id: AttemptId) {
    let cause = Cause::new(CauseKind::Cancelled, "the run was ending already");
    events.send(LayerEvent::Lost { id, cause });
}

/// Refuses what was commanded and not looked at before the layer's end.
pub(crate) fn refuse_rest(mut commands: UnboundedReceiver<Command>, events: &dyn EventSink) {
    commands.close();
    while let Ok(command) = commands.try_recv() {
        if let Command::Submit(launch) = command {
            refuse(events, launch.id);
        }
    }
}

impl ComputeLayer for RemoteLayer {
    fn name(&self) -> &'static str {
        self.name
    }

    fn submit(&self, launch: TaskLaunch) {
        let id = launch.id;
        if self.commands.send(Command::Submit(Box::new(launch))).is_err() {
            refuse(&*self.events, id);
        }
    }

    fn stop(&self, attempts: &[AttemptId], signal: StopSignal) {
        let _over = self.commands.send(Command::Stop(attempts.to_vec(), signal));
    }

    fn run_ends(&self) {
        let _over = self.commands.send(Command::RunEnds);
    }

    fn shut_down(&self) -> Later<'_, ()> {
        Box::pin(self.ask(Command::ShutDown))
    }

    fn outlives_engine(&self, _launch: &TaskLaunch) -> bool {
        true
    }

    fn adopt(&self, adoption: Adoption) -> bool {
        self.commands.send(Command::Adopt(adoption.step, adoption.attempt)).is_ok()
    }

    fn let_go(&self) -> Later<'_, ()> {
        Box::pin(self.ask(Command::LetGo))
    }

    fn capacity(&self) -> usize {
        // The cluster's queue is the place to wait in, not ours.
        usize::MAX
    }
}
