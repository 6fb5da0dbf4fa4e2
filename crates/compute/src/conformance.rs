//! What every compute layer must do, as a suite that each layer's tests run against it, fakes
//! included. It knows nothing of any layer: tasks are told apart by the name of their step, and a
//! layer's tests see to it that a step of that name behaves as `Behaviour` says.
//! `docs/contributing/add-a-compute-layer.md` tells how to use it.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ferroflow_core::id::{AttemptId, RunId, StepName, TaskId};
use ferroflow_core::port::{ComputeLayer, EventSink, LayerEvent, StopSignal, Stream};
use ferroflow_core::task::{
    AttemptReport, Cause, CauseKind, InputRef, ProcessExit, StoreLocation, TaskLaunch, TaskSpec,
};
use rustix::process::getpid;
use tokio::sync::Notify;

use crate::processes::descendants;

/// How long anything in the suite may take. Generous: a layer may start containers.
const DEADLINE: Duration = Duration::from_secs(60);
/// Lines a loud task prints on each stream.
pub const LOUD_LINES: usize = 10_000;

/// What a task does; its step is named after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Behaviour {
    /// Prints `out <task>` to stdout and `err <task>` to stderr, reports success, exits with 0.
    Quick,
    /// Prints `out 0` … `out 9999` to stdout and `err 0` … to stderr, reports success, exits with 0.
    Loud,
    /// Reports an outcome that is not `ok`, exits with 1.
    Fails,
    /// Exits with 3 without reporting anything.
    Dies,
    /// Prints `asleep`, then sleeps for ten minutes; SIGTERM ends it.
    Sleeps,
    /// Ignores SIGTERM, then prints `asleep` and sleeps for ten minutes.
    Stubborn,
}

impl Behaviour {
    pub const ALL: [Self; 6] = [Self::Quick, Self::Loud, Self::Fails, Self::Dies, Self::Sleeps, Self::Stubborn];

    /// The step whose tasks behave so.
    pub fn step(self) -> &'static str {
        match self {
            Self::Quick => "quick",
            Self::Loud => "loud",
            Self::Fails => "fails",
            Self::Dies => "dies",
            Self::Sleeps => "sleeps",
            Self::Stubborn => "stubborn",
        }
    }
}

/// A launch of a task of `step`, as the suite submits it.
pub fn launch(task: u64, step: &str) -> TaskLaunch {
    let run = RunId::from("1");
    let parameters =
        InputRef { run: run.clone(), step: StepName::from("_parameters"), tasks: vec![(TaskId(0), TaskId(0), 0)] };
    let spec = TaskSpec {
        flow: "ConformanceFlow".to_owned(),
        run,
        step: StepName::from(step),
        task: TaskId(task),
        attempt: 0,
        max_user_code_retries: 0,
        fallback: false,
        previous_failure: None,
        join: false,
        inputs: vec![parameters.clone()],
        parameters,
        foreach_stack: Vec::new(),
        origin_run: None,
        store: StoreLocation { kind: "local".to_owned(), root: "/nowhere".to_owned(), options: Default::default() },
        decorators: Vec::new(),
        user: "tester".to_owned(),
        identity: "user:tester".to_owned(),
        namespace: None,
        tags: Vec::new(),
        expected_inputs: None,
        max_num_splits: 100,
        gang: None,
    };
    TaskLaunch { id: attempt(task), spec, has_imports: false, time_limit: None }
}

/// First attempt at a task.
pub fn attempt(task: u64) -> AttemptId {
    AttemptId { task: TaskId(task), attempt: 0 }
}

/// A sink that keeps every event.
#[derive(Default)]
pub struct Recorder {
    events: Mutex<Vec<LayerEvent>>,
    metadata: Mutex<Vec<(AttemptId, String, String)>>,
    news: Notify,
}

impl EventSink for Recorder {
    fn send(&self, event: LayerEvent) {
        self.kept().push(event);
        self.news.notify_waiters();
    }

    fn metadata(&self, id: AttemptId, name: String, value: String) {
        self.metadata.lock().unwrap_or_else(PoisonError::into_inner).push((id, name, value));
    }
}

