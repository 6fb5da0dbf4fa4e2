//! The rules a flow's structure has to keep (behaviour.md L-1 … L-20), in their order. Each
//! finding is one sentence with file and line. Decorators' own rules are in `decorator::check`.

mod structure;

use std::collections::{HashMap, HashSet};

use crate::decorator::makes_gang;
use crate::diagnostic::Diagnostic;
use crate::ir::{Flow, Step, Transition};
use crate::suggestion::did_you_mean;

pub(crate) use structure::{Structure, structure};

/// Names that `FlowSpec` uses itself.
const RESERVED: [&str; 5] = ["name", "next", "input", "index", "cmd"];

/// Every finding, in order of the rules. Rules that need what an earlier rule found missing (a
/// start step, known targets, no cycle) are skipped then.
pub fn check(flow: &Flow) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    reserved_names(flow, &mut found);
    start_and_end(flow, &mut found);
    let Some(view) = View::of(flow) else { return found };
    legacy_names(&view, &mut found);
    edges_of_start_and_end(&view, &mut found);
    step_names(flow, &mut found);
    argument_counts(flow, &mut found);
    transitions(&view, &mut found);
    if !found.is_empty() {
        return found;
    }
    if let Err(finding) = structure(&view) {
        found.push(finding);
    }
    switch_forms(&view, &mut found);
    foreach_to_join(&view, &mut found);
    parallel_steps(&view, &mut found);
    switch_to_join(&view, &mut found);
    found
}

/// A flow whose start and end are known.
pub(crate) struct View<'a> {
    pub flow: &'a Flow,
    pub by_name: HashMap<&'a str, usize>,
    pub start: usize,
    pub end: usize,
}

impl<'a> View<'a> {
    pub(crate) fn of(flow: &'a Flow) -> Option<Self> {
        let by_name = flow.steps.iter().enumerate().map(|(i, s)| (s.name.as_str(), i)).collect();
        let start = role(flow, "start", |s| s.is_start)?;
        let end = role(flow, "end", |s| s.is_end)?;
        Some(Self { flow, by_name, start, end })
    }

    fn target(&self, name: &str) -> Option<&'a Step> {
        self.by_name.get(name).map(|i| &self.flow.steps[*i])
    }

    /// Steps with their transitions.
    fn edges(&self) -> impl Iterator<Item = (&'a Step, &'a Transition)> {
        self.flow.steps.iter().filter_map(|s| Some((s, s.transition.as_ref()?)))
    }
}

/// The annotated step, else the one of that name, else the only step of a flow of one.
fn role(flow: &Flow, name: &str, annotated: impl Fn(&Step) -> bool) -> Option<usize> {
    let marked = flow.steps.iter().position(annotated);
    let named = || flow.steps.iter().position(|s| s.name == name);
    let only = || (flow.steps.len() == 1).then_some(0);
    marked.or_else(named).or_else(only)
}

pub(crate) fn is_join(step: &Step) -> bool {
    step.arguments == 2
}

fn at_step(step: &Step, message: String) -> Diagnostic {
    Diagnostic::lint(message, &step.file, step.line)
}

fn at_transition(step: &Step, transition: &Transition, message: String) -> Diagnostic {
    Diagnostic::lint(message, &step.file, transition.line())
}

/// L-1
fn reserved_names(flow: &Flow, found: &mut Vec<Diagnostic>) {
    for step in flow.steps.iter().filter(|s| RESERVED.contains(&s.name.as_str())) {
        let name = &step.name;
        found.push(at_step(
            step,
            format!(
                "Step name `{name}` is reserved, because flows have something of that name. Give the step another name."
            ),
        ));
    }
}

