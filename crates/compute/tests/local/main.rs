//! The local layer against real processes: a front end by script (`tests/data/front_end.py`) whose
//! tasks behave, and misbehave, as the names of their steps say.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ferroflow_compute::conformance::{Recorder, attempt, check_order, launch, run_suite};
use ferroflow_compute::local::{FrontEnd, LocalLayer, LocalSettings, Timings};
use ferroflow_compute::processes::descendants;
use ferroflow_compute::resources::MemoryGauge;
use ferroflow_core::id::{AttemptId, StepName};
use ferroflow_core::port::{ComputeLayer, EventSink, Later, LayerEvent, StopSignal, Stream};
use ferroflow_core::task::{CauseKind, ProcessExit, TaskDecorator, TaskLaunch};
use rustix::process::{Pid, Signal, getpid, kill_process};

/// A layer kills every descendant of its process: no two tests may run at the same time.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

// The layer waits for its front end, as an engine that was executed in its parent's place does.
#[expect(clippy::zombie_processes)]
async fn start_front_end() -> FrontEnd {
    let (engine_end, front_end_end) = UnixStream::pair().expect("a socket pair");
    Command::new("python3")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/front_end.py"))
        .stdin(Stdio::from(OwnedFd::from(front_end_end)))
        .spawn()
        .expect("python3 is needed for these tests");
    FrontEnd::connect(engine_end.into()).await.expect("the script says hello").0
}

#[derive(Default)]
struct Options {
    learn_imports: bool,
    spawn: bool,
    /// `@environment` of every step used.
    environment: BTreeMap<String, String>,
    timings: Timings,
    gauge: Option<MemoryGauge>,
}

struct Bench {
    front_end: FrontEnd,
    layer: LocalLayer,
    recorder: Arc<Recorder>,
    submitted: Vec<AttemptId>,
}

impl Bench {
    async fn new() -> Self {
        Self::with(Options::default()).await
    }

    async fn with(options: Options) -> Self {
        let recorder = Arc::new(Recorder::default());
        let (front_end, layer) = start_layer(options, recorder.clone()).await;
        Self { front_end, layer, recorder, submitted: Vec::new() }
    }

    fn submit_launch(&mut self, launch: TaskLaunch) -> AttemptId {
        let id = launch.id;
        self.submitted.push(id);
        self.layer.submit(launch);
        id
    }

    fn submit(&mut self, step: &str) -> AttemptId {
        self.submit_launch(launch(self.submitted.len() as u64 + 1, step))
    }

    fn submit_importing(&mut self, step: &str) -> AttemptId {
        let plain = launch(self.submitted.len() as u64 + 1, step);
        self.submit_launch(TaskLaunch { has_imports: true, ..plain })
    }

    fn lines(&self, id: AttemptId) -> Vec<String> {
        self.recorder.lines(id, Stream::Stdout)
    }

    fn notices(&self) -> Vec<String> {
        let events = self.recorder.events().into_iter();
        events.filter_map(|event| if let LayerEvent::Notice { text } = event { Some(text) } else { None }).collect()
    }

    async fn finish(&self) {
        self.layer.shut_down().await;
        check_order(&self.recorder.events(), &self.submitted);
        let left = descendants(getpid());
        assert!(left.is_empty(), "alive or unreaped after the end: {left:?}");
    }
}

async fn start_layer(options: Options, events: Arc<dyn EventSink>) -> (FrontEnd, LocalLayer) {
    let steps = ["imports", "explodes", "stillborn", "takes_zygote_along", "quick"];
    let environments: HashMap<_, _> =
        steps.iter().map(|step| (StepName::from(*step), options.environment.clone())).collect();
    let settings = LocalSettings { spawn: options.spawn, learn_imports: options.learn_imports, environments };
    let front_end = start_front_end().await;
    let gauge = options.gauge.unwrap_or_else(MemoryGauge::discover);
    let layer = LocalLayer::with(front_end.clone(), settings, events, options.timings, gauge);
    (front_end, layer)
}

/// Runs a test alone and in the engine's kind of runtime.
fn alone(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let _alone = ALONE.lock().await;
        test.await;
    });
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("our own descriptors").count()
}

#[test]
fn the_local_layer_passes_the_suite() {
    alone(run_suite(|events| async move {
        let layer: Arc<dyn ComputeLayer> = Arc::new(start_layer(Options::default(), events).await.1);
        layer
    }));
}

#[test]
fn the_suite_passes_when_tasks_are_spawned_and_imports_learned() {
    alone(run_suite(|events| async move {
        let options = Options { spawn: true, learn_imports: true, ..Options::default() };
        let layer: Arc<dyn ComputeLayer> = Arc::new(start_layer(options, events).await.1);
        layer
    }));
}

