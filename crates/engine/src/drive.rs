//! From the first action of a run to its last.

use std::sync::Arc;
use std::time::Duration;

use ferroflow_core::id::{AttemptId, RunId, StepName};
use ferroflow_core::metadata::{MetadataEntry, Record};
use ferroflow_core::port::{
    ComputeLayer, EventSink, Later, LayerEvent, LogPlace, LogStore, MetadataError, MetadataStore,
};
use ferroflow_core::run::{Action, Event, Line, Message, Run, RunEnd};
use ferroflow_core::task::{Cause, CauseKind, Millis};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::clock;
use crate::console::{Console, Progress, TaskLabel, Tone};
use crate::held::HeldOrders;
use crate::output::{Backlog, Item, Output, size_of};
use crate::recorder::Recorder;
use crate::unstarted::Unstarted;

/// How often a live display is redrawn.
const REDRAW: Duration = Duration::from_millis(100);
/// Longest sleep between two looks at the machine's own deadline.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// The concrete parts a run is made of.
pub struct Parts {
    pub layer: Arc<dyn ComputeLayer>,
    pub metadata: Arc<dyn MetadataStore>,
    pub logs: Arc<dyn LogStore>,
    pub console: Box<dyn Console>,
    pub flow: String,
    pub run: RunId,
    /// Bytes kept per stream and task.
    pub max_log_size: u64,
}

/// `SIGINT` or `SIGTERM`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopRequest {
    pub signal: String,
}

/// The run could not be carried to its end because records or logs could not be written, or (with
/// `TakenOver`) because it is another engine's now.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unfinished(#[from] pub MetadataError);

/// Where a layer drops its events.
pub struct Mailbox {
    sender: UnboundedSender<Letter>,
    backlog: Arc<Backlog>,
}

/// The engine's end of a `Mailbox`.
pub struct Letters {
    receiver: UnboundedReceiver<Letter>,
    backlog: Arc<Backlog>,
}

enum Letter {
    Event(LayerEvent),
    Metadata { id: AttemptId, name: String, value: String },
    TakenOver(String),
}

impl Mailbox {
    pub fn new() -> (Arc<Self>, Letters) {
        let (sender, receiver) = unbounded_channel();
        let backlog = Arc::new(Backlog::default());
        (Arc::new(Self { sender, backlog: backlog.clone() }), Letters { receiver, backlog })
    }
}

impl EventSink for Mailbox {
    fn send(&self, event: LayerEvent) {
        if let LayerEvent::Log { lines, .. } = &event {
            self.backlog.add(size_of(lines));
        }
        // After the run has ended nobody reads; what comes then is of no interest.
        let _ = self.sender.send(Letter::Event(event));
    }

    fn metadata(&self, id: AttemptId, name: String, value: String) {
        let _ = self.sender.send(Letter::Metadata { id, name, value });
    }

    fn taken_over(&self, text: String) {
        let _ = self.sender.send(Letter::TakenOver(text));
    }

    fn ready(&self) -> Later<'_, ()> {
        Box::pin(self.backlog.room())
    }
}

/// Runs the machine to its end. Everything is shown, kept and recorded, and the layer is shut
/// down, when this returns.
pub async fn drive(
    parts: Parts,
    machine: Run,
    letters: Letters,
    mut stops: UnboundedReceiver<StopRequest>,
) -> Result<RunEnd, Unfinished> {
    let Letters { mut receiver, backlog } = letters;
    let (failure_sender, mut failures) = unbounded_channel();
    let wants_progress = parts.console.wants_progress();
    let output = Output::start(parts.console, parts.logs, parts.max_log_size, backlog, failure_sender.clone());
    let taken_over = failure_sender.clone();
    let (passed_sender, mut passed) = unbounded_channel();
    let recorder =
        Recorder::start(parts.metadata, parts.flow.clone(), parts.run.clone(), failure_sender, passed_sender);
    let mut driver = Driver {
        machine,
        layer: parts.layer.clone(),
        output,
        recorder,
        held: HeldOrders::default(),
        taken_over,
        flow: parts.flow,
        run: parts.run,
        labels: Vec::new(),
        unstarted: Unstarted::default(),
        end: None,
    };
    let mut redraw = tokio::time::interval(REDRAW);
    redraw.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let now = clock::now();
    let first = driver.machine.start(now);
    driver.carry_out(first, now);
    let mut failure = None;
    while driver.end.is_none() && failure.is_none() {
        let sleep = sleep_until(driver.machine.next_tick());
        tokio::select! {
            biased;
            Some(stop) = stops.recv() => {
                driver.feed(Event::StopRequested { signal: stop.signal });
                driver.layer.run_ends();
            }
            Some(error) = failures.recv() => failure = Some(error),
            Some(barrier) = passed.recv() => driver.pass(barrier),
            Some(letter) = receiver.recv() => driver.open(letter),
            () = tokio::time::sleep(sleep) => driver.feed(Event::Tick),
            _ = redraw.tick(), if wants_progress => driver.show_progress(),
        }
    }
    let mut end = match failure {
        Some(MetadataError::TakenOver(_)) => parts.layer.let_go(),
        _ => parts.layer.shut_down(),
    };
    // A layer that ends may still tell of its tasks' last lines, and what keeps it.
    loop {
        tokio::select! {
            () = &mut end => break,
            Some(letter) = receiver.recv() => driver.take_last(letter),
        }
    }
    while let Ok(letter) = receiver.try_recv() {
        driver.take_last(letter);
    }
    if wants_progress {
        driver.show_progress();
    }
    driver.finish(failure)
}

