//! Attempts that are out: submitting them, following what the layer says about them, and the
//! records that are kept of them.

use super::adopt::Adopted;
use super::frames::DataPoint;
use super::message::{Line, Message, TaskName};
use super::outcome::{Failure, Taken};
use super::queue::{Inputs, Ready};
use super::{Action, Run};
use crate::graph::StepKind;
use crate::id::{AttemptId, StepName, TaskId};
use crate::metadata::{Record, TaskRecord};
use crate::task::{AttemptState, Cause, ForeachFrame, InputRef, Millis, TaskLaunch, TaskSpec, Usage};

/// How long past `@timeout` the task may take to act on it itself.
const BACKSTOP: Millis = 60_000;

/// Pauses of a remote task after its first, second and third loss, in milliseconds.
const LOSS_PAUSES: [Millis; 3] = [0, 10_000, 30_000];

/// A submitted attempt, until it is finished or lost.
#[derive(Debug)]
pub(super) struct Active {
    pub ready: Ready,
    pub attempt: u32,
    /// Attempts of this task that the layer lost; they do not count as retries.
    pub lost: u32,
    pub previous_failure: Option<String>,
    pub created_at: Millis,
    pub started_at: Option<Millis>,
    pub pid: Option<u32>,
    pub state: AttemptState,
    pub waiting: Option<String>,
    /// When it is killed for running past its `@timeout`.
    pub backstop: Option<Millis>,
    pub overdue: bool,
    /// When it is submitted, while it pauses before a retry.
    pub paused_until: Option<Millis>,
    /// Another run had submitted it.
    pub adopted: Option<Adopted>,
}

impl Active {
    pub fn new(ready: Ready, now: Millis) -> Self {
        Self {
            ready,
            attempt: 0,
            lost: 0,
            previous_failure: None,
            created_at: now,
            started_at: None,
            pid: None,
            state: AttemptState::Starting,
            waiting: None,
            backstop: None,
            overdue: false,
            paused_until: None,
            adopted: None,
        }
    }

    /// The next attempt of the same task.
    pub fn again(self) -> Self {
        let mut next = Self::new(self.ready, self.created_at);
        next.attempt = self.attempt + 1;
        next.lost = self.lost;
        next
    }

    /// Attempts before this one that count.
    pub fn tries(&self) -> u32 {
        self.attempt - self.lost
    }
}

/// What a final record says beyond the attempt's own fields.
#[derive(Default)]
pub(super) struct Ending<'a> {
    pub cause: Option<&'a Cause>,
    pub taken: Option<&'a Taken>,
    pub ok: Option<bool>,
    pub success: Option<bool>,
    pub usage: Option<Usage>,
}

impl Run {
    /// Starts as many ready tasks as there are free workers.
    pub(super) fn pump(&mut self, now: Millis, out: &mut Vec<Action>) {
        while self.taken_workers() < self.settings.max_workers {
            let Some(ready) = self.pop_ready() else { return };
            if let Some(frame) = self.gang_of(&ready) {
                self.start_gang(frame, ready, now, out);
                continue;
            }
            let task = self.allocate();
            self.submit(task, Active::new(ready, now), now, out);
        }
    }

    pub(super) fn pop_ready(&mut self) -> Option<Ready> {
        let (ready, _) = self.queue.pop()?;
        self.counts[ready.step].queued -= 1;
        Some(ready)
    }

    pub(super) fn allocate(&mut self) -> TaskId {
        let task = TaskId(self.next_task);
        self.next_task += 1;
        task
    }

    /// Another attempt after a failure; on a remote layer after the pause that `@retry` asks for.
    pub(super) fn submit_again(&mut self, task: TaskId, active: Active, now: Millis, out: &mut Vec<Action>) {
        let policy = &self.graph.steps[active.ready.step].policy;
        let minutes = policy.minutes_between_retries;
        if policy.layer.is_none() || minutes <= 0.0 || self.is_fallback(&active) {
            self.submit(task, active, now, out);
            return;
        }
        let said = self.say(task, &active, Line::SleepingBeforeRetry { minutes });
        self.pause(task, active, (minutes * 60_000.0) as Millis, now, out);
        out.push(said);
    }

    /// Another attempt after a loss, which counts as no retry.
    pub(super) fn submit_lost(&mut self, task: TaskId, lost: Active, now: Millis, out: &mut Vec<Action>) {
        let pause = self.loss_pause(&lost);
        let previous_failure = lost.previous_failure.clone();
        let mut next = lost.again();
        next.lost += 1;
        next.previous_failure = previous_failure;
        if pause == 0 {
            self.submit(task, next, now, out);
        } else {
            self.pause(task, next, pause, now, out);
        }
    }

