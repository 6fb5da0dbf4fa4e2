//! Adoption: what the engine of the origin left on a remote layer is followed, not run again.

use std::sync::Arc;

use ferroflow_core::graph::Graph;
use ferroflow_core::id::{AttemptId, RunId, StepName, TaskId};
use ferroflow_core::ir::{Decorator, Flow};
use ferroflow_core::metadata::{DataRef, RunState, TaskRow};
use ferroflow_core::port::StopSignal;
use ferroflow_core::run::{Event, ResumePlan, RunSettings};
use ferroflow_core::task::{AttemptState, Cause, CauseKind};
use ferroflow_testkit::samples;
use ferroflow_testkit::world::{World, raised, settings, split, succeeded};

fn id(task: u64) -> AttemptId {
    AttemptId { task: TaskId(task), attempt: 0 }
}

fn data(run: &str, task: u64) -> Option<DataRef> {
    Some(DataRef { run: RunId::from(run), task: TaskId(task), attempt: 0 })
}

/// Every step named runs on Kubernetes.
fn remote(mut flow: Flow, steps: &[&str]) -> Arc<Graph> {
    for step in flow.steps.iter_mut().filter(|step| steps.contains(&step.name.as_str())) {
        step.decorators.push(Decorator {
            name: "kubernetes".into(),
            attributes: Default::default(),
            file: None,
            line: 0,
            in_source: false,
        });
    }
    samples::graph(flow)
}

fn resumed(graph: &Arc<Graph>, run: &str, workers: usize, origin: (&str, Vec<TaskRow>), from: Option<&str>) -> World {
    let settings = RunSettings { run: RunId::from(run), ..settings(workers) };
    let plan = ResumePlan { origin_run: RunId::from(origin.0), tasks: origin.1, rerun_from: from.map(StepName::from) };
    World::started(Arc::clone(graph), settings, Some(plan))
}

/// A foreach of four on Kubernetes, killed when the first split was done and the others were out.
fn killed(graph: &Arc<Graph>) -> World {
    let mut world = World::started(Arc::clone(graph), settings(16), None);
    world.run_only(split("body", 4));
    world.run_task(id(2), succeeded(&["join"]));
    world.start(id(3));
    world
}

#[test]
fn what_still_runs_is_waited_for_and_then_counts_as_done() {
    let graph = remote(samples::foreach(), &["body"]);
    let origin = killed(&graph);
    let mut world = resumed(&graph, "2", 2, ("1", origin.rows_after_a_crash("1")), None);
    world.run.check_invariants();
    assert_eq!(
        world.lines()[2..],
        [
            "[start/1] Cloning previously run task 1/start/1",
            "[body/2] Cloning previously run task 1/body/2",
            "F/1 cloned!",
            "[body/3] Adopting task 1/body/3 from kubernetes: it is waited for, not run again",
            "[body/4] Adopting task 1/body/4 from kubernetes: it is waited for, not run again",
            "[body/5] Adopting task 1/body/5 from kubernetes: it is waited for, not run again",
        ]
    );
    assert_eq!((world.submitted.len(), world.adopted.len()), (0, 3), "all at once: they run already");
    let adoption = &world.adopted[&id(4)];
    assert_eq!((adoption.run.as_str(), adoption.attempt, adoption.layer.as_str()), ("1", id(4), "kubernetes"));
    assert_eq!(world.records[&TaskId(4)].data, data("1", 4), "known before anything came of it");

    for task in [5, 3, 4] {
        world.run_task(id(task), succeeded(&["join"]));
        world.run.check_invariants();
    }
    let record = &world.records[&TaskId(4)];
    assert_eq!((record.state, &record.data, &record.origin), (AttemptState::Done, &data("1", 4), &data("1", 4)));
    let spec = &world.submitted[0].spec;
    let inputs: Vec<_> = spec.inputs.iter().map(|i| (i.run.as_str(), i.tasks.clone())).collect();
    assert_eq!((spec.step.as_str(), inputs), ("join", vec![("1", vec![(TaskId(2), TaskId(5), 0)])]));
    world.run_to_end(1);
    assert_eq!(world.end.as_ref().map(|end| end.state), Some(RunState::Done));
    world.run.check_invariants();
}