#[test]
fn a_thousand_tasks_leave_no_descriptor_open_and_cost_little() {
    alone(async {
        let mut bench = Bench::new().await;
        let warm = bench.submit("silent");
        bench.recorder.wait_for_end(warm).await.report();
        let (files, cpu) = (open_files(), cpu_seconds());
        for _ in 0..125 {
            let batch: Vec<AttemptId> = (0..8).map(|_| bench.submit("silent")).collect();
            for id in batch {
                bench.recorder.wait_for_end(id).await.report();
            }
        }
        let each = (cpu_seconds() - cpu) / 1000.0;
        println!("{:.3} ms of processor time per task", each * 1000.0);
        assert!(each < 0.000_6, "{each} s of processor time per task");
        // Followers close their ends on EOF, at once.
        tokio::time::timeout(Duration::from_secs(5), async {
            while open_files() > files {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .expect("as many descriptors open as before");
        bench.finish().await;
    });
}

fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/schedstat").expect("the main thread's time");
    let own: f64 = stat.split(' ').next().and_then(|word| word.parse().ok()).expect("nanoseconds");
    let thread = std::fs::read_to_string("/proc/thread-self/schedstat").expect("this thread's time");
    let thread: f64 = thread.split(' ').next().and_then(|word| word.parse().ok()).expect("nanoseconds");
    (own + thread) / 1e9
}

/// Takes events in at its own speed and keeps none.
#[derive(Default)]
struct SlowSink {
    bytes: AtomicUsize,
    backlog: AtomicUsize,
    highest: AtomicUsize,
    ended: tokio::sync::Notify,
}

impl EventSink for SlowSink {
    fn send(&self, event: LayerEvent) {
        match event {
            LayerEvent::Log { lines, .. } => {
                let bytes = lines.iter().map(|line| line.len() + 1).sum::<usize>();
                self.bytes.fetch_add(bytes, Ordering::Relaxed);
                let backlog = self.backlog.fetch_add(bytes, Ordering::Relaxed) + bytes;
                self.highest.fetch_max(backlog, Ordering::Relaxed);
            }
            LayerEvent::Finished { .. } => self.ended.notify_one(),
            _ => {}
        }
    }

    fn ready(&self) -> Later<'_, ()> {
        Box::pin(async {
            tokio::task::yield_now().await;
            self.backlog.store(0, Ordering::Relaxed);
        })
    }
}

#[test]
fn a_flood_arrives_whole_without_filling_memory() {
    alone(async {
        let sink = Arc::new(SlowSink::default());
        let (_front_end, layer) = start_layer(Options::default(), sink.clone()).await;
        layer.submit(launch(1, "flood"));
        tokio::time::timeout(Duration::from_secs(60), sink.ended.notified()).await.expect("the flood ends");
        assert_eq!(sink.bytes.load(Ordering::Relaxed), 100 << 20);
        assert!(sink.highest.load(Ordering::Relaxed) <= 256 << 10, "{sink:?}", sink = sink.highest);
        layer.shut_down().await;
    });
}

/// Takes no line until it is told to.
struct StuckSink(tokio::sync::watch::Receiver<bool>, Arc<Recorder>);

impl EventSink for StuckSink {
    fn send(&self, event: LayerEvent) {
        self.1.send(event);
    }

    fn ready(&self) -> Later<'_, ()> {
        let mut open = self.0.clone();
        Box::pin(async move {
            open.wait_for(|open| *open).await.expect("the test holds the other end");
        })
    }
}

#[test]
fn lines_of_an_ended_task_come_before_its_end_however_slow_the_reader_is() {
    alone(async {
        let (open, gate) = tokio::sync::watch::channel(false);
        let recorder = Arc::new(Recorder::default());
        let sink = Arc::new(StuckSink(gate, recorder.clone()));
        let (_front_end, layer) = start_layer(Options::default(), sink).await;
        layer.submit(launch(1, "quick"));
        // Of either stream, for either may be read first; the other waits.
        let logged = |events: &[LayerEvent]| events.iter().any(|event| matches!(event, LayerEvent::Log { .. }));
        recorder.wait_for("a line", logged).await;
        // Well beyond the time that draining may take.
        tokio::time::sleep(Duration::from_millis(400)).await;
        let ended = |events: &[LayerEvent]| events.iter().any(|event| matches!(event, LayerEvent::Finished { .. }));
        assert!(!ended(&recorder.events()));
        open.send_replace(true);
        recorder.wait_for_end(attempt(1)).await.report();
        check_order(&recorder.events(), &[attempt(1)]);
        let lines = [Stream::Stdout, Stream::Stderr].map(|stream| recorder.lines(attempt(1), stream));
        assert_eq!(lines, [["out 1"], ["err 1"]]);
        layer.shut_down().await;
    });
}

