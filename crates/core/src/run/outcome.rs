//! What a finished attempt came to: done, with the way it goes on, or failed, with a sentence
//! that says why. Judged from the report alone; nothing is changed here.

use crate::graph::Graph;
use crate::graph::{GraphStep, StepIndex, StepKind};
use crate::id::StepName;
use crate::task::{AttemptReport, Cause, CauseKind, ExceptionInfo, ProcessExit, TakenTransition};

/// Exit code of a task that must not be retried.
const NO_RETRY_EXIT_CODE: i32 = 202;
/// Ranks of one gang: all of them are out at once.
const MOST_RANKS: u64 = 10_000;

#[derive(Debug, PartialEq)]
pub(super) enum Verdict {
    Done { taken: Taken, success: bool },
    Failed(Failure),
}

#[derive(Debug, PartialEq)]
pub(super) struct Failure {
    pub cause: Cause,
    pub may_retry: bool,
    /// The task printed the reason itself (an exception), so the run need not.
    pub said: bool,
    pub segfault: bool,
}

/// The way a task went on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    pub targets: Vec<StepIndex>,
    pub num_splits: Option<u64>,
}

pub(super) struct Judge<'a> {
    pub graph: &'a Graph,
    pub max_num_splits: u64,
}

impl Judge<'_> {
    /// `overdue` in seconds when the attempt was killed for running past its `@timeout`.
    pub fn verdict(&self, step: StepIndex, report: &AttemptReport, overdue: Option<f64>) -> Verdict {
        if let (Some(outcome), ProcessExit::Code(0)) = (&report.outcome, report.exit)
            && outcome.ok
        {
            return match self.transition(step, outcome.transition.as_ref()) {
                Ok(taken) => Verdict::Done { taken, success: outcome.success },
                Err(text) => Verdict::Failed(Failure {
                    cause: Cause::new(CauseKind::Transition, text),
                    may_retry: false,
                    said: false,
                    segfault: false,
                }),
            };
        }
        let exception = report.outcome.as_ref().and_then(|o| o.exception.as_ref());
        let may_retry =
            report.outcome.as_ref().is_none_or(|o| o.may_retry) && report.exit != ProcessExit::Code(NO_RETRY_EXIT_CODE);
        Verdict::Failed(Failure {
            cause: self.cause(step, report, exception, overdue),
            may_retry,
            said: exception.is_some() && report.cause.is_none(),
            segfault: report.exit == ProcessExit::Signal(11),
        })
    }

    fn cause(
        &self,
        step: StepIndex,
        report: &AttemptReport,
        exception: Option<&ExceptionInfo>,
        overdue: Option<f64>,
    ) -> Cause {
        if let Some(cause) = &report.cause {
            return cause.clone();
        }
        if let Some(seconds) = overdue {
            return Cause::new(
                CauseKind::TimedOut,
                format!(
                    "timed out: it ran for more than its @timeout of {seconds} seconds and did not \
                     react to it"
                ),
            );
        }
        if let Some(exception) = exception {
            return self.exception(step, exception);
        }
        let over = report.outcome.as_ref().is_some_and(|o| o.ok);
        match report.exit {
            ProcessExit::Signal(signal) => {
                let after = if over { ", after the step was over" } else { "" };
                Cause::new(CauseKind::Signal, format!("killed by {}{after}", signal_name(signal)))
            }
            ProcessExit::Code(0) if report.outcome.is_none() => {
                Cause::new(CauseKind::ExitCode, "the process ended with exit code 0 before the step was over")
            }
            ProcessExit::Code(0) => Cause::new(CauseKind::ExitCode, "the step failed without saying why"),
            ProcessExit::Code(code) if over => Cause::new(
                CauseKind::ExitCode,
                format!("the process ended with exit code {code}, after the step was over"),
            ),
            ProcessExit::Code(code) => {
                Cause::new(CauseKind::ExitCode, format!("the process ended with exit code {code}"))
            }
        }
    }

    fn exception(&self, step: StepIndex, exception: &ExceptionInfo) -> Cause {
        let limited = self.graph.steps[step].policy.time_limit.is_some();
        let kind = if limited && exception.type_name == "TimeoutException" {
            CauseKind::TimedOut
        } else {
            CauseKind::UserException
        };
        let message = exception.message.trim_end();
        let text = if message.is_empty() {
            exception.type_name.clone()
        } else {
            format!("{}: {message}", exception.type_name)
        };
        Cause::new(kind, text)
    }

    /// Compares the `self.next` that ran with the one in the source.
    pub fn transition(&self, index: StepIndex, taken: Option<&TakenTransition>) -> Result<Taken, String> {
        let step = &self.graph.steps[index];
        let Some(taken) = taken.filter(|t| !t.targets.is_empty()) else {
            return match step.kind {
                StepKind::End => Ok(Taken::default()),
                _ => Err(format!(
                    "step `{}` ended without `self.next` (sys.exit(0) does that, for example); its \
                     last statement leads to {}",
                    step.name,
                    self.names(&step.children)
                )),
            };
        };
        let targets = self.targets(step, &taken.targets)?;
        let num_splits = self.num_splits(step, taken)?;
        Ok(Taken { targets, num_splits })
    }

    fn targets(&self, step: &GraphStep, names: &[StepName]) -> Result<Vec<StepIndex>, String> {
        let targets: Option<Vec<_>> = names.iter().map(|n| self.graph.step(n.as_str())).collect();
        let fits = |targets: &Vec<StepIndex>| match step.kind {
            StepKind::Switch { .. } => targets.len() == 1 && step.children.contains(&targets[0]),
            _ => *targets == step.children,
        };
        targets.filter(fits).ok_or_else(|| {
            let gone: Vec<&str> = names.iter().map(StepName::as_str).collect();
            format!(
                "step `{}` went on to `{}`, but its last statement leads to {}; a step has one \
                 `self.next`, as its last statement",
                step.name,
                gone.join("`, `"),
                self.names(&step.children)
            )
        })
    }

    fn num_splits(&self, step: &GraphStep, taken: &TakenTransition) -> Result<Option<u64>, String> {
        if matches!(step.kind, StepKind::Parallel) {
            return ranks(step, taken).map(Some);
        }
        let StepKind::Foreach { variable } = &step.kind else {
            return match &taken.foreach {
                None => Ok(None),
                Some(variable) => Err(format!(
                    "step `{}` ended with a foreach over `{variable}`, but its last statement has no \
                     foreach; a step has one `self.next`, as its last statement",
                    step.name
                )),
            };
        };
        if taken.foreach.as_ref() != Some(variable) {
            return Err(format!(
                "step `{}` ended without the foreach over `{variable}` that its last statement has; \
                 a step has one `self.next`, as its last statement",
                step.name
            ));
        }
        match taken.num_splits {
            None | Some(0) => {
                Err(format!("the foreach of step `{}` has nothing to iterate over: `{variable}` is empty", step.name))
            }
            Some(splits) if splits > self.max_num_splits => Err(format!(
                "the foreach of step `{}` yields {splits} child steps, more than the maximum of {}; \
                 raise it with --max-num-splits",
                step.name, self.max_num_splits
            )),
            splits => Ok(splits),
        }
    }

    fn names(&self, steps: &[StepIndex]) -> String {
        let names: Vec<String> = steps.iter().map(|s| format!("`{}`", self.graph.steps[*s].name)).collect();
        if names.is_empty() { "nowhere".to_owned() } else { names.join(", ") }
    }
}