/// L-2
fn start_and_end(flow: &Flow, found: &mut Vec<Diagnostic>) {
    for name in ["start", "end"] {
        let annotated = |s: &Step| if name == "start" { s.is_start } else { s.is_end };
        if role(flow, name, annotated).is_none() {
            let near = did_you_mean(name, flow.steps.iter().map(|s| s.name.as_str()), |n| format!("`{n}` to be it"))
                .replace("Did you mean", "Is");
            let message = format!(
                "Flow `{}` has no {name} step. Name a step `{name}`, or mark one with \
                 @step({name}=True).{near}",
                flow.name
            );
            found.push(Diagnostic::lint(message, &flow.file, flow.line));
        }
        let marked: Vec<&Step> = flow.steps.iter().filter(|s| annotated(s)).collect();
        if let [first, second, ..] = marked[..] {
            found.push(at_step(
                second,
                format!(
                    "Steps `{}` and `{}` are both marked with @step({name}=True); a flow has one \
                     {name} step.",
                    first.name, second.name
                ),
            ));
        }
    }
}

/// L-3
fn legacy_names(view: &View, found: &mut Vec<Diagnostic>) {
    for (name, index) in [("start", view.start), ("end", view.end)] {
        let chosen = &view.flow.steps[index];
        let marked = if name == "start" { chosen.is_start } else { chosen.is_end };
        if let (true, Some(other)) = (marked && chosen.name != name, view.target(name)) {
            found.push(at_step(
                other,
                format!(
                    "Step `{}` is marked with @step({name}=True), but there is also a step named \
                     `{name}`. Rename that step or remove the mark.",
                    chosen.name
                ),
            ));
        }
    }
}

/// L-4 and L-5
fn edges_of_start_and_end(view: &View, found: &mut Vec<Diagnostic>) {
    let start = &view.flow.steps[view.start];
    let end = &view.flow.steps[view.end];
    for (step, transition) in view.edges() {
        if transition.targets().contains(&start.name.as_str()) {
            found.push(at_transition(
                step,
                transition,
                format!(
                    "Step `{}` leads to the start step `{}`; nothing may lead to the start step.",
                    step.name, start.name
                ),
            ));
        }
    }
    if let Some(transition) = &end.transition {
        let targets = transition.targets();
        let leads = if targets.is_empty() {
            "contains `self.next`".to_owned()
        } else {
            format!("leads to `{}`", targets.join("`, `"))
        };
        found.push(at_transition(
            end,
            transition,
            format!("The end step `{}` {leads}; the flow is over there. Remove its `self.next`.", end.name),
        ));
    }
    if is_join(end) {
        found.push(at_step(
            end,
            format!(
                "The end step `{}` takes `inputs`, but it cannot be a join. Join the branches in a \
                 step before it.",
                end.name
            ),
        ));
    }
}

/// L-6
fn step_names(flow: &Flow, found: &mut Vec<Diagnostic>) {
    for step in &flow.steps {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let name = &step.name;
        if name.is_empty() || name.starts_with('_') || !name.chars().all(allowed) {
            found.push(at_step(
                step,
                format!(
                    "Step name `{name}` is not allowed: use lowercase letters, digits and \
                     underscores, and do not begin with an underscore."
                ),
            ));
        }
    }
}

/// L-7
fn argument_counts(flow: &Flow, found: &mut Vec<Diagnostic>) {
    for step in &flow.steps {
        let name = &step.name;
        let form = match step.transition {
            Some(Transition::Split { .. }) => "a split",
            Some(Transition::Foreach { .. } | Transition::Parallel { .. }) => "a foreach",
            Some(Transition::Switch { .. }) => "a switch",
            _ => "",
        };
        let message = match step.arguments {
            0 => format!("Step `{name}` takes no argument; write `def {name}(self)`."),
            1 => continue,
            2 if form.is_empty() => continue,
            2 => format!(
                "Step `{name}` takes `inputs`, so it is a join, and ends with {form}. A step cannot \
                 be both; put {form} into a step after it."
            ),
            n => format!(
                "Step `{name}` takes {n} arguments; a step takes `self`, and a join `self` and \
                 `inputs`."
            ),
        };
        found.push(at_step(step, message));
    }
}

