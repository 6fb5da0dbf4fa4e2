//! Order of the steps and balance of splits and joins (L-11, L-12, L-13). What is found out on
//! the way is what `graph` is built from.

use super::{View, at_step, at_transition, is_join};
use crate::diagnostic::Diagnostic;
use crate::ir::{Step, Transition};

/// Index of a step in `ir::Flow::steps`.
type Source = usize;

/// A split a step is inside of: the splitting step, and which of its branches.
pub(crate) type Branch = (Source, usize);

/// The shape of a flow that keeps L-11 … L-13. Everything is indexed as the flow's steps are.
pub(crate) struct Structure {
    /// Topological, the start step first.
    pub order: Vec<Source>,
    /// In order of `self.next`; without a switch's way to itself.
    pub children: Vec<Vec<Source>>,
    /// Open splits around each step, outermost first.
    pub stacks: Vec<Vec<Branch>>,
    /// Parents; of a join in order of the branches they come from.
    pub parents: Vec<Vec<Source>>,
    /// For a join, the step whose split it closes.
    pub joins: Vec<Option<Source>>,
}

pub(crate) fn structure(view: &View) -> Result<Structure, Diagnostic> {
    let children = children(view);
    no_cycle(view, &children)?;
    let order = order(view, &children);
    if let Some(index) = (0..view.flow.steps.len()).find(|i| !order.contains(i)) {
        let step = &view.flow.steps[index];
        let message = format!(
            "Step `{}` is not reachable from the start step `{}`. Lead to it with `self.next`, or \
             remove it.",
            step.name, view.flow.steps[view.start].name
        );
        return Err(at_step(step, message));
    }
    Balance::of(view, order, children)
}

fn children(view: &View) -> Vec<Vec<Source>> {
    let target = |name: &str| view.by_name.get(name).copied();
    let own = |index: Source, step: &Step| match &step.transition {
        Some(transition) => {
            let switch = matches!(transition, Transition::Switch { .. });
            let targets = transition.targets().into_iter().filter_map(target);
            targets.filter(|t| !(switch && *t == index)).collect()
        }
        None => Vec::new(),
    };
    view.flow.steps.iter().enumerate().map(|(i, s)| own(i, s)).collect()
}

/// L-11. A switch may lead to its own step, if it also leads elsewhere.
fn no_cycle(view: &View, children: &[Vec<Source>]) -> Result<(), Diagnostic> {
    for (index, step) in view.flow.steps.iter().enumerate() {
        if let Some(Transition::Switch { cases, .. }) = &step.transition
            && !cases.is_empty()
            && children[index].is_empty()
        {
            return Err(cycle(view, &[index]));
        }
    }
    let mut finished = vec![false; children.len()];
    for root in 0..children.len() {
        let mut path: Vec<(Source, usize)> = if finished[root] { vec![] } else { vec![(root, 0)] };
        while let Some((step, next)) = path.last_mut() {
            let Some(child) = children[*step].get(*next).copied() else {
                finished[*step] = true;
                path.pop();
                continue;
            };
            *next += 1;
            if let Some(at) = path.iter().position(|(on_path, _)| *on_path == child) {
                let steps: Vec<Source> = path[at..].iter().map(|(s, _)| *s).collect();
                return Err(cycle(view, &steps));
            }
            if !finished[child] {
                path.push((child, 0));
            }
        }
    }
    Ok(())
}

fn cycle(view: &View, path: &[Source]) -> Diagnostic {
    let steps = &view.flow.steps;
    let names: Vec<&str> = path.iter().chain(path.first()).map(|i| steps[*i].name.as_str()).collect();
    let last = &steps[path[path.len() - 1]];
    let message = format!(
        "The flow runs in a circle: {}. Only a switch may lead back, to its own step, and it needs a \
         way out.",
        names.join("->")
    );
    match &last.transition {
        Some(transition) => at_transition(last, transition, message),
        None => at_step(last, message),
    }
}

/// Topological order of what is reachable: a step comes as soon as its last parent was taken.
fn order(view: &View, children: &[Vec<Source>]) -> Vec<Source> {
    let mut reachable = vec![false; children.len()];
    let mut stack = vec![view.start];
    let mut missing = vec![0_usize; children.len()];
    while let Some(step) = stack.pop() {
        if !std::mem::replace(&mut reachable[step], true) {
            for child in &children[step] {
                missing[*child] += 1;
                stack.push(*child);
            }
        }
    }
    let mut order = vec![view.start];
    let mut at = 0;
    while at < order.len() {
        for child in &children[order[at]] {
            missing[*child] -= 1;
            if missing[*child] == 0 {
                order.push(*child);
            }
        }
        at += 1;
    }
    order
}

/// L-13: works out, step by step, inside which branches of which splits each step is.
struct Balance<'a> {
    view: &'a View<'a>,
    /// Edges into each step, by order: the parent and the splits open on that edge.
    edges: Vec<Vec<(Source, Vec<Branch>)>>,
    made: Structure,
}

impl<'a> Balance<'a> {
    fn of(view: &'a View<'a>, order: Vec<Source>, children: Vec<Vec<Source>>) -> Result<Structure, Diagnostic> {
        let count = children.len();
        let made = Structure {
            order,
            children,
            stacks: vec![Vec::new(); count],
            parents: vec![Vec::new(); count],
            joins: vec![None; count],
        };
        let mut balance = Self { view, edges: vec![Vec::new(); count], made };
        for at in 0..balance.made.order.len() {
            let index = balance.made.order[at];
            balance.enter(index)?;
            balance.leave(index);
        }
        Ok(balance.made)
    }