/// Time until the machine's deadline, zero when it has passed.
fn sleep_until(deadline: Option<Millis>) -> Duration {
    match deadline {
        Some(at) => Duration::from_millis(u64::try_from(at - clock::now()).unwrap_or(0)).min(LONGEST_SLEEP),
        None => LONGEST_SLEEP,
    }
}

/// A submitted task on the screen.
#[derive(Clone)]
struct Shown {
    step: StepName,
    pid: Option<u32>,
    /// When its start was shown. A remote task may have printed before its layer tells that it runs.
    started: Millis,
}

struct Driver {
    machine: Run,
    layer: Arc<dyn ComputeLayer>,
    output: Output,
    recorder: Recorder,
    held: HeldOrders,
    /// Ends the loop.
    taken_over: UnboundedSender<MetadataError>,
    flow: String,
    run: RunId,
    /// What is shown of each submitted task, by task id.
    labels: Vec<Option<Shown>>,
    unstarted: Unstarted,
    end: Option<RunEnd>,
}

impl Driver {
    fn open(&mut self, letter: Letter) {
        match letter {
            Letter::Event(event) => self.take(event),
            Letter::Metadata { id, name, value } => self.record_metadata(id, name, value),
            Letter::TakenOver(text) => {
                // The receiver is in the loop that calls this.
                let _ = self.taken_over.send(MetadataError::TakenOver(text));
            }
        }
    }

    /// Everything up to a barrier is recorded.
    fn pass(&mut self, barrier: u64) {
        for id in self.held.pass(barrier, &*self.layer) {
            let text = "this run has no layer that could look for it";
            self.feed(Event::Lost { id, cause: Cause::new(CauseKind::LayerError, text) });
        }
    }

    fn record_metadata(&self, id: AttemptId, name: String, value: String) {
        let Some(Some(Shown { step, .. })) = self.labels.get(index(id)) else { return };
        let entry = Record::Metadata(MetadataEntry {
            step: step.clone(),
            task: id.task,
            attempt: id.attempt,
            entry_type: name.clone(),
            name,
            value,
            created_at: clock::now(),
        });
        self.recorder.send(Box::new(entry));
    }

    fn take(&mut self, event: LayerEvent) {
        self.note(&event);
        match Event::try_from(event) {
            Ok(event) => {
                let finished = match &event {
                    Event::Finished { id, .. } | Event::Lost { id, .. } => Some(*id),
                    _ => None,
                };
                self.feed(event);
                let Some(id) = finished else { return };
                self.held.ended(id);
                if let Some(place) = self.place(id) {
                    self.output.send(Item::CloseLog(place));
                }
            }
            Err(event) => self.pass_on(event),
        }
    }

    /// Events after the end of the run: only what a user would want to read.
    fn take_last(&self, letter: Letter) {
        match letter {
            Letter::Event(event) => {
                if let Err(event) = Event::try_from(event) {
                    self.pass_on(event);
                }
            }
            Letter::Metadata { id, name, value } => self.record_metadata(id, name, value),
            Letter::TakenOver(_) => {}
        }
    }

    fn feed(&mut self, event: Event) {
        let now = clock::now();
        let actions = self.machine.on(event, now);
        self.carry_out(actions, now);
    }

    /// Remembers what labels and the live display need.
    fn note(&mut self, event: &LayerEvent) {
        match event {
            LayerEvent::Started { id, pid } => {
                if let Some(Some(shown)) = self.labels.get_mut(index(*id)) {
                    shown.pid = *pid;
                }
                self.unstarted.forget(*id);
            }
            LayerEvent::Waiting { id, reason } => {
                if let Some(Some(Shown { step, .. })) = self.labels.get(index(*id)) {
                    self.unstarted.note(*id, step, Some(reason));
                }
            }
            LayerEvent::Starting { id, .. } => {
                if let Some(Some(Shown { step, .. })) = self.labels.get(index(*id)) {
                    self.unstarted.note(*id, step, None);
                }
            }
            LayerEvent::Finished { id, .. } | LayerEvent::Lost { id, .. } => self.unstarted.forget(*id),
            _ => {}
        }
    }

