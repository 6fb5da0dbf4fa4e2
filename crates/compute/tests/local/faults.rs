//! Processes that die: zygotes, the front end, and tasks killed for lack of memory.

use super::*;

fn notes(folder: &tempfile::TempDir) -> (BTreeMap<String, String>, impl Fn() -> Vec<String>) {
    let file = folder.path().join("notes");
    let environment = BTreeMap::from([("NOTES".to_owned(), file.display().to_string())]);
    let read = move || {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        text.lines().map(|line| line.split_once(' ').map_or("", |(_at, rest)| rest).to_owned()).collect()
    };
    (environment, read)
}

#[test]
fn a_zygote_that_dies_takes_its_tasks_along_and_is_replaced() {
    alone(async {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (environment, read) = notes(&folder);
        let mut bench = Bench::with(Options { environment, ..Options::default() }).await;
        for death in 1..=2 {
            let id = bench.submit("takes_zygote_along");
            let cause = bench.recorder.wait_for_end(id).await.cause();
            assert_eq!(cause.kind, CauseKind::LayerError);
            assert_eq!(
                cause.text,
                "the process that starts tasks of step `takes_zygote_along` ended, and its tasks with it: something \
                 killed it, or it crashed",
                "death {death}"
            );
            assert_eq!(bench.lines(id), ["going"]);
        }
        let id = bench.submit("takes_zygote_along");
        bench.recorder.wait_for_end(id).await.cause();
        let id = bench.submit("takes_zygote_along");
        let cause = bench.recorder.wait_for_end(id).await.cause();
        assert!(cause.text.contains("ended 3 times in a row before a task did"), "{}", cause.text);
        let opens: Vec<String> = read().into_iter().filter(|line| line.starts_with("open")).collect();
        assert_eq!(opens, ["open spawn=False learned=[]", "open spawn=False learned=[]", "open spawn=True learned=[]"]);
        let other = bench.submit("quick");
        bench.recorder.wait_for_end(other).await.report();
        bench.finish().await;
    });
}

#[test]
fn zygotes_that_never_get_ready_or_talk_nonsense_are_given_up() {
    alone(async {
        let mut bench = Bench::new().await;
        let (stillborn, nonsense) = (bench.submit("stillborn"), bench.submit("nonsense"));
        let cause = bench.recorder.wait_for_end(stillborn).await.cause();
        assert_eq!(
            cause.text,
            "the process that starts tasks of step `stillborn` ended 3 times in a row before a task did; an import or \
             `@environment` of the step may crash the interpreter"
        );
        let cause = bench.recorder.wait_for_end(nonsense).await.cause();
        assert!(cause.text.contains("it starts with `this is not JSON`"), "{}", cause.text);
        bench.finish().await;
    });
}

#[test]
fn an_import_that_kills_the_zygote_is_not_learned_again() {
    alone(async {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (environment, read) = notes(&folder);
        let mut bench = Bench::with(Options { environment, learn_imports: true, ..Options::default() }).await;
        let first = bench.submit_importing("explodes");
        bench.recorder.wait_for_end(first).await.report();
        let second = bench.submit_importing("explodes");
        bench.recorder.wait_for_end(second).await.report();
        let (open, learn) = ("open spawn=False learned=[]", "learn ['explosive']");
        assert_eq!(read(), [open, "task 1", learn, open, "task 2"]);
        bench.finish().await;
    });
}

#[test]
fn a_front_end_that_is_killed_takes_everything_down_within_a_second() {
    alone(async {
        let mut bench = Bench::new().await;
        let daemon = bench.submit("daemon");
        bench.recorder.wait_for_end(daemon).await.report();
        let (sleeps, stubborn) = (bench.submit("sleeps"), bench.submit("stubborn"));
        bench.recorder.wait_for_line(sleeps, "asleep").await;
        bench.recorder.wait_for_line(stubborn, "asleep").await;
        let begin = Instant::now();
        let pid = Pid::from_raw(bench.front_end.pid() as i32).expect("a process id");
        kill_process(pid, Signal::KILL).expect("our own child");
        for id in [sleeps, stubborn] {
            let cause = bench.recorder.wait_for_end(id).await.cause();
            assert_eq!(cause.kind, CauseKind::FrontEndLost);
            assert_eq!(cause.text, format!("the flow's process (pid {pid}) is gone: it was killed by signal 9"));
        }
        bench.recorder.wait_for("`Down`", |events| matches!(events.last(), Some(LayerEvent::Down { .. }))).await;
        assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
        assert!(descendants(getpid()).is_empty(), "nothing of the run is alive");
        let late = bench.submit("quick");
        assert_eq!(bench.recorder.wait_for_end(late).await.cause().kind, CauseKind::FrontEndLost);
        bench.finish().await;
    });
}

#[test]
fn processes_that_keep_changing_their_ids_do_not_get_away() {
    alone(async {
        let mut bench = Bench::new().await;
        let id = bench.submit("restless");
        bench.recorder.wait_for_line(id, "restless").await;
        let begin = Instant::now();
        let pid = Pid::from_raw(bench.front_end.pid() as i32).expect("a process id");
        kill_process(pid, Signal::KILL).expect("our own child");
        bench.recorder.wait_for("`Down`", |events| matches!(events.last(), Some(LayerEvent::Down { .. }))).await;
        println!("killed within {:?}", begin.elapsed());
        assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
        let child = rustix::process::wait(rustix::process::WaitOptions::NOHANG);
        assert_eq!(child.err(), Some(rustix::io::Errno::CHILD), "no child, so no descendant, is left");
        bench.finish().await;
        assert!(bench.notices().is_empty(), "{:?}", bench.notices());
    });
}

