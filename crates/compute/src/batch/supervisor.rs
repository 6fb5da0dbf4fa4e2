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
use std::time::Duration;

use ferroflow_core::id::AttemptId;
use ferroflow_core::port::{EventSink, LayerEvent, RemoteTasks};
use ferroflow_core::task::{Cause, CauseKind, TaskLaunch};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior};

use super::BatchSettings;
use super::api::{BatchFault, Service};
use super::attempt::{Attempt, Stage};
use super::queue::QueueView;
use super::submit::Submitter;
use super::view::{JobView, Status};
use crate::remote::layer::{Command, refuse, refuse_rest};
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
    let_go: bool,
    /// Ending until then, and who waits for it.
    closing: Option<(Instant, Vec<oneshot::Sender<()>>)>,
}

/// How long ending the layer may take.
const CLOSING: Duration = Duration::from_millis(4500);

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
            let_go: false,
            closing: None,
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
        Self::new(service, settings, remote, events, sender).work(commands, messages).await;
    }

    async fn work(mut self, mut commands: UnboundedReceiver<Command>, mut messages: UnboundedReceiver<Message>) {
        let mut tick = tokio::time::interval(Duration::from_millis(500));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(command) = commands.recv() => self.carry_out(command),
                Some(message) = messages.recv() => self.take(message),
                _ = tick.tick() => self.tick(),
                () = tokio::time::sleep_until(self.polling.next()), if self.is_to_poll() => self.poll(),
            }
            if self.let_go {
                return;
            }
            let over = |until: Instant| self.attempts.is_empty() || Instant::now() >= until;
            if self.closing.as_ref().is_some_and(|(until, _)| over(*until)) {
                break;
            }
        }
        self.close();
        refuse_rest(commands, &*self.events);
        for waiting in self.closing.take().into_iter().flat_map(|(_, waiting)| waiting) {
            let _nobody_waits = waiting.send(());
        }
    }

    fn carry_out(&mut self, command: Command) {
        match command {
            Command::Submit(launch) => self.submit(*launch),
            Command::Stop(ids, signal) => self.stop(&ids, signal),
            Command::RunEnds => self.run_ends_since = self.run_ends_since.or(Some(Instant::now())),
            Command::ShutDown(done) => self.shut_down(done),
            Command::Adopt(step, id) => self.adopt(&step, id),
            Command::LetGo(done) => {
                self.let_go = true;
                let _nobody_waits = done.send(());
            }
        }
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

    fn submit(&mut self, launch: TaskLaunch) {
        let id = launch.id;
        if self.closing.is_some() {
            refuse(&*self.events, id);
            return;
        }
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
