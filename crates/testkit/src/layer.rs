//! A compute layer without processes: it records what it was asked, and says what it is told to
//! say, or (with `answering`) finishes every task at once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use ferroflow_core::id::AttemptId;
use ferroflow_core::port::{Adoption, ComputeLayer, EventSink, Later, LayerEvent, StopSignal};
use ferroflow_core::task::{AttemptReport, Cause, CauseKind, TaskLaunch};

/// Says what becomes of an attempt; `None` leaves it running.
pub type Answer = Box<dyn Fn(&TaskLaunch) -> Option<AttemptReport> + Send + Sync>;

/// The recording layer. A stopped attempt ends as `report` says for the signal.
pub struct RecordingLayer {
    sink: Arc<dyn EventSink>,
    answer: Option<Answer>,
    capacity: usize,
    outlives: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    submitted: Vec<TaskLaunch>,
    stops: Vec<(Vec<AttemptId>, StopSignal)>,
    out: BTreeMap<AttemptId, bool>,
    adopted: Vec<Adoption>,
    is_shut_down: bool,
    has_let_go: bool,
}

impl RecordingLayer {
    /// Tasks run until the test says what became of them.
    pub fn new(sink: Arc<dyn EventSink>) -> Self {
        Self { sink, answer: None, capacity: 2, outlives: false, state: Mutex::default() }
    }

    /// The same; its tasks go on when the engine dies, and can be adopted, as on a cluster.
    pub fn outliving(self) -> Self {
        Self { outlives: true, ..self }
    }

    /// Tasks start and finish as `answer` says, within `submit`.
    pub fn answering(sink: Arc<dyn EventSink>, answer: Answer) -> Self {
        Self { answer: Some(answer), ..Self::new(sink) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test thread panicked while it held the lock")
    }

    /// Every submission so far, in order.
    pub fn submitted(&self) -> Vec<TaskLaunch> {
        self.state().submitted.clone()
    }

    /// Every stop so far, in order.
    pub fn stops(&self) -> Vec<(Vec<AttemptId>, StopSignal)> {
        self.state().stops.clone()
    }

    /// Attempts that are out.
    pub fn running(&self) -> Vec<AttemptId> {
        self.state().out.keys().copied().collect()
    }

    pub fn is_shut_down(&self) -> bool {
        self.state().is_shut_down
    }

    /// Whether it was ended for an engine that lost its run.
    pub fn has_let_go(&self) -> bool {
        self.state().has_let_go
    }

    /// Every adoption so far, in order.
    pub fn adopted(&self) -> Vec<Adoption> {
        self.state().adopted.clone()
    }

    pub fn start(&self, id: AttemptId, pid: u32) {
        self.state().out.insert(id, true);
        self.sink.send(LayerEvent::Started { id, pid: Some(pid) });
    }

    /// Ends an attempt, once.
    pub fn finish(&self, id: AttemptId, report: AttemptReport) {
        if self.state().out.remove(&id).is_some() {
            self.sink.send(LayerEvent::Finished { id, report });
        }
    }

    pub fn lose(&self, id: AttemptId, cause: Cause) {
        if self.state().out.remove(&id).is_some() {
            self.sink.send(LayerEvent::Lost { id, cause });
        }
    }

    /// Sends any other event.
    pub fn say(&self, event: LayerEvent) {
        self.sink.send(event);
    }
}

impl ComputeLayer for RecordingLayer {
    fn name(&self) -> &'static str {
        "recording"
    }

    fn submit(&self, launch: TaskLaunch) {
        let id = launch.id;
        {
            let mut state = self.state();
            assert!(state.out.insert(id, false).is_none(), "attempt {id} was submitted twice");
            state.submitted.push(launch.clone());
        }
        if let Some(answer) = &self.answer {
            self.start(id, 1000 + id.task.0 as u32);
            if let Some(report) = answer(&launch) {
                self.finish(id, report);
            }
        }
    }

    fn stop(&self, attempts: &[AttemptId], signal: StopSignal) {
        self.state().stops.push((attempts.to_vec(), signal));
        let number = match signal {
            StopSignal::Terminate => 15,
            StopSignal::Kill => 9,
        };
        for id in attempts {
            let started = self.state().out.get(id).copied();
            match started {
                Some(true) => self.finish(*id, crate::world::killed(number)),
                Some(false) => {
                    let text = "it was stopped before it started";
                    self.lose(*id, Cause::new(CauseKind::Cancelled, text));
                }
                None => {}
            }
        }
    }

    fn shut_down(&self) -> Later<'_, ()> {
        self.stop(&self.running(), StopSignal::Kill);
        self.state().is_shut_down = true;
        Box::pin(async {})
    }

    fn outlives_engine(&self, _launch: &TaskLaunch) -> bool {
        self.outlives
    }

    /// Its events come under the attempt's own id, as of a layer that was made for the other run.
    fn adopt(&self, adoption: Adoption) -> bool {
        if self.outlives {
            let mut state = self.state();
            state.out.insert(adoption.attempt, false);
            state.adopted.push(adoption);
        }
        self.outlives
    }

    fn let_go(&self) -> Later<'_, ()> {
        self.state().has_let_go = true;
        Box::pin(async {})
    }

    fn capacity(&self) -> usize {
        self.capacity
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::{settings, succeeded};
    use ferroflow_core::run::{Action, Run};

    #[derive(Default)]
    struct Heard(Mutex<Vec<LayerEvent>>);

    impl EventSink for Heard {
        fn send(&self, event: LayerEvent) {
            self.0.lock().expect("not poisoned").push(event);
        }
    }

    fn launch() -> TaskLaunch {
        let graph = crate::samples::graph(crate::samples::two_steps());
        let mut run = Run::new(graph, settings(1), None).expect("nothing to resume");
        let submit = |action| match action {
            Action::Submit(launch) => Some(*launch),
            _ => None,
        };
        run.start(0).into_iter().find_map(submit).expect("the start step is submitted")
    }

    #[test]
    fn it_ends_every_attempt_once() {
        let heard = Arc::new(Heard::default());
        let layer = RecordingLayer::new(heard.clone());
        let launch = launch();
        let id = launch.id;
        layer.submit(launch);
        layer.start(id, 7);
        layer.stop(&[id], StopSignal::Terminate);
        layer.finish(id, succeeded(&[]));
        layer.stop(&[id], StopSignal::Kill);
        assert_eq!(
            *heard.0.lock().expect("not poisoned"),
            [LayerEvent::Started { id, pid: Some(7) }, LayerEvent::Finished { id, report: crate::world::killed(15) },]
        );
        assert_eq!(layer.stops().len(), 2);
    }

    #[test]
    fn an_attempt_stopped_before_its_start_is_lost() {
        let heard = Arc::new(Heard::default());
        let layer = RecordingLayer::new(heard.clone());
        let launch = launch();
        layer.submit(launch.clone());
        layer.stop(&[launch.id], StopSignal::Terminate);
        let heard = heard.0.lock().expect("not poisoned");
        assert!(matches!(&heard[..], [LayerEvent::Lost { cause, .. }] if cause.kind == CauseKind::Cancelled));
        assert!(layer.running().is_empty());
    }
}