impl Recorder {
    fn kept(&self) -> MutexGuard<'_, Vec<LayerEvent>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All events so far.
    pub fn events(&self) -> Vec<LayerEvent> {
        self.kept().clone()
    }

    /// All metadata entries so far.
    pub fn metadata_entries(&self) -> Vec<(AttemptId, String, String)> {
        self.metadata.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until `wanted` holds of the events so far; panics with them if it does not in time.
    pub async fn wait_for(&self, what: &str, wanted: impl Fn(&[LayerEvent]) -> bool) {
        let until = tokio::time::Instant::now() + DEADLINE;
        loop {
            // Registered before the look, so that no event slips in between.
            let mut news = std::pin::pin!(self.news.notified());
            news.as_mut().enable();
            if wanted(&self.kept()) {
                return;
            }
            if tokio::time::timeout_at(until, news).await.is_err() {
                panic!("waited {DEADLINE:?} for {what}; events: {:#?}", last_of(&self.kept()));
            }
        }
    }

    /// Waits until an attempt is `Finished` or `Lost`.
    pub async fn wait_for_end(&self, id: AttemptId) -> End {
        self.wait_for(&format!("the end of {id}"), |events| ends_of(events, id).next().is_some()).await;
        ends_of(&self.kept(), id).next().expect("it was there just now")
    }

    /// Lines of one stream so far, as text.
    pub fn lines(&self, id: AttemptId, stream: Stream) -> Vec<String> {
        lines_of(&self.kept(), id, stream)
    }

    /// Waits for a line on stdout.
    pub async fn wait_for_line(&self, id: AttemptId, line: &str) {
        self.wait_for(&format!("the line `{line}` of {id}"), |events| {
            lines_of(events, id, Stream::Stdout).iter().any(|seen| seen == line)
        })
        .await;
    }
}

fn last_of(events: &[LayerEvent]) -> &[LayerEvent] {
    &events[events.len().saturating_sub(40)..]
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    Finished(AttemptReport),
    Lost(Cause),
}

impl End {
    /// The report of an attempt that must have finished.
    pub fn report(self) -> AttemptReport {
        match self {
            Self::Finished(report) => report,
            Self::Lost(cause) => panic!("the attempt was lost: {}", cause.text),
        }
    }

    /// The cause of an attempt that must have been lost.
    pub fn cause(self) -> Cause {
        match self {
            Self::Lost(cause) => cause,
            Self::Finished(report) => panic!("the attempt finished: {report:?}"),
        }
    }
}

fn ends_of(events: &[LayerEvent], id: AttemptId) -> impl Iterator<Item = End> {
    events.iter().filter_map(move |event| match event {
        LayerEvent::Finished { id: of, report } if *of == id => Some(End::Finished(report.clone())),
        LayerEvent::Lost { id: of, cause } if *of == id => Some(End::Lost(cause.clone())),
        _ => None,
    })
}

fn lines_of(events: &[LayerEvent], id: AttemptId, stream: Stream) -> Vec<String> {
    let logs = events.iter().filter_map(|event| match event {
        LayerEvent::Log { id: of, stream: from, lines, .. } if *of == id && *from == stream => Some(lines),
        _ => None,
    });
    logs.flatten().map(|line| String::from_utf8_lossy(line).into_owned()).collect()
}

fn id_of(event: &LayerEvent) -> Option<AttemptId> {
    match event {
        LayerEvent::Waiting { id, .. }
        | LayerEvent::Starting { id, .. }
        | LayerEvent::Started { id, .. }
        | LayerEvent::Log { id, .. }
        | LayerEvent::Finished { id, .. }
        | LayerEvent::Lost { id, .. } => Some(*id),
        LayerEvent::Notice { .. } | LayerEvent::Down { .. } => None,
    }
}

/// Where an attempt stands; events only ever lead forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Before,
    Started,
    Ended,
}

