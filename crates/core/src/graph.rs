//! The flow as a checked graph: steps in topological order with everything the run machine asks
//! about them. Findings about the source are `lint`'s work; carrying a run out is `run`'s.

use std::collections::HashMap;
use std::sync::Arc;

use crate::decorator::StepPolicy;
use crate::diagnostic::Diagnostic;
use crate::id::StepName;
use crate::ir;

/// Index of a step in `Graph::steps`.
pub type StepIndex = usize;

/// A flow that passed every check.
#[derive(Clone, Debug)]
pub struct Graph {
    pub flow: Arc<ir::Flow>,
    /// In topological order, the start step first.
    pub steps: Vec<GraphStep>,
    pub start: StepIndex,
    pub end: StepIndex,
    by_name: HashMap<StepName, StepIndex>,
}

/// One step of a checked flow.
#[derive(Clone, Debug)]
pub struct GraphStep {
    pub name: StepName,
    pub kind: StepKind,
    /// Index in `ir::Flow::steps`.
    pub source: usize,
    /// Targets in order of `self.next`; empty for the end step. A switch names each target once.
    pub children: Vec<StepIndex>,
    /// For a join: in order of the split's `self.next`. Else in order of the flow.
    pub parents: Vec<StepIndex>,
    /// Open splits around the step, outermost first.
    pub split_stack: Vec<StepIndex>,
    /// For a split or foreach: the join that closes it.
    pub matching_join: Option<StepIndex>,
    /// For a join: the split or foreach it closes.
    pub joins: Option<StepIndex>,
    pub has_imports: bool,
    /// What the decorators come to.
    pub policy: StepPolicy,
}

/// The form of a step's transition. Whether it is a join is a separate question
/// (`GraphStep::joins`): a join may go on in any but a splitting way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepKind {
    Linear,
    Split,
    Foreach {
        variable: String,
    },
    /// `num_parallel`: not in this version.
    Parallel,
    Switch {
        condition: String,
    },
    End,
}

impl Graph {
    /// Checks decorators, then the lint rules; the first finding is the error.
    pub fn build(flow: ir::Flow) -> Result<Self, Diagnostic> {
        let _ = flow;
        unreachable!("graph building follows in the next commit")
    }

    pub fn step(&self, name: &str) -> Option<StepIndex> {
        self.by_name.get(name).copied()
    }

    /// Refuses, with a sentence, what passes the checks but is not in this version.
    pub fn check_can_run(&self) -> Result<(), Diagnostic> {
        Ok(())
    }

    /// Step names in the order of the source, for messages.
    pub fn names(&self) -> Vec<&str> {
        self.flow.steps.iter().map(|s| s.name.as_str()).collect()
    }
}
