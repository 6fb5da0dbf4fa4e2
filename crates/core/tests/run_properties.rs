//! Random flows, random outcomes, random ends, against a model of what a run has to do: each task
//! of the model runs, each join once with exactly its inputs in order, nothing twice at once, the
//! run ends, and a resume does nothing again that was done.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ferroflow_core::graph::{Graph, StepIndex, StepKind};
use ferroflow_core::id::{AttemptId, RunId, TaskId};
use ferroflow_core::ir::Flow;
use ferroflow_core::metadata::{DataRef, RunState, TaskRecord};
use ferroflow_core::run::{Event, ResumePlan, RunSettings};
use ferroflow_core::task::{AttemptState, Cause, CauseKind, TaskLaunch};
use ferroflow_testkit::shapes::{self, Shape};
use ferroflow_testkit::world::{World, exited, gang, killed, raised, settings, split, succeeded};
use proptest::prelude::*;
use serde_json::json;

/// A task whatever its id: step, place in each split (static branches included), iteration.
type Name = (StepIndex, Vec<u64>, u32);

/// What each step does when it runs well; fixed per case, so that retries and resumes agree.
#[derive(Clone, Debug)]
struct Choices {
    seed: u64,
    max_splits: u64,
}

impl Choices {
    fn hash(&self, step: StepIndex, path: &[u64], salt: u64) -> u64 {
        let mut state = self.seed ^ salt.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        for part in path.iter().chain([&(step as u64)]) {
            state = (state ^ part).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            state ^= state >> 29;
        }
        state
    }

    fn splits(&self, step: StepIndex, path: &[u64]) -> u64 {
        1 + self.hash(step, path, 1) % self.max_splits
    }

    /// Recursions end after at most three rounds.
    fn way(&self, graph: &Graph, step: StepIndex, path: &[u64], iteration: u32) -> StepIndex {
        let children = &graph.steps[step].children;
        let others: Vec<_> = children.iter().copied().filter(|c| *c != step).collect();
        let loops = children.len() > others.len();
        if loops && iteration < (self.hash(step, path, 2) % 4) as u32 {
            return step;
        }
        others[(self.hash(step, path, 3) % others.len() as u64) as usize]
    }
}

/// The model: which tasks there are, and what each reads.
struct Model<'a> {
    graph: &'a Graph,
    choices: &'a Choices,
    inputs: BTreeMap<Name, Vec<Name>>,
}

impl<'a> Model<'a> {
    fn of(graph: &'a Graph, choices: &'a Choices) -> BTreeMap<Name, Vec<Name>> {
        let mut model = Self { graph, choices, inputs: BTreeMap::new() };
        model.walk(graph.start, &[], 0, vec![], None);
        model.inputs
    }

    /// Follows one token from a step until `stop` (a join); returns the task that leads into it.
    fn walk(
        &mut self,
        step: StepIndex,
        path: &[u64],
        iteration: u32,
        inputs: Vec<Name>,
        stop: Option<StepIndex>,
    ) -> Name {
        let name = (step, path.to_vec(), iteration);
        assert!(self.inputs.insert(name.clone(), inputs).is_none(), "the model runs a task twice");
        let graph = self.graph;
        let at = &graph.steps[step];
        let (next, inputs, round) = match &at.kind {
            StepKind::End => return name,
            StepKind::Linear => (at.children[0], vec![name.clone()], 0),
            StepKind::Switch { .. } => {
                let way = self.choices.way(graph, step, path, iteration);
                (way, vec![name.clone()], if way == step { iteration + 1 } else { 0 })
            }
            StepKind::Split => {
                let join = at.matching_join;
                let branch = |child: &StepIndex| self.walk(*child, path, 0, vec![name.clone()], join);
                let ends = at.children.iter().map(branch).collect();
                (join.expect("a split is joined"), ends, 0)
            }
            StepKind::Foreach { .. } | StepKind::Parallel => {
                let join = at.matching_join;
                let splits = self.choices.splits(step, path);
                let body = |index: u64| {
                    let inner = [path, &[index]].concat();
                    self.walk(at.children[0], &inner, 0, vec![name.clone()], join)
                };
                let ends = (0..splits).map(body).collect();
                (join.expect("a foreach is joined"), ends, 0)
            }
        };
        if Some(next) == stop {
            return name;
        }
        self.walk(next, path, round, inputs, stop)
    }
}

/// What befalls attempts.
#[derive(Clone, Debug)]
enum Fate {
    Well,
    Raise,
    Die,
    Lose,
    LoseUnstarted,
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        30 => Just(Fate::Well),
        3 => Just(Fate::Raise),
        2 => Just(Fate::Die),
        2 => Just(Fate::Lose),
        1 => Just(Fate::LoseUnstarted),
    ]
}

