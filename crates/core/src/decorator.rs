//! The registry of decorators: one explicit list that help, validation, `--with` and the
//! reference page read. What a decorator does at run time is done elsewhere.

use std::collections::BTreeMap;

use crate::diagnostic::Diagnostic;
use crate::ir;
use crate::task::TaskDecorator;

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
}

/// Parses one `--with name:key=value,…`.
pub fn parse_with(text: &str) -> Result<ir::Decorator, Diagnostic> {
    let _ = text;
    unreachable!("follows in the next commit")
}

/// Adds `--with` decorators to every step that does not have them; earlier ones win.
pub fn apply_with(flow: &mut ir::Flow, specs: &[String]) -> Result<(), Diagnostic> {
    let _ = (flow, specs);
    Ok(())
}