/// Panics unless every submitted attempt ended exactly once and its events came in order.
pub fn check_order(events: &[LayerEvent], submitted: &[AttemptId]) {
    for event in events {
        if let Some(id) = id_of(event) {
            assert!(submitted.contains(&id), "an event for {id}, which was never submitted: {event:?}");
        }
    }
    for id in submitted {
        let mut stage = Stage::Before;
        for event in events.iter().filter(|event| id_of(event) == Some(*id)) {
            stage = next_stage(stage, event);
        }
        assert_eq!(stage, Stage::Ended, "{id} never ended");
    }
}

fn next_stage(stage: Stage, event: &LayerEvent) -> Stage {
    let (allowed, next) = match event {
        LayerEvent::Waiting { .. } | LayerEvent::Starting { .. } => (stage == Stage::Before, Stage::Before),
        LayerEvent::Started { .. } => (stage == Stage::Before, Stage::Started),
        // Also after the end: of processes the task left behind.
        LayerEvent::Log { .. } => (stage != Stage::Before, stage),
        LayerEvent::Finished { .. } => (stage == Stage::Started, Stage::Ended),
        LayerEvent::Lost { .. } => (stage != Stage::Ended, Stage::Ended),
        LayerEvent::Notice { .. } | LayerEvent::Down { .. } => (true, stage),
    };
    assert!(allowed, "in stage {stage:?} came {event:?}");
    next
}

/// A layer under test with what was submitted to it.
struct Bench {
    layer: Arc<dyn ComputeLayer>,
    recorder: Arc<Recorder>,
    submitted: Vec<AttemptId>,
}

impl Bench {
    fn submit(&mut self, behaviour: Behaviour) -> AttemptId {
        let task = self.submitted.len() as u64 + 1;
        let launch = launch(task, behaviour.step());
        self.submitted.push(launch.id);
        self.layer.submit(launch);
        attempt(task)
    }

    async fn finish(self) {
        self.layer.shut_down().await;
        check_order(&self.recorder.events(), &self.submitted);
        check_nothing_runs(&self.recorder.events());
    }
}

/// Processes the layer told of must be gone. Only our own family is looked at: the number of a
/// process that ended, or that a fake made up, may be a stranger's.
fn check_nothing_runs(events: &[LayerEvent]) {
    let family = descendants(getpid());
    for event in events {
        if let LayerEvent::Started { id, pid: Some(pid) } = event {
            let alive = family.iter().find(|process| process.pid.as_raw_pid() as u32 == *pid && !process.ended);
            assert_eq!(alive, None, "a process of {id} is alive after `shut_down`");
        }
    }
}

/// Runs every check, each with a layer of its own from `make`. Panics at the first fault.
pub async fn run_suite<Made>(make: impl Fn(Arc<dyn EventSink>) -> Made)
where
    Made: Future<Output = Arc<dyn ComputeLayer>>,
{
    let bench = async || {
        let recorder = Arc::new(Recorder::default());
        let layer = make(recorder.clone()).await;
        assert!(!layer.name().is_empty() && layer.capacity() > 0);
        Bench { layer, recorder, submitted: Vec::new() }
    };
    each_end_is_told(bench().await).await;
    lines_keep_their_order(bench().await).await;
    many_tasks_each_end_once(bench().await).await;
    stopping_ends_tasks(bench().await).await;
    stopping_what_does_not_run_is_ignored(bench().await).await;
    stopping_at_once_still_ends_once(bench().await).await;
    shutting_down_leaves_nothing(bench().await).await;
}

async fn each_end_is_told(mut bench: Bench) {
    let [quick, fails, dies] = [Behaviour::Quick, Behaviour::Fails, Behaviour::Dies].map(|kind| bench.submit(kind));
    let report = bench.recorder.wait_for_end(quick).await.report();
    assert_eq!(report.exit, ProcessExit::Code(0));
    assert!(report.outcome.is_some_and(|outcome| outcome.ok && outcome.success), "a quick task succeeds");
    assert_eq!(bench.recorder.lines(quick, Stream::Stdout), [format!("out {}", quick.task)]);
    assert_eq!(bench.recorder.lines(quick, Stream::Stderr), [format!("err {}", quick.task)]);
    let report = bench.recorder.wait_for_end(fails).await.report();
    assert_eq!(report.exit, ProcessExit::Code(1));
    assert!(report.outcome.is_some_and(|outcome| !outcome.ok), "a failing task reports that it failed");
    let report = bench.recorder.wait_for_end(dies).await.report();
    assert_eq!((report.exit, report.outcome), (ProcessExit::Code(3), None));
    bench.finish().await;
}

