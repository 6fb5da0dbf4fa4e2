//! The registry of decorators: one explicit list that validation, `--with`, help and the
//! reference page read, and what a step's decorators come to for the engine. What a decorator
//! does inside a task is the front end's work.

pub mod batch;
mod check;
pub mod kubernetes;
mod values;
mod with;

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::ir;
use crate::task::TaskDecorator;

pub use check::check;
pub(crate) use check::unavailable;
pub use values::in_registry;
pub use with::{apply_with, parse_with};

/// Attempts of one task in all, `@catch`'s fallbacks included.
pub const MAX_ATTEMPTS: u32 = 6;
/// Attempts that run only `@catch`'s fallback.
pub const CATCH_FALLBACKS: u32 = 3;
/// `@retry(times=…)` at most, so that a fallback still fits.
pub const MAX_RETRY_TIMES: u32 = MAX_ATTEMPTS - 2;

/// What a decorator stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecoratorKind {
    Step,
    Flow,
}

/// Whether this version acts on a decorator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Availability {
    Now,
    /// Concerns deployments only: accepted, without effect on a local run.
    NoEffectLocally,
    /// Refused when the flow is run; the text says what to do instead.
    Later {
        instead: &'static str,
    },
}

/// One attribute; `default` is JSON.
#[derive(Debug)]
pub struct AttributeSpec {
    pub name: &'static str,
    pub value_type: &'static str,
    pub default: &'static str,
    pub doc: &'static str,
    /// Configuration that holds while the attribute is not given or equals its default.
    pub configured: Option<&'static str>,
}

impl AttributeSpec {
    const fn configured(mut self, variable: &'static str) -> Self {
        self.configured = Some(variable);
        self
    }
}

#[derive(Debug)]
pub struct DecoratorSpec {
    pub name: &'static str,
    pub kind: DecoratorKind,
    pub availability: Availability,
    pub doc: &'static str,
    /// Complete for `Availability::Now`; not listed (and not checked) for the others.
    pub attributes: &'static [AttributeSpec],
}

const fn attribute(
    name: &'static str,
    value_type: &'static str,
    default: &'static str,
    doc: &'static str,
) -> AttributeSpec {
    AttributeSpec { name, value_type, default, doc, configured: None }
}

const fn now(name: &'static str, doc: &'static str, attributes: &'static [AttributeSpec]) -> DecoratorSpec {
    DecoratorSpec { name, kind: DecoratorKind::Step, availability: Availability::Now, doc, attributes }
}

const fn later(name: &'static str, kind: DecoratorKind, doc: &'static str, instead: &'static str) -> DecoratorSpec {
    DecoratorSpec { name, kind, availability: Availability::Later { instead }, doc, attributes: &[] }
}

const fn no_effect(name: &'static str, doc: &'static str) -> DecoratorSpec {
    DecoratorSpec { name, kind: DecoratorKind::Flow, availability: Availability::NoEffectLocally, doc, attributes: &[] }
}

use DecoratorKind::{Flow, Step};

/// Every decorator there is, by name within its kind.
pub static DECORATORS: &[DecoratorSpec] = &[
    now("batch", "Run the step on AWS Batch, as a job of its own.", batch::ATTRIBUTES),
    later(
        "card",
        Step,
        "Make a report of the task.",
        "remove it; what it would show can be printed or kept as an artifact",
    ),
    now(
        "catch",
        "Let the run go on when the step fails.",
        &[
            attribute("var", "str", "null", "Artifact that holds the exception, None on success."),
            attribute("print_exception", "bool", "true", "Print the exception that was caught."),
        ],
    ),
    later(
        "conda",
        Step,
        "Run the step in a Conda environment.",
        "install the packages into the environment you run the flow with, and remove it",
    ),
    now(
        "environment",
        "Set environment variables for the step.",
        &[attribute("vars", "dict", "{}", "Variables and their values; values become text.")],
    ),
    now("kubernetes", "Run the step on Kubernetes, as a Job of its own.", kubernetes::ATTRIBUTES),
    now("parallel", "Run the step as a gang of tasks that reach each other, for `num_parallel`.", &[]),
    later(
        "pypi",
        Step,
        "Run the step in an environment with packages from PyPI.",
        "install the packages into the environment you run the flow with, and remove it",
    ),
    now(
        "pytorch_parallel",
        "Run the step as a gang of tasks, with torch.distributed's variables set.",
        &[attribute("master_port", "int", "null", "Port of rank 0; by default one that follows from the run's id.")],
    ),
    now(
        "resources",
        "State what the step needs; no effect on a local run.",
        &[
            attribute("cpu", "float", "1", "Processors."),
            attribute("gpu", "int", "null", "GPUs."),
            attribute("disk", "int", "null", "Disk space in MB."),
            attribute("memory", "int", "4096", "Memory in MB."),
            attribute("shared_memory", "int", "null", "Shared memory in MiB."),
        ],
    ),
    now(
        "retry",
        "Run the step again when it fails.",
        &[
            attribute("times", "int", "3", "Attempts beyond the first, at most 4."),
            attribute("minutes_between_retries", "float", "2", "Pause before a retry; remote tasks only."),
        ],
    ),
    later(
        "secrets",
        Step,
        "Put secrets into the step's environment.",
        "set the variables in the shell that starts the flow, and remove it",
    ),
    now(
        "timeout",
        "Fail the step when it runs for too long; the durations add up.",
        &[
            attribute("seconds", "float", "0", "Seconds."),
            attribute("minutes", "float", "0", "Minutes."),
            attribute("hours", "float", "0", "Hours."),
        ],
    ),
    later(
        "conda_base",
        Flow,
        "Defaults for `@conda` of every step.",
        "install the packages into the environment you run the flow with, and remove it",
    ),
    later(
        "exit_hook",
        Flow,
        "Call functions when the run is over.",
        "call them from the shell, after the flow's exit code, and remove it",
    ),
    later("project", Flow, "Give the flow's deployments a common name space.", "remove it, and mark runs with --tag"),
    later(
        "pypi_base",
        Flow,
        "Defaults for `@pypi` of every step.",
        "install the packages into the environment you run the flow with, and remove it",
    ),
    no_effect("schedule", "When a deployed flow runs."),
    no_effect("trigger", "Which events start a deployed flow."),
    no_effect("trigger_on_finish", "Which flows' ends start a deployed flow."),
];

