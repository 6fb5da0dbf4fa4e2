//! Checks decorators of a flow against the registry: names, attributes, values. Findings are
//! sentences with the place in the user's source.

use std::collections::BTreeMap;

use serde_json::Value;

use super::batch::BatchOptions;
use super::kubernetes::{KubernetesOptions, SHORTEST_TIME_LIMIT};
use super::{Availability, DecoratorKind, DecoratorSpec, MAX_RETRY_TIMES, find, names, number};
use crate::diagnostic::Diagnostic;
use crate::ir::{Decorator, Flow, Step, Transition};
use crate::suggestion::did_you_mean;

/// Every problem with the flow's decorators, flow decorators first, then by step.
pub fn check(flow: &Flow) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    for decorator in &flow.decorators {
        if find(DecoratorKind::Flow, &decorator.name).is_none() {
            found.push(unknown_flow_decorator(decorator, flow));
        }
    }
    for step in &flow.steps {
        check_step(step, &mut found);
    }
    found
}

fn check_step(step: &Step, found: &mut Vec<Diagnostic>) {
    for (index, decorator) in step.decorators.iter().enumerate() {
        let place = Place { decorator, step };
        let Some(spec) = find(DecoratorKind::Step, &decorator.name) else {
            found.push(unknown_step_decorator(decorator, Some(step)));
            continue;
        };
        let repeated = step.decorators[..index].iter().any(|d| d.name == decorator.name);
        if repeated && spec.name != "card" {
            let message =
                format!("Step `{}` has the decorator @{} more than once; keep one of them.", step.name, spec.name);
            found.push(place.finding("Duplicate decorators", message));
        }
        if spec.availability == Availability::Now {
            match unknown_attribute(spec, &place) {
                Some(finding) => found.push(finding),
                None => found.extend(wrong_value(spec, &place)),
            }
        }
    }
}

struct Place<'a> {
    decorator: &'a Decorator,
    step: &'a Step,
}

impl Place<'_> {
    fn finding(&self, headline: &'static str, message: String) -> Diagnostic {
        if !self.decorator.in_source {
            let message = format!("{message} (@{} comes from --with.)", self.decorator.name);
            return Diagnostic { headline, message, file: None, line: 0 };
        }
        let line = if self.decorator.line > 0 { self.decorator.line } else { self.step.line };
        let file = self.decorator.file.clone().unwrap_or_else(|| self.step.file.clone());
        Diagnostic { headline, message, file: Some(file), line }
    }

    fn wrong(&self, message: String) -> Diagnostic {
        self.finding("Flow failed", message)
    }

    fn attribute(&self, name: &str) -> Option<&Value> {
        self.decorator.attributes.get(name).filter(|value| !value.is_null())
    }
}

/// `step` is `None` for `--with` of a name that is no step decorator.
pub(super) fn unknown_step_decorator(decorator: &Decorator, step: Option<&Step>) -> Diagnostic {
    let name = &decorator.name;
    let headline = "Unknown step decorator";
    let mut message = match step {
        Some(step) => format!("Step `{}` has a decorator @{name}, which does not exist.", step.name),
        None => format!("--with {name}: there is no step decorator @{name}."),
    };
    if find(DecoratorKind::Flow, name).is_some() {
        message = format!("@{name} is a decorator of the flow; it cannot stand on a step");
        message.push_str(if step.is_none() { " or be given with --with." } else { "." });
    }
    message += &did_you_mean(name, names(DecoratorKind::Step), |n| format!("@{n}"));
    message += &format!(" Step decorators: {}.", list(names(DecoratorKind::Step)));
    match step {
        Some(step) => Place { decorator, step }.finding(headline, message),
        None => Diagnostic { headline, message, file: None, line: 0 },
    }
}

