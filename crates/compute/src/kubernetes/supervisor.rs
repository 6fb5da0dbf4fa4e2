//! The task that owns all of a run's attempts on Kubernetes and takes messages: commands from the
//! engine, news of pods, answers to requests. Everything that waits for the network is spawned
//! and comes back as a message.

mod adopting;
mod closing;
mod ending;
mod gangs;
mod leaving;
mod nodes;
mod signs;
mod stopping;
mod taken;
mod ticking;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use ferroflow_core::id::{AttemptId, StepName};
use ferroflow_core::port::{EventSink, LayerEvent, RemoteSign, RemoteTasks, StopSignal};
use ferroflow_core::task::{AttemptReport, Cause, CauseKind, TaskLaunch};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::KubernetesSettings;
use super::api::{ApiFault, Cluster};
use super::attempt::{Attempt, Stage};
use super::explain::Explanations;
use super::pod::{Ending, Phase, PodView};
use super::submit::Submitter;
use super::submit_jobset::GangSubmitted;
use super::watch::{PodNews, follow};
use crate::remote::drive::{Supervise, drive};
use crate::remote::layer::Command;
use adopting::Findings;
use leaving::Herald;

pub enum Message {
    /// `false`: it was cancelled before it went out.
    Submitted {
        id: AttemptId,
        round: u32,
        result: Result<bool, Cause>,
    },
    /// Whether the ranks of a gang are to be one JobSet.
    GangDecided {
        ranks: Vec<AttemptId>,
        by_jobset: bool,
    },
    GangSubmitted {
        ranks: Vec<AttemptId>,
        result: GangSubmitted,
    },
    Pods(Box<PodNews>),
    /// The store shows what the watch may not yet.
    Sign {
        id: AttemptId,
        sign: RemoteSign,
    },
    /// Everything the attempt printed was sent on.
    Drained {
        id: AttemptId,
        report: Box<AttemptReport>,
    },
    /// The same of an attempt that is lost.
    LostDrained {
        id: AttemptId,
        cause: Cause,
    },
    Deleted {
        ids: Vec<AttemptId>,
        result: Result<(), ApiFault>,
    },
    Explained {
        namespace: String,
        result: Result<Explanations, ApiFault>,
    },
    /// Whether an attempt's Job is still there.
    JobAsked {
        id: AttemptId,
        job: String,
        there: Result<bool, ApiFault>,
    },
    /// What the cluster's events say of a pod that was taken away.
    TakenWhy {
        id: AttemptId,
        job: String,
        text: Option<String>,
    },
    /// What there is of this run in a namespace.
    Found(Box<Findings>),
}

pub struct Supervisor {
    cluster: Cluster,
    settings: Arc<KubernetesSettings>,
    remote: Arc<dyn RemoteTasks>,
    events: Arc<dyn EventSink>,
    sender: UnboundedSender<Message>,
    submitter: Arc<Submitter>,
    attempts: HashMap<AttemptId, Attempt>,
    /// Job → attempt.
    jobs: HashMap<String, AttemptId>,
    /// Namespaces with a watch.
    watched: HashSet<String>,
    /// Jobs whose end was told; kept a while, so that a record of it can be made first.
    finished: VecDeque<FinishedJob>,
    /// Gangs whose ranks do not all have their orders yet, and ends that are told later.
    gangs: gangs::Gangs,
    /// Removes some of them.
    removing: Option<JoinHandle<()>>,
    /// Namespaces whose events are being read.
    explaining: HashSet<String>,
    explained_at: Instant,
    /// That tasks could not be deleted was told.
    told_undeleted: bool,
    /// Adopted attempts that were not looked for yet.
    adopted: Vec<AttemptId>,
    /// Nodes of which it was said that they do not answer.
    silent_nodes: HashSet<String>,
    /// Set when everything is being stopped.
    herald: Option<Herald>,
}

/// A Job whose attempt's end was told.
pub struct FinishedJob {
    at: Instant,
    namespace: String,
    name: String,
    jobset: Option<String>,
}

impl FinishedJob {
    fn of(attempt: &Attempt) -> Self {
        let (namespace, name, jobset) = (attempt.namespace.clone(), attempt.job.clone(), attempt.jobset.clone());
        Self { at: Instant::now(), namespace, name, jobset }
    }
}

