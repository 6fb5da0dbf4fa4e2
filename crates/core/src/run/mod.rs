//! The run machine: a pure function of state and event that returns actions. Time and the outside
//! world come in as arguments; what is to be done goes out as `Action`s in the order in which
//! they are to be carried out. No I/O, no clock, no threads in this folder.

mod adopt;
mod advance;
mod frames;
mod gang;
mod invariants;
mod message;
mod outcome;
mod queue;
mod resume;
mod stop;
mod tasks;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::graph::Graph;
use crate::id::{AttemptId, PARAMETERS_STEP, PARAMETERS_TASK, RunId, StepName, TaskId};
use crate::metadata::{Record, RunState, TaskRecord, TaskRow};
use crate::port::{Adoption, LayerEvent, StopSignal};
use crate::task::{AttemptReport, AttemptState, Cause, InputRef, Millis, StoreLocation, TaskLaunch};
use frames::{FrameId, Frames, Place};
use gang::Gang;
use queue::{Inputs, Queue, Ready};
use resume::{Cloning, OriginParameters, Runs};
use stop::Stopping;
use tasks::Active;

pub use message::{Line, Message, Progress, StepProgress, TaskName};
pub use outcome::signal_name;
pub use stop::{PROGRESS_INTERVAL, STOP_GRACE};

/// What holds for the whole run.
#[derive(Clone, Debug)]
pub struct RunSettings {
    pub flow: String,
    pub run: RunId,
    pub store: StoreLocation,
    pub user: String,
    /// `user:name` or `production:token`.
    pub identity: String,
    /// Client namespace for code in tasks; `None` is global.
    pub namespace: Option<String>,
    pub tags: Vec<String>,
    /// Attempts that may be out at the same time; at least 1.
    pub max_workers: usize,
    pub max_num_splits: u64,
    /// Name of the compute layer of steps that ask for none, for records.
    pub layer: String,
}

/// What a resumed run may clone.
#[derive(Clone, Debug)]
pub struct ResumePlan {
    pub origin_run: RunId,
    /// Latest attempts of the origin's tasks, `_parameters` included.
    pub tasks: Vec<TaskRow>,
    /// This step and all that follow it are run again.
    pub rerun_from: Option<StepName>,
}

/// What the machine is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Waiting {
        id: AttemptId,
        reason: String,
    },
    Starting {
        id: AttemptId,
        detail: String,
    },
    Started {
        id: AttemptId,
        pid: Option<u32>,
    },
    Finished {
        id: AttemptId,
        report: AttemptReport,
    },
    Lost {
        id: AttemptId,
        cause: Cause,
    },
    Down {
        cause: Cause,
    },
    /// The run is to end: `SIGINT` or `SIGTERM`.
    StopRequested {
        signal: String,
    },
    /// Time has passed; due at `Run::next_tick`, harmless at any other time.
    Tick,
}

impl TryFrom<LayerEvent> for Event {
    /// `Log` and `Notice`: nothing for the machine to decide.
    type Error = LayerEvent;

