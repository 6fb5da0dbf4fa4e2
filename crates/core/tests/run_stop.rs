//! How a run ends early: a failure, a signal, a layer that is gone.

use ferroflow_core::id::{AttemptId, TaskId};
use ferroflow_core::metadata::RunState;
use ferroflow_core::port::StopSignal;
use ferroflow_core::run::Event;
use ferroflow_core::task::{AttemptState, Cause, CauseKind};
use ferroflow_testkit::samples;
use ferroflow_testkit::world::{World, killed, raised, settings, split, succeeded};

fn id(task: u64) -> AttemptId {
    AttemptId { task: TaskId(task), attempt: 0 }
}

/// A foreach of 20 with three of its tasks (2, 3, 4) running.
fn busy() -> World {
    let mut world = World::started(samples::graph(samples::foreach()), settings(3), None);
    world.run_only(split("body", 20));
    for task in 2..5 {
        world.start(id(task));
    }
    world.messages.clear();
    world
}

#[test]
fn after_a_failure_running_tasks_are_asked_to_end_and_then_killed() {
    let mut world = busy();
    world.finish(id(3), raised("ValueError", "x"));
    assert_eq!(world.stops, [(vec![id(2), id(4)], StopSignal::Terminate)]);
    assert_eq!(
        world.lines(),
        [
            "[body/3] Task failed.",
            "Workflow failed.",
            "Terminating 2 active tasks...",
            "[body/2] [KILLED BY ORCHESTRATOR]",
            "[body/4] [KILLED BY ORCHESTRATOR]",
        ]
    );
    world.run.check_invariants();
    assert_eq!(world.run.next_tick(), Some(world.now + 5_000));
    world.finish(id(2), killed(15));
    assert_eq!(world.records[&TaskId(2)].state, AttemptState::Cancelled);
    assert_eq!(
        world.records[&TaskId(2)].cause.as_ref().expect("a cause").text,
        "stopped because step body (task 3) failed"
    );
    world.tick(4_999);
    assert_eq!(world.stops.len(), 1);
    world.tick(1);
    assert_eq!(world.stops[1], (vec![id(4)], StopSignal::Kill));
    assert_eq!(
        world.lines().last().expect("a line"),
        "Killing 1 remaining tasks after having waited for 5 seconds -- some tasks may not exit cleanly"
    );
    world.tick(60_000);
    assert_eq!(world.stops.len(), 2, "it is killed once");
    world.run.check_invariants();
    world.finish(id(4), killed(9));
    let end = world.end.clone().expect("over");
    assert_eq!((end.state, end.failed.expect("the task").task), (RunState::Failed, TaskId(3)));
    assert_eq!(world.lines().last().map(String::as_str), Some("Flushing logs..."));
    world.run.check_invariants();
}

#[test]
fn a_task_that_ends_well_while_the_run_stops_is_done_but_has_no_successor() {
    let mut world = busy();
    world.finish(id(2), raised("E", "x"));
    world.finish(id(3), succeeded(&["join"]));
    world.finish(id(4), raised("OwnReason", "y"));
    assert_eq!(world.records[&TaskId(3)].ok, Some(true), "a resume can clone it");
    assert_eq!(world.records[&TaskId(4)].state, AttemptState::Failed);
    assert_eq!(world.submitted.len(), 4, "nothing further started");
    assert_eq!(world.end.expect("over").state, RunState::Failed);
}

#[test]
fn a_signal_cancels_and_a_second_one_kills_at_once() {
    let mut world = busy();
    let stop = || Event::StopRequested { signal: "SIGINT".into() };
    world.on(stop());
    assert_eq!(
        world.lines()[..2],
        [
            "Workflow is stopping because of SIGINT: its tasks are asked to end. A second SIGINT kills \
             them.",
            "Terminating 3 active tasks...",
        ]
    );
    world.now += 1_000;
    world.on(stop());
    assert_eq!(world.stops[1], (vec![id(2), id(3), id(4)], StopSignal::Kill));
    world.on(stop());
    assert_eq!(world.stops.len(), 2, "a third one has nothing to add");
    for task in 2..5 {
        world.finish(id(task), killed(9));
    }
    let end = world.end.expect("over");
    assert_eq!((end.state, end.signal.as_deref()), (RunState::Cancelled, Some("SIGINT")));
    assert_eq!(end.cause.expect("a cause").text, "stopped by SIGINT");
    assert_eq!(end.failed, None);
    assert_eq!(world.records[&TaskId(2)].cause.as_ref().expect("a cause").text, "stopped because the run got SIGINT");
    world.run.check_invariants();
}

#[test]
fn a_signal_during_a_failure_kills_but_the_run_has_failed() {
    let mut world = busy();
    world.finish(id(2), raised("E", "x"));
    world.on(Event::StopRequested { signal: "SIGTERM".into() });
    assert_eq!(world.stops[1].1, StopSignal::Kill);
    world.finish(id(3), killed(9));
    world.finish(id(4), killed(9));
    let end = world.end.expect("over");
    assert_eq!((end.state, end.signal), (RunState::Failed, None));
}

#[test]
fn what_was_stopped_before_it_started_is_cancelled() {
    let mut world = World::started(samples::graph(samples::two_steps()), settings(3), None);
    world.on(Event::StopRequested { signal: "SIGTERM".into() });
    world.out.clear();
    world.on(Event::Lost { id: id(1), cause: Cause::new(CauseKind::Cancelled, "not started") });
    assert_eq!(world.records[&TaskId(1)].state, AttemptState::Cancelled);
    assert_eq!(world.end.expect("over").state, RunState::Cancelled);
}

#[test]
fn a_layer_that_is_gone_ends_the_run() {
    let mut world = busy();
    world.out.clear();
    let cause = Cause::new(CauseKind::FrontEndLost, "the flow's process ended unexpectedly");
    world.on(Event::Down { cause: cause.clone() });
    let end = world.end.clone().expect("over");
    assert_eq!((end.state, end.cause), (RunState::Failed, Some(cause)));
    assert!((2..5).all(|task| world.records[&TaskId(task)].state == AttemptState::Lost));
    assert_eq!(world.stops, [], "there is nothing to stop");
    world.run.check_invariants();
}

#[test]
fn a_layer_that_goes_while_a_run_is_cancelled_does_not_change_why_it_ends() {
    let mut world = busy();
    world.on(Event::StopRequested { signal: "SIGINT".into() });
    world.out.clear();
    world.on(Event::Down { cause: Cause::new(CauseKind::FrontEndLost, "gone") });
    assert_eq!(world.end.expect("over").state, RunState::Cancelled);
    world.run.check_invariants();
}

#[test]
fn after_the_end_nothing_happens() {
    let mut world = World::started(samples::graph(samples::two_steps()), settings(3), None);
    world.run_to_end(1);
    world.on(Event::StopRequested { signal: "SIGINT".into() });
    world.on(Event::Down { cause: Cause::new(CauseKind::LayerError, "x") });
    world.tick(1_000_000);
    assert_eq!(world.end.expect("over").state, RunState::Done);
}