    /// Log lines and notices go straight to the output.
    fn pass_on(&self, event: LayerEvent) {
        match event {
            LayerEvent::Log { id, stream, at, lines } => {
                let place = self.place(id);
                if let Some((task, started)) = self.label(id) {
                    self.output.send(Item::Log { place, task, stream, at: at.max(started), lines });
                }
            }
            LayerEvent::Notice { text } => self.output.send(Item::Notice(text)),
            _ => {}
        }
    }

    /// Where its log is kept; an adopted task's is the other run's.
    fn place(&self, id: AttemptId) -> Option<LogPlace> {
        if self.held.is_adopted(id) {
            return None;
        }
        let shown = self.labels.get(index(id))?.as_ref()?;
        Some(LogPlace { flow: self.flow.clone(), run: self.run.clone(), step: shown.step.to_string(), id })
    }

    /// With the time of its start.
    fn label(&self, id: AttemptId) -> Option<(TaskLabel, Millis)> {
        let Shown { step, pid, started } = self.labels.get(index(id))?.clone()?;
        Some((TaskLabel { run: self.run.0.clone(), step, task: id.task, pid }, started))
    }

    fn carry_out(&mut self, actions: Vec<Action>, now: Millis) {
        for action in actions {
            match action {
                Action::Submit(launch) => {
                    self.know(launch.id, &launch.spec.step);
                    if self.layer.outlives_engine(&launch) {
                        self.held.submit(launch);
                    } else {
                        self.layer.submit(*launch);
                    }
                }
                Action::Adopt(adoption) => {
                    if let Some(id) = adoption.id {
                        self.know(id, &adoption.step);
                    }
                    self.held.adopt(adoption);
                }
                Action::Stop { attempts, signal } => {
                    let at_once = self.held.stop(attempts, signal);
                    if !at_once.is_empty() {
                        self.layer.stop(&at_once, signal);
                    }
                }
                Action::Record(record) => self.recorder.send(record),
                Action::Print(message) => self.print(&message, now),
                Action::Finish(end) => self.end = Some(end),
            }
        }
        self.held.close(&self.recorder);
    }

    fn know(&mut self, id: AttemptId, step: &StepName) {
        let index = index(id);
        if self.labels.len() <= index {
            self.labels.resize(index + 1, None);
        }
        self.labels[index] = Some(Shown { step: step.clone(), pid: None, started: Millis::MIN });
    }

    fn note_start(&mut self, message: &Message, at: Millis) {
        let (Some(task), Line::TaskStarting | Line::TaskRetrying | Line::TaskFallback) = (&message.task, &message.line)
        else {
            return;
        };
        let id = AttemptId { task: task.task, attempt: task.attempt };
        if let Some(Some(shown)) = self.labels.get_mut(index(id)) {
            shown.started = at;
        }
    }

    fn print(&mut self, message: &Message, at: Millis) {
        self.note_start(message, at);
        let task = message.task.as_ref().map(|task| TaskLabel {
            run: self.run.0.clone(),
            step: task.step.clone(),
            task: task.task,
            pid: task.pid,
        });
        let tone = match message.line {
            Line::TaskStarting | Line::TaskFinished | Line::CloningTask { .. } => Tone::Routine,
            _ if message.is_bad() => Tone::Bad,
            _ => Tone::Plain,
        };
        self.mark_logs(message, at);
        for text in message.text().lines() {
            self.output.send(Item::System { at, task: task.clone(), text: text.to_owned(), tone });
        }
    }

    /// That a task was told to stop stands in its logs too. Tasks elsewhere keep theirs themselves.
    fn mark_logs(&self, message: &Message, at: Millis) {
        let (Line::KilledByOrchestrator, Some(task)) = (&message.line, &message.task) else { return };
        let place = self.place(AttemptId { task: task.task, attempt: task.attempt });
        if let (Some(place), Some(_)) = (place, task.pid) {
            self.output.send(Item::Mark { place, at, text: message.text() });
        }
    }

    fn show_progress(&self) {
        let progress = Progress { steps: self.machine.progress(), holdups: self.unstarted.by_step() };
        self.output.send(Item::Progress(progress));
    }

    fn finish(self, failure: Option<MetadataError>) -> Result<RunEnd, Unfinished> {
        self.output.finish();
        let recorded = self.recorder.finish();
        match (failure, recorded, self.end) {
            (Some(error), _, _) | (None, Err(error), _) => Err(error.into()),
            (None, Ok(()), Some(end)) => Ok(end),
            (None, Ok(()), None) => unreachable!("the loop ends with an end or a failure"),
        }
    }
}

fn index(id: AttemptId) -> usize {
    usize::try_from(id.task.0).unwrap_or(usize::MAX)
}
