//! Resume: what is cloned, what runs again, and where clones' data is.

use std::sync::Arc;

use ferroflow_core::graph::Graph;
use ferroflow_core::id::{AttemptId, RunId, StepName, TaskId};
use ferroflow_core::ir::Flow;
use ferroflow_core::metadata::{DataRef, RunState, TaskRow};
use ferroflow_core::run::{Event, ResumePlan, Run, RunSettings};
use ferroflow_core::task::AttemptState;
use ferroflow_testkit::flows::FlowBuilder;
use ferroflow_testkit::samples;
use ferroflow_testkit::world::{World, raised, settings, split, succeeded};

fn id(task: u64) -> AttemptId {
    AttemptId { task: TaskId(task), attempt: 0 }
}

fn data(run: &str, task: u64) -> DataRef {
    DataRef { run: RunId::from(run), task: TaskId(task), attempt: 0 }
}

fn plan(origin: &str, tasks: Vec<TaskRow>, from: Option<&str>) -> ResumePlan {
    ResumePlan { origin_run: RunId::from(origin), tasks, rerun_from: from.map(StepName::from) }
}

fn resumed(graph: &Arc<Graph>, run: &str, plan: ResumePlan) -> World {
    let settings = RunSettings { run: RunId::from(run), ..settings(16) };
    World::started(Arc::clone(graph), settings, Some(plan))
}

fn steps(world: &World) -> Vec<&str> {
    world.submitted.iter().map(|l| l.spec.step.as_str()).collect()
}

/// A foreach of four of which the third split failed; the others are done.
fn half_done(graph: &Arc<Graph>) -> World {
    let mut world = World::started(Arc::clone(graph), settings(16), None);
    world.run_only(split("body", 4));
    for task in [2, 3, 5] {
        world.run_task(id(task), succeeded(&["join"]));
    }
    world.run_task(id(4), raised("E", "x"));
    world
}

#[test]
fn what_was_done_is_cloned_and_the_rest_runs() {
    let graph = samples::graph(samples::foreach());
    let origin = half_done(&graph);
    let mut world = resumed(&graph, "2", plan("1", origin.rows("1"), None));
    assert_eq!(
        world.lines(),
        [
            "Workflow starting (run-id 2):",
            "Cloning F/1",
            "[start/1] Cloning previously run task 1/start/1",
            "[body/2] Cloning previously run task 1/body/2",
            "[body/3] Cloning previously run task 1/body/3",
            "[body/4] Cloning previously run task 1/body/5",
            "F/1 cloned!",
        ]
    );
    let clone = &world.records[&TaskId(4)];
    assert_eq!((clone.data.clone(), clone.origin.clone()), (Some(data("1", 5)), Some(data("1", 5))));
    assert_eq!((clone.foreach_path.as_slice(), clone.state), (&[3][..], AttemptState::Done));
    let parameters = &world.records[&TaskId(0)];
    assert_eq!((&parameters.data, &parameters.origin), (&Some(data("1", 0)), &Some(data("1", 0))));

    let spec = world.submitted[0].spec.clone();
    assert_eq!((spec.step.as_str(), spec.task), ("body", TaskId(5)));
    assert_eq!(spec.foreach_stack[0].index, 2);
    assert_eq!(spec.foreach_stack[0].source.run.as_str(), "1", "the items are in the origin's pack");
    assert_eq!((spec.inputs[0].run.as_str(), spec.inputs[0].tasks[0].0), ("1", TaskId(1)));
    assert_eq!((spec.parameters.run.as_str(), spec.origin_run), ("1", Some(RunId::from("1"))));
    world.run.check_invariants();

    world.run_task(id(5), succeeded(&["join"]));
    let inputs = &world.submitted[1].spec.inputs;
    let seen: Vec<_> = inputs.iter().map(|i| (i.run.as_str(), i.tasks.clone())).collect();
    let range = |a, b| vec![(TaskId(a), TaskId(b), 0)];
    assert_eq!(seen, [("1", range(2, 3)), ("2", range(5, 5)), ("1", range(5, 5))], "in split order");
    world.run_to_end(1);
    assert_eq!(steps(&world), ["body", "join", "end"]);
    world.run.check_invariants();
}

#[test]
fn a_clone_of_a_clone_points_at_the_run_that_did_the_work() {
    let graph = samples::graph(samples::foreach());
    let origin = half_done(&graph);
    let mut second = resumed(&graph, "2", plan("1", origin.rows("1"), None));
    second.run_task(id(5), raised("E", "again"));
    let third = resumed(&graph, "3", plan("2", second.rows("2"), None));
    let clone = &third.records[&TaskId(2)];
    assert_eq!((clone.data.clone(), clone.origin.clone()), (Some(data("1", 2)), Some(data("2", 2))));
    assert_eq!(third.submitted[0].spec.parameters.run.as_str(), "1");
    assert_eq!(third.records[&TaskId(0)].data, Some(data("1", 0)));
    third.run.check_invariants();
}

