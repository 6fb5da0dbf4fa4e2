//! The run machine, rule by rule: starts, splits, joins, retries, fallbacks, losses, failures.
//! How runs stop, and resume, is in `run_stop.rs` and `run_resume.rs`.

use ferroflow_core::id::{AttemptId, RunId, StepName, TaskId};
use ferroflow_core::metadata::RunState;
use ferroflow_core::port::StopSignal;
use ferroflow_core::run::{Event, RunSettings};
use ferroflow_core::task::{AttemptState, Cause, CauseKind, InputRef};
use ferroflow_testkit::flows::FlowBuilder;
use ferroflow_testkit::samples;
use ferroflow_testkit::world::{World, caught, exited, killed, raised, settings, split, succeeded};
use serde_json::json;

fn id(task: u64, attempt: u32) -> AttemptId {
    AttemptId { task: TaskId(task), attempt }
}

fn world(flow: ferroflow_core::ir::Flow, max_workers: usize) -> World {
    World::started(samples::graph(flow), settings(max_workers), None)
}

/// start (decorated) → end
fn decorated(decorators: &[(&str, serde_json::Value)]) -> World {
    let mut flow = FlowBuilder::new("F").linear("start", "end");
    for (name, attributes) in decorators {
        flow = flow.with(name, attributes);
    }
    world(flow.end().build(), 16)
}

fn input(run: &str, step: &str, tasks: &[(u64, u64, u32)]) -> InputRef {
    let tasks = tasks.iter().map(|(a, b, n)| (TaskId(*a), TaskId(*b), *n)).collect();
    InputRef { run: RunId::from(run), step: StepName::from(step), tasks }
}

#[test]
fn a_linear_run_says_and_records_what_it_does() {
    let mut world = world(samples::two_steps(), 16);
    assert_eq!(world.records[&TaskId(0)].step.as_str(), "_parameters");
    assert_eq!(world.records[&TaskId(1)].state, AttemptState::Starting);
    world.start(id(1, 0));
    let record = &world.records[&TaskId(1)];
    assert_eq!((record.state, record.pid), (AttemptState::Running, Some(1001)));
    world.finish(id(1, 0), succeeded(&["end"]));
    let record = &world.records[&TaskId(1)];
    assert_eq!((record.state, record.ok, record.success), (AttemptState::Done, Some(true), Some(true)));
    assert_eq!(record.targets, [StepName::from("end")]);
    world.run_task(id(2, 0), succeeded(&[]));
    assert_eq!(
        world.lines(),
        [
            "Workflow starting (run-id 1):",
            "[start/1] Task is starting.",
            "[start/1] Task finished successfully.",
            "[end/2] Task is starting.",
            "[end/2] Task finished successfully.",
            "Done!",
        ]
    );
    assert_eq!(world.end.as_ref().map(|e| e.state), Some(RunState::Done));
    world.run.check_invariants();
}

#[test]
fn a_task_gets_everything_it_has_to_know() {
    let mut world =
        decorated(&[("retry", json!({"times": 2})), ("timeout", json!({"seconds": 30})), ("card", json!({}))]);
    let launch = world.submitted[0].clone();
    assert_eq!(launch.time_limit, Some(30.0));
    let spec = launch.spec;
    assert_eq!((spec.flow.as_str(), spec.run.as_str(), spec.step.as_str()), ("F", "1", "start"));
    assert_eq!((spec.inputs.len(), spec.join, spec.expected_inputs), (0, false, None));
    assert_eq!(spec.parameters, input("1", "_parameters", &[(0, 0, 0)]));
    assert_eq!((spec.max_user_code_retries, spec.fallback), (2, false));
    assert_eq!(spec.decorators.iter().map(|d| d.name.as_str()).collect::<Vec<_>>(), ["retry", "timeout"]);
    assert_eq!((spec.user.as_str(), spec.identity.as_str()), ("tester", "user:tester"));
    assert_eq!((spec.namespace.as_deref(), spec.tags.len(), spec.origin_run), (Some("user:tester"), 1, None));
    world.run_task(id(1, 0), succeeded(&["end"]));
    assert_eq!(world.submitted[1].spec.inputs, [input("1", "start", &[(1, 1, 0)])]);
    world.run.check_invariants();
}