/// A machine whose numbers the test sets.
struct Machine(tempfile::TempDir);

impl Machine {
    fn new(available: u64, kills: u64) -> Self {
        let machine = Self(tempfile::tempdir().expect("a temporary folder"));
        machine.set(available, kills);
        machine
    }

    fn set(&self, available: u64, kills: u64) {
        let write = |name: &str, text: String| std::fs::write(self.0.path().join(name), text).expect("a file");
        write("meminfo", format!("MemTotal: 4194304 kB\nMemAvailable: {} kB\n", available >> 10));
        write("vmstat", format!("oom_kill {kills}\n"));
    }

    fn gauge(&self) -> MemoryGauge {
        MemoryGauge::discover_below(self.0.path())
    }
}

#[test]
fn only_a_kill_that_the_kernel_counted_is_for_lack_of_memory() {
    alone(async {
        let machine = Machine::new(1 << 31, 7);
        let mut bench = Bench::with(Options { gauge: Some(machine.gauge()), ..Options::default() }).await;
        let by_somebody = bench.submit("killed");
        assert_eq!(bench.recorder.wait_for_end(by_somebody).await.report().cause, None);
        machine.set(1 << 31, 8);
        let mut launch = launch(2, "killed");
        let attributes = serde_json::json!({"memory": 16000}).as_object().cloned().expect("an object");
        launch.spec.decorators = vec![TaskDecorator { name: "resources".to_owned(), attributes }];
        let by_kernel = bench.submit_launch(launch);
        let cause = bench.recorder.wait_for_end(by_kernel).await.report().cause.expect("a cause");
        assert_eq!(cause.kind, CauseKind::OutOfMemory);
        assert!(cause.text.starts_with("out of memory, the kernel killed the task: it used up to "), "{cause:?}");
        assert!(cause.text.contains(", and this machine has 4.0 GiB for everything that runs in it; "), "{cause:?}");
        assert!(cause.text.contains("`@resources(memory=16000)` asks for 16000 MB"), "{cause:?}");
        // That one kill explains no other.
        let after = bench.submit("killed");
        assert_eq!(bench.recorder.wait_for_end(after).await.report().cause, None);
        machine.set(1 << 31, 9);
        let asked = bench.submit("stubborn");
        bench.recorder.wait_for_line(asked, "asleep").await;
        bench.layer.stop(&[asked], StopSignal::Kill);
        assert_eq!(bench.recorder.wait_for_end(asked).await.report().cause, None, "we killed it ourselves");
        bench.finish().await;
    });
}

#[test]
fn a_task_that_hangs_past_its_time_limit_is_killed() {
    alone(async {
        let timings = Timings { timeout_grace: Duration::from_millis(100), ..Timings::default() };
        let mut bench = Bench::with(Options { timings, ..Options::default() }).await;
        let id = bench.submit_launch(TaskLaunch { time_limit: Some(0.2), ..launch(1, "stubborn") });
        let report = bench.recorder.wait_for_end(id).await.report();
        assert_eq!(report.exit, ProcessExit::Signal(9));
        let cause = report.cause.expect("a cause");
        assert_eq!(cause.kind, CauseKind::TimedOut);
        assert_eq!(
            cause.text,
            "the task was still running 0.1 s after its time limit of 0.2 s and was killed; code that runs outside Python \
             for so long cannot be interrupted"
        );
        bench.finish().await;
    });
}

#[test]
fn tasks_wait_for_memory_and_one_always_runs() {
    alone(async {
        let machine = Machine::new(1 << 31, 0);
        let mut bench = Bench::with(Options { gauge: Some(machine.gauge()), ..Options::default() }).await;
        let first = bench.submit("takes_memory");
        bench.recorder.wait_for_end(first).await.report();
        machine.set(50 << 20, 0);
        let (second, third) = (bench.submit("takes_memory"), bench.submit("takes_memory"));
        bench.recorder.wait_for_line(second, "full").await;
        let waits: Vec<(AttemptId, String)> = waiting(&bench.recorder.events());
        assert_eq!(waits.len(), 1, "{waits:?}");
        assert_eq!(waits[0].0, third);
        assert!(waits[0].1.starts_with("for memory: tasks of `takes_memory` have been seen to need 6"), "{waits:?}");
        assert!(
            waits[0].1.contains(" MiB of memory each, and 50 MiB of this machine's 4.0 GiB is available"),
            "{waits:?}"
        );
        assert!(bench.lines(third).is_empty());
        bench.recorder.wait_for_end(third).await.report();
        // With memory to spare nobody waits.
        machine.set(1 << 31, 0);
        let all: Vec<AttemptId> = (0..4).map(|_| bench.submit("takes_memory")).collect();
        for id in &all {
            bench.recorder.wait_for_line(*id, "full").await;
        }
        assert_eq!(waiting(&bench.recorder.events()).len(), 1);
        bench.finish().await;
    });
}

fn waiting(events: &[LayerEvent]) -> Vec<(AttemptId, String)> {
    let waits = events.iter().filter_map(|event| match event {
        LayerEvent::Waiting { id, reason } => Some((*id, reason.clone())),
        _ => None,
    });
    waits.collect()
}