/// L-8, L-9, L-10
fn transitions(view: &View, found: &mut Vec<Diagnostic>) {
    let others = || view.flow.steps.iter().enumerate().filter(|(i, _)| *i != view.end);
    for (_, step) in others().filter(|(_, s)| s.transition.is_none()) {
        let line = if step.tail_line > 0 { step.tail_line } else { step.line };
        let message = format!(
            "Step `{}` does not end with `self.next(…)`; its last statement must say which step \
             follows.",
            step.name
        );
        found.push(Diagnostic::lint(message, &step.file, line));
    }
    for (step, transition) in view.edges() {
        if let Transition::Unsupported { problem, .. } = transition {
            found.push(at_transition(
                step,
                transition,
                format!("The `self.next(…)` of step `{}` is not supported: {problem}.", step.name),
            ));
        }
    }
    for (step, transition) in view.edges() {
        for target in transition.targets().into_iter().filter(|t| view.target(t).is_none()) {
            let names = view.flow.steps.iter().map(|s| s.name.as_str());
            let near = did_you_mean(target, names, |n| format!("`{n}`"));
            found.push(at_transition(
                step,
                transition,
                format!("Step `{}` leads to `{target}`, which is not a step.{near}", step.name),
            ));
        }
    }
}

/// L-14
fn switch_forms(view: &View, found: &mut Vec<Diagnostic>) {
    for (step, transition) in view.edges() {
        let Transition::Switch { condition, cases, .. } = transition else { continue };
        let name = &step.name;
        let message = match (cases.len(), condition.as_deref().unwrap_or_default()) {
            (0, _) => format!("The switch of step `{name}` has no cases."),
            (1, _) => format!("The switch of step `{name}` has one case; it needs two or more."),
            (_, "") => format!(
                "The switch of step `{name}` has no condition; write condition='name of an \
                 artifact'."
            ),
            _ => continue,
        };
        found.push(at_transition(step, transition, message));
    }
}

/// L-15
fn foreach_to_join(view: &View, found: &mut Vec<Diagnostic>) {
    for (step, transition) in view.edges() {
        let Transition::Foreach { target, .. } = transition else { continue };
        if view.target(target).is_some_and(is_join) {
            found.push(at_transition(
                step,
                transition,
                format!(
                    "The foreach of step `{}` leads directly to the join `{target}`; put a step in \
                     between.",
                    step.name
                ),
            ));
        }
    }
}

/// L-16, L-17, L-18
fn parallel_steps(view: &View, found: &mut Vec<Diagnostic>) {
    let gangs: HashSet<&str> = view
        .flow
        .steps
        .iter()
        .filter(|s| s.decorators.iter().any(|d| makes_gang(&d.name)))
        .map(|s| s.name.as_str())
        .collect();
    for (step, transition) in view.edges() {
        if let Transition::Parallel { target, .. } = transition
            && !gangs.contains(target.as_str())
        {
            let message =
                format!("Step `{}` leads to `{target}` with num_parallel, but `{target}` has no @parallel.", step.name);
            found.push(at_transition(step, transition, message));
        }
    }
    for (step, transition) in view.edges().filter(|(s, _)| gangs.contains(s.name.as_str())) {
        if !transition.targets().iter().all(|t| view.target(t).is_some_and(is_join)) {
            let message = format!("Step `{}` has @parallel, so a join must follow it.", step.name);
            found.push(at_transition(step, transition, message));
        }
    }
    for (step, transition) in view.edges() {
        let plain = !matches!(transition, Transition::Parallel { .. });
        for target in transition.targets().into_iter().filter(|t| plain && gangs.contains(t)) {
            let message =
                format!("Step `{target}` has @parallel, but step `{}` leads to it without num_parallel.", step.name);
            found.push(at_transition(step, transition, message));
        }
    }
}

/// L-20
fn switch_to_join(view: &View, found: &mut Vec<Diagnostic>) {
    for (step, transition) in view.edges() {
        let Transition::Switch { .. } = transition else { continue };
        for target in transition.targets() {
            if view.target(target).is_some_and(is_join) {
                let message = format!(
                    "The switch of step `{}` leads directly to the join `{target}`; put a step in \
                     between.",
                    step.name
                );
                found.push(at_transition(step, transition, message));
            }
        }
    }
}