/// A kubelet's words between two tries to pull an image.
const BACK_OFF: &str = ": Back-off pulling image";

impl Supervisor {
    fn new(
        cluster: Cluster,
        settings: KubernetesSettings,
        remote: Arc<dyn RemoteTasks>,
        events: Arc<dyn EventSink>,
        sender: UnboundedSender<Message>,
    ) -> Self {
        let settings = Arc::new(settings);
        let submitter = Arc::new(Submitter::new(cluster.clone(), settings.clone(), remote.clone()));
        Self {
            cluster,
            settings,
            remote,
            events,
            sender,
            submitter,
            attempts: HashMap::new(),
            jobs: HashMap::new(),
            watched: HashSet::new(),
            finished: VecDeque::new(),
            gangs: gangs::Gangs::default(),
            removing: None,
            explaining: HashSet::new(),
            explained_at: Instant::now(),
            told_undeleted: false,
            adopted: Vec::new(),
            silent_nodes: HashSet::new(),
            herald: None,
        }
    }

    /// Until it is shut down or let go.
    pub async fn run(
        cluster: Cluster,
        settings: KubernetesSettings,
        remote: Arc<dyn RemoteTasks>,
        events: Arc<dyn EventSink>,
        commands: UnboundedReceiver<Command>,
    ) {
        let (sender, messages) = unbounded_channel();
        drive(Self::new(cluster, settings, remote, events.clone(), sender), &*events, commands, messages).await;
    }
}

impl Supervise for Supervisor {
    type Message = Message;

    fn submit(&mut self, launch: TaskLaunch) {
        let id = launch.id;
        let namespace = self.submitter.options(&launch).namespace;
        self.watch(&namespace);
        let job = self.settings.identity.job_name(launch.spec.step.as_str(), id, 0);
        let gang = launch.spec.gang;
        self.attempts.insert(id, Attempt::new(launch, namespace, job));
        match gang {
            Some(place) => self.gather_rank(id, place),
            None => self.send_order(id),
        }
    }

    fn stop(&mut self, ids: &[AttemptId], signal: StopSignal) {
        self.stop_attempts(ids, signal);
    }

    fn run_ends(&mut self) {
        self.begin_to_end();
    }

    fn adopt(&mut self, step: &StepName, id: AttemptId) {
        self.adopt_attempt(step, id);
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Submitted { id, round, result } => self.submitted(id, round, result),
            Message::GangDecided { ranks, by_jobset } => self.gang_decided(ranks, by_jobset),
            Message::GangSubmitted { ranks, result } => self.gang_submitted(ranks, result),
            Message::Pods(news) => self.news(*news),
            Message::Sign { id, sign } => self.sign(id, sign),
            Message::Drained { id, report } => self.finish(id, *report),
            Message::LostDrained { id, cause } => self.tell_lost(id, cause),
            Message::Deleted { ids, result } => self.deleted(&ids, &result),
            Message::Explained { namespace, result } => self.explained(&namespace, result),
            Message::JobAsked { id, job, there } => self.job_asked(id, &job, &there),
            Message::TakenWhy { id, job, text } => self.taken_why(id, &job, text),
            Message::Found(findings) => self.found(*findings),
        }
    }

    fn tick(&mut self) {
        self.look_around();
    }

    fn end_all(&mut self) {
        self.begin_to_end();
        let all: Vec<AttemptId> = self.attempts.keys().copied().collect();
        self.stop(&all, StopSignal::Kill);
    }

    fn is_idle(&self) -> bool {
        self.attempts.is_empty()
    }

    async fn close(&mut self) {
        self.sweep().await;
    }
}

impl Supervisor {
    /// Sends the current round of an attempt to the server.
    fn send_order(&mut self, id: AttemptId) {
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        attempt.job = self.settings.identity.job_name(attempt.launch.spec.step.as_str(), id, attempt.round);
        attempt.stage = Stage::Submitting;
        attempt.pod = None;
        self.jobs.insert(attempt.job.clone(), id);
        let order = attempt.order();
        let (submitter, sender) = (self.submitter.clone(), self.sender.clone());
        tokio::spawn(async move {
            let result = submitter.submit(&order).await;
            let _over = sender.send(Message::Submitted { id, round: order.round, result });
        });
    }

