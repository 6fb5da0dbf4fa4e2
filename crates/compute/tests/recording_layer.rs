//! The testkit's recording layer passes the suite that real layers pass, so that what is tested
//! against it holds for them. Here it gets the suite's behaviours.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use ferroflow_compute::conformance::{Behaviour, LOUD_LINES, run_suite};
use ferroflow_core::id::AttemptId;
use ferroflow_core::port::{ComputeLayer, EventSink, Later, LayerEvent, StopSignal, Stream};
use ferroflow_core::task::{AttemptReport, Cause, CauseKind, ProcessExit, TaskLaunch, TaskOutcome, Usage};
use ferroflow_testkit::layer::RecordingLayer;

fn ended(exit: ProcessExit, ok: Option<bool>) -> Option<AttemptReport> {
    let outcome = ok.map(|ok| TaskOutcome { ok, success: ok, ..TaskOutcome::default() });
    Some(AttemptReport { outcome, exit, usage: Usage::default(), cause: None })
}

fn log(sink: &dyn EventSink, id: AttemptId, stream: Stream, lines: impl Iterator<Item = String>) {
    sink.send(LayerEvent::Log { id, stream, at: 0, lines: lines.map(String::into_bytes).collect() });
}

fn behave(sink: &dyn EventSink, launch: &TaskLaunch) -> Option<AttemptReport> {
    let id = launch.id;
    let behaviour = Behaviour::ALL.into_iter().find(|kind| kind.step() == launch.spec.step.as_str());
    match behaviour.expect("a step of the suite") {
        Behaviour::Quick => {
            log(sink, id, Stream::Stdout, std::iter::once(format!("out {}", id.task)));
            log(sink, id, Stream::Stderr, std::iter::once(format!("err {}", id.task)));
            ended(ProcessExit::Code(0), Some(true))
        }
        Behaviour::Loud => {
            log(sink, id, Stream::Stdout, (0..LOUD_LINES).map(|number| format!("out {number}")));
            log(sink, id, Stream::Stderr, (0..LOUD_LINES).map(|number| format!("err {number}")));
            ended(ProcessExit::Code(0), Some(true))
        }
        Behaviour::Fails => ended(ProcessExit::Code(1), Some(false)),
        Behaviour::Dies => ended(ProcessExit::Code(3), None),
        Behaviour::Sleeps | Behaviour::Stubborn => {
            log(sink, id, Stream::Stdout, std::iter::once("asleep".to_owned()));
            None
        }
    }
}

/// The fake ends every task that is stopped and takes tasks after its end; what a stubborn task
/// and a layer that has ended do is added here.
struct Behaving {
    fake: RecordingLayer,
    sink: Arc<dyn EventSink>,
    stubborn: Mutex<HashSet<AttemptId>>,
}

impl ComputeLayer for Behaving {
    fn name(&self) -> &'static str {
        self.fake.name()
    }

    fn submit(&self, launch: TaskLaunch) {
        let id = launch.id;
        if self.fake.is_shut_down() {
            self.sink.send(LayerEvent::Lost { id, cause: Cause::new(CauseKind::LayerError, "it has ended") });
            return;
        }
        if launch.spec.step.as_str() == Behaviour::Stubborn.step() {
            self.stubborn.lock().expect("no panic").insert(id);
        }
        self.fake.submit(launch);
    }

    fn stop(&self, attempts: &[AttemptId], signal: StopSignal) {
        let stubborn = self.stubborn.lock().expect("no panic");
        let heeded = |id: &&AttemptId| signal == StopSignal::Kill || !stubborn.contains(id);
        let attempts: Vec<AttemptId> = attempts.iter().filter(heeded).copied().collect();
        self.fake.stop(&attempts, signal);
    }

    fn shut_down(&self) -> Later<'_, ()> {
        self.fake.shut_down()
    }

    fn capacity(&self) -> usize {
        self.fake.capacity()
    }
}

#[tokio::test]
async fn the_recording_layer_passes_the_suite() {
    run_suite(|sink| async move {
        let says = sink.clone();
        let fake = RecordingLayer::answering(sink.clone(), Box::new(move |launch| behave(&*says, launch)));
        let layer: Arc<dyn ComputeLayer> = Arc::new(Behaving { fake, sink, stubborn: Mutex::default() });
        layer
    })
    .await;
}