#[test]
fn a_static_join_gets_its_inputs_in_the_order_of_self_next() {
    let mut world = world(samples::branches(), 16);
    world.run_only(succeeded(&["b", "a"]));
    assert_eq!(world.submitted[1].spec.step.as_str(), "b", "first named, first started");
    // The second branch ends first.
    world.run_task(id(3, 0), succeeded(&["join"]));
    world.run_task(id(2, 0), succeeded(&["join"]));
    let spec = &world.submitted[3].spec;
    assert_eq!(spec.inputs, [input("1", "b", &[(2, 2, 0)]), input("1", "a", &[(3, 3, 0)])]);
    assert_eq!((spec.join, spec.expected_inputs), (true, Some(2)));
    world.run_to_end(1);
    world.run.check_invariants();
}

#[test]
fn a_foreach_starts_in_order_and_joins_in_order() {
    let mut world = world(samples::foreach(), 2);
    world.run_only(split("body", 4));
    assert!(world.lines().contains(&"[start/1] Foreach yields 4 child steps.".to_owned()));
    assert_eq!(world.records[&TaskId(1)].num_splits, Some(4));
    assert_eq!(world.out.len(), 2, "max_workers holds");
    let frame = &world.submitted[2].spec.foreach_stack[0];
    assert_eq!((frame.step.as_str(), frame.variable.as_str()), ("start", "items"));
    assert_eq!((frame.index, frame.num_splits), (1, 4));
    assert_eq!(frame.source, input("1", "start", &[(1, 1, 0)]));
    world.run_task(id(3, 0), succeeded(&["join"]));
    world.run.check_invariants();
    world.run_task(id(4, 0), succeeded(&["join"]));
    world.run_task(id(5, 0), succeeded(&["join"]));
    assert_eq!(world.records[&TaskId(4)].foreach_path, [2]);
    world.run_task(id(2, 0), succeeded(&["join"]));
    let join = &world.submitted[5].spec;
    assert_eq!(join.inputs, [input("1", "body", &[(2, 5, 0)])], "one range");
    assert_eq!((join.expected_inputs, join.foreach_stack.len()), (Some(4), 0));
    world.run_to_end(1);
    world.run.check_invariants();
}

#[test]
fn a_nested_foreach_keeps_the_outer_frame_in_the_inner_join() {
    let mut world = world(samples::nested(), 16);
    world.run_only(split("outer", 2));
    world.run_task(id(3, 0), split("inner", 1));
    world.run_task(id(4, 0), succeeded(&["inner_join"]));
    assert_eq!(world.records[&TaskId(4)].foreach_path, [1, 0]);
    let join = &world.submitted.last().expect("the inner join").spec;
    let stack: Vec<_> = join.foreach_stack.iter().map(|f| (f.step.as_str(), f.index)).collect();
    assert_eq!((join.step.as_str(), stack), ("inner_join", vec![("start", 1)]));
    world.run_to_end(2);
    let join = world.submitted.iter().find(|l| l.spec.step.as_str() == "outer_join");
    assert_eq!(join.expect("the outer join").spec.expected_inputs, Some(2));
    world.run.check_invariants();
}

#[test]
fn a_switch_takes_one_way_and_a_recursion_counts() {
    let mut chosen = world(samples::switch(), 16);
    chosen.run_only(succeeded(&["choose"]));
    chosen.run_only(succeeded(&["left"]));
    chosen.run_to_end(1);
    let steps: Vec<_> = chosen.submitted.iter().map(|l| l.spec.step.as_str()).collect();
    assert_eq!(steps, ["start", "choose", "left", "end"]);
    chosen.run.check_invariants();

    let mut again = world(samples::recursion(), 16);
    again.run_only(succeeded(&["again"]));
    again.run_only(succeeded(&["again"]));
    again.run_only(succeeded(&["again"]));
    again.run_to_end(1);
    let iterations: Vec<_> = again.records.values().map(|r| r.iteration).collect();
    assert_eq!(iterations, [0, 0, 0, 1, 2, 0]);
    assert_eq!(again.submitted[3].spec.inputs, [input("1", "again", &[(3, 3, 0)])]);
    again.run.check_invariants();
}

