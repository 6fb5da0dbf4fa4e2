//! The loop with a recording layer and stores in memory: what is shown, kept and recorded.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use ferroflow_core::id::{AttemptId, RunId, TaskId};
use ferroflow_core::metadata::{NewRun, Record, RunRow, RunState, TaskRow};
use ferroflow_core::port::{LayerEvent, LogLine, LogPlace, LogStore, MetadataError, MetadataStore, Stream};
use ferroflow_core::run::{Run, RunEnd};
use ferroflow_core::task::{AttemptReport, AttemptState, Millis, TaskLaunch};
use ferroflow_engine::console::{Console, TaskLabel, Tone};
use ferroflow_engine::{Mailbox, Parts, StopRequest, Unfinished, drive};
use ferroflow_testkit::layer::RecordingLayer;
use ferroflow_testkit::{samples, world};
use tokio::sync::mpsc::unbounded_channel;

type Shared<T> = Arc<Mutex<T>>;

/// Remembers records; refuses them when told to.
#[derive(Default)]
struct Memory {
    records: Mutex<Vec<Record>>,
    full: bool,
    /// Another engine takes the run over after so many writes.
    taken_after: Option<usize>,
    writes: Mutex<usize>,
}

impl MetadataStore for Memory {
    fn create_run(&self, _run: &NewRun) -> Result<RunId, MetadataError> {
        Ok(RunId::from("1"))
    }
    fn record(&self, _flow: &str, _run: &RunId, records: &[Record]) -> Result<(), MetadataError> {
        if self.full {
            return Err(MetadataError::Unavailable("the disk is full".to_owned()));
        }
        let mut writes = self.writes.lock().expect("no test panicked");
        *writes += 1;
        if self.taken_after.is_some_and(|most| *writes > most) {
            return Err(MetadataError::TakenOver("run 1 was taken over by run 2".to_owned()));
        }
        self.records.lock().expect("no test panicked").extend_from_slice(records);
        Ok(())
    }
    fn heartbeat(&self, _flow: &str, _run: &RunId, _at: Millis) -> Result<(), MetadataError> {
        Ok(())
    }
    fn run(&self, flow: &str, run: &RunId) -> Result<RunRow, MetadataError> {
        Err(MetadataError::NotFound(format!("{flow}/{run}")))
    }
    fn runs(&self, _flow: &str) -> Result<Vec<RunRow>, MetadataError> {
        Ok(Vec::new())
    }
    fn tasks(&self, _flow: &str, _run: &RunId) -> Result<Vec<TaskRow>, MetadataError> {
        Ok(Vec::new())
    }
    fn mutate_tags(&self, _: &str, _: &RunId, _: &[String], _: &[String]) -> Result<Vec<String>, MetadataError> {
        Ok(Vec::new())
    }
}

type Lines = Vec<Vec<u8>>;

#[derive(Default)]
struct Logs {
    kept: Mutex<BTreeMap<(AttemptId, bool), Lines>>,
}

impl LogStore for Logs {
    fn append(&self, place: &LogPlace, stream: Stream, _: Millis, lines: &[Vec<u8>]) -> Result<(), MetadataError> {
        let key = (place.id, stream == Stream::Stderr);
        self.kept.lock().expect("no test panicked").entry(key).or_default().extend_from_slice(lines);
        Ok(())
    }
    fn close(&self, _place: &LogPlace) {}
    fn replace(&self, _place: &LogPlace, _lines: &[LogLine]) -> Result<(), MetadataError> {
        Ok(())
    }
    fn read(&self, _place: &LogPlace) -> Result<Vec<LogLine>, MetadataError> {
        Ok(Vec::new())
    }
}

/// Lines as a user would read them, without times.
struct Screen(Shared<Vec<String>>);

impl Screen {
    fn line(&self, task: Option<&TaskLabel>, text: &str) {
        let task = task.map_or_else(String::new, |t| format!("[{}/{}/{}] ", t.run, t.step, t.task));
        self.0.lock().expect("no test panicked").push(format!("{task}{text}"));
    }
}