#[derive(Clone, Debug)]
struct Case {
    shape: Shape,
    choices: Choices,
    max_workers: usize,
    /// Fate and pick (which of the attempts that are out) by turn; used round and round.
    turns: Vec<(Fate, prop::sample::Index)>,
}

fn case(fates: impl Strategy<Value = Fate> + 'static) -> impl Strategy<Value = Case> {
    let choices = (any::<u64>(), 1..5_u64).prop_map(|(seed, max_splits)| Choices { seed, max_splits });
    let turns = prop::collection::vec((fates, any::<prop::sample::Index>()), 1..60);
    (shapes::shape(40), choices, 1..7_usize, turns).prop_map(|(shape, choices, max_workers, turns)| Case {
        shape,
        choices,
        max_workers,
        turns,
    })
}

/// Every step may be retried; steps that may have it also have a fallback.
fn decorated(mut flow: Flow) -> Flow {
    for step in &mut flow.steps {
        let splits = !matches!(
            step.transition,
            None | Some(ferroflow_core::ir::Transition::Linear { .. } | ferroflow_core::ir::Transition::Split { .. })
        );
        let mut add = |name: &str, attributes: serde_json::Value| {
            step.decorators.push(ferroflow_core::ir::Decorator {
                name: name.into(),
                attributes: attributes.as_object().expect("an object").clone(),
                file: None,
                line: 0,
                in_source: true,
            });
        };
        add("retry", json!({"times": 2}));
        if !splits {
            add("catch", json!({}));
        }
    }
    flow
}

fn graph_of(case: &Case) -> Arc<Graph> {
    Arc::new(Graph::build(decorated(case.shape.flow())).expect("shapes are valid"))
}

fn start(case: &Case, graph: &Arc<Graph>, run: &str, resume: Option<ResumePlan>) -> World {
    let settings = RunSettings { run: RunId::from(run), ..settings(case.max_workers) };
    World::started(Arc::clone(graph), settings, resume)
}

fn path_of(launch: &TaskLaunch) -> Vec<u64> {
    launch.spec.foreach_stack.iter().map(|f| f.index).collect()
}

/// What an attempt that goes well reports.
fn well(world: &World, choices: &Choices, launch: &TaskLaunch) -> ferroflow_core::task::AttemptReport {
    let index = world.graph.step(launch.spec.step.as_str()).expect("a step");
    let mut report = well_as(world, choices, index, &path_of(launch), world.records[&launch.id.task].iteration);
    let splits = matches!(world.graph.steps[index].kind, StepKind::Foreach { .. } | StepKind::Switch { .. });
    if launch.spec.fallback && !splits {
        report.outcome.as_mut().expect("it went well").success = false;
    }
    report
}

fn well_as(
    world: &World,
    choices: &Choices,
    index: StepIndex,
    path: &[u64],
    iteration: u32,
) -> ferroflow_core::task::AttemptReport {
    let graph = &world.graph;
    let step = &graph.steps[index];
    let names: Vec<&str> = step.children.iter().map(|c| graph.steps[*c].name.as_str()).collect();
    match step.kind {
        StepKind::Foreach { .. } => split(names[0], choices.splits(index, path)),
        StepKind::Parallel => gang(names[0], choices.splits(index, path)),
        StepKind::Switch { .. } => {
            let way = choices.way(graph, index, path, iteration);
            succeeded(&[graph.steps[way].name.as_str()])
        }
        _ => succeeded(&names),
    }
}

/// Plays one turn. Failures are only dealt while attempts remain, so that the run goes on.
fn turn(world: &mut World, case: &Case, at: usize) {
    if world.out.is_empty() {
        return world.tick(60_000); // all that is left pauses before it starts again
    }
    let (fate, pick) = &case.turns[at % case.turns.len()];
    let ids: Vec<AttemptId> = world.out.keys().copied().collect();
    let id = ids[pick.index(ids.len())];
    let launch = world.out[&id].clone();
    let lost = launch.spec.max_user_code_retries - 2;
    let tries = launch.spec.attempt - lost;
    assert_eq!(launch.spec.fallback, tries > 2, "a fallback comes when the retries are used up");
    let report = match fate {
        Fate::Raise if tries < 2 => raised("ValueError", "unlucky"),
        Fate::Die if tries < 2 || may_fall_back(world, &launch, tries) => killed(9),
        Fate::Lose | Fate::LoseUnstarted if lost < 3 => {
            if matches!(fate, Fate::Lose) {
                world.start(id);
            }
            world.out.remove(&id);
            world.on(Event::Lost { id, cause: Cause::new(CauseKind::LayerError, "gone") });
            world.run.check_invariants();
            return;
        }
        _ => well(world, &case.choices, &launch),
    };
    world.run_task(id, report);
    world.run.check_invariants();
}