#[test]
fn a_background_process_delays_the_end_a_little_and_its_lines_still_come() {
    alone(async {
        let mut bench = Bench::new().await;
        let begin = Instant::now();
        let id = bench.submit("background");
        bench.recorder.wait_for_end(id).await.report();
        assert!(begin.elapsed() < Duration::from_millis(1800), "{:?}", begin.elapsed());
        assert_eq!(bench.lines(id), ["early", "unfinished"]);
        bench.recorder.wait_for_line(id, "late 2").await;
        assert_eq!(bench.lines(id), ["early", "unfinished", "late 1", "late 2"]);
        bench.finish().await;
    });
}

#[test]
fn processes_left_behind_are_stopped_and_told_of() {
    alone(async {
        let mut bench = Bench::new().await;
        let id = bench.submit("daemon");
        bench.recorder.wait_for_end(id).await.report();
        bench.finish().await;
        assert_eq!(bench.notices(), ["stopped 2 background processes that tasks had left behind: 2 left_behind"]);
    });
}

#[test]
fn a_clean_end_says_nothing() {
    alone(async {
        let mut bench = Bench::new().await;
        bench.layer.prepare(&StepName::from("never_used"));
        let id = bench.submit("quick");
        bench.recorder.wait_for_end(id).await.report();
        bench.finish().await;
        assert!(bench.notices().is_empty(), "{:?}", bench.notices());
    });
}

#[test]
fn closed_streams_and_long_lines_do_no_harm() {
    alone(async {
        let mut bench = Bench::new().await;
        let (closed, progress) = (bench.submit("closed"), bench.submit("progress"));
        let report = bench.recorder.wait_for_end(closed).await.report();
        assert!(report.outcome.is_some_and(|outcome| outcome.ok));
        assert_eq!(bench.lines(closed), ["before"]);
        bench.recorder.wait_for_end(progress).await.report();
        let lines = bench.recorder.lines(progress, Stream::Stderr);
        assert_eq!(lines.first().map(String::as_str), Some("100%"));
        assert_eq!(lines.last().map(String::as_str), Some("last"));
        assert_eq!(lines.iter().map(String::len).sum::<usize>(), "100%long last".len() + (3 << 20));
        bench.finish().await;
    });
}

#[test]
fn garbage_on_the_control_channel_is_told_and_an_outcome_before_it_counts() {
    alone(async {
        let mut bench = Bench::new().await;
        let (garbage, after) = (bench.submit("garbage"), bench.submit("garbage_after"));
        let report = bench.recorder.wait_for_end(garbage).await.report();
        assert_eq!((report.exit, report.outcome), (ProcessExit::Code(0), None));
        assert_eq!(
            report.cause.map(|cause| cause.text).as_deref(),
            Some(
                "the task's report cannot be used: a message is not what the protocol calls for: expected value at line 1 \
                 column 1; it starts with `garbage`; its control channel was written to by something else"
            )
        );
        let report = bench.recorder.wait_for_end(after).await.report();
        assert!(report.outcome.is_some_and(|outcome| outcome.ok));
        assert_eq!(report.cause, None);
        bench.finish().await;
    });
}

#[test]
fn a_crash_after_the_outcome_is_reported_as_it_was() {
    alone(async {
        let mut bench = Bench::new().await;
        let (crashes, killed) = (bench.submit("crashes"), bench.submit("killed"));
        let report = bench.recorder.wait_for_end(crashes).await.report();
        assert!(report.outcome.is_some_and(|outcome| outcome.ok));
        assert_eq!(report.exit, ProcessExit::Signal(11));
        let report = bench.recorder.wait_for_end(killed).await.report();
        assert_eq!((report.exit, report.outcome, report.cause), (ProcessExit::Signal(9), None, None));
        assert!(report.usage.peak_memory > 1 << 20);
        bench.finish().await;
    });
}

#[test]
fn metadata_and_failed_starts_are_passed_on() {
    alone(async {
        let mut bench = Bench::new().await;
        let (tells, unstartable) = (bench.submit("tells"), bench.submit("unstartable"));
        bench.recorder.wait_for_end(tells).await.report();
        assert_eq!(bench.recorder.metadata_entries(), [(tells, "colour".to_owned(), "blue".to_owned())]);
        let cause = bench.recorder.wait_for_end(unstartable).await.cause();
        assert_eq!(cause.text, "the task could not be started: no more processes");
        bench.finish().await;
    });
}

#[test]
fn a_spawned_step_gets_its_spec_on_control_and_says_why_once() {
    alone(async {
        let mut bench = Bench::new().await;
        let all: Vec<AttemptId> = (0..3).map(|_| bench.submit("spawned")).collect();
        for id in all {
            bench.recorder.wait_for_end(id).await.report();
            assert_eq!(bench.lines(id), [format!("read spawned {}", id.task)]);
        }
        assert_eq!(bench.notices(), ["step `spawned`: every task starts a new interpreter, because it says so"]);
        bench.finish().await;
    });
}

mod faults;
mod waiting;