#[test]
fn a_failure_is_retried_at_once_under_the_same_task_id() {
    let mut world = decorated(&[("retry", json!({"times": 1}))]);
    world.run_task(id(1, 0), raised("ValueError", "x"));
    assert_eq!(world.submitted[1].id, id(1, 1));
    world.run_task(id(1, 1), succeeded(&["end"]));
    assert_eq!(world.submitted[2].spec.inputs, [input("1", "start", &[(1, 1, 1)])]);
    world.run_to_end(1);
    assert_eq!(
        world.lines()[1..5],
        [
            "[start/1] Task is starting.",
            "[start/1] Task failed.",
            "[start/1] Task is starting (retry).",
            "[start/1] Task finished successfully.",
        ]
    );
    world.run.check_invariants();
}

#[test]
fn when_retries_are_used_up_the_run_fails() {
    let mut world = decorated(&[("retry", json!({"times": 1}))]);
    world.run_task(id(1, 0), raised("ValueError", "x"));
    world.run_task(id(1, 1), raised("ValueError", "x"));
    let end = world.end.clone().expect("the run is over");
    assert_eq!(end.state, RunState::Failed);
    assert_eq!(end.cause.expect("a cause").text, "step start (task 1) failed: ValueError: x");
    let failed = end.failed.expect("the failed task");
    assert_eq!((failed.step.as_str(), failed.task, failed.attempt), ("start", TaskId(1), 1));
    assert_eq!(failed.cause, Cause::new(CauseKind::UserException, "ValueError: x"));
    assert_eq!(world.lines()[4..], ["[start/1] Task failed.", "Workflow failed.", "Flushing logs..."]);
    let record = &world.records[&TaskId(1)];
    assert_eq!((record.state, record.ok), (AttemptState::Failed, Some(false)));
    world.run.check_invariants();
}

#[test]
fn a_failure_that_no_retry_can_mend_is_not_retried() {
    let hopeless = |report| {
        let mut world = decorated(&[("retry", json!({"times": 3})), ("catch", json!({}))]);
        world.run_task(id(1, 0), report);
        assert_eq!(world.end.as_ref().map(|e| e.state), Some(RunState::Failed));
        assert!(world.lines().contains(&"[start/1] This failed task will not be retried.".to_owned()));
        world.end.and_then(|e| e.failed).expect("the failed task").cause.text
    };
    assert_eq!(hopeless(exited(202)), "the process ended with exit code 202");
    let mut report = raised("E", "no");
    report.outcome.as_mut().expect("an outcome").may_retry = false;
    assert_eq!(hopeless(report), "E: no");
}

#[test]
fn catch_gets_fallbacks_once_user_retries_are_used_up() {
    let mut world = decorated(&[("retry", json!({"times": 1})), ("catch", json!({"var": "e"}))]);
    world.run_task(id(1, 0), killed(9));
    assert!(!world.submitted[1].spec.fallback);
    world.run_task(id(1, 1), exited(3));
    let spec = &world.submitted[2].spec;
    assert!(spec.fallback);
    assert_eq!(spec.previous_failure.as_deref(), Some("the process ended with exit code 3"));
    assert_eq!((spec.attempt, spec.max_user_code_retries), (2, 1));
    world.run_task(id(1, 2), caught(&["end"]));
    let record = &world.records[&TaskId(1)];
    assert_eq!((record.ok, record.success), (Some(true), Some(false)));
    assert!(world.lines().contains(&"[start/1] Task fallback is starting to handle the failure.".to_owned()));
    world.run_to_end(1);
    assert_eq!(world.end.expect("over").state, RunState::Done);
    world.run.check_invariants();
}