impl Console for Screen {
    fn system(&mut self, _: Millis, task: Option<&TaskLabel>, text: &str, _: Tone) {
        self.line(task, text);
    }
    fn log(&mut self, _: Millis, task: &TaskLabel, _: Stream, line: &[u8]) {
        self.line(Some(task), &String::from_utf8_lossy(line));
    }
    fn notice(&mut self, text: &str) {
        self.line(None, text);
    }
    fn close(&mut self) {
        self.line(None, "closed");
    }
}

type Answer = Box<dyn Fn(&TaskLaunch) -> Option<AttemptReport> + Send + Sync>;

struct Scene {
    result: Result<RunEnd, Unfinished>,
    screen: Vec<String>,
    records: Vec<Record>,
    logs: BTreeMap<(AttemptId, bool), Vec<Vec<u8>>>,
    layer: Arc<RecordingLayer>,
}

/// Plays `two_steps` with a layer that answers, prints `said` for each task first, and stops the
/// run at once if asked.
fn play(answer: Answer, said: Vec<Vec<u8>>, full: bool, stop: bool) -> Scene {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (mailbox, letters) = Mailbox::new();
        let sink = mailbox.clone();
        let speaking: Answer = Box::new(move |launch| {
            if !said.is_empty() {
                let event = LayerEvent::Log { id: launch.id, stream: Stream::Stdout, at: 0, lines: said.clone() };
                ferroflow_core::port::EventSink::send(&*sink, event);
            }
            answer(launch)
        });
        let layer = Arc::new(RecordingLayer::answering(mailbox, speaking));
        let machine = Run::new(samples::graph(samples::two_steps()), world::settings(4), None).expect("a machine");
        let (memory, logs) = (Arc::new(Memory { full, ..Memory::default() }), Arc::new(Logs::default()));
        let screen = Shared::default();
        let parts = Parts {
            layer: layer.clone(),
            metadata: memory.clone(),
            logs: logs.clone(),
            console: Box::new(Screen(screen.clone())),
            flow: "F".to_owned(),
            run: RunId::from("1"),
            max_log_size: 10,
        };
        let (stops, stop_receiver) = unbounded_channel();
        if stop {
            stops.send(StopRequest { signal: "SIGINT".to_owned() }).expect("the engine listens");
        }
        let result = drive(parts, machine, letters, stop_receiver).await;
        let screen = screen.lock().expect("no test panicked").clone();
        let records = memory.records.lock().expect("no test panicked").clone();
        let logs = logs.kept.lock().expect("no test panicked").clone();
        Scene { result, screen, records, logs, layer }
    })
}

fn good() -> Answer {
    Box::new(|launch| {
        Some(if launch.spec.step.as_str() == "start" { world::succeeded(&["end"]) } else { world::succeeded(&[]) })
    })
}

#[test]
fn a_run_is_shown_recorded_and_shut_down() {
    let scene = play(good(), Vec::new(), false, false);
    assert_eq!(scene.result.expect("an end").state, RunState::Done);
    assert!(scene.layer.is_shut_down());
    assert_eq!(scene.screen.first().map(String::as_str), Some("Workflow starting (run-id 1):"));
    assert_eq!(scene.screen.last().map(String::as_str), Some("closed"));
    assert!(scene.screen.contains(&"Done!".to_owned()), "{:?}", scene.screen);
    let done = scene.records.iter().filter(
        |record| matches!(record, Record::Task(task) if task.state == AttemptState::Done && task.task != TaskId(0)),
    );
    assert_eq!(done.count(), 2);
    assert!(matches!(scene.records.last(), Some(Record::RunState { state: RunState::Done, .. })));
}

