//! The task that owns all of a run's attempts on AWS Batch and takes messages: commands from the
//! engine, news of jobs, answers to requests. Everything that waits for the network is spawned and
//! comes back as a message.

mod adopting;
mod ending;
mod gangs;
mod gathering;
mod polling;
mod stopping;

use std::collections::HashMap;
use std::sync::Arc;

use ferroflow_core::id::{AttemptId, StepName};
use ferroflow_core::port::{EventSink, LayerEvent, RemoteTasks, StopSignal};
use ferroflow_core::task::{Cause, CauseKind, TaskLaunch};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;

use super::BatchSettings;
use super::api::{BatchFault, Service};
use super::attempt::{Attempt, Stage};
use super::queue::QueueView;
use super::submit::Submitter;
use super::view::{JobView, Status};
use crate::remote::drive::{Supervise, drive};
use crate::remote::layer::Command;
use ending::Read;

pub enum Message {
    /// `None`: it was cancelled before it went out.
    Submitted {
        id: AttemptId,
        round: u32,
        result: Result<Option<String>, Cause>,
    },
    /// What was asked about, and what is known of it.
    Jobs {
        asked: Vec<(AttemptId, String)>,
        result: Result<Vec<JobView>, BatchFault>,
    },
    /// How an attempt ended, and all it printed was sent on.
    Read {
        id: AttemptId,
        round: u32,
        read: Box<Read>,
    },
    Ended {
        ids: Vec<AttemptId>,
        result: Result<(), BatchFault>,
    },
    Queues(Result<Vec<QueueView>, BatchFault>),
    /// Those gathered so far are to go out.
    Gathered,
}

pub struct Supervisor {
    service: Service,
    settings: Arc<BatchSettings>,
    remote: Arc<dyn RemoteTasks>,
    events: Arc<dyn EventSink>,
    sender: UnboundedSender<Message>,
    submitter: Arc<Submitter>,
    attempts: HashMap<AttemptId, Attempt>,
    polling: polling::Polling,
    /// Attempts that are to be submitted together with others.
    gathering: Vec<AttemptId>,
    gangs: gangs::Gangs,
    /// Queues are being read, or were at that time.
    explaining: bool,
    explained_at: Option<Instant>,
    /// Tasks that were to be killed, and whose end nobody has confirmed.
    unconfirmed: usize,
    /// Since when everything is being stopped.
    run_ends_since: Option<Instant>,
    /// It was told what is left after a while.
    told_left: bool,
    /// What was told last of jobs that could not be ended.
    not_ended: Option<String>,
    /// Adopted attempts whose jobs are still to be looked for.
    adopted: Vec<AttemptId>,
}

impl Supervisor {
    fn new(
        service: Service,
        settings: BatchSettings,
        remote: Arc<dyn RemoteTasks>,
        events: Arc<dyn EventSink>,
        sender: UnboundedSender<Message>,
    ) -> Self {
        let settings = Arc::new(settings);
        let submitter = Arc::new(Submitter::new(service.clone(), settings.clone(), remote.clone()));
        Self {
            service,
            settings,
            remote,
            events,
            sender,
            submitter,
            attempts: HashMap::new(),
            polling: polling::Polling::default(),
            gathering: Vec::new(),
            gangs: gangs::Gangs::default(),
            explaining: false,
            explained_at: None,
            unconfirmed: 0,
            run_ends_since: None,
            told_left: false,
            not_ended: None,
            adopted: Vec::new(),
        }
    }

    /// Until it is shut down or let go.
    pub async fn run(
        service: Service,
        settings: BatchSettings,
        remote: Arc<dyn RemoteTasks>,
        events: Arc<dyn EventSink>,
        commands: UnboundedReceiver<Command>,
    ) {
        let (sender, messages) = unbounded_channel();
        drive(Self::new(service, settings, remote, events.clone(), sender), &*events, commands, messages).await;
    }
}

impl Supervise for Supervisor {
    type Message = Message;

    fn submit(&mut self, launch: TaskLaunch) {
        let id = launch.id;
        let plan = self.submitter.plan(&launch);
        let gang = launch.spec.gang;
        self.attempts.insert(id, Attempt::new(launch, plan));
        if let Some(gang) = gang {
            self.gather_rank(id, gang);
        } else if self.settings.array_jobs {
            self.gather(id);
        } else {
            self.send_order(id);
        }
    }

    fn stop(&mut self, ids: &[AttemptId], signal: StopSignal) {
        self.stop_attempts(ids, signal);
    }

    fn run_ends(&mut self) {
        self.run_ends_since.get_or_insert_with(Instant::now);
    }

