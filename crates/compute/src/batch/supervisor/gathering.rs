//! Gathering attempts that are submitted at about the same time, as those of a wide foreach are, so
//! that those of one step go out as array jobs.

use std::collections::BTreeMap;
use std::time::Duration;

use ferroflow_core::id::{AttemptId, StepName};

use super::super::array::{LEAST, MOST};
use super::super::submit::Order;
use super::{Message, Supervisor};

/// Long enough for the engine to hand over a foreach, too short to be felt.
const GATHER_FOR: Duration = Duration::from_millis(60);

impl Supervisor {
    pub(super) fn gather(&mut self, id: AttemptId) {
        self.gathering.push(id);
        if self.gathering.len() > 1 {
            return;
        }
        let sender = self.sender.clone();
        tokio::spawn(async move {
            tokio::time::sleep(GATHER_FOR).await;
            let _over = sender.send(Message::Gathered);
        });
    }

    pub(super) fn send_gathered(&mut self) {
        let mut by_step: BTreeMap<StepName, Vec<AttemptId>> = BTreeMap::new();
        for id in std::mem::take(&mut self.gathering) {
            let Some(attempt) = self.attempts.get(&id) else { continue };
            if attempt.stop.is_some() {
                self.send_order(id); // it is cancelled there
            } else {
                by_step.entry(attempt.launch.spec.step.clone()).or_default().push(id);
            }
        }
        for ids in by_step.values() {
            for some in ids.chunks(MOST) {
                if some.len() < LEAST {
                    some.iter().for_each(|id| self.send_order(*id));
                } else {
                    self.send_together(some);
                }
            }
        }
    }

    /// Sends attempts of one step to the service as one job, in this order.
    pub(super) fn send_together(&mut self, ids: &[AttemptId]) {
        let mut orders: Vec<Order> = Vec::with_capacity(ids.len());
        for id in ids {
            orders.extend(self.attempts.get_mut(id).map(super::Attempt::goes_out));
        }
        let (submitter, sender) = (self.submitter.clone(), self.sender.clone());
        tokio::spawn(async move {
            let result = submitter.submit_together(&orders).await;
            for (index, order) in orders.into_iter().enumerate() {
                let result = result.clone().map(|jobs| jobs.into_iter().nth(index).flatten());
                let _over = sender.send(Message::Submitted { id: order.launch.id, round: order.round, result });
            }
        });
    }
}