    fn step(&self, index: Source) -> &'a Step {
        &self.view.flow.steps[index]
    }

    fn name(&self, index: Source) -> &'a str {
        &self.step(index).name
    }

    fn enter(&mut self, index: Source) -> Result<(), Diagnostic> {
        let mut edges = std::mem::take(&mut self.edges[index]);
        let step = self.step(index);
        if is_join(step) {
            let stack = self.join(step, index, &edges)?;
            edges.sort_by_key(|(_, open)| open.last().map(|(_, branch)| *branch));
            self.made.joins[index] = edges[0].1.last().map(|(split, _)| *split);
            self.made.stacks[index] = stack;
        } else {
            self.plain(step, &edges)?;
            edges.sort_by_key(|(parent, _)| *parent);
            self.made.stacks[index] = edges.first().map(|e| e.1.clone()).unwrap_or_default();
        }
        self.made.parents[index] = edges.iter().map(|(parent, _)| *parent).collect();
        match self.made.stacks[index].last() {
            Some((split, _)) if index == self.view.end => Err(at_step(
                step,
                format!(
                    "The end step `{}` is reached before the split of step `{}` was joined. Add a \
                     join, a step that takes `inputs`, before it.",
                    step.name,
                    self.name(*split)
                ),
            )),
            _ => Ok(()),
        }
    }

    fn leave(&mut self, index: Source) {
        let splits = matches!(
            self.step(index).transition,
            Some(Transition::Split { .. } | Transition::Foreach { .. } | Transition::Parallel { .. })
        );
        for (branch, child) in self.made.children[index].clone().into_iter().enumerate() {
            let mut open = self.made.stacks[index].clone();
            if splits {
                open.push((index, branch));
            }
            self.edges[child].push((index, open));
        }
    }

    /// A step that is no join: whatever leads to it comes from the same branch.
    fn plain(&self, step: &Step, edges: &[(Source, Vec<Branch>)]) -> Result<(), Diagnostic> {
        let Some(((first, open), rest)) = edges.split_first() else { return Ok(()) };
        let Some((other, _)) = rest.iter().find(|(_, o)| o != open) else { return Ok(()) };
        let name = &step.name;
        let message = if first == other {
            format!("The split of step `{}` leads to `{name}` twice; name each step once.", self.name(*first))
        } else {
            format!(
                "Steps `{}` and `{}` both lead to `{name}`, which does not take `inputs`. Make it a \
                 join: def {name}(self, inputs).",
                self.name(*first),
                self.name(*other)
            )
        };
        Err(at_step(step, message))
    }

    /// A join: each branch of one split arrives. Returns the splits still open after it.
    fn join(&self, step: &Step, index: Source, edges: &[(Source, Vec<Branch>)]) -> Result<Vec<Branch>, Diagnostic> {
        let name = &step.name;
        let fail = |message: String| Err(at_step(step, message));
        let opened = edges.iter().find_map(|(_, open)| open.split_last());
        let Some(((split, _), outer)) = opened else {
            return fail(format!(
                "Step `{name}` takes `inputs`, but no split leads to it. Remove the argument, or \
                 split in a step before it."
            ));
        };
        // The same split always has the same splits around it: comparing the innermost is enough.
        for (parent, open) in edges {
            let message = match open.last() {
                Some((other, _)) if other == split => continue,
                Some((other, _)) => format!(
                    "Join `{name}` mixes the splits of steps `{}` and `{}`; a join closes one split.",
                    self.name(*split),
                    self.name(*other)
                ),
                None => format!(
                    "Join `{name}` mixes branches of the split of step `{}` with step `{}`, which is not \
                     inside that split.",
                    self.name(*split),
                    self.name(*parent)
                ),
            };
            return fail(message);
        }
        self.complete(step, index, *split, edges)?;
        Ok(outer.to_vec())
    }

    fn complete(
        &self,
        step: &Step,
        index: Source,
        split: Source,
        edges: &[(Source, Vec<Branch>)],
    ) -> Result<(), Diagnostic> {
        let name = &step.name;
        let foreach = !matches!(self.step(split).transition, Some(Transition::Split { .. }));
        if !foreach && self.made.children[split].contains(&index) {
            return Err(at_step(
                step,
                format!(
                    "The split of step `{}` leads directly to the join `{name}`; put a step in \
                     between.",
                    self.name(split)
                ),
            ));
        }
        let arrived = |branch: usize| edges.iter().any(|(_, open)| open.last() == Some(&(split, branch)));
        let missing: Vec<&str> = self.made.children[split]
            .iter()
            .enumerate()
            .filter(|(branch, _)| !arrived(*branch))
            .map(|(_, child)| self.name(*child))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let (noun, verb) = if missing.len() == 1 { ("branch", "does") } else { ("branches", "do") };
        let message = format!(
            "Join `{name}` does not join the whole split of step `{}`: the {noun} that {} with `{}` \
             {verb} not lead to it.",
            self.name(split),
            if missing.len() == 1 { "begins" } else { "begin" },
            missing.join("`, `")
        );
        Err(at_step(step, message))
    }
}
