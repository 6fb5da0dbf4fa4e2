//! A world for a run machine: it carries out actions, keeps what a user and a store would see,
//! and checks on the way what must always hold (no attempt out twice, max workers, no work after
//! the end, each record consistent with what was submitted).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use ferroflow_core::graph::{Graph, StepKind};
use ferroflow_core::id::{AttemptId, RunId, StepName, TaskId};
use ferroflow_core::metadata::{Record, TaskRecord, TaskRow};
use ferroflow_core::port::{Adoption, StopSignal};
use ferroflow_core::run::{Action, Event, Line, Message, ResumePlan, Run, RunEnd, RunSettings};
use ferroflow_core::task::{
    AttemptReport, AttemptState, Cause, CauseKind, ExceptionInfo, Millis, ProcessExit, StoreLocation, TakenTransition,
    TaskLaunch, TaskOutcome, Usage,
};

/// Settings of run `1` with that many workers.
pub fn settings(max_workers: usize) -> RunSettings {
    RunSettings {
        flow: "F".into(),
        run: RunId::from("1"),
        store: StoreLocation { kind: "local".into(), root: "/store".into(), options: Default::default() },
        user: "tester".into(),
        identity: "user:tester".into(),
        namespace: Some("user:tester".into()),
        tags: vec!["t".into()],
        max_workers,
        max_num_splits: 100,
        layer: "recording".into(),
    }
}

fn report(outcome: Option<TaskOutcome>, exit: ProcessExit) -> AttemptReport {
    AttemptReport { outcome, exit, usage: Usage::default(), cause: None }
}

/// Ended well, having called `self.next` with these steps.
pub fn succeeded(targets: &[&str]) -> AttemptReport {
    let targets: Vec<StepName> = targets.iter().map(|t| StepName::from(*t)).collect();
    let transition = TakenTransition { targets, num_splits: None, foreach: None };
    let outcome = TaskOutcome {
        ok: true,
        success: true,
        transition: Some(transition),
        may_retry: true,
        ..TaskOutcome::default()
    };
    report(Some(outcome), ProcessExit::Code(0))
}

/// Ended well with a foreach over `items` (the variable of every `FlowBuilder::foreach`).
pub fn split(target: &str, splits: u64) -> AttemptReport {
    let mut report = succeeded(&[target]);
    let transition = report.outcome.as_mut().and_then(|o| o.transition.as_mut());
    let transition = transition.expect("a report with a transition");
    transition.num_splits = Some(splits);
    transition.foreach = Some("items".into());
    report
}

/// Ended well with `num_parallel`.
pub fn gang(target: &str, ranks: u64) -> AttemptReport {
    let mut report = split(target, ranks);
    let transition = report.outcome.as_mut().and_then(|o| o.transition.as_mut());
    transition.expect("a report with a transition").foreach = None;
    report
}

/// `@catch` handled an exception.
pub fn caught(targets: &[&str]) -> AttemptReport {
    let mut report = succeeded(targets);
    report.outcome.as_mut().expect("a report with an outcome").success = false;
    report
}

/// User code raised.
pub fn raised(type_name: &str, message: &str) -> AttemptReport {
    let (type_name, message) = (type_name.into(), message.into());
    let exception = ExceptionInfo { type_name, class_name: None, message, traceback: Box::default() };
    let outcome = TaskOutcome { exception: Some(exception), may_retry: true, ..TaskOutcome::default() };
    report(Some(outcome), ProcessExit::Code(1))
}

/// Died by a signal without a word.
pub fn killed(signal: i32) -> AttemptReport {
    report(None, ProcessExit::Signal(signal))
}

/// Exited without a word.
pub fn exited(code: i32) -> AttemptReport {
    report(None, ProcessExit::Code(code))
}

/// What the machine's surroundings have seen.
pub struct World {
    pub graph: Arc<Graph>,
    pub run: Run,
    pub now: Millis,
    max_workers: usize,
    /// Attempts that are out, by id.
    pub out: BTreeMap<AttemptId, TaskLaunch>,
    /// Adopted attempts that are out, by the id they have in this run.
    pub adopted: BTreeMap<AttemptId, Adoption>,
    /// What the origin left behind and this run has no use for.
    pub unwanted: Vec<Adoption>,
    /// Every submission, in order.
    pub submitted: Vec<TaskLaunch>,
    /// Latest record of each task.
    pub records: BTreeMap<TaskId, TaskRecord>,
    pub messages: Vec<Message>,
    pub stops: Vec<(Vec<AttemptId>, StopSignal)>,
    pub end: Option<RunEnd>,
    ids: HashMap<TaskId, StepName>,
    seen: BTreeSet<AttemptId>,
}

impl World {
    pub fn new(graph: Arc<Graph>, settings: RunSettings, resume: Option<ResumePlan>) -> Self {
        let max_workers = settings.max_workers;
        let run = Run::new(Arc::clone(&graph), settings, resume).expect("the plan fits the flow");
        Self {
            graph,
            run,
            now: 1_000_000,
            max_workers,
            out: BTreeMap::new(),
            adopted: BTreeMap::new(),
            unwanted: Vec::new(),
            submitted: Vec::new(),
            records: BTreeMap::new(),
            messages: Vec::new(),
            stops: Vec::new(),
            end: None,
            ids: HashMap::new(),
            seen: BTreeSet::new(),
        }
    }

    /// A started world.
    pub fn started(graph: Arc<Graph>, settings: RunSettings, resume: Option<ResumePlan>) -> Self {
        let mut world = Self::new(graph, settings, resume);
        let actions = world.run.start(world.now);
        world.carry_out(actions);
        world
    }

    pub fn on(&mut self, event: Event) {
        let actions = self.run.on(event, self.now);
        self.carry_out(actions);
    }