/// The registry's entry of that kind and name.
pub fn find(kind: DecoratorKind, name: &str) -> Option<&'static DecoratorSpec> {
    DECORATORS.iter().find(|spec| spec.kind == kind && spec.name == name)
}

/// Names of a kind, in order.
pub fn names(kind: DecoratorKind) -> impl Iterator<Item = &'static str> {
    DECORATORS.iter().filter(move |spec| spec.kind == kind).map(|spec| spec.name)
}

impl DecoratorSpec {
    /// The attributes as given, with defaults for the others, in order of the registry.
    pub fn with_defaults(&self, given: &Map<String, Value>) -> Map<String, Value> {
        let mut all: Map<String, Value> = self
            .attributes
            .iter()
            .map(|a| (a.name.to_owned(), serde_json::from_str(a.default).unwrap_or_default()))
            .collect();
        all.extend(given.iter().map(|(name, value)| (name.clone(), value.clone())));
        all
    }
}

/// What the decorators of a step come to for the engine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepPolicy {
    /// Decorators that act inside the task, defaults filled in, in source order.
    pub decorators: Vec<TaskDecorator>,
    /// Attempts beyond the first that may run user code.
    pub user_retries: u32,
    /// Attempts beyond those that run only `@catch`'s fallback.
    pub fallbacks: u32,
    /// `@timeout`, seconds.
    pub time_limit: Option<f64>,
    /// `@environment`, values as text.
    pub environment: BTreeMap<String, String>,
    pub catches: bool,
    /// Compute layer that a decorator asks for; `None` is this machine.
    pub layer: Option<&'static str>,
    /// `@retry(minutes_between_retries=…)`; for steps of remote layers.
    pub minutes_between_retries: f64,
}

impl StepPolicy {
    /// Of a step whose decorators passed `check`.
    pub fn of(step: &ir::Step) -> Self {
        let mut policy = Self::default();
        for decorator in &step.decorators {
            let Some(spec) = find(Step, &decorator.name) else { continue };
            if spec.availability == Availability::Now {
                policy.add(spec.name, spec.with_defaults(&decorator.attributes));
            }
        }
        let spare = MAX_ATTEMPTS - 1 - policy.user_retries.min(MAX_ATTEMPTS - 1);
        policy.fallbacks = if policy.catches { CATCH_FALLBACKS.min(spare) } else { 0 };
        policy
    }

    fn add(&mut self, name: &str, attributes: Map<String, Value>) {
        match name {
            "retry" => {
                self.user_retries = number(&attributes["times"]).unwrap_or(0.0) as u32;
                self.minutes_between_retries = number(&attributes["minutes_between_retries"]).unwrap_or(0.0);
            }
            "kubernetes" => self.layer = Some("kubernetes"),
            "batch" => self.layer = Some("batch"),
            "catch" => self.catches = true,
            "timeout" => self.time_limit = Some(duration(&attributes)),
            "environment" => self.environment = variables(&attributes["vars"]),
            _ => {}
        }
        self.decorators.push(TaskDecorator { name: name.to_owned(), attributes });
    }
}

/// A number, or a text that is one (`--with` quotes, configuration files).
fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
    .filter(|n: &f64| n.is_finite())
}

fn duration(attributes: &Map<String, Value>) -> f64 {
    [("seconds", 1.0), ("minutes", 60.0), ("hours", 3600.0)]
        .iter()
        .filter_map(|(name, factor)| Some(number(attributes.get(*name)?)? * factor))
        .sum()
}

fn variables(vars: &Value) -> BTreeMap<String, String> {
    let Value::Object(vars) = vars else { return BTreeMap::new() };
    vars.iter().map(|(name, value)| (name.clone(), as_text(value))).collect()
}

/// As the flow's language would print it: flows expect `True`, not `true`.
fn as_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Null => "None".to_owned(),
        other => other.to_string(),
    }
}

/// Whether a decorator of this name makes its step's tasks a gang.
pub fn makes_gang(name: &str) -> bool {
    matches!(name, "parallel" | "pytorch_parallel")
}

#[cfg(test)]
mod tests;