async fn lines_keep_their_order(mut bench: Bench) {
    let id = bench.submit(Behaviour::Loud);
    bench.recorder.wait_for_end(id).await.report();
    for (stream, word) in [(Stream::Stdout, "out"), (Stream::Stderr, "err")] {
        let wanted: Vec<String> = (0..LOUD_LINES).map(|number| format!("{word} {number}")).collect();
        let seen = bench.recorder.lines(id, stream);
        assert!(seen == wanted, "{stream:?}: {} of {} lines, or not in order", seen.len(), wanted.len());
    }
    bench.finish().await;
}

async fn many_tasks_each_end_once(mut bench: Bench) {
    for _ in 0..50 {
        bench.submit(Behaviour::Quick);
    }
    for id in bench.submitted.clone() {
        bench.recorder.wait_for_end(id).await.report();
        assert_eq!(bench.recorder.lines(id, Stream::Stdout), [format!("out {}", id.task)]);
    }
    bench.finish().await;
}

async fn stopping_ends_tasks(mut bench: Bench) {
    let (sleeps, stubborn) = (bench.submit(Behaviour::Sleeps), bench.submit(Behaviour::Stubborn));
    bench.recorder.wait_for_line(sleeps, "asleep").await;
    bench.recorder.wait_for_line(stubborn, "asleep").await;
    bench.layer.stop(&[sleeps, stubborn], StopSignal::Terminate);
    let report = bench.recorder.wait_for_end(sleeps).await.report();
    assert_ne!(report.exit, ProcessExit::Code(0));
    assert_eq!(report.outcome, None);
    let early = ends_of(&bench.recorder.events(), stubborn).next();
    assert_eq!(early, None, "a task that ignores SIGTERM runs on");
    bench.layer.stop(&[stubborn], StopSignal::Kill);
    let report = bench.recorder.wait_for_end(stubborn).await.report();
    assert_ne!(report.exit, ProcessExit::Code(0));
    bench.finish().await;
}

async fn stopping_what_does_not_run_is_ignored(mut bench: Bench) {
    let quick = bench.submit(Behaviour::Quick);
    bench.recorder.wait_for_end(quick).await.report();
    let unknown = AttemptId { task: TaskId(999), attempt: 7 };
    bench.layer.stop(&[quick, unknown], StopSignal::Kill);
    let after = bench.submit(Behaviour::Quick);
    bench.recorder.wait_for_end(after).await.report();
    bench.finish().await;
}

async fn stopping_at_once_still_ends_once(mut bench: Bench) {
    let mut all = Vec::new();
    for _ in 0..10 {
        let id = bench.submit(Behaviour::Sleeps);
        bench.layer.stop(&[id], StopSignal::Kill);
        all.push(id);
    }
    for id in all {
        if let End::Lost(cause) = bench.recorder.wait_for_end(id).await {
            assert_eq!(cause.kind, CauseKind::Cancelled, "{}", cause.text);
        }
    }
    bench.finish().await;
}

async fn shutting_down_leaves_nothing(mut bench: Bench) {
    let (sleeps, stubborn) = (bench.submit(Behaviour::Sleeps), bench.submit(Behaviour::Stubborn));
    bench.recorder.wait_for_line(sleeps, "asleep").await;
    bench.recorder.wait_for_line(stubborn, "asleep").await;
    bench.submit(Behaviour::Sleeps);
    bench.layer.shut_down().await;
    let told = bench.recorder.events().len();
    check_order(&bench.recorder.events(), &bench.submitted);
    bench.layer.shut_down().await;
    assert_eq!(bench.recorder.events().len(), told, "nothing is told after `shut_down`");
    let late = bench.submit(Behaviour::Quick);
    bench.recorder.wait_for_end(late).await.cause();
    bench.finish().await;
}

#[cfg(test)]
mod tests;