    fn watch(&mut self, namespace: &str) {
        if !self.watched.insert(namespace.to_owned()) {
            return;
        }
        let sender = self.sender.clone();
        let tell = move |news| sender.send(Message::Pods(Box::new(news))).is_ok();
        let selector = self.settings.identity.selector();
        tokio::spawn(follow(self.cluster.clone(), namespace.to_owned(), selector, tell));
    }

    fn submitted(&mut self, id: AttemptId, round: u32, result: Result<bool, Cause>) {
        let Some(attempt) = self.attempts.get_mut(&id).filter(|attempt| attempt.round == round) else { return };
        match result {
            Ok(true) => {
                attempt.is_created();
                if attempt.stop.is_some() {
                    self.delete(vec![id]);
                }
            }
            Ok(false) => self.lose(id, cancelled()),
            Err(cause) => self.lose(id, cause),
        }
    }

    fn news(&mut self, news: PodNews) {
        match news {
            PodNews::Changed(pod) => self.changed(&pod),
            PodNews::Gone(pod) => self.gone(&pod),
            PodNews::All { namespace, pods } => {
                // A JobSet's controller takes the other pods away when one has failed, which is to be
                // known first.
                let (taken, others): (Vec<&PodView>, Vec<&PodView>) = pods.iter().partition(|pod| pod.deleting);
                for pod in others.into_iter().chain(taken) {
                    self.changed(pod);
                }
                let there: HashSet<&str> = pods.iter().map(|pod| pod.name.as_str()).collect();
                let missing: Vec<PodView> = self
                    .attempts
                    .values()
                    .filter(|attempt| attempt.namespace == namespace && attempt.stage != Stage::Ending)
                    .filter_map(|attempt| Some((attempt, attempt.pod.as_deref()?)))
                    .filter(|(_, pod)| !there.contains(pod))
                    .map(|(attempt, pod)| PodView::missing(pod, &attempt.job))
                    .collect();
                for pod in &missing {
                    self.gone(pod);
                }
            }
            PodNews::Silent(said) => self.events.send(LayerEvent::Notice {
                text: format!(
                    "The Kubernetes API server does not answer ({said}). Tasks that run go on; so does the run, once \
                     it answers."
                ),
            }),
            PodNews::AnswersAgain => {
                self.events.send(LayerEvent::Notice { text: "The Kubernetes API server answers again.".to_owned() });
            }
        }
    }

    /// The attempt of a pod, while its end is not known.
    fn attempt_of(&mut self, pod: &PodView) -> Option<(AttemptId, &mut Attempt)> {
        let id = *self.jobs.get(&pod.job)?;
        let attempt = self.attempts.get_mut(&id).filter(|a| a.stage != Stage::Ending && a.job == pod.job)?;
        Some((id, attempt))
    }

    fn changed(&mut self, pod: &PodView) {
        let Some((id, attempt)) = self.attempt_of(pod) else { return };
        if attempt.pod.as_ref().is_some_and(|known| *known != pod.name) {
            return; // put in place of one that was taken away
        }
        if attempt.pod.is_none() {
            attempt.pod = Some(pod.name.clone());
            attempt.since = Instant::now();
        }
        attempt.version = Some(pod.version.clone());
        if attempt.stage == Stage::Submitting {
            attempt.stage = Stage::Created;
        }
        attempt.view = pod.clone();
        let phase = pod.phase();
        if pod.deleting && !attempt.is_stopped() && !matches!(phase, Phase::Ended(_)) {
            self.taken(id, pod);
        }
        self.hear_of_node(pod);
        self.follow_phase(id, pod, phase);
    }

    fn follow_phase(&mut self, id: AttemptId, pod: &PodView, phase: Phase) {
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        if !matches!(phase, Phase::Stuck { .. }) {
            attempt.stuck = None;
        }
        match phase {
            Phase::Quiet => {}
            Phase::Waiting(reason) => self.tell_waiting(id, reason),
            Phase::Preparing => {
                if !std::mem::replace(&mut attempt.preparing, true) {
                    attempt.since = Instant::now();
                    attempt.told = None;
                    let detail = format!("node `{}` prepares its container", pod.node);
                    if !attempt.told_started {
                        self.events.send(LayerEvent::Starting { id, detail });
                        self.expect(id);
                    }
                }
            }
            Phase::Stuck { cause, certain } => {
                if certain {
                    self.lose(id, cause);
                    return;
                }
                if attempt.stuck.is_none() {
                    attempt.since = Instant::now();
                }
                // A kubelet that waits before it pulls again does not say what was wrong.
                let before = attempt.stuck.take().filter(|_| cause.text.contains(BACK_OFF));
                let cause = before.unwrap_or(cause);
                attempt.stuck = Some(cause.clone());
                self.tell_waiting(id, cause.text);
            }
            Phase::Running => self.start(id, pod),
            Phase::Ended(ending) => self.ended(id, pod, ending),
        }
    }