#[test]
fn six_attempts_are_the_most() {
    let mut world = decorated(&[("retry", json!({"times": 4})), ("catch", json!({}))]);
    for attempt in 0..6 {
        assert_eq!(world.submitted.last().expect("submitted").spec.fallback, attempt == 5);
        world.run_task(id(1, attempt), killed(9));
    }
    assert_eq!(world.end.expect("over").state, RunState::Failed);
}

#[test]
fn a_fallback_has_no_time_limit() {
    let mut world = decorated(&[("timeout", json!({"seconds": 1})), ("catch", json!({}))]);
    world.run_task(id(1, 0), killed(9));
    assert!(world.submitted[1].spec.fallback);
    assert_eq!(world.submitted[1].time_limit, None);
    world.start(id(1, 1));
    world.tick(10_000_000);
    assert_eq!(world.stops, []);
}

#[test]
fn a_lost_attempt_does_not_spend_a_retry() {
    let mut world = decorated(&[("retry", json!({"times": 1}))]);
    let cause = Cause::new(CauseKind::FrontEndLost, "its process was lost");
    world.start(id(1, 0));
    world.out.clear();
    world.on(Event::Lost { id: id(1, 0), cause });
    assert_eq!(
        world.lines().last().expect("a line"),
        "[start/1] Task was lost (its process was lost); it starts again, which does not count as a retry."
    );
    let spec = &world.submitted[1].spec;
    assert_eq!((spec.attempt, spec.max_user_code_retries), (1, 2), "the limit moves with it");
    world.run_task(id(1, 1), raised("E", "x"));
    world.run_task(id(1, 2), raised("E", "x"));
    assert_eq!(world.end.expect("the one retry is used up").state, RunState::Failed);
}

#[test]
fn a_task_that_gets_lost_again_and_again_fails_the_run() {
    let mut world = decorated(&[]);
    let cause = Cause::new(CauseKind::LayerError, "no answer");
    for attempt in 0..4 {
        assert!(world.end.is_none());
        world.out.clear();
        world.on(Event::Lost { id: id(1, attempt), cause: cause.clone() });
        world.run.check_invariants();
    }
    let end = world.end.expect("over");
    assert_eq!(end.cause.expect("a cause").text, "step start (task 1) failed: no answer");
    assert_eq!(world.records[&TaskId(1)].state, AttemptState::Lost);
}

#[test]
fn a_remote_task_that_gets_lost_again_and_again_waits_between() {
    let mut world = decorated(&[("batch", json!({}))]);
    let cause = Cause::new(CauseKind::LayerError, "no answer");
    let mut pauses = Vec::new();
    for attempt in 0..3 {
        world.out.clear();
        world.on(Event::Lost { id: id(1, attempt), cause: cause.clone() });
        world.run.check_invariants();
        let begun = world.now;
        while world.submitted.len() < attempt as usize + 2 {
            world.tick(1000);
        }
        pauses.push(world.now - begun);
    }
    assert_eq!(pauses, [0, 10_000, 30_000]);
    let lost = |text: &&String| text.contains("Task was lost");
    assert_eq!(
        world.lines().iter().filter(lost).collect::<Vec<_>>(),
        [
            "[start/1] Task was lost (no answer); it starts again, which does not count as a retry.",
            "[start/1] Task was lost (no answer); it starts again in 10 seconds, which does not count as a retry.",
            "[start/1] Task was lost (no answer); it starts again in 30 seconds, which does not count as a retry.",
        ]
    );
    world.out.clear();
    world.on(Event::Lost { id: id(1, 3), cause });
    assert_eq!(world.end.expect("over").state, RunState::Failed);
}

