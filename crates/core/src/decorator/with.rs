//! `--with name:key=value,key2=value2` (behaviour.md W-1, W-2, W-4): from text to decorators of
//! every step. Whether names and values are right is `check`'s work.

use serde_json::{Map, Value};

use super::{DecoratorKind, find};
use crate::diagnostic::Diagnostic;
use crate::ir;

/// Parses one `--with` text.
pub fn parse_with(text: &str) -> Result<ir::Decorator, Diagnostic> {
    let text = text.replace("\\\"", "\"");
    let (name, rest) = text.split_once(':').unwrap_or((&text, ""));
    let name = name.trim();
    if name.is_empty() {
        return Err(syntax(&text, "there is no decorator name"));
    }
    let mut attributes = Map::new();
    for part in split_attributes(rest) {
        let Some((key, value)) = part.split_once('=') else {
            return Err(syntax(&text, &format!("`{part}` is not of the form name=value")));
        };
        attributes.insert(key.trim().to_owned(), value_of(value));
    }
    let name = name.to_owned();
    Ok(ir::Decorator { name, attributes, file: None, line: 0, in_source: false })
}

/// Adds the decorators to every step that does not have them. Decorators in the source win over
/// `specs`, and earlier specs over later ones.
pub fn apply_with(flow: &mut ir::Flow, specs: &[String]) -> Result<(), Diagnostic> {
    for spec in specs {
        let decorator = parse_with(spec)?;
        if find(DecoratorKind::Step, &decorator.name).is_none() {
            return Err(super::check::unknown_step_decorator(&decorator, None));
        }
        for step in &mut flow.steps {
            if step.decorators.iter().all(|d| d.name != decorator.name) {
                step.decorators.push(decorator.clone());
            }
        }
    }
    Ok(())
}

fn syntax(text: &str, problem: &str) -> Diagnostic {
    Diagnostic {
        headline: "Syntax error",
        message: format!("--with `{text}`: {problem}. Write --with name or --with name:attribute=value,…"),
        file: None,
        line: 0,
    }
}

/// Splits at commas that precede `word=`, so that values may hold commas.
fn split_attributes(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut start = 0;
    for (at, _) in text.match_indices(',') {
        if starts_attribute(&text[at + 1..]) {
            parts.push(&text[start..at]);
            start = at + 1;
        }
    }
    parts.push(&text[start..]);
    parts.retain(|part| !part.trim().is_empty());
    parts
}

fn starts_attribute(text: &str) -> bool {
    let text = text.trim_start();
    let word = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    word > 0 && text[word..].trim_start().starts_with('=')
}

/// JSON, else an integer, else a float, else the text itself.
fn value_of(text: &str) -> Value {
    if let Ok(value) = serde_json::from_str(text) {
        return value;
    }
    let trimmed = text.trim();
    if let Ok(integer) = trimmed.parse::<i64>() {
        return Value::from(integer);
    }
    match trimmed.parse::<f64>() {
        Ok(float) if float.is_finite() => Value::from(float),
        _ => Value::from(text),
    }
}
