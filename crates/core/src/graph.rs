//! The flow as a checked graph: steps in topological order with everything the run machine asks
//! about them. Findings about the source are `lint`'s work; carrying a run out is `run`'s.

use std::collections::HashMap;
use std::sync::Arc;

use crate::decorator::{self, StepPolicy};
use crate::diagnostic::Diagnostic;
use crate::id::StepName;
use crate::ir::{self, Transition};
use crate::lint::{self, Structure, View};

/// Index of a step in `Graph::steps`.
pub type StepIndex = usize;

/// Whether switches (and with them recursion) run in this version.
pub const SWITCH_IS_ENABLED: bool = true;

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
    /// `num_parallel`: the tasks of a gang run at the same time.
    Parallel,
    Switch {
        condition: String,
    },
    End,
}

impl Graph {
    /// Checks decorators, then the lint rules; the first finding is the error.
    pub fn build(flow: ir::Flow) -> Result<Self, Diagnostic> {
        if let Some(finding) = decorator::check(&flow).into_iter().next() {
            return Err(finding);
        }
        if let Some(finding) = lint::check(&flow).into_iter().next() {
            return Err(finding);
        }
        let view = View::of(&flow).expect("lint found a start and an end step");
        let structure = lint::structure(&view)?;
        let (start, end) = (view.start, view.end);
        Ok(Self::assemble(flow, &structure, start, end))
    }

    fn assemble(flow: ir::Flow, structure: &Structure, start: usize, end: usize) -> Self {
        let mut rank = vec![0; flow.steps.len()];
        for (index, source) in structure.order.iter().enumerate() {
            rank[*source] = index;
        }
        let mut steps: Vec<GraphStep> =
            structure.order.iter().map(|s| graph_step(&flow, structure, &rank, *s)).collect();
        for index in 0..steps.len() {
            if let Some(split) = steps[index].joins {
                steps[split].matching_join = Some(index);
            }
        }
        let by_name = steps.iter().enumerate().map(|(i, s)| (s.name.clone(), i)).collect();
        Self { flow: Arc::new(flow), steps, start: rank[start], end: rank[end], by_name }
    }

    pub fn step(&self, name: &str) -> Option<StepIndex> {
        self.by_name.get(name).copied()
    }

    /// The step as its front end described it.
    pub fn source(&self, step: StepIndex) -> &ir::Step {
        &self.flow.steps[self.steps[step].source]
    }

    /// Refuses, with a sentence, what passes the checks but is not in this version.
    pub fn check_can_run(&self) -> Result<(), Diagnostic> {
        for (index, step) in self.steps.iter().enumerate() {
            let what = match step.kind {
                StepKind::Switch { .. } if !SWITCH_IS_ENABLED => "a switch",
                _ => continue,
            };
            let source = self.source(index);
            return Err(Diagnostic {
                headline: "Not in this version",
                message: format!(
                    "Step `{}` ends with {what}, which is not in this version. Use a foreach over \
                     range(n) where the tasks need not talk to each other.",
                    step.name
                ),
                file: Some(source.file.clone()),
                line: source.transition.as_ref().map_or(source.line, Transition::line),
            });
        }
        decorator::unavailable(&self.flow).map_or(Ok(()), Err)
    }

    /// Step names in the order of the source, for messages.
    pub fn names(&self) -> Vec<&str> {
        self.flow.steps.iter().map(|s| s.name.as_str()).collect()
    }

    /// `from` and every step that can come after it, by index.
    pub fn with_descendants(&self, from: StepIndex) -> Vec<bool> {
        let mut marked = vec![false; self.steps.len()];
        marked[from] = true;
        for index in 0..self.steps.len() {
            if marked[index] {
                for child in &self.steps[index].children {
                    marked[*child] = true;
                }
            }
        }
        marked
    }
}

impl GraphStep {
    /// Whether the step takes `inputs`.
    pub fn is_join(&self) -> bool {
        self.joins.is_some()
    }
}

fn graph_step(flow: &ir::Flow, structure: &Structure, rank: &[usize], source: usize) -> GraphStep {
    let step = &flow.steps[source];
    let kind = match &step.transition {
        None => StepKind::End,
        Some(Transition::Split { .. }) => StepKind::Split,
        Some(Transition::Foreach { variable, .. }) => StepKind::Foreach { variable: variable.clone() },
        Some(Transition::Parallel { .. }) => StepKind::Parallel,
        Some(Transition::Switch { condition, .. }) => {
            StepKind::Switch { condition: condition.clone().unwrap_or_default() }
        }
        Some(Transition::Linear { .. } | Transition::Unsupported { .. }) => StepKind::Linear,
    };
    GraphStep {
        name: StepName::from(step.name.as_str()),
        kind,
        source,
        children: targets(flow, step).iter().map(|s| rank[*s]).collect(),
        parents: structure.parents[source].iter().map(|s| rank[*s]).collect(),
        split_stack: structure.stacks[source].iter().map(|(s, _)| rank[*s]).collect(),
        matching_join: None,
        joins: structure.joins[source].map(|s| rank[s]),
        has_imports: step.has_imports,
        policy: StepPolicy::of(step),
    }
}

/// Targets as named, a switch's own step included.
fn targets(flow: &ir::Flow, step: &ir::Step) -> Vec<usize> {
    let names = step.transition.as_ref().map(Transition::targets).unwrap_or_default();
    names.iter().filter_map(|name| flow.steps.iter().position(|s| s.name == *name)).collect()
}