#[test]
fn a_task_that_somebody_killed_is_not_started_again() {
    let mut world = decorated(&[("retry", json!({"times": 2})), ("catch", json!({}))]);
    let cause = Cause::new(CauseKind::Killed, "somebody killed it");
    world.start(id(1, 0));
    world.out.clear();
    world.on(Event::Lost { id: id(1, 0), cause });
    assert_eq!(
        world.lines()[2..5],
        ["[start/1] Somebody killed it.", "[start/1] Task failed.", "[start/1] This failed task will not be retried."]
    );
    let end = world.end.expect("over");
    assert_eq!(end.cause.expect("a cause").text, "step start (task 1) failed: somebody killed it");
}

fn failure(report: ferroflow_core::task::AttemptReport) -> (String, Vec<String>) {
    let mut world = decorated(&[]);
    world.run_task(id(1, 0), report);
    let lines = world.lines();
    let failed = world.end.and_then(|e| e.failed).expect("the failed task");
    (failed.cause.text, lines[2..lines.len() - 2].to_vec())
}

#[test]
fn causes_are_sentences() {
    let quiet = vec!["[start/1] Task failed.".to_owned()];
    assert_eq!(failure(raised("ValueError", "x")), ("ValueError: x".into(), quiet.clone()));
    assert_eq!(failure(raised("KeyboardInterrupt", "")), ("KeyboardInterrupt".into(), quiet));
    let (text, lines) = failure(exited(3));
    assert_eq!(text, "the process ended with exit code 3");
    assert_eq!(lines, ["[start/1] The process ended with exit code 3.", "[start/1] Task failed."]);
    assert_eq!(failure(exited(0)).0, "the process ended with exit code 0 before the step was over");
    let (text, lines) = failure(killed(11));
    assert_eq!(text, "killed by signal 11 (segmentation fault)");
    assert_eq!(lines, ["[start/1] Task failed with a segmentation fault."]);
    assert_eq!(failure(killed(64)).0, "killed by signal 64");
    let mut late = succeeded(&["end"]);
    late.exit = ferroflow_core::task::ProcessExit::Code(7);
    assert_eq!(failure(late).0, "the process ended with exit code 7, after the step was over");
    let mut memory = killed(9);
    memory.cause = Some(Cause::new(CauseKind::OutOfMemory, "out of memory: raise memory"));
    assert_eq!(failure(memory).0, "out of memory: raise memory");
}

#[test]
fn a_transition_that_differs_from_the_source_fails_the_task() {
    let wrong = |flow, report| {
        let mut world = world(flow, 16);
        world.run_only(report);
        assert_eq!(world.submitted.len(), 1, "no retry can mend it");
        let failed = world.end.and_then(|e| e.failed).expect("the run failed");
        assert_eq!(failed.cause.kind, CauseKind::Transition);
        failed.cause.text
    };
    assert_eq!(
        wrong(samples::linear(), succeeded(&[])),
        "step `start` ended without `self.next` (sys.exit(0) does that, for example); its last \
         statement leads to `middle`"
    );
    assert_eq!(
        wrong(samples::linear(), succeeded(&["end"])),
        "step `start` went on to `end`, but its last statement leads to `middle`; a step has one \
         `self.next`, as its last statement"
    );
    assert_eq!(
        wrong(samples::branches(), succeeded(&["a", "b"])),
        "step `start` went on to `a`, `b`, but its last statement leads to `b`, `a`; a step has one \
         `self.next`, as its last statement"
    );
    assert_eq!(
        wrong(samples::foreach(), succeeded(&["body"])),
        "step `start` ended without the foreach over `items` that its last statement has; a step has \
         one `self.next`, as its last statement"
    );
    assert_eq!(
        wrong(samples::linear(), split("middle", 3)),
        "step `start` ended with a foreach over `items`, but its last statement has no foreach; a \
         step has one `self.next`, as its last statement"
    );
    assert_eq!(
        wrong(samples::foreach(), split("body", 0)),
        "the foreach of step `start` has nothing to iterate over: `items` is empty"
    );
    assert_eq!(
        wrong(samples::foreach(), split("body", 101)),
        "the foreach of step `start` yields 101 child steps, more than the maximum of 100; raise it \
         with --max-num-splits"
    );
}