#[test]
fn what_ended_badly_or_is_gone_is_run_by_this_run() {
    let graph = remote(samples::foreach(), &["body"]);
    let origin = killed(&graph);
    let mut world = resumed(&graph, "2", 1, ("1", origin.rows_after_a_crash("1")), None);
    world.run_task(id(3), raised("ValueError", "unlucky"));
    world.run.check_invariants();
    let again = AttemptId { task: TaskId(3), attempt: 1 };
    let spec = &world.submitted[0].spec;
    assert_eq!((world.submitted[0].id, spec.max_user_code_retries, spec.fallback), (again, 1, false));
    assert_eq!((&world.records[&TaskId(3)].data, spec.previous_failure.as_ref()), (&None, None));

    world.adopted.remove(&id(4));
    world.on(Event::Lost { id: id(4), cause: Cause::new(CauseKind::LayerError, "nothing of it is left") });
    world.run.check_invariants();
    world.run_task(id(5), succeeded(&["join"]));
    let said = world.lines();
    let said = |text: &str| said.iter().any(|line| line == text);
    assert!(said(
        "[body/3] Adopted task did not end well (ValueError: unlucky); this run runs it itself, which does not count as \
         a retry."
    ));
    assert!(said(
        "[body/4] Adopted task did not end well (nothing of it is left); this run runs it itself, which does not count \
         as a retry."
    ));
    world.run_to_end(1);
    let ran: Vec<_> = world.submitted.iter().map(|launch| launch.spec.step.as_str()).collect();
    assert_eq!(ran, ["body", "body", "join", "end"]);
    world.run.check_invariants();
}

#[test]
fn a_run_that_adopted_and_died_leaves_the_same_tasks_behind() {
    let graph = remote(samples::foreach(), &["body"]);
    let origin = killed(&graph);
    let mut second = resumed(&graph, "2", 4, ("1", origin.rows_after_a_crash("1")), None);
    second.run_task(id(3), succeeded(&["join"]));
    let mut third = resumed(&graph, "3", 4, ("2", second.rows_after_a_crash("2")), None);
    let adopted: Vec<_> = third.adopted.values().map(|a| (a.run.as_str(), a.attempt)).collect();
    assert_eq!(adopted, [("1", id(4)), ("1", id(5))], "by the name they were submitted under");
    assert_eq!(third.records[&TaskId(4)].origin, data("2", 4));
    for task in [4, 5] {
        third.run_task(id(task), succeeded(&["join"]));
    }
    third.run_to_end(1);
    third.run.check_invariants();
}

#[test]
fn what_is_of_no_use_is_stopped() {
    let graph = remote(samples::foreach(), &["body"]);
    let origin = killed(&graph);
    let mut world = resumed(&graph, "2", 4, ("1", origin.rows_after_a_crash("1")), Some("start"));
    let unwanted: Vec<_> = world.unwanted.iter().map(|a| (a.run.as_str(), a.attempt)).collect();
    assert_eq!(unwanted, [("1", id(3)), ("1", id(4)), ("1", id(5))]);
    assert!(world.lines().contains(&"Stopping 3 tasks that run 1 left behind and this run has no use for.".to_owned()));
    assert!(world.adopted.is_empty());
    world.run_to_end(2);
    world.run.check_invariants();
}

#[test]
fn tasks_of_this_machine_are_not_adopted() {
    let graph = samples::graph(samples::foreach());
    let origin = killed(&graph);
    let world = resumed(&graph, "2", 4, ("1", origin.rows_after_a_crash("1")), None);
    assert_eq!((world.adopted.len(), world.unwanted.len(), world.submitted.len()), (0, 0, 3));
    world.run.check_invariants();
}

#[test]
fn a_stop_takes_adopted_tasks_along_and_says_so() {
    let graph = remote(samples::foreach(), &["body"]);
    let origin = killed(&graph);
    let mut world = resumed(&graph, "2", 4, ("1", origin.rows_after_a_crash("1")), None);
    world.start(id(3));
    world.on(Event::StopRequested { signal: "SIGINT".into() });
    assert_eq!(world.stops, [(vec![id(3), id(4), id(5)], StopSignal::Terminate)]);
    assert!(world.lines().contains(&"Adopted tasks are terminated too (3).".to_owned()));
    world.run.check_invariants();
    world.finish(id(3), raised("KeyboardInterrupt", ""));
    for task in [4, 5] {
        world.adopted.remove(&id(task));
        world.on(Event::Lost { id: id(task), cause: Cause::new(CauseKind::Cancelled, "stopped") });
    }
    assert_eq!(world.end.as_ref().map(|end| end.state), Some(RunState::Cancelled));
    assert_eq!(world.submitted.len(), 0);
    world.run.check_invariants();
}
