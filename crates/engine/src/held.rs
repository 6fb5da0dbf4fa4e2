//! Orders for tasks that outlive this engine. They go out only after what was recorded before them is
//! kept, and so only while this engine holds its run: after a crash the next engine knows what to
//! look for, and an engine that slept while another took the run over touches nothing.

use std::collections::{HashSet, VecDeque};

use ferroflow_core::id::AttemptId;
use ferroflow_core::port::{Adoption, ComputeLayer, StopSignal};
use ferroflow_core::task::TaskLaunch;

use crate::recorder::Recorder;

enum Order {
    Submit(Box<TaskLaunch>),
    Adopt(Adoption),
    Stop(Vec<AttemptId>, StopSignal),
}

#[derive(Default)]
pub(crate) struct HeldOrders {
    /// Orders, each with the barrier that it waits for.
    waiting: VecDeque<(u64, Order)>,
    /// Number of the last barrier.
    barrier: u64,
    /// There are orders that no barrier follows yet.
    is_open: bool,
    outliving: HashSet<AttemptId>,
    adopted: HashSet<AttemptId>,
}

impl HeldOrders {
    pub fn submit(&mut self, launch: Box<TaskLaunch>) {
        self.outliving.insert(launch.id);
        self.hold(Order::Submit(launch));
    }

    pub fn adopt(&mut self, adoption: Adoption) {
        self.outliving.extend(adoption.id);
        self.adopted.extend(adoption.id);
        self.hold(Order::Adopt(adoption));
    }

    /// Returns those that end with this engine and need not wait.
    pub fn stop(&mut self, attempts: Vec<AttemptId>, signal: StopSignal) -> Vec<AttemptId> {
        let (held, at_once): (Vec<_>, Vec<_>) = attempts.into_iter().partition(|id| self.outliving.contains(id));
        if !held.is_empty() {
            self.hold(Order::Stop(held, signal));
        }
        at_once
    }

    fn hold(&mut self, order: Order) {
        self.waiting.push_back((self.barrier + 1, order));
        self.is_open = true;
    }

    /// To be called after the records that belong to the orders were sent.
    pub fn close(&mut self, recorder: &Recorder) {
        if std::mem::take(&mut self.is_open) {
            self.barrier += 1;
            recorder.barrier(self.barrier);
        }
    }

    /// Gives out what waited for a barrier; returns what no layer would adopt.
    pub fn pass(&mut self, barrier: u64, layer: &dyn ComputeLayer) -> Vec<AttemptId> {
        let mut refused = Vec::new();
        while self.waiting.front().is_some_and(|(number, _)| *number <= barrier) {
            match self.waiting.pop_front().map(|(_, order)| order) {
                Some(Order::Submit(launch)) => layer.submit(*launch),
                Some(Order::Stop(attempts, signal)) => layer.stop(&attempts, signal),
                Some(Order::Adopt(adoption)) => {
                    let id = adoption.id;
                    if !layer.adopt(adoption) {
                        refused.extend(id);
                    }
                }
                None => {}
            }
        }
        refused
    }

    /// Whether the attempt is of another run, which keeps its logs.
    pub fn is_adopted(&self, id: AttemptId) -> bool {
        self.adopted.contains(&id)
    }

    pub fn ended(&mut self, id: AttemptId) {
        self.outliving.remove(&id);
    }
}
