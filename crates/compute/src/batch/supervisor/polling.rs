//! Asking how the jobs are: all of them in one go, a hundred at a time, often while they change and
//! rarely while they do not; and why those wait that wait for long.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use ferroflow_core::id::AttemptId;
use ferroflow_core::port::LayerEvent;
use ferroflow_core::task::{Cause, CauseKind};
use serde_json::json;
use tokio::time::Instant;

use super::super::api::{BatchFault, Call, DESCRIBED_AT_ONCE, Service};
use super::super::attempt::Attempt;
use super::super::multinode;
use super::super::queue::{QueueView, read_queues};
use super::super::submit::refusal;
use super::super::view::{JobView, Status};
use super::super::waiting;
use super::{Message, Supervisor, gangs};

const SHORTEST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(5);
/// So much of a hundred jobs' answers in a second, whatever happens.
const PER_HUNDRED: Duration = Duration::from_millis(100);
/// Answers in a row that do not know a job, until it is given up.
const MOST_MISSING: u32 = 5;
/// Failures in a row until the user is told.
const SILENCE: u32 = 3;
/// A job that is RUNNABLE for so long is asked about.
const PUZZLING: Duration = Duration::from_millis(1500);
const EXPLAIN_EVERY: Duration = Duration::from_secs(5);

/// When to ask next.
#[derive(Default)]
pub struct Polling {
    under_way: bool,
    next: Option<Instant>,
    changed: Option<Instant>,
    faults: u32,
    silent: bool,
    /// The service has answered once.
    answered: bool,
}

impl Polling {
    pub fn next(&self) -> Instant {
        self.next.unwrap_or_else(Instant::now)
    }

    /// Something changed: more may follow soon.
    pub fn hurry(&mut self) {
        let now = Instant::now();
        self.changed = Some(now);
        self.next = Some(self.next().min(now + SHORTEST));
    }

    /// A twentieth of the time for which nothing has changed, within bounds.
    fn pause(&self, jobs: usize) -> Duration {
        let quiet = self.changed.map_or(Duration::ZERO, |at| at.elapsed());
        let hundreds = jobs.div_ceil(DESCRIBED_AT_ONCE) as u32;
        // A service that does not answer is asked less and less often.
        let least = SHORTEST * 2_u32.pow(self.faults.min(4));
        (quiet / 20).clamp(least, LONGEST).max(PER_HUNDRED * hundreds)
    }
}

/// Every node of a gang may need its whole besides.
fn described_at_once(jobs: &[(AttemptId, String)]) -> usize {
    let gangs = jobs.iter().any(|(_, job)| multinode::whole(job).is_some());
    if gangs { DESCRIBED_AT_ONCE / 2 } else { DESCRIBED_AT_ONCE }
}

/// Asks about all of them.
async fn describe(service: &Service, jobs: &[(AttemptId, String)]) -> Result<Vec<JobView>, BatchFault> {
    let mut found = Vec::with_capacity(jobs.len());
    for some in jobs.chunks(described_at_once(jobs)) {
        let mut ids: Vec<&str> = some.iter().map(|(_, job)| job.as_str()).collect();
        // What happens to a gang before its nodes start, and by somebody's hand, is said of the whole.
        ids.extend(some.iter().filter_map(|(_, job)| multinode::whole(job)).collect::<BTreeSet<_>>());
        let answer = service.call(Call::DescribeJobs, &json!({ "jobs": ids })).await?;
        found.extend(answer["jobs"].as_array().into_iter().flatten().map(JobView::of));
    }
    Ok(found)
}

impl Supervisor {
    pub(super) fn is_to_poll(&self) -> bool {
        !self.polling.under_way && self.attempts.values().any(Attempt::is_followed)
    }

    pub(super) fn ask_for_jobs(&mut self) {
        let followed = self.attempts.iter().filter(|(_, attempt)| attempt.is_followed());
        let mut asked: Vec<(AttemptId, String)> =
            followed.filter_map(|(id, attempt)| Some((*id, attempt.job.clone()?))).collect();
        asked.sort_unstable_by_key(|(id, _)| id.task); // the first rank of a gang first
        self.polling.under_way = true;
        let (service, sender) = (self.service.clone(), self.sender.clone());
        tokio::spawn(async move {
            let result = describe(&service, &asked).await;
            let _over = sender.send(Message::Jobs { asked, result });
        });
    }