/// Whether another attempt follows a death once user retries are used up.
fn may_fall_back(world: &World, launch: &TaskLaunch, tries: u32) -> bool {
    let step = world.graph.step(launch.spec.step.as_str()).expect("a step");
    tries < 2 + world.graph.steps[step].policy.fallbacks
}

/// Data of every task that is done, by what it is; static branches are told apart by the step.
fn done(world: &World, run: &str) -> BTreeMap<(String, TaskId, u32), Name> {
    let data = |r: &TaskRecord| {
        let own = DataRef { run: RunId::from(run), task: r.task, attempt: r.attempt };
        r.data.clone().unwrap_or(own)
    };
    let step = |r: &TaskRecord| world.graph.step(r.step.as_str());
    world
        .records
        .values()
        .filter_map(|r| {
            let data = data(r);
            let name = (step(r)?, r.foreach_path.clone(), r.iteration);
            Some(((data.run.to_string(), data.task, data.attempt), name))
        })
        .collect()
}

/// Compares what ran with the model: same tasks, each with its inputs in order.
fn assert_as_modelled(world: &World, run: &str, model: &BTreeMap<Name, Vec<Name>>) {
    let done = done(world, run);
    let ran: BTreeSet<&Name> = done.values().collect();
    assert_eq!(ran, model.keys().collect(), "other tasks ran than the flow has");
    assert_eq!(done.len(), model.len(), "a task has two ids");
    let last: BTreeMap<TaskId, &TaskLaunch> = world.submitted.iter().map(|l| (l.id.task, l)).collect();
    for launch in last.values() {
        let spec = &launch.spec;
        let record = &world.records[&launch.id.task];
        let name =
            (world.graph.step(spec.step.as_str()).expect("a step"), record.foreach_path.clone(), record.iteration);
        assert_eq!(record.foreach_path, path_of(launch));
        let mut inputs = Vec::new();
        for input in &spec.inputs {
            for (first, end, attempt) in &input.tasks {
                for task in first.0..=end.0 {
                    let point = (input.run.to_string(), TaskId(task), *attempt);
                    inputs.push(done[&point].clone());
                }
            }
        }
        assert_eq!(inputs, model[&name], "inputs of {}", spec.step);
        if spec.join {
            assert_eq!(spec.expected_inputs, Some(inputs.len() as u64));
        }
        for frame in &spec.foreach_stack {
            let (task, _, attempt) = frame.source.tasks[0];
            let source = &done[&(frame.source.run.to_string(), task, attempt)];
            assert_eq!(world.graph.steps[source.0].name, frame.step);
        }
    }
}

