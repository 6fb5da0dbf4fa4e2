//! The flow as text: `show`, `output-dot`, `output-raw`. Pure functions of the graph; where the
//! text goes is the caller's business.

use serde_json::{Map, Value, json};

use crate::graph::{Graph, GraphStep, StepIndex, StepKind};
use crate::ir::{Decorator, Step, Transition};

/// What `show` prints: the flow's own text to stderr, the steps to stdout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    pub doc: String,
    pub steps: String,
}

/// Steps in topological order with decorators, documentation and successors.
pub fn show(graph: &Graph) -> Shown {
    let doc = graph.flow.doc.as_deref().map(dedent).unwrap_or_default();
    let mut steps = String::new();
    for index in 0..graph.steps.len() {
        show_step(graph, index, &mut steps);
    }
    Shown { doc, steps }
}

fn show_step(graph: &Graph, index: StepIndex, out: &mut String) {
    let step = graph.source(index);
    for decorator in &step.decorators {
        *out += &format!("@{}\n", decorator_text(decorator));
    }
    *out += &format!("Step {}\n", step.name);
    let doc = step.doc.as_deref().map(dedent).unwrap_or_default();
    for line in doc.lines() {
        *out += format!("    {line}").trim_end();
        out.push('\n');
    }
    if !graph.steps[index].children.is_empty() {
        *out += &format!("    => {}\n", names(graph, &graph.steps[index].children).join(", "));
    }
    out.push('\n');
}

/// `retry(times=2)`
fn decorator_text(decorator: &Decorator) -> String {
    if decorator.attributes.is_empty() {
        return decorator.name.clone();
    }
    let attributes: Vec<String> = decorator.attributes.iter().map(|(n, v)| format!("{n}={v}")).collect();
    format!("{}({})", decorator.name, attributes.join(", "))
}

fn names<'a>(graph: &'a Graph, steps: &[StepIndex]) -> Vec<&'a str> {
    steps.iter().map(|s| graph.steps[*s].name.as_str()).collect()
}

/// Without the indentation that all lines but the first share, and without blank ends.
fn dedent(doc: &str) -> String {
    let doc = doc.trim_end();
    let rest = doc.lines().skip(1).filter(|line| !line.trim().is_empty());
    let margin = rest.map(|l| l.len() - l.trim_start().len()).min().unwrap_or(0);
    let mut lines = doc.lines();
    let first = lines.next().unwrap_or_default().trim_start();
    let rest = lines.map(|line| line.get(margin..).unwrap_or("").trim_end());
    let all: Vec<&str> = std::iter::once(first).chain(rest).collect();
    all.join("\n").trim_start_matches('\n').to_owned()
}

/// The graph for Graphviz.
pub fn dot(graph: &Graph) -> String {
    let mut out = format!("digraph {} {{\n    rankdir=LR;\n    node [shape=box];\n", quoted(&graph.flow.name));
    for (index, step) in graph.steps.iter().enumerate() {
        let shape = if step.is_join() { "house" } else { shape(&step.kind) };
        let label = format!("{} | {}", step.name, type_of(graph, index));
        out += &format!("    {} [label={}, shape={shape}];\n", quoted(step.name.as_str()), quoted(&label));
    }
    for step in &graph.steps {
        for child in &step.children {
            let style = match &step.kind {
                StepKind::Foreach { variable } => format!(" [label={}]", quoted(&format!("foreach {variable}"))),
                StepKind::Switch { condition } => format!(" [label={}]", quoted(condition)),
                _ => String::new(),
            };
            let (from, to) = (quoted(step.name.as_str()), quoted(graph.steps[*child].name.as_str()));
            out += &format!("    {from} -> {to}{style};\n");
        }
    }
    out + "}\n"
}

fn shape(kind: &StepKind) -> &'static str {
    match kind {
        StepKind::Switch { .. } => "diamond",
        StepKind::Foreach { .. } | StepKind::Parallel => "box3d",
        StepKind::Split => "invhouse",
        StepKind::Linear | StepKind::End => "box",
    }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// `output-raw`: the graph info as JSON, or one line per step.
pub fn raw(graph: &Graph, as_json: bool) -> String {
    if as_json {
        return format!("{:#}\n", graph_info(graph));
    }
    let mut out = String::new();
    for (index, step) in graph.steps.iter().enumerate() {
        let source = graph.source(index);
        out += &format!(
            "{} type={} line={} parents=[{}] next=[{}] splits=[{}]",
            step.name,
            type_of(graph, index),
            source.line,
            names(graph, &step.parents).join(", "),
            names(graph, &step.children).join(", "),
            names(graph, &step.split_stack).join(", "),
        );
        if let Some(join) = step.matching_join {
            out += &format!(" matching_join={}", graph.steps[join].name);
        }
        out.push('\n');
    }
    out
}