fn unknown_flow_decorator(decorator: &Decorator, flow: &Flow) -> Diagnostic {
    let name = &decorator.name;
    let mut message = format!("Flow `{}` has a decorator @{name}, which does not exist.", flow.name);
    if find(DecoratorKind::Step, name).is_some() {
        message = format!("@{name} is a decorator of a step; put it above `@step` of the steps meant.");
    }
    message += &did_you_mean(name, names(DecoratorKind::Flow), |n| format!("@{n}"));
    message += &format!(" Flow decorators: {}.", list(names(DecoratorKind::Flow)));
    let line = if decorator.line > 0 { decorator.line } else { flow.line };
    let file = decorator.file.clone().unwrap_or_else(|| flow.file.clone());
    Diagnostic { headline: "Unknown flow decorator", message, file: Some(file), line }
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

fn unknown_attribute(spec: &DecoratorSpec, place: &Place) -> Option<Diagnostic> {
    let known = || spec.attributes.iter().map(|a| a.name);
    let name = place.decorator.attributes.keys().find(|name| known().all(|k| k != *name))?;
    let near = did_you_mean(name, known(), |n| format!("`{n}`"));
    let message = format!(
        "Decorator @{} of step `{}` does not support the attribute `{name}`.{near} Supported \
         attributes: {}.",
        spec.name,
        place.step.name,
        list(known())
    );
    Some(place.finding("Unknown decorator attribute", message))
}

fn wrong_value(spec: &DecoratorSpec, place: &Place) -> Option<Diagnostic> {
    match spec.name {
        "retry" => wrong_retry(place),
        "catch" => wrong_catch(place),
        "timeout" => wrong_timeout(place),
        "environment" => wrong_environment(place),
        "resources" => wrong_resources(place),
        "kubernetes" => wrong_kubernetes(place),
        "batch" => wrong_batch(place),
        _ => None,
    }
}

fn wrong_retry(place: &Place) -> Option<Diagnostic> {
    let step = &place.step.name;
    if let Some(value) = place.attribute("times") {
        let times = number(value).filter(|n| n.fract() == 0.0 && *n >= 0.0);
        let Some(times) = times else {
            return Some(place.wrong(format!(
                "@retry of step `{step}`: `times` must be a whole number from 0 to \
                 {MAX_RETRY_TIMES}, not {value}."
            )));
        };
        if times > f64::from(MAX_RETRY_TIMES) {
            return Some(place.wrong(format!(
                "@retry of step `{step}`: the maximum number of retries is {MAX_RETRY_TIMES}, but \
                 `times` is {value}."
            )));
        }
    }
    let value = place.attribute("minutes_between_retries")?;
    let bad = number(value).is_none_or(|n| n < 0.0);
    bad.then(|| {
        place.wrong(format!("@retry of step `{step}`: `minutes_between_retries` must be 0 or more, not {value}."))
    })
}

fn wrong_catch(place: &Place) -> Option<Diagnostic> {
    let step = &place.step.name;
    let form = match place.step.transition {
        Some(Transition::Foreach { .. } | Transition::Parallel { .. }) => Some("a foreach"),
        Some(Transition::Switch { .. }) => Some("a switch"),
        _ => None,
    };
    if let Some(form) = form {
        return Some(place.wrong(format!(
            "@catch cannot stand on step `{step}`, which ends with {form}: were it to fail, nobody \
             could know where the flow goes on. Put @catch on the steps that follow."
        )));
    }
    if let Some(value) = place.attribute("var") {
        let name = value.as_str().unwrap_or_default();
        let begins = name.starts_with(|c: char| c.is_alphabetic() || c == '_');
        if !begins || !name.chars().all(|c| c.is_alphanumeric() || c == '_') {
            return Some(
                place.wrong(format!("@catch of step `{step}`: `var` must be the name of an artifact, not {value}.")),
            );
        }
    }
    let value = place.attribute("print_exception").filter(|value| !value.is_boolean())?;
    Some(place.wrong(format!("@catch of step `{step}`: `print_exception` must be true or false, not {value}.")))
}

fn wrong_timeout(place: &Place) -> Option<Diagnostic> {
    let step = &place.step.name;
    for name in ["seconds", "minutes", "hours"] {
        let Some(value) = place.attribute(name) else { continue };
        if number(value).is_none_or(|n| n < 0.0) {
            return Some(place.wrong(format!("@timeout of step `{step}`: `{name}` must be 0 or more, not {value}.")));
        }
    }
    let total = super::duration(&place.decorator.attributes);
    (total <= 0.0).then(|| {
        place.wrong(format!("@timeout of step `{step}`: Specify a duration: seconds, minutes or hours above 0."))
    })
}

fn wrong_environment(place: &Place) -> Option<Diagnostic> {
    let step = &place.step.name;
    let value = place.attribute("vars")?;
    let Value::Object(vars) = value else {
        return Some(place.wrong(format!(
            "@environment of step `{step}`: `vars` must be a dictionary of names and values, not \
             {value}."
        )));
    };
    let bad = vars.keys().find(|name| name.is_empty() || name.contains(['=', '\0']))?;
    Some(place.wrong(format!("@environment of step `{step}`: `{bad}` cannot be the name of an environment variable.")))
}

fn wrong_resources(place: &Place) -> Option<Diagnostic> {
    let step = &place.step.name;
    for name in ["cpu", "memory", "disk", "shared_memory"] {
        let Some(value) = place.attribute(name) else { continue };
        if number(value).is_none_or(|n| n <= 0.0) {
            return Some(
                place.wrong(format!("@resources of step `{step}`: `{name}` must be a number above 0, not {value}.")),
            );
        }
    }
    let value = place.attribute("gpu")?;
    let bad = number(value).is_none_or(|n| n < 0.0 || n.fract() != 0.0);
    bad.then(|| {
        place.wrong(format!("@resources of step `{step}`: `gpu` must be a whole number, 0 or more, not {value}."))
    })
}

fn wrong_kubernetes(place: &Place) -> Option<Diagnostic> {
    const HEADLINE: &str = "Kubernetes error";
    let step = &place.step.name;
    let other = |name: &str| place.step.decorators.iter().find(|d| d.name == name);
    if other("batch").is_some() {
        let message = format!("Step `{step}` has both @kubernetes and @batch; keep one of them.");
        return Some(place.finding(HEADLINE, message));
    }
    if other("catch").is_some() && (other("parallel").is_some() || other("pytorch_parallel").is_some()) {
        let message = format!("@catch cannot stand on step `{step}`, whose gang runs on Kubernetes; remove @catch.");
        return Some(place.finding(HEADLINE, message));
    }
    let limit = other("timeout").map(|timeout| super::duration(&timeout.attributes));
    if let Some(limit) = limit.filter(|limit| *limit > 0.0 && *limit < SHORTEST_TIME_LIMIT) {
        let message = format!(
            "@timeout of step `{step}` is {limit} seconds; on Kubernetes a step needs at least {SHORTEST_TIME_LIMIT}."
        );
        return Some(place.finding(HEADLINE, message));
    }
    let mistake = KubernetesOptions::resolve(&place.decorator.attributes, None, &BTreeMap::new()).err()?;
    Some(place.finding(HEADLINE, format!("@kubernetes of step `{step}`: {mistake}.")))
}

fn wrong_batch(place: &Place) -> Option<Diagnostic> {
    const HEADLINE: &str = "AWS Batch error";
    let step = &place.step.name;
    let timeout = place.step.decorators.iter().find(|d| d.name == "timeout");
    let limit = timeout.map(|timeout| super::duration(&timeout.attributes));
    if let Some(limit) = limit.filter(|limit| *limit > 0.0 && *limit < SHORTEST_TIME_LIMIT) {
        let message = format!(
            "@timeout of step `{step}` is {limit} seconds; on AWS Batch a step needs at least {SHORTEST_TIME_LIMIT}."
        );
        return Some(place.finding(HEADLINE, message));
    }
    let mistake = BatchOptions::resolve(&place.decorator.attributes, None, &BTreeMap::new()).err()?;
    Some(place.finding(HEADLINE, format!("@batch of step `{step}`: {mistake}.")))
}

/// The first decorator that this version does not act on, as a refusal to run.
pub(crate) fn unavailable(flow: &Flow) -> Option<Diagnostic> {
    for decorator in &flow.decorators {
        let spec = find(DecoratorKind::Flow, &decorator.name);
        if let Some(Availability::Later { instead }) = spec.map(|s| s.availability) {
            let name = &decorator.name;
            let message = format!("The flow's decorator @{name} is not in this version: {instead}.");
            let line = if decorator.line > 0 { decorator.line } else { flow.line };
            let file = decorator.file.clone().or_else(|| Some(flow.file.clone()));
            return Some(Diagnostic { headline: "Not in this version", message, file, line });
        }
    }
    flow.steps.iter().flat_map(|step| step.decorators.iter().map(move |d| (step, d))).find_map(|(step, decorator)| {
        let spec = find(DecoratorKind::Step, &decorator.name)?;
        let Availability::Later { instead } = spec.availability else { return None };
        let message = format!("Decorator @{} of step `{}` is not in this version: {instead}.", spec.name, step.name);
        Some(Place { decorator, step }.finding("Not in this version", message))
    })
}