    fn adopt(&mut self, step: &StepName, id: AttemptId) {
        self.adopt_attempt(step, id);
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Submitted { id, round, result } => self.submitted(id, round, result),
            Message::Jobs { asked, result } => self.polled(&asked, result),
            Message::Read { id, round, read } => self.has_read(id, round, *read),
            Message::Ended { ids, result } => self.ended_by_us(&ids, &result),
            Message::Queues(result) => self.explained(result),
            Message::Gathered => self.send_gathered(),
        }
    }

    fn tick(&mut self) {
        let again: Vec<AttemptId> = self.attempts.iter().filter(|(_, a)| a.end_again).map(|(id, _)| *id).collect();
        self.look_for_adopted();
        self.end(again);
        self.end_held_ranks();
        self.tell_left();
        self.give_up();
        self.ask_why();
    }

    fn next_poll(&self) -> Option<Instant> {
        self.is_to_poll().then(|| self.polling.next())
    }

    fn poll(&mut self) {
        self.ask_for_jobs();
    }

    fn end_all(&mut self) {
        let all: Vec<AttemptId> = self.attempts.keys().copied().collect();
        self.stop(&all, StopSignal::Kill);
    }

    fn is_idle(&self) -> bool {
        self.attempts.is_empty()
    }

    async fn close(&mut self) {
        self.say_what_is_left();
    }
}

impl Supervisor {
    /// Sends the current round of an attempt to the service.
    fn send_order(&mut self, id: AttemptId) {
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        let order = attempt.goes_out();
        let (submitter, sender) = (self.submitter.clone(), self.sender.clone());
        tokio::spawn(async move {
            let result = submitter.submit(&order).await;
            let _over = sender.send(Message::Submitted { id, round: order.round, result });
        });
    }

    fn submitted(&mut self, id: AttemptId, round: u32, result: Result<Option<String>, Cause>) {
        let Some(attempt) = self.attempts.get_mut(&id).filter(|attempt| attempt.round == round) else {
            if let Ok(Some(job)) = result {
                self.end_jobs(Vec::new(), vec![job]); // nobody waits for it any more
            }
            return;
        };
        match result {
            Ok(Some(job)) => {
                attempt.job = Some(job);
                attempt.stage = Stage::Queued;
                attempt.since = Instant::now();
                if attempt.stop.is_some() {
                    self.end(vec![id]);
                }
                self.polling.hurry();
            }
            Ok(None) => self.lose(id, cancelled()),
            Err(cause) => self.lose(id, cause),
        }
    }

    /// What a job is up to.
    fn changed(&mut self, id: AttemptId, job: &JobView) {
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        attempt.missing = 0;
        attempt.reason.clone_from(&job.reason);
        if attempt.status != job.status {
            attempt.status = job.status;
            attempt.since = Instant::now();
            self.polling.hurry();
        }
        match job.status {
            Status::Submitted | Status::Pending | Status::Runnable => {}
            Status::Starting => {
                if !std::mem::replace(&mut attempt.told_starting, true) && !attempt.told_started {
                    let detail = "AWS Batch starts its container".to_owned();
                    self.events.send(LayerEvent::Starting { id, detail });
                }
            }
            Status::Running => self.start(id, job),
            Status::Succeeded | Status::Failed => self.is_over(id, job),
        }
    }

    /// The container runs, or did.
    fn start(&mut self, id: AttemptId, job: &JobView) {
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        attempt.stage = Stage::Started;
        if std::mem::replace(&mut attempt.told_started, true) {
            return;
        }
        self.events.send(LayerEvent::Started { id, pid: None });
        let entries = [
            ("aws-batch-job-id", &job.id),
            ("aws-batch-job-name", &job.name),
            ("aws-batch-jq-name", &attempt.plan.queue.name),
            ("aws-batch-awslogs-stream", &job.log_stream),
            ("aws-batch-container-instance", &job.container_instance),
        ];
        for (name, value) in entries.into_iter().filter(|(_, value)| !value.is_empty()) {
            self.events.metadata(id, name.to_owned(), value.clone());
        }
        self.remote.follow(id);
    }

    fn tell_waiting(&mut self, id: AttemptId, reason: String) {
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        if attempt.told_started || attempt.stop.is_some() || attempt.told.as_ref() == Some(&reason) {
            return;
        }
        attempt.told = Some(reason.clone());
        self.events.send(LayerEvent::Waiting { id, reason });
    }
}

fn cancelled() -> Cause {
    Cause::new(CauseKind::Cancelled, "stopped before it had started")
}