    fn try_from(event: LayerEvent) -> Result<Self, LayerEvent> {
        match event {
            LayerEvent::Waiting { id, reason } => Ok(Self::Waiting { id, reason }),
            LayerEvent::Starting { id, detail } => Ok(Self::Starting { id, detail }),
            LayerEvent::Started { id, pid } => Ok(Self::Started { id, pid }),
            LayerEvent::Finished { id, report } => Ok(Self::Finished { id, report }),
            LayerEvent::Lost { id, cause } => Ok(Self::Lost { id, cause }),
            LayerEvent::Down { cause } => Ok(Self::Down { cause }),
            LayerEvent::Log { .. } | LayerEvent::Notice { .. } => Err(event),
        }
    }
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    Submit(Box<TaskLaunch>),
    /// Follow (or, without an id, stop) what the origin's engine left behind.
    Adopt(Adoption),
    Stop {
        attempts: Vec<AttemptId>,
        signal: StopSignal,
    },
    /// Write to the metadata store. A later record of a task replaces an earlier one, so a batch
    /// needs only the last.
    Record(Box<Record>),
    Print(Message),
    /// The run is over; always the last action of a run.
    Finish(RunEnd),
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct RunEnd {
    /// `Done`, `Failed` or `Cancelled`.
    pub state: RunState,
    pub cause: Option<Cause>,
    /// The task whose failure failed the run (`Step failure`).
    pub failed: Option<FailedTask>,
    /// Set when the run was asked to stop (`SIGINT`, `SIGTERM`).
    pub signal: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct FailedTask {
    pub step: StepName,
    pub task: TaskId,
    pub attempt: u32,
    pub cause: Cause,
}

/// A run from its first task to its end.
pub struct Run {
    graph: Arc<Graph>,
    settings: RunSettings,
    phase: Phase,
    runs: Runs,
    origin_run: Option<RunId>,
    /// The attempt that holds parameters and constants.
    parameters: InputRef,
    origin_parameters: Option<OriginParameters>,
    /// Task 0 is `_parameters`.
    next_task: u64,
    queue: Queue,
    frames: Frames,
    active: BTreeMap<TaskId, Active>,
    /// Gangs that are out, by their split.
    gangs: BTreeMap<FrameId, Gang>,
    /// Attempts that may be out: `max_workers`, or as many as were adopted.
    places: usize,
    /// When attempts are killed for running past their `@timeout`.
    backstops: BTreeSet<(Millis, AttemptId)>,
    /// When attempts that pause before a retry are submitted.
    pauses: BTreeSet<(Millis, AttemptId)>,
    /// By step.
    counts: Vec<Counts>,
    end_reached: bool,
    /// When the next progress report is due.
    report_at: Millis,
}

enum Phase {
    New,
    Cloning(Cloning),
    Running,
    Stopping(Stopping),
    Ended,
}

#[derive(Clone, Debug, Default)]
struct Counts {
    queued: u64,
    starting: u64,
    running: u64,
    done: u64,
    failed: u64,
}

impl Run {
    /// `Err` when the resume plan does not fit the flow: an unknown step to run again from, or an
    /// origin without parameters.
    pub fn new(graph: Arc<Graph>, mut settings: RunSettings, resume: Option<ResumePlan>) -> Result<Self, String> {
        settings.max_workers = settings.max_workers.max(1);
        let mut runs = Runs::new(settings.run.clone());
        let mut parameters = InputRef {
            run: settings.run.clone(),
            step: StepName::from(PARAMETERS_STEP),
            tasks: vec![(PARAMETERS_TASK, PARAMETERS_TASK, 0)],
        };
        let mut phase = Phase::New;
        let mut origin_parameters = None;
        let origin_run = resume.as_ref().map(|plan| plan.origin_run.clone());
        if let Some(plan) = resume {
            let (cloning, origin) = resume::prepare(&graph, &settings, plan, &mut runs)?;
            parameters = origin.input.clone();
            origin_parameters = Some(origin);
            phase = Phase::Cloning(cloning);
        }
        let counts = vec![Counts::default(); graph.steps.len()];
        Ok(Self {
            places: settings.max_workers,
            graph,
            settings,
            phase,
            runs,
            origin_run,
            parameters,
            origin_parameters,
            next_task: 1,
            queue: Queue::default(),
            frames: Frames::default(),
            active: BTreeMap::new(),
            gangs: BTreeMap::new(),
            backstops: BTreeSet::new(),
            pauses: BTreeSet::new(),
            counts,
            end_reached: false,
            report_at: 0,
        })
    }

    /// The first actions: `Workflow starting`, the record of `_parameters`, clones, submits.
    pub fn start(&mut self, now: Millis) -> Vec<Action> {
        let mut out = Vec::new();
        self.report_at = now + stop::PROGRESS_INTERVAL;
        let run = self.settings.run.clone();
        out.push(Action::Print(Message::run(Line::WorkflowStarting { run })));
        if let Some(origin) = self.origin_run.clone() {
            let flow = self.settings.flow.clone();
            out.push(Action::Print(Message::run(Line::CloningRun { flow, origin })));
        }
        out.push(Action::Record(Box::new(Record::Task(self.parameters_record(now)))));
        let first = Ready { step: self.graph.start, place: Place::OUTSIDE, iteration: 0, inputs: Inputs::None };
        match &mut self.phase {
            Phase::Cloning(cloning) => {
                cloning.waiting.push(first);
                self.clone_portion(now, &mut out);
            }
            _ => {
                self.phase = Phase::Running;
                self.counts[first.step].queued += 1;
                self.queue.push(first);
            }
        }
        self.go_on(now, &mut out);
        out
    }

    /// Takes an event; events of unknown or finished attempts are ignored.
    pub fn on(&mut self, event: Event, now: Millis) -> Vec<Action> {
        let mut out = Vec::new();
        let out = &mut out;
        match event {
            Event::Waiting { id, reason } => self.waiting(id, reason, now, out),
            Event::Starting { id, .. } => self.starting(id, now, out),
            Event::Started { id, pid } => self.started(id, pid, now, out),
            Event::Finished { id, report } => self.finished(id, &report, now, out),
            Event::Lost { id, cause } => self.lost(id, cause, now, out),
            Event::Down { cause } => self.down(&cause, now, out),
            Event::StopRequested { signal } => self.stop_requested(signal, now, out),
            Event::Tick => self.tick(now, out),
        }
        if matches!(self.phase, Phase::Cloning(_)) {
            self.clone_portion(now, out);
            self.go_on(now, out);
        }
        std::mem::take(out)
    }

    /// When the machine wants its next `Tick` at the latest, if time alone can change anything. May
    /// lie in the past (a large resume clones in portions): tick at once then.
    pub fn next_tick(&self) -> Option<Millis> {
        self.next_deadline()
    }

    /// Whether `Finish` was returned.
    pub fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended)
    }

    /// How far each step is, in topological order; for a live display.
    pub fn progress(&self) -> Vec<StepProgress> {
        let progress = |(index, counts): (usize, &Counts)| StepProgress {
            step: self.graph.steps[index].name.clone(),
            queued: counts.queued,
            starting: counts.starting,
            running: counts.running,
            done: counts.done,
            failed: counts.failed,
        };
        self.counts.iter().enumerate().map(progress).collect()
    }

    fn parameters_record(&self, now: Millis) -> TaskRecord {
        let origin = self.origin_parameters.as_ref();
        TaskRecord {
            step: StepName::from(PARAMETERS_STEP),
            task: PARAMETERS_TASK,
            attempt: 0,
            state: AttemptState::Done,
            cause: None,
            foreach_path: Vec::new(),
            iteration: 0,
            num_splits: None,
            targets: vec![self.graph.steps[self.graph.start].name.clone()],
            created_at: now,
            started_at: Some(now),
            finished_at: Some(now),
            ok: Some(true),
            success: Some(true),
            usage: None,
            pid: None,
            layer: self.settings.layer.clone(),
            data: origin.map(|o| o.data.clone()),
            origin: origin.map(|o| o.origin.clone()),
        }
    }
}
