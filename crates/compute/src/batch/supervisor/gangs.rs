//! Gangs: ranks are gathered until all are there and go out as one job. AWS Batch stops the other
//! ranks when rank 0 ends, so how those ended is told after it, when the engine has had its say.

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::Duration;

use ferroflow_core::id::AttemptId;
use ferroflow_core::task::{Cause, CauseKind, GangPlace};
use tokio::time::Instant;

use super::super::attempt::{Attempt, MOST_ROUNDS, Stage};
use super::super::multinode;
use super::super::view::JobView;
use super::{Read, Supervisor, cancelled};
use crate::remote::gathering::Gathering;

/// How long after rank 0's end a rank that was stopped with it waits for the engine to stop it, too.
const SAY: Duration = Duration::from_secs(5);

#[derive(Default)]
pub struct Gangs {
    gathering: Gathering,
    /// Ranks that were stopped with rank 0, and since when that is known.
    held: HashMap<AttemptId, (Read, Instant)>,
}

/// What the answers know of a job: of a gang's node its own, and what is said of the whole.
pub fn seen<'a>(jobs: &HashMap<&str, &'a JobView>, job: &str) -> Option<Cow<'a, JobView>> {
    let own = jobs.get(job).copied();
    let Some(whole) = multinode::whole(job) else { return own.map(Cow::Borrowed) };
    let whole = jobs.get(whole).copied();
    match own {
        Some(own) => Some(Cow::Owned(own.within(whole))),
        None => whole.map(|whole| Cow::Owned(whole.as_node())),
    }
}

impl Supervisor {
    pub(super) fn gather_rank(&mut self, id: AttemptId, gang: GangPlace) {
        let Some(ranks) = self.gangs.gathering.add(id, gang) else { return };
        if ranks.iter().all(|id| self.attempts.contains_key(id)) {
            self.send_together(&ranks);
        } else {
            // Some were cancelled meanwhile; the others are of no use alone.
            ranks.into_iter().for_each(|id| self.lose(id, cancelled()));
        }
    }

    fn ranks(&self, main: AttemptId) -> Vec<AttemptId> {
        let of_gang = |attempt: &Attempt| attempt.main_rank() == Some(main);
        let mut ranks: Vec<AttemptId> =
            self.attempts.iter().filter(|(_, attempt)| of_gang(attempt)).map(|(id, _)| *id).collect();
        ranks.sort_unstable_by_key(|id| id.task);
        ranks
    }

    /// Another job for a gang whose addresses had expired while it waited; `false` when that was tried
    /// often enough, or when a rank has ended or is to be stopped.
    pub(super) fn submit_gang_again(&mut self, main: AttemptId) -> bool {
        let ranks = self.ranks(main);
        let attempts: Vec<&Attempt> = ranks.iter().filter_map(|id| self.attempts.get(id)).collect();
        let nodes = attempts.first().and_then(|attempt| attempt.launch.spec.gang).map_or(0, |gang| gang.nodes);
        let may = |attempt: &&Attempt| attempt.stop.is_none() && attempt.round < MOST_ROUNDS;
        if ranks.len() as u64 != nodes || !attempts.iter().all(may) {
            return false;
        }
        let job = attempts.iter().find_map(|attempt| attempt.job.clone());
        self.end_jobs(Vec::new(), job.into_iter().collect());
        for id in &ranks {
            self.gangs.held.remove(id);
            if let Some(attempt) = self.attempts.get_mut(id) {
                attempt.begin_round();
            }
        }
        self.send_together(&ranks);
        true
    }

    /// Whether rank 0 has ended, with which AWS Batch stops the others.
    pub(super) fn ended_with_main(&self, attempt: &Attempt) -> bool {
        let Some(main) = attempt.main_rank().filter(|main| *main != attempt.launch.id) else { return false };
        attempt.stop.is_none() && self.attempts.get(&main).is_none_or(|main| main.stage == Stage::Ending)
    }

    /// Waits with telling how a rank ended that was stopped with rank 0.
    pub(super) fn hold(&mut self, id: AttemptId, read: Read) {
        if let Some(attempt) = self.attempts.get_mut(&id) {
            attempt.stage = Stage::Ending;
            self.gangs.held.insert(id, (read, Instant::now()));
        }
    }

    /// Tells how ranks ended that were stopped with rank 0.
    pub(super) fn end_held_ranks(&mut self) {
        let told = |attempt: &Attempt| attempt.stop.is_some();
        let mut due = Vec::new();
        for (id, (_, since)) in &mut self.gangs.held {
            let Some(attempt) = self.attempts.get(id) else {
                due.push((*id, false));
                continue;
            };
            if attempt.main_rank().is_some_and(|main| self.attempts.contains_key(&main)) {
                *since = Instant::now();
            }
            if told(attempt) || since.elapsed() >= SAY {
                due.push((*id, told(attempt)));
            }
        }
        for (id, told) in due {
            let Some((read, _)) = self.gangs.held.remove(&id) else { continue };
            if told {
                self.was_read(id, read);
            } else {
                let text = "AWS Batch stopped it when rank 0 of its gang had ended";
                self.lose(id, Cause::new(CauseKind::LayerError, text));
            }
        }
    }
}
