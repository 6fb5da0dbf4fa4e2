//! The suite itself: a layer in memory that does everything right passes, and each kind of fault
//! is found.

use std::collections::{HashMap, HashSet};

use ferroflow_core::port::Later;
use ferroflow_core::task::{TaskOutcome, Usage};

use super::*;

/// What the layer in memory does wrong.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    EndsTwice,
    LogsBeforeStart,
    ForgetsOnShutDown,
    MixesLines,
    AnswersUnknownStops,
    KillsOnTerminate,
}

struct InMemory {
    events: Arc<dyn EventSink>,
    fault: Fault,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    asleep: HashMap<AttemptId, Behaviour>,
    over: bool,
    seen: HashSet<AttemptId>,
}

impl InMemory {
    fn log(&self, id: AttemptId, stream: Stream, lines: Vec<String>) {
        let lines = lines.into_iter().map(String::into_bytes).collect();
        self.events.send(LayerEvent::Log { id, stream, at: 0, lines });
    }

    fn end(&self, id: AttemptId, exit: ProcessExit, outcome: Option<TaskOutcome>) {
        let report = AttemptReport { outcome, exit, usage: Usage::default(), cause: None };
        self.events.send(LayerEvent::Finished { id, report: report.clone() });
        if self.fault == Fault::EndsTwice {
            self.events.send(LayerEvent::Finished { id, report });
        }
    }

    fn run(&self, id: AttemptId, behaviour: Behaviour, state: &mut State) {
        let outcome = |ok| Some(TaskOutcome { ok, success: ok, ..TaskOutcome::default() });
        let numbers: Vec<usize> =
            if self.fault == Fault::MixesLines { (0..LOUD_LINES).rev().collect() } else { (0..LOUD_LINES).collect() };
        match behaviour {
            Behaviour::Quick => {
                self.log(id, Stream::Stdout, vec![format!("out {}", id.task)]);
                self.log(id, Stream::Stderr, vec![format!("err {}", id.task)]);
                self.end(id, ProcessExit::Code(0), outcome(true));
            }
            Behaviour::Loud => {
                self.log(id, Stream::Stdout, numbers.iter().map(|number| format!("out {number}")).collect());
                self.log(id, Stream::Stderr, numbers.iter().map(|number| format!("err {number}")).collect());
                self.end(id, ProcessExit::Code(0), outcome(true));
            }
            Behaviour::Fails => self.end(id, ProcessExit::Code(1), outcome(false)),
            Behaviour::Dies => self.end(id, ProcessExit::Code(3), None),
            Behaviour::Sleeps | Behaviour::Stubborn => {
                state.asleep.insert(id, behaviour);
                self.log(id, Stream::Stdout, vec!["asleep".to_owned()]);
            }
        }
    }
}

impl ComputeLayer for InMemory {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn submit(&self, launch: TaskLaunch) {
        let (id, mut state) = (launch.id, self.state.lock().expect("no panic"));
        if state.over {
            self.events.send(LayerEvent::Lost { id, cause: Cause::new(CauseKind::LayerError, "over") });
            return;
        }
        state.seen.insert(id);
        let behaviour = Behaviour::ALL.into_iter().find(|kind| kind.step() == launch.spec.step.as_str());
        if self.fault == Fault::LogsBeforeStart {
            self.log(id, Stream::Stdout, Vec::new());
        }
        self.events.send(LayerEvent::Started { id, pid: None });
        self.run(id, behaviour.expect("a step of the suite"), &mut state);
    }

    fn stop(&self, attempts: &[AttemptId], signal: StopSignal) {
        let mut state = self.state.lock().expect("no panic");
        for id in attempts {
            let stubborn = state.asleep.get(id) == Some(&Behaviour::Stubborn) && self.fault != Fault::KillsOnTerminate;
            if signal == StopSignal::Terminate && stubborn {
                continue;
            }
            let unknown = !state.seen.contains(id) && self.fault == Fault::AnswersUnknownStops;
            if state.asleep.remove(id).is_some() || unknown {
                self.end(*id, ProcessExit::Signal(if signal == StopSignal::Kill { 9 } else { 15 }), None);
            }
        }
    }

    fn shut_down(&self) -> Later<'_, ()> {
        Box::pin(async {
            let mut state = self.state.lock().expect("no panic");
            state.over = true;
            for (id, _behaviour) in state.asleep.drain() {
                if self.fault != Fault::ForgetsOnShutDown {
                    self.events.send(LayerEvent::Lost { id, cause: Cause::new(CauseKind::Cancelled, "over") });
                }
            }
        })
    }

    fn capacity(&self) -> usize {
        1
    }
}

async fn suite_with(fault: Fault) {
    run_suite(|events| async move {
        let layer: Arc<dyn ComputeLayer> = Arc::new(InMemory { events, fault, state: Mutex::default() });
        layer
    })
    .await;
}

#[tokio::test]
async fn a_layer_that_does_everything_right_passes() {
    suite_with(Fault::None).await;
}

async fn fault_is_found(fault: Fault, words: &str) {
    let error = tokio::spawn(suite_with(fault)).await.expect_err("the suite must find the fault").into_panic();
    let text = error.downcast_ref::<String>().map(String::as_str).or(error.downcast_ref::<&str>().copied());
    assert!(text.is_some_and(|text| text.contains(words)), "{text:?}");
}

#[tokio::test]
async fn every_kind_of_fault_is_found() {
    fault_is_found(Fault::EndsTwice, "in stage Ended came Finished").await;
    fault_is_found(Fault::LogsBeforeStart, "in stage Before came Log").await;
    fault_is_found(Fault::ForgetsOnShutDown, "never ended").await;
    fault_is_found(Fault::MixesLines, "not in order").await;
    fault_is_found(Fault::AnswersUnknownStops, "never submitted").await;
    fault_is_found(Fault::KillsOnTerminate, "a task that ignores SIGTERM runs on").await;
}