#[test]
fn a_step_named_is_run_again_with_all_that_follows() {
    let graph = samples::graph(samples::linear());
    let mut origin = World::started(Arc::clone(&graph), settings(16), None);
    origin.run_to_end(1);
    let mut world = resumed(&graph, "2", plan("1", origin.rows("1"), Some("middle")));
    world.run_to_end(1);
    assert_eq!(steps(&world), ["middle", "end"]);

    let mut all = resumed(&graph, "3", plan("1", origin.rows("1"), Some("start")));
    all.run_to_end(1);
    assert_eq!(steps(&all), ["start", "middle", "end"]);
    assert_eq!(all.submitted[0].spec.parameters.run.as_str(), "1", "the parameters are the origin's");
}

#[test]
fn a_run_that_was_done_is_cloned_whole() {
    let graph = samples::graph(samples::nested());
    let mut origin = World::started(Arc::clone(&graph), settings(16), None);
    origin.run_to_end(3);
    let world = resumed(&graph, "2", plan("1", origin.rows("1"), None));
    assert_eq!(world.submitted.len(), 0);
    assert_eq!(world.end.as_ref().map(|e| e.state), Some(RunState::Done));
    assert_eq!(world.records.len(), origin.records.len());
    world.run.check_invariants();
}

#[test]
fn iterations_of_a_recursion_are_told_apart() {
    let graph = samples::graph(samples::recursion());
    let mut origin = World::started(Arc::clone(&graph), settings(16), None);
    origin.run_only(succeeded(&["again"]));
    origin.run_only(succeeded(&["again"]));
    origin.run_only(succeeded(&["again"]));
    origin.run_only(raised("E", "x"));
    let mut world = resumed(&graph, "2", plan("1", origin.rows("1"), None));
    assert_eq!(world.records[&TaskId(4)].iteration, 2);
    assert_eq!(world.submitted[0].spec.inputs[0].tasks[0].0, TaskId(3));
    world.run_to_end(1);
    assert_eq!(steps(&world), ["again", "end"]);
}

#[test]
fn a_task_that_would_go_another_way_today_is_run_again() {
    let origin_graph = samples::graph(samples::linear());
    let mut origin = World::started(Arc::clone(&origin_graph), settings(16), None);
    origin.run_to_end(1);
    let changed: Flow =
        FlowBuilder::new("F").linear("start", "added").linear("added", "middle").linear("middle", "end").end().build();
    let mut world = resumed(&samples::graph(changed), "2", plan("1", origin.rows("1"), None));
    world.run_to_end(1);
    assert_eq!(steps(&world), ["start", "added", "middle", "end"], "nothing after a new task is cloned");
}

#[test]
fn unknown_steps_and_runs_without_parameters_are_refused() {
    let graph = samples::graph(samples::linear());
    let mut origin = World::started(Arc::clone(&graph), settings(16), None);
    origin.run_to_end(1);
    let refused = |plan: ResumePlan| {
        let error = plan.check(&graph).expect_err("the plan does not fit");
        let run = Run::new(Arc::clone(&graph), settings(1), Some(plan));
        assert_eq!(run.err().as_ref(), Some(&error));
        error
    };
    assert_eq!(
        refused(plan("1", origin.rows("1"), Some("midle"))),
        "cannot resume from step `midle`: flow `Linear` has no such step. Did you mean `middle`? Steps: \
         start, middle, end."
    );
    assert_eq!(
        refused(plan("1", Vec::new(), None)),
        "cannot resume run 1: it ended before its parameters were stored. Start a new run."
    );
}

#[test]
fn a_large_resume_clones_in_portions() {
    let graph = samples::graph(samples::foreach());
    let wide = |run: &str| RunSettings { max_num_splits: 1_000_000, run: RunId::from(run), ..settings(64) };
    let mut origin = World::started(Arc::clone(&graph), wide("1"), None);
    origin.run_to_end(120_000);
    let mut world = World::started(Arc::clone(&graph), wide("2"), Some(plan("1", origin.rows("1"), None)));
    let mut ticks = 0;
    while world.end.is_none() {
        assert!(world.run.next_tick().is_some_and(|at| at <= world.now));
        world.run.check_invariants();
        world.on(Event::Tick);
        ticks += 1;
    }
    assert_eq!((ticks, world.records.len()), (2, 120_004));
    assert_eq!(world.submitted.len(), 0);
}

#[test]
fn a_resume_can_be_stopped_while_it_clones() {
    let graph = samples::graph(samples::foreach());
    let wide = |run: &str| RunSettings { max_num_splits: 1_000_000, run: RunId::from(run), ..settings(64) };
    let mut origin = World::started(Arc::clone(&graph), wide("1"), None);
    origin.run_to_end(60_000);
    let mut world = World::started(Arc::clone(&graph), wide("2"), Some(plan("1", origin.rows("1"), None)));
    world.on(Event::StopRequested { signal: "SIGINT".into() });
    assert_eq!(world.end.as_ref().map(|e| e.state), Some(RunState::Cancelled));
    world.run.check_invariants();
}
