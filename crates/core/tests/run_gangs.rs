//! Gangs (`num_parallel`): ranks start together, are joined in order, and start again together.

use ferroflow_core::id::{AttemptId, RunId, TaskId};
use ferroflow_core::metadata::RunState;
use ferroflow_core::port::StopSignal;
use ferroflow_core::run::{Event, ResumePlan, RunSettings, STOP_GRACE};
use ferroflow_core::task::{AttemptState, Cause, CauseKind, GangPlace};
use ferroflow_testkit::flows::FlowBuilder;
use ferroflow_testkit::samples;
use ferroflow_testkit::world::{World, gang, killed, raised, settings, succeeded};
use serde_json::json;

fn id(task: u64, attempt: u32) -> AttemptId {
    AttemptId { task: TaskId(task), attempt }
}

/// A gang of three (tasks 2 to 4) is out, with one retry; only one worker is allowed.
fn three_ranks() -> World {
    let flow = FlowBuilder::new("Gang")
        .parallel("start", "rank")
        .linear("rank", "join")
        .with("parallel", &json!({}))
        .with("retry", &json!({"times": 1}))
        .join("join", "end")
        .end()
        .build();
    let mut world = World::started(samples::graph(flow), settings(1), None);
    world.run_task(id(1, 0), gang("rank", 3));
    world.run.check_invariants();
    world
}

fn out(world: &World) -> Vec<AttemptId> {
    world.out.keys().copied().collect()
}

fn end_well(world: &mut World, attempt: u32) {
    for task in [4, 2, 3] {
        world.run_task(id(task, attempt), succeeded(&["join"]));
        world.run.check_invariants();
    }
    let join = &world.submitted.last().expect("the join").spec;
    assert_eq!(join.inputs[0].tasks, [(TaskId(2), TaskId(4), attempt)]);
    world.run_to_end(1);
    assert_eq!(world.end.as_ref().map(|end| end.state), Some(RunState::Done));
}

#[test]
fn ranks_start_together_and_are_joined_in_order() {
    let mut world = three_ranks();
    assert_eq!(out(&world), [id(2, 0), id(3, 0), id(4, 0)]);
    for (rank, launch) in world.submitted[1..].iter().enumerate() {
        let place = GangPlace { rank: rank as u64, nodes: 3, control_task: TaskId(2) };
        assert_eq!(launch.spec.gang, Some(place));
    }
    assert_eq!(world.submitted[0].spec.gang, None);
    end_well(&mut world, 0);
}

#[test]
fn when_a_rank_fails_all_start_again() {
    let mut world = three_ranks();
    world.run_task(id(2, 0), succeeded(&["join"]));
    world.start(id(4, 0));
    world.run_task(id(3, 0), raised("ValueError", "x"));
    world.run.check_invariants();
    assert_eq!(world.stops, [(vec![id(4, 0)], StopSignal::Terminate)]);
    assert_eq!(out(&world), [id(4, 0)], "nothing starts before all have ended");
    world.tick(STOP_GRACE);
    assert_eq!(world.stops[1], (vec![id(4, 0)], StopSignal::Kill));
    world.finish(id(4, 0), killed(9));
    world.run.check_invariants();
    let stopped = &world.records[&TaskId(4)];
    assert_eq!(out(&world), [id(2, 1), id(3, 1), id(4, 1)]);
    assert_eq!((stopped.attempt, stopped.state), (1, AttemptState::Starting));
    let told = "[rank/4] Stopped because task 3 of its gang did not end well.";
    assert!(world.lines().contains(&told.to_owned()), "{:?}", world.lines());
    end_well(&mut world, 1);
}

#[test]
fn a_lost_rank_costs_no_retry() {
    let mut world = three_ranks();
    let cause = Cause::new(CauseKind::LayerError, "gone");
    world.out.remove(&id(2, 0));
    world.on(Event::Lost { id: id(2, 0), cause });
    assert_eq!(world.stops, [(vec![id(3, 0), id(4, 0)], StopSignal::Terminate)]);
    for task in [3, 4] {
        world.out.remove(&id(task, 0));
        world.on(Event::Lost { id: id(task, 0), cause: Cause::new(CauseKind::Cancelled, "not started") });
        world.run.check_invariants();
    }
    assert_eq!(world.submitted.last().map(|launch| launch.spec.max_user_code_retries), Some(2));
    world.run_task(id(3, 1), raised("E", "x"));
    for task in [2, 4] {
        world.run_task(id(task, 1), killed(15));
    }
    end_well(&mut world, 2);
}

#[test]
fn without_retries_left_the_run_fails() {
    let mut world = three_ranks();
    for attempt in 0..2 {
        world.run_task(id(3, attempt), raised("E", "x"));
        for task in [2, 4] {
            world.run_task(id(task, attempt), killed(15));
        }
        world.run.check_invariants();
    }
    let end = world.end.as_ref().expect("over");
    assert_eq!(end.failed.as_ref().map(|failed| failed.task), Some(TaskId(3)));
    assert_eq!(world.records[&TaskId(2)].state, AttemptState::Cancelled);
}

#[test]
fn a_killed_rank_ends_the_run() {
    let mut world = three_ranks();
    world.out.remove(&id(4, 0));
    world.on(Event::Lost { id: id(4, 0), cause: Cause::new(CauseKind::Killed, "somebody killed it") });
    for task in [2, 3] {
        world.run_task(id(task, 0), killed(15));
    }
    assert_eq!(world.end.as_ref().map(|end| end.state), Some(RunState::Failed));
}

#[test]
fn a_resume_clones_a_gang_as_a_whole_or_not_at_all() {
    let mut first = three_ranks();
    first.run_task(id(2, 0), succeeded(&["join"]));
    first.run_task(id(4, 0), succeeded(&["join"]));
    first.on(Event::StopRequested { signal: "SIGINT".into() });
    first.finish(id(3, 0), killed(15));
    let plan = |world: &World, run: &str| {
        Some(ResumePlan { origin_run: RunId::from(run), tasks: world.rows(run), rerun_from: None })
    };
    let settings = |run: &str| RunSettings { run: RunId::from(run), ..settings(1) };
    let mut second = World::started(first.graph.clone(), settings("2"), plan(&first, "1"));
    second.run.check_invariants();
    assert_eq!(out(&second), [id(2, 0), id(3, 0), id(4, 0)]);
    for task in [2, 3, 4] {
        second.run_task(id(task, 0), succeeded(&["join"]));
    }
    second.on(Event::StopRequested { signal: "SIGINT".into() });
    second.finish(id(5, 0), killed(15));
    let third = World::started(second.graph.clone(), settings("3"), plan(&second, "2"));
    third.run.check_invariants();
    assert_eq!(third.submitted.iter().map(|launch| launch.spec.step.as_str()).collect::<Vec<_>>(), ["join"]);
}

#[test]
fn a_gang_without_a_number_of_ranks_is_refused() {
    let world = || World::started(samples::graph(samples::gang()), settings(4), None);
    for (report, text) in [
        (gang("rank", 0), "step `start` ended with num_parallel=0; it is a number from 1 to 10000"),
        (
            succeeded(&["rank"]),
            "step `start` ended without the num_parallel that its last statement has; a step has one `self.next`, as its \
             last statement",
        ),
    ] {
        let mut world = world();
        world.run_task(id(1, 0), report);
        let failed = world.end.and_then(|end| end.failed).expect("the failed task");
        assert_eq!(failed.cause.text, text);
    }
}