/// The number of ranks of a `num_parallel`.
fn ranks(step: &GraphStep, taken: &TakenTransition) -> Result<u64, String> {
    match (taken.num_splits, &taken.foreach) {
        (Some(ranks @ 1..=MOST_RANKS), None) => Ok(ranks),
        (Some(ranks), None) => {
            Err(format!("step `{}` ended with num_parallel={ranks}; it is a number from 1 to {MOST_RANKS}", step.name))
        }
        _ => Err(format!(
            "step `{}` ended without the num_parallel that its last statement has; a step has one `self.next`, as its \
             last statement",
            step.name
        )),
    }
}

/// `signal 11 (segmentation fault)`.
pub fn signal_name(signal: i32) -> String {
    let name = match signal {
        1 => "hangup",
        2 => "interrupt",
        3 => "quit",
        4 => "illegal instruction",
        5 => "trap",
        6 => "abort",
        7 => "bus error",
        8 => "arithmetic error",
        9 => "kill; often the system's answer to a lack of memory",
        11 => "segmentation fault",
        13 => "broken pipe",
        14 => "alarm",
        15 => "terminate",
        24 => "CPU time limit",
        25 => "file size limit",
        31 => "bad system call",
        _ => return format!("signal {signal}"),
    };
    format!("signal {signal} ({name})")
}