#[test]
fn logs_are_shown_whole_and_kept_up_to_the_limit() {
    let said = vec![b"12345".to_vec(), b"678".to_vec(), b"90".to_vec()];
    let scene = play(good(), said, false, false);
    let first = AttemptId { task: TaskId(1), attempt: 0 };
    let kept: Vec<String> =
        scene.logs[&(first, false)].iter().map(|line| String::from_utf8_lossy(line).into_owned()).collect();
    assert_eq!(kept, ["12345", "678", "[TRUNCATED - MAXIMUM LOG FILE SIZE REACHED]"]);
    let place = scene.screen.iter().position(|line| line.ends_with("] 90")).expect("the last line is shown");
    let end = scene.screen.iter().position(|line| line.contains("Task finished")).expect("the task finishes");
    assert!(place < end, "{:?}", scene.screen);
}

#[test]
fn a_store_that_cannot_be_written_ends_the_run_with_its_own_words() {
    let scene = play(Box::new(|_| None), Vec::new(), true, false);
    assert_eq!(scene.result.expect_err("a failure").to_string(), "the disk is full");
    assert!(scene.layer.is_shut_down());
}

#[test]
fn a_stop_request_cancels_the_run() {
    let scene = play(Box::new(|_| None), Vec::new(), false, true);
    let end = scene.result.expect("an end");
    assert_eq!((end.state, end.signal.as_deref()), (RunState::Cancelled, Some("SIGINT")));
    assert!(matches!(scene.records.last(), Some(Record::RunState { state: RunState::Cancelled, .. })));
}

/// Plays `two_steps` on a layer whose tasks outlive the engine; returns what was recorded when each
/// task was submitted, too.
fn play_outliving(answer: Answer, memory: Memory) -> (Scene, Vec<usize>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (mailbox, letters) = Mailbox::new();
        let memory = Arc::new(memory);
        let (known, seen) = (Shared::<Vec<usize>>::default(), memory.clone());
        let noted = known.clone();
        let looking: Answer = Box::new(move |launch| {
            let records = seen.records.lock().expect("no test panicked");
            let of_task = |record: &&Record| {
                matches!(record, Record::Task(task) if task.task == launch.id.task && task.state == AttemptState::Starting)
            };
            noted.lock().expect("no test panicked").push(records.iter().filter(of_task).count());
            answer(launch)
        });
        let layer = Arc::new(RecordingLayer::answering(mailbox, looking).outliving());
        let machine = Run::new(samples::graph(samples::two_steps()), world::settings(4), None).expect("a machine");
        let screen = Shared::default();
        let parts = Parts {
            layer: layer.clone(),
            metadata: memory.clone(),
            logs: Arc::new(Logs::default()),
            console: Box::new(Screen(screen.clone())),
            flow: "F".to_owned(),
            run: RunId::from("1"),
            max_log_size: 10,
        };
        let (_stops, stop_receiver) = unbounded_channel();
        let result = drive(parts, machine, letters, stop_receiver).await;
        let screen = screen.lock().expect("no test panicked").clone();
        let records = memory.records.lock().expect("no test panicked").clone();
        let known = known.lock().expect("no test panicked").clone();
        (Scene { result, screen, records, logs: BTreeMap::new(), layer }, known)
    })
}

#[test]
fn a_task_that_outlives_the_engine_is_recorded_before_it_is_submitted() {
    let began = std::time::Instant::now();
    let (scene, known) = play_outliving(good(), Memory::default());
    assert_eq!(scene.result.expect("an end").state, RunState::Done);
    assert_eq!(known, [1, 1]);
    // A record alone may wait 100 ms for others to share its transaction.
    assert!(began.elapsed() < std::time::Duration::from_millis(150), "{:?}", began.elapsed());
}

#[test]
fn an_engine_that_lost_its_run_lets_its_tasks_go() {
    let (scene, _) = play_outliving(good(), Memory { taken_after: Some(1), ..Memory::default() });
    assert_eq!(scene.result.expect_err("taken over").to_string(), "run 1 was taken over by run 2");
    assert!(scene.layer.has_let_go() && !scene.layer.is_shut_down());
    assert_eq!(scene.layer.submitted().len(), 1, "nothing was submitted after that");
    assert_eq!(scene.layer.stops(), []);
}