    /// How long a lost task waits until it starts again: a remote layer that loses it once more may need time.
    pub(super) fn loss_pause(&self, lost: &Active) -> Millis {
        let remote = self.graph.steps[lost.ready.step].policy.layer.is_some() && !self.is_fallback(lost);
        if remote { LOSS_PAUSES.get(lost.lost as usize).copied().unwrap_or_default() } else { 0 }
    }

    fn pause(&mut self, task: TaskId, mut active: Active, length: Millis, now: Millis, out: &mut Vec<Action>) {
        let until = now.saturating_add(length);
        active.state = AttemptState::Waiting;
        active.paused_until = Some(until);
        out.push(self.record(task, &active, now, &Ending::default()));
        self.pauses.insert((until, AttemptId { task, attempt: active.attempt }));
        self.counts[active.ready.step].starting += 1;
        self.active.insert(task, active);
    }

    /// Submits attempts whose pause is over.
    pub(super) fn end_pauses(&mut self, now: Millis, out: &mut Vec<Action>) {
        while let Some((_, id)) = self.pauses.first().copied().filter(|(at, _)| *at <= now) {
            let Some(mut active) = self.take(id) else { return };
            active.state = AttemptState::Starting;
            active.paused_until = None;
            self.submit(id.task, active, now, out);
        }
    }

    pub(super) fn submit(&mut self, task: TaskId, active: Active, now: Millis, out: &mut Vec<Action>) {
        let step = &self.graph.steps[active.ready.step];
        let spec = self.spec(task, &active);
        let time_limit = step.policy.time_limit.filter(|_| !spec.fallback);
        let id = AttemptId { task, attempt: active.attempt };
        let launch = TaskLaunch { id, has_imports: step.has_imports, time_limit, spec };
        self.counts[active.ready.step].starting += 1;
        out.push(self.record(task, &active, now, &Ending::default()));
        out.push(Action::Submit(Box::new(launch)));
        self.active.insert(task, active);
    }

    fn is_fallback(&self, active: &Active) -> bool {
        active.tries() > self.graph.steps[active.ready.step].policy.user_retries
    }

    /// Fallbacks run here, whatever layer the step asks for (behaviour.md K-8).
    fn layer_of(&self, active: &Active) -> String {
        if let Some(adopted) = &active.adopted {
            return adopted.from.layer.clone();
        }
        let layer = self.graph.steps[active.ready.step].policy.layer.filter(|_| !self.is_fallback(active));
        layer.map_or_else(|| self.settings.layer.clone(), str::to_owned)
    }

    fn spec(&self, task: TaskId, active: &Active) -> TaskSpec {
        let step = &self.graph.steps[active.ready.step];
        let settings = &self.settings;
        let (inputs, expected_inputs) = match &active.ready.inputs {
            Inputs::None => (Vec::new(), None),
            Inputs::One(point) => (vec![self.input(*point)], None),
            Inputs::Joined { inputs, width } => (inputs.to_vec(), Some(*width)),
        };
        TaskSpec {
            flow: settings.flow.clone(),
            run: settings.run.clone(),
            step: step.name.clone(),
            task,
            attempt: active.attempt,
            // The task compares its attempt with this, so lost attempts move the limit.
            max_user_code_retries: step.policy.user_retries + active.lost,
            fallback: self.is_fallback(active),
            previous_failure: active.previous_failure.clone(),
            join: step.is_join(),
            inputs,
            parameters: self.parameters.clone(),
            foreach_stack: self.foreach_stack(active),
            origin_run: self.origin_run.clone(),
            store: settings.store.clone(),
            decorators: step.policy.decorators.clone(),
            user: settings.user.clone(),
            identity: settings.identity.clone(),
            namespace: settings.namespace.clone(),
            tags: settings.tags.clone(),
            expected_inputs,
            max_num_splits: settings.max_num_splits,
            gang: self.gang_place(&active.ready),
        }
    }

    pub(super) fn input(&self, point: DataPoint) -> InputRef {
        InputRef {
            run: self.runs[point.run as usize].clone(),
            step: self.graph.steps[point.step].name.clone(),
            tasks: vec![(point.task, point.task, point.attempt)],
        }
    }

    fn foreach_stack(&self, active: &Active) -> Vec<ForeachFrame> {
        let levels = self.frames.around(active.ready.place).filter(|(frame, _)| frame.foreach);
        let mut stack: Vec<ForeachFrame> = levels
            .map(|(frame, index)| ForeachFrame {
                step: self.graph.steps[frame.split].name.clone(),
                variable: match &self.graph.steps[frame.split].kind {
                    StepKind::Foreach { variable } => variable.clone(),
                    _ => String::new(),
                },
                index,
                num_splits: frame.width,
                source: self.input(frame.source),
            })
            .collect();
        stack.reverse();
        stack
    }

    /// The attempt of that id, if it is out.
    fn attempt_mut(&mut self, id: AttemptId) -> Option<&mut Active> {
        self.active.get_mut(&id.task).filter(|a| a.attempt == id.attempt)
    }

