//! Resuming: what of the origin run is cloned instead of run again. A task is the same task as
//! the origin's when its step, its foreach path and its iteration are the same. All cloning is
//! over before the first task starts, because only clones have successors that can be cloned.

use std::collections::HashMap;

use super::adopt::{Adoptions, LeftBehind, stands_alone};
use super::frames::DataPoint;
use super::message::{Line, Message};
use super::outcome::{Judge, Taken};
use super::queue::{Queue, Ready};
use super::{Action, Phase, ResumePlan, Run, RunSettings};
use crate::graph::{Graph, StepIndex};
use crate::id::{PARAMETERS_STEP, PARAMETERS_TASK, RunId, StepName, TaskId};
use crate::metadata::{DataRef, Record, TaskRecord, TaskRow};
use crate::suggestion::did_you_mean;
use crate::task::{AttemptState, InputRef, Millis, TakenTransition};

/// Clones per call, so that a resume of a million tasks does not become one huge answer.
const PORTION: usize = 50_000;

#[derive(Debug)]
pub(super) struct Cloning {
    origin: RunId,
    tasks: HashMap<Key, Origin>,
    pub adoptions: Adoptions,
    /// Tasks whose inputs are all there (and all clones).
    pub waiting: Queue,
}

#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    step: StepIndex,
    path: Vec<u64>,
    iteration: u32,
}

/// A task of the origin that is done.
#[derive(Debug)]
struct Origin {
    task: TaskId,
    attempt: u32,
    data: DataPoint,
    taken: Taken,
    success: Option<bool>,
    layer: String,
}

/// Runs that data may come from; the run itself is the first.
#[derive(Debug)]
pub(super) struct Runs {
    names: Vec<RunId>,
    numbers: HashMap<RunId, u32>,
}

impl Runs {
    pub fn new(own: RunId) -> Self {
        Self { numbers: HashMap::from([(own.clone(), 0)]), names: vec![own] }
    }

    fn number(&mut self, run: &RunId) -> u32 {
        if let Some(number) = self.numbers.get(run) {
            return *number;
        }
        let number = self.names.len() as u32;
        self.names.push(run.clone());
        self.numbers.insert(run.clone(), number);
        number
    }
}

impl std::ops::Index<usize> for Runs {
    type Output = RunId;

    fn index(&self, number: usize) -> &RunId {
        &self.names[number]
    }
}

/// The attempt that holds the origin's parameters.
pub(super) struct OriginParameters {
    pub input: InputRef,
    pub data: DataRef,
    pub origin: DataRef,
}

/// What a plan comes to for a graph.
pub(super) fn prepare(
    graph: &Graph,
    settings: &RunSettings,
    plan: ResumePlan,
    runs: &mut Runs,
) -> Result<(Cloning, OriginParameters), String> {
    let again = rerun_steps(graph, &plan)?;
    let parameters = parameters(&plan)?;
    let judge = Judge { graph, max_num_splits: settings.max_num_splits };
    let mut tasks = HashMap::new();
    let mut adoptions = Adoptions::default();
    for row in plan.tasks {
        let data = data_of(&row);
        let record = row.record;
        if record.is_left_behind(&settings.layer) {
            let from = left_behind(&plan.origin_run, &record, data);
            match graph.step(record.step.as_str()).filter(|step| !again[*step] && stands_alone(graph, *step)) {
                Some(step) => {
                    let point = point(runs, step, &from.data);
                    adoptions.add(Key { step, path: record.foreach_path, iteration: record.iteration }, from, point);
                }
                None => adoptions.refuse(from),
            }
            continue;
        }
        let Some(step) = graph.step(record.step.as_str()).filter(|s| !again[*s]) else { continue };
        if record.state != AttemptState::Done || record.ok != Some(true) {
            continue;
        }
        // A task that would go another way in today's flow is run again.
        let taken = TakenTransition {
            targets: record.targets,
            num_splits: record.num_splits,
            foreach: foreach_variable(graph, step).filter(|_| record.num_splits.is_some()),
        };
        let Ok(taken) = judge.transition(step, Some(&taken)) else { continue };
        let data = point(runs, step, &data);
        let path = record.foreach_path;
        tasks.insert(
            Key { step, path, iteration: record.iteration },
            Origin {
                task: record.task,
                attempt: record.attempt,
                data,
                taken,
                success: record.success,
                layer: record.layer,
            },
        );
    }
    let waiting = Queue::default();
    Ok((Cloning { origin: plan.origin_run, tasks, adoptions, waiting }, parameters))
}