fn finish(world: &mut World, case: &Case) {
    let mut at = 0;
    while world.end.is_none() {
        turn(world, case, at);
        at += 1;
        assert!(at < 100_000, "the run does not end");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_run_does_what_the_flow_says(case in case(fate())) {
        let graph = graph_of(&case);
        let mut world = start(&case, &graph, "1", None);
        finish(&mut world, &case);
        prop_assert_eq!(world.end.as_ref().map(|e| e.state), Some(RunState::Done));
        assert_as_modelled(&world, "1", &Model::of(&graph, &case.choices));
    }

    #[test]
    fn a_stopped_run_ends_and_a_resume_does_only_what_was_not_done(
        case in case(fate()),
        turns in 0..40_usize,
        how in 0..4_u32,
        again in 0..20_usize,
    ) {
        let graph = graph_of(&case);
        let mut first = start(&case, &graph, "1", None);
        play_and_stop(&mut first, &case, turns, how);
        let done_before = ok_names(&first);

        // A resume that is stopped too, and one of that, which runs to its end.
        let plan = ResumePlan { origin_run: RunId::from("1"), tasks: first.rows("1"), rerun_from: None };
        let mut second = start(&case, &graph, "2", Some(plan));
        second.run.check_invariants();
        play_and_stop(&mut second, &case, again, (how + 1) % 4);
        let done_since = ok_names(&second);
        prop_assert!(done_since.is_superset(&done_before), "a resume loses nothing");
        assert_ran_only_new(&second, &done_before);

        let plan = ResumePlan { origin_run: RunId::from("2"), tasks: second.rows("2"), rerun_from: None };
        let mut third = start(&case, &graph, "3", Some(plan));
        finish(&mut third, &case);
        prop_assert_eq!(third.end.as_ref().map(|e| e.state), Some(RunState::Done));
        assert_ran_only_new(&third, &done_since);
        assert_as_modelled(&third, "3", &Model::of(&graph, &case.choices));
    }

    #[test]
    fn resuming_from_a_step_runs_it_and_its_descendants(case in case(Just(Fate::Well)), pick: prop::sample::Index) {
        let graph = graph_of(&case);
        let mut first = start(&case, &graph, "1", None);
        finish(&mut first, &case);
        let from = pick.index(graph.steps.len());
        let rerun_from = Some(graph.steps[from].name.clone());
        let plan = ResumePlan { origin_run: RunId::from("1"), tasks: first.rows("1"), rerun_from };
        let mut second = start(&case, &graph, "2", Some(plan));
        second.run.check_invariants();
        finish(&mut second, &case);
        let again = graph.with_descendants(from);
        for launch in &second.submitted {
            prop_assert!(again[graph.step(launch.spec.step.as_str()).expect("a step")]);
        }
        for record in second.records.values().filter(|r| r.data.is_some() && r.task.0 > 0) {
            prop_assert!(!again[graph.step(record.step.as_str()).expect("a step")]);
        }
        assert_as_modelled(&second, "2", &Model::of(&graph, &case.choices));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Engines die, twice, at any moment; what they left on a remote layer goes on, ends well or badly,
    /// or is gone. Whatever ended well is not run again.
    #[test]
    fn what_dead_engines_left_behind_is_adopted(
        case in case(fate()),
        turns in 0..40_usize,
        again in 0..20_usize,
        ends in prop::collection::vec((0..4_u32, any::<prop::sample::Index>()), 1..20),
    ) {
        let graph = Arc::new(Graph::build(on_kubernetes(decorated(case.shape.flow()))).expect("shapes are valid"));
        let mut first = start(&case, &graph, "1", None);
        play(&mut first, &case, turns);
        let mut done = ok_names(&first);

        let plan = ResumePlan { origin_run: RunId::from("1"), tasks: first.rows_after_a_crash("1"), rerun_from: None };
        let mut second = start(&case, &graph, "2", Some(plan));
        second.run.check_invariants();
        prop_assert!(second.unwanted.is_empty());
        if first.end.is_none() {
            // Fallbacks run on the engine's machine, as do gangs here.
            let there = first.out.values().filter(|launch| !launch.spec.fallback && launch.spec.gang.is_none());
            // Of what pauses nothing is there; that is found out by looking.
            let pausing = first.records.values().filter(|record| record.state == AttemptState::Waiting);
            prop_assert_eq!(second.adopted.len(), there.count() + pausing.count(), "everything that was out is adopted");
        }
        end_adopted(&mut second, &case, &ends[..ends.len() / 2], &mut done);
        play(&mut second, &case, again);
        assert_ran_only_new(&second, &done);
        let done_since = ok_names(&second);
        prop_assert!(done_since.is_superset(&done), "nothing that was done is lost");

        let plan = ResumePlan { origin_run: RunId::from("2"), tasks: second.rows_after_a_crash("2"), rerun_from: None };
        let mut third = start(&case, &graph, "3", Some(plan));
        let mut done = done_since;
        while !third.adopted.is_empty() {
            end_adopted(&mut third, &case, &ends, &mut done);
        }
        finish(&mut third, &case);
        prop_assert_eq!(third.end.as_ref().map(|e| e.state), Some(RunState::Done));
        assert_ran_only_new(&third, &done);
        assert_as_modelled(&third, "3", &Model::of(&graph, &case.choices));
        third.run.check_invariants();
    }
}

/// All but the ranks of gangs, which may not have a fallback there.
fn on_kubernetes(mut flow: Flow) -> Flow {
    let parallel = |step: &ferroflow_core::ir::Step| match &step.transition {
        Some(transition @ ferroflow_core::ir::Transition::Parallel { .. }) => {
            transition.targets().into_iter().map(str::to_owned).collect()
        }
        _ => Vec::new(),
    };
    let ranks: BTreeSet<String> = flow.steps.iter().flat_map(parallel).collect();
    for step in flow.steps.iter_mut().filter(|step| !ranks.contains(&step.name)) {
        step.decorators.push(ferroflow_core::ir::Decorator {
            name: "kubernetes".into(),
            attributes: Default::default(),
            file: None,
            line: 0,
            in_source: true,
        });
        // Retries on a remote layer wait; time does not pass here.
        let retry = step.decorators.iter_mut().find(|decorator| decorator.name == "retry");
        retry.expect("every step has it").attributes.insert("minutes_between_retries".into(), json!(0));
    }
    flow
}

/// Some turns of a run whose engine is then killed, so to say.
fn play(world: &mut World, case: &Case, turns: usize) {
    for at in 0..turns {
        if world.end.is_some() {
            return;
        }
        turn(world, case, at);
    }
}

/// Some adopted attempts end: well, by an exception, by a signal, or nothing of them is found.
fn end_adopted(world: &mut World, case: &Case, ends: &[(u32, prop::sample::Index)], done: &mut BTreeSet<Name>) {
    for (how, pick) in ends {
        let ids: Vec<AttemptId> = world.adopted.keys().copied().collect();
        if ids.is_empty() {
            return;
        }
        let id = ids[pick.index(ids.len())];
        let record = world.records[&id.task].clone();
        match how {
            0 | 1 => {
                let step = world.graph.step(record.step.as_str()).expect("a step");
                let report = well_as(world, &case.choices, step, &record.foreach_path, record.iteration);
                world.run_task(id, report);
                done.insert((step, record.foreach_path, record.iteration));
            }
            2 => world.run_task(id, raised("ValueError", "unlucky")),
            _ => {
                world.adopted.remove(&id);
                world.on(Event::Lost { id, cause: Cause::new(CauseKind::LayerError, "gone") });
            }
        }
        world.run.check_invariants();
    }
}

/// Names of tasks that are done; ranks count only where all of their gang are.
fn ok_names(world: &World) -> BTreeSet<Name> {
    let step = |r: &TaskRecord| world.graph.step(r.step.as_str());
    let done = |r: &&TaskRecord| r.state == AttemptState::Done && r.ok == Some(true);
    let name = |r: &TaskRecord| Some((step(r)?, r.foreach_path.clone(), r.iteration));
    let done: BTreeMap<Name, &TaskRecord> =
        world.records.values().filter(done).filter_map(|r| Some((name(r)?, r))).collect();
    let whole = |(step, path, _): &&Name| {
        let split = world.graph.steps[*step].split_stack.last();
        let Some(split) = split.filter(|split| world.graph.steps[**split].kind == StepKind::Parallel) else {
            return true;
        };
        let (_, outer) = path.split_last().expect("a rank has an index");
        let parents = done.range((*split, outer.to_vec(), 0)..=(*split, outer.to_vec(), u32::MAX));
        let width = parents.last().and_then(|(_, parent)| parent.num_splits).expect("its split is done");
        (0..width).all(|rank| done.contains_key(&(*step, [outer, &[rank]].concat(), 0)))
    };
    done.keys().filter(whole).cloned().collect()
}

fn assert_ran_only_new(world: &World, before: &BTreeSet<Name>) {
    for launch in &world.submitted {
        let record = &world.records[&launch.id.task];
        let step = world.graph.step(launch.spec.step.as_str()).expect("a step");
        let name = (step, record.foreach_path.clone(), record.iteration);
        assert!(!before.contains(&name), "{} ran again", launch.spec.step);
    }
}

/// Plays some turns, then ends the run: by a failure, a signal, two signals, or a layer that is
/// gone.
fn play_and_stop(world: &mut World, case: &Case, turns: usize, how: u32) {
    for at in 0..turns {
        if world.end.is_some() {
            return;
        }
        turn(world, case, at);
    }
    if world.end.is_some() {
        return;
    }
    match how {
        0 => {
            let id = *world.out.keys().next().expect("a running run has a task");
            world.run_task(id, exited(202));
        }
        1 => world.on(Event::StopRequested { signal: "SIGINT".into() }),
        2 => {
            world.on(Event::StopRequested { signal: "SIGINT".into() });
            world.on(Event::StopRequested { signal: "SIGINT".into() });
        }
        _ => {
            world.out.clear();
            world.on(Event::Down { cause: Cause::new(CauseKind::FrontEndLost, "gone") });
        }
    }
    let mut at = 0;
    while world.end.is_none() {
        world.run.check_invariants();
        world.tick(1_000);
        let id = *world.out.keys().next().expect("a stopping run waits for a task");
        let launch = world.out[&id].clone();
        at += 1;
        let report = match at % 3 {
            0 => well(world, &case.choices, &launch),
            1 => killed(15),
            _ => raised("Late", "x"),
        };
        world.finish(id, report);
    }
    assert!(world.submitted.iter().all(|l| world.records[&l.id.task].state.is_final()));
    world.run.check_invariants();
}