    pub(super) fn waiting(&mut self, id: AttemptId, reason: String, now: Millis, out: &mut Vec<Action>) {
        let Some(active) = self.attempt_mut(id) else { return };
        if active.state == AttemptState::Running || active.waiting.as_ref() == Some(&reason) {
            return;
        }
        active.state = AttemptState::Waiting;
        active.waiting = Some(reason.clone());
        let active = &self.active[&id.task];
        out.push(self.record(id.task, active, now, &Ending::default()));
        out.push(self.say(id.task, active, Line::TaskWaiting { reason }));
    }

    pub(super) fn starting(&mut self, id: AttemptId, now: Millis, out: &mut Vec<Action>) {
        let Some(active) = self.attempt_mut(id) else { return };
        if active.state == AttemptState::Waiting {
            active.state = AttemptState::Starting;
            active.waiting = None;
            out.push(self.record(id.task, &self.active[&id.task], now, &Ending::default()));
        }
    }

    pub(super) fn started(&mut self, id: AttemptId, pid: Option<u32>, now: Millis, out: &mut Vec<Action>) {
        let Some(active) = self.attempt_mut(id).filter(|a| a.state != AttemptState::Running) else {
            return;
        };
        active.state = AttemptState::Running;
        active.waiting = None;
        active.started_at = Some(now);
        active.pid = pid;
        let step = active.ready.step;
        self.counts[step].starting -= 1;
        self.counts[step].running += 1;
        let fallback = self.is_fallback(&self.active[&id.task]);
        let limit = self.graph.steps[step].policy.time_limit.filter(|_| !fallback);
        if let Some(limit) = limit {
            let at = now.saturating_add((limit * 1000.0) as Millis).saturating_add(BACKSTOP);
            self.backstops.insert((at, id));
            if let Some(active) = self.attempt_mut(id) {
                active.backstop = Some(at);
            }
        }
        let active = &self.active[&id.task];
        if active.adopted.is_some() {
            out.push(self.record(id.task, active, now, &Ending::default()));
            return;
        }
        let line = match (fallback, active.tries()) {
            (true, _) => Line::TaskFallback,
            (false, 0) => Line::TaskStarting,
            (false, _) => Line::TaskRetrying,
        };
        out.push(self.record(id.task, active, now, &Ending::default()));
        out.push(self.say(id.task, active, line));
    }

    /// Takes an attempt off the list of those that are out.
    pub(super) fn take(&mut self, id: AttemptId) -> Option<Active> {
        self.attempt_mut(id)?;
        let active = self.active.remove(&id.task)?;
        if let Some(at) = active.backstop {
            self.backstops.remove(&(at, id));
        }
        if let Some(at) = active.paused_until {
            self.pauses.remove(&(at, id));
        }
        let counts = &mut self.counts[active.ready.step];
        match active.state {
            AttemptState::Running => counts.running -= 1,
            _ => counts.starting -= 1,
        }
        Some(active)
    }

    /// Says that an attempt failed, and why if the task itself could not.
    pub(super) fn say_failed(&self, task: TaskId, active: &Active, failure: &Failure, out: &mut Vec<Action>) {
        if failure.segfault {
            out.push(self.say(task, active, Line::TaskSegfault));
            return;
        }
        if !failure.said {
            out.push(self.say(task, active, Line::TaskCause(failure.cause.clone())));
        }
        out.push(self.say(task, active, Line::TaskFailed));
    }

    pub(super) fn say(&self, task: TaskId, active: &Active, line: Line) -> Action {
        let step = self.graph.steps[active.ready.step].name.clone();
        let name = TaskName { step, task, attempt: active.attempt, pid: active.pid };
        Action::Print(Message::task(name, line))
    }

    pub(super) fn record(&self, task: TaskId, active: &Active, now: Millis, ending: &Ending) -> Action {
        let ready = &active.ready;
        let targets = ending.taken.map_or(&[][..], |t| &t.targets);
        let name = |step: &usize| -> StepName { self.graph.steps[*step].name.clone() };
        Action::Record(Box::new(Record::Task(TaskRecord {
            step: name(&ready.step),
            task,
            attempt: active.attempt,
            state: active.state,
            cause: ending.cause.cloned(),
            foreach_path: self.frames.path(ready.place),
            iteration: ready.iteration,
            num_splits: ending.taken.and_then(|t| t.num_splits),
            targets: targets.iter().map(name).collect(),
            created_at: active.created_at,
            started_at: active.started_at,
            finished_at: active.state.is_final().then_some(now),
            ok: ending.ok,
            success: ending.success,
            usage: ending.usage,
            pid: active.pid,
            layer: self.layer_of(active),
            data: active.adopted.as_ref().map(|adopted| adopted.from.data.clone()),
            origin: active.adopted.as_ref().map(|adopted| adopted.from.origin.clone()),
        })))
    }
}
