//! Gangs whose ranks are one JobSet: they are submitted as one, deleted as one, and when one rank ends
//! badly the JobSet's controller stops the others. That end is told first, as the reason of the others.

use std::sync::Arc;
use std::time::Duration;

use ferroflow_core::id::AttemptId;
use ferroflow_core::port::LayerEvent;
use ferroflow_core::task::GangPlace;
use tokio::time::Instant;

use super::super::attempt::{Attempt, Stage};
use super::super::jobset::job_of_rank;
use super::super::submit::Ticket;
use super::super::submit_jobset::{GangOrder, GangSubmitted};
use super::{Message, Supervisor, cancelled};
use crate::remote::gathering::Gathering;

/// A controller that has made no pod by then is worth a word.
const NO_CONTROLLER: Duration = Duration::from_secs(5);

#[derive(Default)]
pub struct Gangs {
    gathering: Gathering,
    /// Ends that are told after that of another rank.
    held: Vec<(AttemptId, LayerEvent)>,
}

impl Supervisor {
    /// The orders of a gang go out when all ranks are there.
    pub(super) fn gather_rank(&mut self, id: AttemptId, gang: GangPlace) {
        let Some(ranks) = self.gangs.gathering.add(id, gang) else { return };
        let (submitter, sender) = (self.submitter.clone(), self.sender.clone());
        tokio::spawn(async move {
            let by_jobset = submitter.jobsets.are_used(&submitter.cluster).await;
            let _over = sender.send(Message::GangDecided { ranks, by_jobset });
        });
    }

    pub(super) fn gang_decided(&mut self, ranks: Vec<AttemptId>, by_jobset: bool) {
        let wanted = |id: &AttemptId| self.attempts.get(id).is_some_and(|attempt| attempt.stop.is_none());
        if !ranks.iter().all(wanted) {
            // Some were cancelled meanwhile; the others are of no use alone.
            ranks.into_iter().for_each(|id| self.lose(id, cancelled()));
        } else if by_jobset {
            self.send_jobset(ranks);
        } else {
            for id in ranks {
                self.leave_jobset(id);
                self.send_order(id);
            }
        }
    }

    fn leave_jobset(&mut self, id: AttemptId) {
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        if attempt.jobset.take().is_some() {
            self.jobs.remove(&attempt.job);
        }
    }

    fn send_jobset(&mut self, ids: Vec<AttemptId>) {
        let Some(first) = ids.first().and_then(|id| self.attempts.get(id)) else { return };
        let name = self.settings.identity.jobset_name(first.launch.spec.step.as_str(), first.launch.id);
        let ticket = Arc::new(Ticket::default());
        let mut ranks = Vec::new();
        for id in &ids {
            let Some(attempt) = self.attempts.get_mut(id) else { continue };
            let rank = attempt.launch.spec.gang.map_or(0, |gang| gang.rank);
            attempt.jobset = Some(name.clone());
            attempt.job = job_of_rank(&name, rank);
            attempt.order_with(ticket.clone());
            self.jobs.insert(attempt.job.clone(), *id);
            ranks.push(attempt.launch.clone());
        }
        let order = GangOrder { name, ranks, ticket };
        let (submitter, sender) = (self.submitter.clone(), self.sender.clone());
        tokio::spawn(async move {
            let result = submitter.submit_jobset(&order).await;
            let _over = sender.send(Message::GangSubmitted { ranks: ids, result });
        });
    }

    pub(super) fn gang_submitted(&mut self, ranks: Vec<AttemptId>, result: GangSubmitted) {
        match result {
            GangSubmitted::Created => {
                let mut unwanted = Vec::new();
                for id in ranks {
                    let Some(attempt) = self.attempts.get_mut(&id) else { continue };
                    attempt.is_created();
                    unwanted.extend(attempt.stop.map(|_| id));
                }
                self.delete(unwanted);
            }
            GangSubmitted::TakenBack => ranks.into_iter().for_each(|id| self.lose(id, cancelled())),
            GangSubmitted::PlainJobsInstead(why) => {
                if let Some(text) = why {
                    self.events.send(LayerEvent::Notice { text });
                }
                self.gang_decided(ranks, false);
            }
            GangSubmitted::Failed(cause) => ranks.into_iter().for_each(|id| self.lose(id, cause.clone())),
        }
    }

    /// Whether ranks of that JobSet have not ended.
    pub(super) fn has_ranks_in(&self, jobset: &str) -> bool {
        self.attempts.values().any(|attempt| attempt.jobset.as_deref() == Some(jobset))
    }

    /// The other ranks in the JobSet of one that ends badly end with it; gives those.
    pub(super) fn fell_gang_of(&mut self, culprit: AttemptId) -> Vec<AttemptId> {
        let Some(jobset) = self.attempts.get(&culprit).and_then(|attempt| attempt.jobset.clone()) else {
            return Vec::new();
        };
        let mut felled = Vec::new();
        for (id, attempt) in &mut self.attempts {
            let of_gang = *id != culprit && attempt.jobset.as_ref() == Some(&jobset);
            if of_gang && attempt.stage != Stage::Ending && !attempt.is_stopped() {
                attempt.felled_by = Some(culprit);
                attempt.stopped_at = Instant::now();
                felled.push(*id);
            }
        }
        felled
    }

    /// Tells how an attempt ended, which is none of ours any more; not before the rank that ended it.
    pub(super) fn tell_end(&mut self, id: AttemptId, attempt: &Attempt, event: LayerEvent) {
        if let Some(culprit) = attempt.felled_by.filter(|culprit| self.attempts.contains_key(culprit)) {
            self.gangs.held.push((culprit, event));
            return;
        }
        self.events.send(event);
        let (due, held) = std::mem::take(&mut self.gangs.held).into_iter().partition(|(culprit, _)| *culprit == id);
        self.gangs.held = held;
        let due: Vec<(AttemptId, LayerEvent)> = due;
        for (_, event) in due {
            self.events.send(event);
        }
    }

    /// The last moment for what was held back.
    pub(super) fn tell_held_ends(&mut self) {
        for (_, event) in std::mem::take(&mut self.gangs.held) {
            self.events.send(event);
        }
    }

    /// Why a rank has no pod, where nobody else says it.
    pub(super) fn waits_for_controller(&self, attempt: &Attempt) -> Option<String> {
        let jobset = attempt.jobset.as_ref().filter(|_| attempt.since.elapsed() >= NO_CONTROLLER)?;
        let who = match self.submitter.options(&attempt.launch).queue {
            Some(queue) => format!("Kueue has not admitted it to the queue `{queue}`"),
            None => "the cluster's JobSet controller may be busy or not running".to_owned(),
        };
        Some(format!("its JobSet `{jobset}` has no pods yet: {who}"))
    }
}