/// The peer's word for a step.
fn type_of(graph: &Graph, index: StepIndex) -> &'static str {
    let step = &graph.steps[index];
    match &step.kind {
        _ if step.is_join() => "join",
        StepKind::Split => "split-static",
        StepKind::Foreach { .. } => "split-foreach",
        StepKind::Parallel => "split-parallel",
        StepKind::Switch { .. } => "split-switch",
        StepKind::Linear | StepKind::End if index == graph.start => "start",
        StepKind::End => "end",
        StepKind::Linear => "linear",
    }
}

/// What `current.graph` and `output-raw --json` show (behaviour.md §14.4).
pub fn graph_info(graph: &Graph) -> Value {
    let flow = &graph.flow;
    let file = flow.file.rsplit('/').next().unwrap_or_default();
    let parameters: Vec<Value> =
        flow.parameters.iter().map(|p| json!({"name": p.attribute, "type": p.parameter_type})).collect();
    let steps: Map<String, Value> =
        flow.steps.iter().filter_map(|s| Some((s.name.clone(), step_info(graph, graph.step(&s.name)?, s)))).collect();
    json!({
        "file": file,
        "start_step": graph.steps[graph.start].name,
        "end_step": graph.steps[graph.end].name,
        "parameters": parameters,
        "constants": flow.constants,
        "steps": steps,
        "graph_structure": structure(graph, graph.start, None),
        "doc": flow.doc.clone().unwrap_or_default(),
        "decorators": flow.decorators.iter().map(decorator_info).collect::<Vec<_>>(),
        "extensions": {},
    })
}

fn step_info(graph: &Graph, index: StepIndex, source: &Step) -> Value {
    let step = &graph.steps[index];
    let mut info = json!({
        "name": source.name,
        "type": type_of(graph, index),
        "line": source.line,
        "source_file": source.file,
        "doc": source.doc.clone().unwrap_or_default(),
        "decorators": source.decorators.iter().map(decorator_info).collect::<Vec<_>>(),
        "next": names(graph, &step.children),
        "node_info": Value::Null,
    });
    match &source.transition {
        Some(Transition::Foreach { variable, .. }) => info["foreach_artifact"] = json!(variable),
        Some(Transition::Switch { condition, cases, .. }) => {
            let case = |key: &Value| key.as_str().map_or_else(|| key.to_string(), str::to_owned);
            let cases: Map<String, Value> = cases.iter().map(|c| (case(&c.key), json!(c.target))).collect();
            info["condition"] = json!(condition);
            info["switch_cases"] = Value::Object(cases);
        }
        _ => {}
    }
    if let Some(join) = step.matching_join {
        info["matching_join"] = json!(graph.steps[join].name);
    }
    info
}

fn decorator_info(decorator: &Decorator) -> Value {
    json!({
        "name": decorator.name,
        "attributes": decorator.attributes,
        "statically_defined": decorator.in_source,
        "inserted_by": null,
    })
}

/// Names in order; a split is followed by the list of its branches, and goes on with its join.
fn structure(graph: &Graph, from: StepIndex, until: Option<StepIndex>) -> Value {
    let mut all = Vec::new();
    let mut at = Some(from).filter(|s| Some(*s) != until);
    while let Some(index) = at {
        let step = &graph.steps[index];
        all.push(json!(step.name));
        let ahead: Vec<StepIndex> = step.children.iter().copied().filter(|c| *c != index).collect();
        let meet = meeting_point(graph, index, step, &ahead);
        if step.matching_join.is_some() || ahead.len() > 1 {
            let branches = ahead.iter().map(|child| structure(graph, *child, meet));
            all.push(branches.collect());
        }
        let next = if step.matching_join.is_some() || ahead.len() > 1 { meet } else { ahead.first().copied() };
        at = next.filter(|s| Some(*s) != until);
    }
    Value::Array(all)
}

/// Where branches come together again: the join of a split; for a switch, the first step that
/// every way leads to.
fn meeting_point(graph: &Graph, index: StepIndex, step: &GraphStep, ahead: &[StepIndex]) -> Option<StepIndex> {
    if step.matching_join.is_some() || ahead.len() < 2 {
        return step.matching_join;
    }
    let reached: Vec<Vec<bool>> = ahead.iter().map(|way| graph.with_descendants(*way)).collect();
    let meets = |s: &StepIndex| graph.steps[*s].split_stack == step.split_stack || graph.steps[*s].is_join();
    (index + 1..graph.steps.len()).find(|s| reached.iter().all(|way| way[*s]) && meets(s))
}