    /// Lets time pass and says so.
    pub fn tick(&mut self, by: Millis) {
        self.now += by;
        self.on(Event::Tick);
    }

    pub fn start(&mut self, id: AttemptId) {
        self.on(Event::Started { id, pid: Some(1000 + id.task.0 as u32) });
    }

    pub fn finish(&mut self, id: AttemptId, report: AttemptReport) {
        let was_out = self.out.remove(&id).is_some() || self.adopted.remove(&id).is_some();
        assert!(was_out, "attempt {id} is not out");
        self.on(Event::Finished { id, report });
    }

    /// Starts and finishes an attempt.
    pub fn run_task(&mut self, id: AttemptId, report: AttemptReport) {
        self.start(id);
        self.finish(id, report);
    }

    /// Runs the only attempt that is out.
    pub fn run_only(&mut self, report: AttemptReport) {
        let ids: Vec<AttemptId> = self.out.keys().copied().collect();
        assert_eq!(ids.len(), 1, "one attempt is out");
        self.run_task(ids[0], report);
    }

    /// What a task that does as its source says reports; a switch takes its last way.
    pub fn as_written(&self, launch: &TaskLaunch, splits: u64) -> AttemptReport {
        let step = self.graph.step(launch.spec.step.as_str()).expect("a step of the flow");
        let step = &self.graph.steps[step];
        let names: Vec<&str> = step.children.iter().map(|c| self.graph.steps[*c].name.as_str()).collect();
        match step.kind {
            StepKind::Foreach { .. } => split(names[0], splits),
            StepKind::Parallel => gang(names[0], splits),
            StepKind::Switch { .. } => succeeded(&names[names.len() - 1..]),
            _ => succeeded(&names),
        }
    }

    /// Lets every task do as its source says until the run is over.
    pub fn run_to_end(&mut self, splits: u64) {
        while self.end.is_none() {
            let (id, launch) = self.out.iter().next().expect("a run that is not over has a task");
            let (id, report) = (*id, self.as_written(launch, splits));
            self.run_task(id, report);
        }
    }

    /// Texts of the system lines, with step and task id of those about a task.
    pub fn lines(&self) -> Vec<String> {
        let line = |message: &Message| match &message.task {
            Some(task) => format!("[{}/{}] {}", task.step, task.task, message.text()),
            None => message.text(),
        };
        self.messages.iter().map(line).collect()
    }

    /// The records as a metadata store would read them back.
    pub fn rows(&self, run: &str) -> Vec<TaskRow> {
        let row = |record: &TaskRecord| TaskRow { run: RunId::from(run), record: record.clone() };
        self.records.values().map(row).collect()
    }

    pub fn carry_out(&mut self, actions: Vec<Action>) {
        for action in actions {
            assert!(self.end.is_none(), "{action:?} comes after the end");
            match action {
                Action::Submit(launch) => self.submit(*launch),
                Action::Adopt(adoption) => self.adopt(adoption),
                Action::Stop { attempts, signal } => self.stops.push((attempts, signal)),
                Action::Record(record) => self.record(*record),
                Action::Print(message) => self.messages.push(message),
                Action::Finish(end) => self.end = Some(end),
            }
        }
        assert_eq!(self.run.has_ended(), self.end.is_some());
        if self.end.is_some() {
            assert!(self.out.is_empty() && self.adopted.is_empty(), "attempts are out after the end");
            assert_eq!(self.run.next_tick(), None);
        }
    }

    fn submit(&mut self, launch: TaskLaunch) {
        let id = launch.id;
        assert_eq!((launch.spec.task, launch.spec.attempt), (id.task, id.attempt));
        assert!(self.seen.insert(id), "attempt {id} was submitted twice");
        assert!(self.out.keys().all(|o| o.task != id.task), "task {} is out twice at once", id.task);
        let is_stop = |line: &Line| matches!(line, Line::WorkflowFailed | Line::WorkflowStopping { .. });
        let stopping = self.messages.iter().any(|message| is_stop(&message.line));
        assert!(!stopping, "a submit after the run was stopped");
        self.out.insert(id, launch.clone());
        assert!(self.taken_workers() <= self.max_workers, "more than max_workers are out");
        self.submitted.push(launch);
    }

    /// Attempts that are out, a gang counting as one.
    fn taken_workers(&self) -> usize {
        let worker = |launch: &TaskLaunch| launch.spec.gang.map_or(launch.id.task, |gang| gang.control_task);
        self.out.values().map(worker).collect::<BTreeSet<TaskId>>().len() + self.adopted.len()
    }

    /// Adopted attempts run already: they are out at once, however many they are.
    fn adopt(&mut self, adoption: Adoption) {
        let Some(id) = adoption.id else {
            self.unwanted.push(adoption);
            return;
        };
        assert!(self.submitted.is_empty(), "everything is adopted before the first task starts");
        assert!(self.seen.insert(id), "attempt {id} was adopted twice");
        self.adopted.insert(id, adoption);
        self.max_workers = self.max_workers.max(self.adopted.len());
    }

    /// The records as a store reads them back once the engine was killed: what had no end is lost.
    pub fn rows_after_a_crash(&self, run: &str) -> Vec<TaskRow> {
        let mut rows = self.rows(run);
        for row in rows.iter_mut().filter(|row| !row.record.state.is_final()) {
            row.record.state = AttemptState::Lost;
            row.record.cause = Some(Cause::new(CauseKind::EngineLost, "its engine is gone"));
        }
        rows
    }

    fn record(&mut self, record: Record) {
        let Record::Task(record) = record else { return };
        let step = self.ids.entry(record.task).or_insert_with(|| record.step.clone());
        assert_eq!(*step, record.step, "task {} changed its step", record.task);
        self.records.insert(record.task, record);
    }
}