    fn tell_waiting(&mut self, id: AttemptId, reason: String) {
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        if attempt.told_started || attempt.is_stopped() || attempt.told.as_ref() == Some(&reason) {
            return;
        }
        attempt.told = Some(reason.clone());
        self.events.send(LayerEvent::Waiting { id, reason });
    }

    /// The container runs, or did.
    fn start(&mut self, id: AttemptId, pod: &PodView) {
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        attempt.stage = Stage::Started;
        if std::mem::replace(&mut attempt.told_started, true) {
            return;
        }
        self.events.send(LayerEvent::Started { id, pid: None });
        let entries = [
            ("kubernetes-pod-name", &pod.name),
            ("kubernetes-pod-namespace", &attempt.namespace),
            ("kubernetes-pod-id", &pod.uid),
            ("kubernetes-pod-service-account-name", &pod.service_account),
            ("kubernetes-node-ip", &pod.node_address),
        ];
        let jobset = attempt.jobset.as_ref().map(|jobset| ("kubernetes-jobset-name", jobset));
        for (name, value) in entries.into_iter().chain(jobset) {
            self.events.metadata(id, name.to_owned(), value.clone());
        }
        self.remote.follow(id);
    }

    fn ended(&mut self, id: AttemptId, pod: &PodView, ending: Ending) {
        let Some(attempt) = self.attempts.get(&id) else { return };
        let (stopped, taken) = (attempt.is_stopped(), attempt.taken.is_some());
        let in_jobset = attempt.jobset.is_some();
        match ending {
            Ending::Report { report, .. } if !stopped && taken && !is_ok(&report) => self.lose_taken(id),
            Ending::NeverRan(_) | Ending::Taken(_) if stopped => self.end_stopped(id),
            // Whose will that was is not known before its Job was asked for.
            Ending::NeverRan(cause) | Ending::Taken(cause) if taken || pod.deleting => {
                self.taken(id, pod);
                self.lose_taken_because(id, cause);
            }
            Ending::NeverRan(cause) | Ending::Taken(cause) => self.lose(id, cause),
            // All ranks start together: with addresses signed anew, the gang does.
            Ending::Report { sign_again: true, report, .. } if !stopped && in_jobset => {
                self.lose(id, report.cause.unwrap_or_else(expired));
            }
            Ending::Report { sign_again: true, .. } if !stopped && self.submit_again(id) => {}
            Ending::Report { report, metadata, silent, .. } => {
                if !stopped && !is_ok(&report) {
                    self.fell_gang_of(id);
                }
                self.start(id, pod);
                for (name, value) in metadata {
                    self.events.metadata(id, name, value);
                }
                if silent {
                    self.drain_with_node_log(id, pod, report);
                } else {
                    self.drain(id, report);
                }
            }
        }
    }

    /// A pod that is no more.
    fn gone(&mut self, pod: &PodView) {
        let Some((id, attempt)) = self.attempt_of(pod) else { return };
        if attempt.pod.as_ref() != Some(&pod.name) {
            return;
        }
        match pod.phase() {
            Phase::Ended(ending) => self.ended(id, pod, ending),
            _ if attempt.is_stopped() => self.end_stopped(id),
            _ => {
                self.taken(id, pod);
                self.lose_taken(id);
            }
        }
    }
}

fn is_ok(report: &AttemptReport) -> bool {
    report.outcome.as_ref().is_some_and(|outcome| outcome.ok)
}

fn expired() -> Cause {
    Cause::new(CauseKind::LayerError, "the addresses it was given had expired before it started")
}

fn cancelled() -> Cause {
    Cause::new(CauseKind::Cancelled, "stopped before it had started")
}
