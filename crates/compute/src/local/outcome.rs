//! Turns how a local attempt ended into a report, with a cause where the layer knows better than
//! the exit status does. Texts are for users.

use std::time::Duration;

use ferroflow_core::task::{
    AttemptReport, Cause, CauseKind, ProcessExit, TaskDecorator, TaskLaunch, TaskOutcome, Usage,
};
use rustix::process::Signal;
use serde_json::Value;

use crate::resources::{Bound, human_bytes};

/// What is kept of a launch for the words at its end.
pub struct Facts {
    /// `@resources(memory=…)` in MB as written, if the step asked.
    pub requested_memory: Option<String>,
    pub time_limit: Option<f64>,
    /// It was killed for overrunning its time by more than the grace.
    pub overran: Option<Duration>,
    /// The engine asked for SIGKILL.
    pub killed: bool,
}

impl Facts {
    pub fn of(launch: &TaskLaunch) -> Self {
        Self {
            requested_memory: requested_memory(&launch.spec.decorators),
            time_limit: launch.time_limit,
            overran: None,
            killed: false,
        }
    }

    /// Killed, and not by us.
    pub fn killed_from_outside(&self, exit: ProcessExit) -> bool {
        exit == ProcessExit::Signal(Signal::KILL.as_raw()) && !self.killed && self.overran.is_none()
    }
}

fn requested_memory(decorators: &[TaskDecorator]) -> Option<String> {
    let resources = decorators.iter().find(|decorator| decorator.name == "resources")?;
    match resources.attributes.get("memory")? {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        number => Some(number.to_string()),
    }
}

pub fn report(
    facts: &Facts,
    exit: ProcessExit,
    usage: Usage,
    outcome: Option<TaskOutcome>,
    control_fault: Option<String>,
    out_of_memory: Option<Cause>,
) -> AttemptReport {
    let overran = facts.overran.filter(|_| matches!(exit, ProcessExit::Signal(_)));
    let cause = out_of_memory.or_else(|| overran.map(|grace| overran_cause(facts, grace))).or_else(|| {
        let fault = control_fault.filter(|_| outcome.is_none())?;
        let text =
            format!("the task's report cannot be used: {fault}; its control channel was written to by something else");
        Some(Cause::new(CauseKind::LayerError, text))
    });
    AttemptReport { outcome, exit, usage, cause }
}

fn overran_cause(facts: &Facts, grace: Duration) -> Cause {
    let limit = facts.time_limit.unwrap_or_default();
    Cause::new(
        CauseKind::TimedOut,
        format!(
            "the task was still running {} s after its time limit of {limit} s and was killed; code that runs outside \
             Python for so long cannot be interrupted",
            grace.as_secs_f64()
        ),
    )
}

/// The kernel killed the task for lack of memory.
pub fn out_of_memory(facts: &Facts, usage: &Usage, limit: Option<(u64, Bound)>) -> Cause {
    let peak = human_bytes(usage.peak_memory);
    let mut text = format!("out of memory, the kernel killed the task: it used up to {peak}");
    if let Some((bytes, bound)) = limit {
        text.push_str(&format!(", and {bound} has {} for everything that runs in it", human_bytes(bytes)));
    }
    if let Some(megabytes) = &facts.requested_memory {
        text.push_str(&format!(
            "; `@resources(memory={megabytes})` asks for {megabytes} MB, which reserves nothing for a local task"
        ));
    }
    text.push_str("; run fewer tasks at a time (`--max-workers`), or the step where there is more memory");
    Cause::new(CauseKind::OutOfMemory, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts { requested_memory: Some("8000".to_owned()), time_limit: Some(5.0), overran: None, killed: false }
    }

    #[test]
    fn lack_of_memory_says_what_was_used_limited_and_asked_for() {
        let usage = Usage { cpu_seconds: 1.0, peak_memory: 3 << 30 };
        let cause = out_of_memory(&facts(), &usage, Some((4 << 30, Bound::ControlGroup)));
        assert_eq!(
            cause.text,
            "out of memory, the kernel killed the task: it used up to 3.0 GiB, and this process' control group \
             (container or job) has 4.0 GiB for everything that runs in it; `@resources(memory=8000)` asks for 8000 MB, \
             which reserves nothing for a local task; run fewer tasks at a time (`--max-workers`), or the step where \
             there is more memory"
        );
    }

    #[test]
    fn an_outcome_is_kept_beside_a_bad_exit() {
        let outcome = TaskOutcome { ok: true, success: true, ..TaskOutcome::default() };
        let report = report(&facts(), ProcessExit::Signal(11), Usage::default(), Some(outcome.clone()), None, None);
        assert_eq!((report.outcome, report.exit, report.cause), (Some(outcome), ProcessExit::Signal(11), None));
    }

    #[test]
    fn garbage_matters_only_without_an_outcome() {
        let with = |outcome| {
            report(&facts(), ProcessExit::Code(0), Usage::default(), outcome, Some("junk".to_owned()), None).cause
        };
        assert_eq!(with(Some(TaskOutcome::default())), None);
        assert_eq!(
            with(None).map(|cause| cause.text).as_deref(),
            Some("the task's report cannot be used: junk; its control channel was written to by something else")
        );
    }

    #[test]
    fn only_kills_from_outside_may_be_for_lack_of_memory() {
        let killed = ProcessExit::Signal(9);
        assert!(facts().killed_from_outside(killed));
        assert!(!facts().killed_from_outside(ProcessExit::Signal(15)));
        assert!(!Facts { killed: true, ..facts() }.killed_from_outside(killed));
        assert!(!Facts { overran: Some(Duration::from_secs(1)), ..facts() }.killed_from_outside(killed));
    }
}