    pub(super) fn polled(&mut self, asked: &[(AttemptId, String)], result: Result<Vec<JobView>, BatchFault>) {
        self.polling.under_way = false;
        match result {
            Ok(jobs) => {
                self.answers_again();
                let by_id: HashMap<&str, &JobView> = jobs.iter().map(|job| (job.id.as_str(), job)).collect();
                for (id, job) in asked {
                    let same = self.attempts.get(id).is_some_and(|a| a.is_followed() && a.job.as_ref() == Some(job));
                    match gangs::seen(&by_id, job) {
                        Some(view) if same => self.changed(*id, &view),
                        None if same => self.is_missing(*id),
                        _ => {}
                    }
                }
            }
            Err(fault) => self.poll_failed(&fault),
        }
        self.polling.next = Some(Instant::now() + self.polling.pause(asked.len()));
    }

    fn answers_again(&mut self) {
        self.polling.faults = 0;
        self.polling.answered = true;
        if std::mem::take(&mut self.polling.silent) {
            self.events.send(LayerEvent::Notice { text: "AWS Batch answers again.".to_owned() });
        }
    }

    fn poll_failed(&mut self, fault: &BatchFault) {
        if matches!(fault, BatchFault::Busy(_)) {
            return; // the pace waits; nothing is lost
        }
        if !fault.may_pass() && !self.polling.answered {
            let cause = refusal("describe jobs", "batch:DescribeJobs", &self.service.place, fault);
            let all: Vec<AttemptId> = self.attempts.keys().copied().collect();
            for id in all {
                self.lose(id, cause.clone());
            }
            return;
        }
        self.polling.faults += 1;
        if self.polling.faults >= SILENCE && !std::mem::replace(&mut self.polling.silent, true) {
            let what = if fault.may_pass() { "does not answer" } else { "does not say how the tasks are" };
            let text = format!("AWS Batch {what} ({fault}). Tasks that run go on; so does the run, once it answers.");
            self.events.send(LayerEvent::Notice { text });
        }
    }

    fn is_missing(&mut self, id: AttemptId) {
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        attempt.missing += 1;
        if attempt.missing >= MOST_MISSING {
            let cause = Cause::new(CauseKind::LayerError, "AWS Batch does not know its job any more");
            self.lose(id, cause);
        }
    }

    /// Reads the queues of jobs that do not get on.
    pub(super) fn ask_why(&mut self) {
        let puzzling = |a: &&Attempt| a.is_followed() && a.status <= Status::Runnable && a.since.elapsed() >= PUZZLING;
        let queues: BTreeSet<String> =
            self.attempts.values().filter(puzzling).map(|attempt| attempt.plan.queue.name.clone()).collect();
        let recently = self.explained_at.is_some_and(|at| at.elapsed() < EXPLAIN_EVERY);
        if queues.is_empty() || recently || std::mem::replace(&mut self.explaining, true) {
            return;
        }
        let (service, sender) = (self.service.clone(), self.sender.clone());
        tokio::spawn(async move {
            let names: Vec<String> = queues.into_iter().collect();
            let _over = sender.send(Message::Queues(read_queues(&service, &names, Duration::from_secs(5)).await));
        });
    }

    pub(super) fn explained(&mut self, result: Result<Vec<QueueView>, BatchFault>) {
        self.explaining = false;
        self.explained_at = Some(Instant::now());
        // Without permission to look at queues the job's own reason is all there is.
        let queues = result.unwrap_or_default();
        let mut reasons = Vec::new();
        for (id, attempt) in &self.attempts {
            if attempt.is_followed() && attempt.status <= Status::Runnable && attempt.since.elapsed() >= PUZZLING {
                let queue = queues.iter().find(|queue| queue.is_named(&attempt.plan.queue.name));
                let reason = waiting::reason(queue, &attempt.plan.options, attempt.status, &attempt.reason);
                reasons.extend(reason.map(|reason| (*id, reason)));
            }
        }
        for (id, reason) in reasons {
            self.tell_waiting(id, reason);
        }
    }
}