#[test]
fn an_overdue_task_is_killed_a_minute_past_its_limit() {
    let mut world = decorated(&[("timeout", json!({"seconds": 10})), ("retry", json!({"times": 1}))]);
    world.start(id(1, 0));
    let started = world.now;
    assert_eq!(world.run.next_tick(), Some(started + 70_000));
    world.tick(69_999);
    assert_eq!(world.stops, []);
    world.tick(1);
    assert_eq!(world.stops, [(vec![id(1, 0)], StopSignal::Kill)]);
    world.run.check_invariants();
    world.finish(id(1, 0), killed(9));
    let text = "timed out: it ran for more than its @timeout of 10 seconds and did not react to it";
    let previous = world.submitted[1].spec.previous_failure.as_deref();
    assert_eq!(previous, Some(text), "it counts as a failure like any other");
    world.run.check_invariants();
}

#[test]
fn a_timeout_that_the_task_raised_is_a_timeout() {
    let mut world = decorated(&[("timeout", json!({"seconds": 10}))]);
    world.run_task(id(1, 0), raised("TimeoutException", "Step start timed out after 10 seconds"));
    let failed = world.end.and_then(|e| e.failed).expect("the failed task");
    assert_eq!(failed.cause.kind, CauseKind::TimedOut);
}

#[test]
fn waiting_is_said_once_per_reason() {
    let mut world = decorated(&[]);
    for _ in 0..2 {
        world.on(Event::Waiting { id: id(1, 0), reason: "no node fits yet".into() });
    }
    assert_eq!(world.records[&TaskId(1)].state, AttemptState::Waiting);
    world.on(Event::Starting { id: id(1, 0), detail: "pulling".into() });
    assert_eq!(world.records[&TaskId(1)].state, AttemptState::Starting);
    world.start(id(1, 0));
    world.on(Event::Waiting { id: id(1, 0), reason: "late".into() });
    assert_eq!(world.lines()[1..], ["[start/1] Task is waiting: no node fits yet", "[start/1] Task is starting."]);
    world.run.check_invariants();
}

#[test]
fn events_of_unknown_attempts_change_nothing() {
    let mut world = decorated(&[("retry", json!({}))]);
    world.run_task(id(1, 0), raised("E", "x"));
    let lines = world.lines().len();
    for stale in [id(1, 0), id(9, 0), id(1, 7)] {
        world.on(Event::Started { id: stale, pid: None });
        world.on(Event::Waiting { id: stale, reason: "x".into() });
        world.on(Event::Finished { id: stale, report: succeeded(&["end"]) });
        world.on(Event::Lost { id: stale, cause: Cause::new(CauseKind::LayerError, "x") });
    }
    assert_eq!(world.lines().len(), lines);
    world.run.check_invariants();
}

#[test]
fn a_run_reports_every_five_minutes() {
    let mut world = world(samples::foreach(), 2);
    world.run_only(split("body", 5));
    world.start(id(2, 0));
    assert_eq!(world.run.next_tick(), Some(world.now + 300_000));
    world.tick(300_000);
    assert_eq!(
        world.lines().last().expect("a report"),
        "Tasks are running: body (1 running; 1 starting; 0 done). 3 tasks are waiting in the queue. Not started \
         yet: join, end."
    );
    assert_eq!(world.run.next_tick(), Some(world.now + 300_000));
    let progress = &world.run.progress()[1];
    assert_eq!((progress.queued, progress.starting, progress.running, progress.done, progress.failed), (3, 1, 1, 0, 0));
}

#[test]
fn at_least_one_worker_works() {
    let settings = RunSettings { max_workers: 0, ..settings(1) };
    let run = ferroflow_core::run::Run::new(samples::graph(samples::two_steps()), settings, None);
    let actions = run.expect("nothing to resume").start(0);
    assert!(actions.iter().any(|a| matches!(a, ferroflow_core::run::Action::Submit(_))));
}