fn point(runs: &mut Runs, step: StepIndex, data: &DataRef) -> DataPoint {
    DataPoint { run: runs.number(&data.run), step, task: data.task, attempt: data.attempt }
}

fn left_behind(origin: &RunId, record: &TaskRecord, data: DataRef) -> LeftBehind {
    LeftBehind {
        step: record.step.clone(),
        data,
        origin: DataRef { run: origin.clone(), task: record.task, attempt: record.attempt },
        layer: record.layer.clone(),
    }
}

fn foreach_variable(graph: &Graph, step: StepIndex) -> Option<String> {
    match &graph.steps[step].kind {
        crate::graph::StepKind::Foreach { variable } => Some(variable.clone()),
        _ => None,
    }
}

/// The ultimate origin: clones of clones refer to the run that did the work.
fn data_of(row: &TaskRow) -> DataRef {
    row.record.data.clone().unwrap_or_else(|| DataRef {
        run: row.run.clone(),
        task: row.record.task,
        attempt: row.record.attempt,
    })
}

fn rerun_steps(graph: &Graph, plan: &ResumePlan) -> Result<Vec<bool>, String> {
    let Some(name) = &plan.rerun_from else { return Ok(vec![false; graph.steps.len()]) };
    let Some(step) = graph.step(name.as_str()) else {
        let names = graph.names();
        let near = did_you_mean(name.as_str(), names.iter().copied(), |n| format!("`{n}`"));
        return Err(format!(
            "cannot resume from step `{name}`: flow `{}` has no such step.{near} Steps: {}.",
            graph.flow.name,
            names.join(", ")
        ));
    };
    Ok(graph.with_descendants(step))
}

fn parameters(plan: &ResumePlan) -> Result<OriginParameters, String> {
    let row = plan
        .tasks
        .iter()
        .find(|row| row.record.step.as_str() == PARAMETERS_STEP && row.record.state == AttemptState::Done);
    let Some(row) = row else {
        return Err(format!(
            "cannot resume run {}: it ended before its parameters were stored. Start a new run.",
            plan.origin_run
        ));
    };
    let data = data_of(row);
    Ok(OriginParameters {
        input: InputRef {
            run: data.run.clone(),
            step: StepName::from(PARAMETERS_STEP),
            tasks: vec![(data.task, data.task, data.attempt)],
        },
        data,
        origin: DataRef { run: plan.origin_run.clone(), task: PARAMETERS_TASK, attempt: row.record.attempt },
    })
}

impl ResumePlan {
    /// Whether `Run::new` will take the plan; for asking before a run is registered.
    pub fn check(&self, graph: &Graph) -> Result<(), String> {
        rerun_steps(graph, self)?;
        parameters(self)?;
        Ok(())
    }

    /// Tasks whose data clones may name, each with the attempt that stored it.
    pub fn stored(&self) -> impl Iterator<Item = (&StepName, DataRef)> {
        let is_done = |row: &&TaskRow| {
            let record = &row.record;
            record.state == AttemptState::Done && (record.ok == Some(true) || record.step.as_str() == PARAMETERS_STEP)
        };
        self.tasks.iter().filter(is_done).map(|row| (&row.record.step, data_of(row)))
    }
}

impl Run {
    /// Clones a portion; when nothing is left to clone, the run proper begins.
    pub(super) fn clone_portion(&mut self, now: Millis, out: &mut Vec<Action>) {
        let mut cloned = 0;
        while let Phase::Cloning(cloning) = &mut self.phase {
            if cloned == PORTION {
                return;
            }
            let Some((ready, split)) = cloning.waiting.pop() else {
                self.cloning_is_over(now, out);
                return;
            };
            let path = self.frames.path(ready.place);
            let key = Key { step: ready.step, path, iteration: ready.iteration };
            let origin = if self.may_clone(&ready, &key) { self.take_origin(&key) } else { None };
            let Phase::Cloning(cloning) = &mut self.phase else { return };
            match origin {
                Some(origin) => {
                    let run = cloning.origin.clone();
                    self.clone_task(&ready, key.path, &origin, &run, now, out);
                    cloned += 1;
                }
                None if cloning.adoptions.take(&key, &ready) => {}
                None => {
                    self.counts[ready.step].queued += 1;
                    match split {
                        Some((frame, source)) => self.queue.push_split(&ready, frame, source),
                        None => self.queue.push(ready),
                    }
                }
            }
        }
    }

    /// A rank of a gang is cloned with all others or not at all.
    fn may_clone(&self, ready: &Ready, key: &Key) -> bool {
        let (Some(frame), Phase::Cloning(cloning)) = (self.gang_of(ready), &self.phase) else { return true };
        self.clones_gang(frame, ready.place.index, |rank| {
            let mut path = key.path.clone();
            if let Some(last) = path.last_mut() {
                *last = rank;
            }
            cloning.tasks.contains_key(&Key { step: key.step, path, iteration: key.iteration })
        })
    }

    fn take_origin(&mut self, key: &Key) -> Option<Origin> {
        match &mut self.phase {
            Phase::Cloning(cloning) => cloning.tasks.remove(key),
            _ => None,
        }
    }

    fn cloning_is_over(&mut self, now: Millis, out: &mut Vec<Action>) {
        let Phase::Cloning(cloning) = std::mem::replace(&mut self.phase, Phase::Running) else {
            return;
        };
        let Cloning { origin, adoptions, .. } = cloning;
        let flow = self.settings.flow.clone();
        out.push(Action::Print(Message::run(Line::RunCloned { flow, origin: origin.clone() })));
        self.adopt(adoptions, &origin, now, out);
    }

    fn clone_task(
        &mut self,
        ready: &Ready,
        path: Vec<u64>,
        origin: &Origin,
        origin_run: &RunId,
        now: Millis,
        out: &mut Vec<Action>,
    ) {
        let task = self.allocate();
        self.counts[ready.step].done += 1;
        let step = self.graph.steps[ready.step].name.clone();
        let name = |step: &StepIndex| self.graph.steps[*step].name.clone();
        let record = TaskRecord {
            step: step.clone(),
            task,
            attempt: 0,
            state: AttemptState::Done,
            cause: None,
            foreach_path: path,
            iteration: ready.iteration,
            num_splits: origin.taken.num_splits,
            targets: origin.taken.targets.iter().map(name).collect(),
            created_at: now,
            started_at: Some(now),
            finished_at: Some(now),
            ok: Some(true),
            success: origin.success,
            usage: None,
            pid: None,
            layer: origin.layer.clone(),
            data: Some(DataRef {
                run: self.runs[origin.data.run as usize].clone(),
                task: origin.data.task,
                attempt: origin.data.attempt,
            }),
            origin: Some(DataRef { run: origin_run.clone(), task: origin.task, attempt: origin.attempt }),
        };
        let line = Line::CloningTask { origin: origin_run.clone(), step: step.clone(), task: origin.task };
        let name = super::TaskName { step, task, attempt: 0, pid: None };
        out.push(Action::Print(Message::task(name, line)));
        out.push(Action::Record(Box::new(Record::Task(record))));
        self.advance(ready, origin.data, &origin.taken);
    }
}
