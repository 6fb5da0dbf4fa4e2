//! What DescribeJobs says about an attempt's job, as a pure function of its JSON: how far it is, and
//! how it ended. Texts are the service's own words with a hint.

use ferroflow_core::task::{Cause, CauseKind, ProcessExit};
use serde_json::Value;

use crate::remote::ending::no_interpreter;

/// How far a job is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    #[default]
    Submitted,
    Pending,
    Runnable,
    Starting,
    Running,
    Succeeded,
    Failed,
}

impl Status {
    fn of(text: &str) -> Self {
        match text {
            "PENDING" => Self::Pending,
            "RUNNABLE" => Self::Runnable,
            "STARTING" => Self::Starting,
            "RUNNING" => Self::Running,
            "SUCCEEDED" => Self::Succeeded,
            "FAILED" => Self::Failed,
            _ => Self::Submitted,
        }
    }

    pub fn is_over(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

/// What is kept of a job.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct JobView {
    pub id: String,
    pub name: String,
    pub status: Status,
    /// The service's sentence about the status.
    pub reason: String,
    /// The container agent's sentence.
    container_reason: String,
    exit_code: Option<i32>,
    /// Somebody asked for its end.
    ended_by_hand: bool,
    pub log_stream: String,
    pub container_instance: String,
    /// Size of an array job.
    pub array_size: Option<u64>,
}

/// What a sentence about an end needs to know of the request.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    pub image: &'a str,
    pub interpreter: &'a str,
    /// MB.
    pub memory: f64,
}

/// The reason that `batch kill` gives. The service keeps it as the job's status reason; some stand-ins
/// for the service keep nothing else of who ended a job.
pub const KILLED_BY_HAND: &str = "killed by hand, with `batch kill`";

/// How a job ended, as the service says it.
#[derive(Clone, Debug, PartialEq)]
pub enum Ending {
    /// The container ran and ended.
    Ran { exit: ProcessExit, cause: Option<Cause> },
    /// It never ran, or it was taken away.
    Taken(Cause),
}

impl JobView {
    pub fn of(job: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().trim().to_owned();
        let container = &job["container"];
        // The last attempt knows what the container does not say any more.
        let last = job["attempts"].as_array().and_then(|attempts| attempts.last()).unwrap_or(&Value::Null);
        let first_text = |values: [&Value; 2]| values.into_iter().map(text).find(|t| !t.is_empty()).unwrap_or_default();
        let code = [&container["exitCode"], &last["container"]["exitCode"]].into_iter().find_map(Value::as_i64);
        Self {
            id: text(&job["jobId"]),
            name: text(&job["jobName"]),
            status: Status::of(&text(&job["status"])),
            reason: first_text([&job["statusReason"], &last["statusReason"]]),
            container_reason: first_text([&container["reason"], &last["container"]["reason"]]),
            exit_code: code.and_then(|code| i32::try_from(code).ok()),
            ended_by_hand: job["isTerminated"] == true || job["isCancelled"] == true,
            log_stream: first_text([&container["logStreamName"], &last["container"]["logStreamName"]]),
            container_instance: text(&container["containerInstanceArn"]),
            array_size: job["arrayProperties"]["size"].as_u64(),
        }
    }

    /// The same of a node of a gang, with what only the whole is told: that somebody ended it.
    pub fn within(&self, whole: Option<&Self>) -> Self {
        let ended_by_hand = whole.is_some_and(|whole| whole.ended_by_hand);
        let reason = whole.filter(|_| ended_by_hand).map_or(&self.reason, |whole| &whole.reason);
        Self { ended_by_hand, reason: reason.clone(), ..self.clone() }
    }

    /// A gang in place of a node of which nothing is known yet.
    pub fn as_node(&self) -> Self {
        let status = if self.status == Status::Running { Status::Starting } else { self.status };
        Self { status, ..self.clone() }
    }

    /// Its end; `None` while it goes on. What the container itself said is more exact where there
    /// is anything.
    pub fn ending(&self, asked: &Asked) -> Option<Ending> {
        match self.status {
            Status::Succeeded => Some(Ending::Ran { exit: ProcessExit::Code(0), cause: None }),
            Status::Failed => Some(self.failure(asked)),
            _ => None,
        }
    }

    fn failure(&self, asked: &Asked) -> Ending {
        let said = self.said();
        if let Some(cause) = self.known_cause(&said, asked) {
            return match self.exit_code {
                Some(code)
                    if !matches!(cause.kind, CauseKind::SpotReclaimed | CauseKind::Image | CauseKind::Killed) =>
                {
                    Ending::Ran { exit: exit_of(code), cause: Some(cause) }
                }
                _ if matches!(cause.kind, CauseKind::OutOfMemory | CauseKind::TimedOut) => {
                    Ending::Ran { exit: ProcessExit::Signal(9), cause: Some(cause) }
                }
                _ => Ending::Taken(cause),
            };
        }
        match self.exit_code {
            Some(code) => Ending::Ran { exit: exit_of(code), cause: self.cause_of_code(code) },
            None if said.is_empty() => {
                Ending::Taken(Cause::new(CauseKind::LayerError, "AWS Batch does not say why the job failed"))
            }
            None => {
                Ending::Taken(Cause::new(CauseKind::LayerError, format!("AWS Batch could not run the job: {said}")))
            }
        }
    }

    /// Container and service together, without what says nothing.
    fn said(&self) -> String {
        let empty = ["Essential container in task exited", "Job submitted", "Task failed to start"];
        let mut parts: Vec<&str> = Vec::new();
        for text in [self.container_reason.as_str(), self.reason.as_str()] {
            let text = text.trim_end_matches('.');
            if !text.is_empty() && !empty.contains(&text) && !parts.contains(&text) {
                parts.push(text);
            }
        }
        parts.join("; ")
    }

    fn known_cause(&self, said: &str, asked: &Asked) -> Option<Cause> {
        let has = |words: &[&str]| words.iter().any(|word| said.contains(word));
        if has(&["OutOfMemoryError", "OOMKilled"]) {
            let text = format!(
                "out of memory: it asked for {} MB and used more ({said}). Raise `memory` of @resources or @batch",
                asked.memory
            );
            return Some(Cause::new(CauseKind::OutOfMemory, text));
        }
        if has(&["attempt duration exceeded timeout"]) {
            let text = "timed out: it ran past its time limit, and AWS Batch stopped it. Raise it with @timeout";
            return Some(Cause::new(CauseKind::TimedOut, text));
        }
        if has(&["Host EC2"]) {
            let text =
                format!("its instance went away: {said}. A Spot instance was taken back, or the instance failed");
            return Some(Cause::new(CauseKind::SpotReclaimed, text));
        }
        if has(&["Your Spot Task was interrupted", "SpotInterruption"]) {
            return Some(Cause::new(CauseKind::SpotReclaimed, format!("its Spot capacity was taken back: {said}")));
        }
        if let Some(cause) = no_interpreter(said, asked.image, asked.interpreter) {
            return Some(cause);
        }
        if has(&["invalid reference format"]) {
            return Some(Cause::new(
                CauseKind::Image,
                format!("`{}` is not the name of an image: {said}", asked.image),
            ));
        }
        let no_image = ["No such image", "/images/create?", "pull access denied", "manifest unknown", "ImageNotFound"];
        if has(&["CannotPull", "ImagePull"]) || has(&no_image) {
            let text = format!("the image `{}` cannot be pulled: {said}", asked.image);
            return Some(Cause::new(CauseKind::Image, text));
        }
        if has(&["CannotStartContainer", "CannotCreateContainer", "ResourceInitializationError"]) {
            let text = format!("the container of the image `{}` cannot be started: {said}", asked.image);
            return Some(Cause::new(CauseKind::Image, text));
        }
        if self.ended_by_hand || has(&[KILLED_BY_HAND]) {
            let why = if said.is_empty() { "without giving a reason" } else { said };
            return Some(Cause::new(CauseKind::Killed, format!("somebody ended the job: {why}")));
        }
        None
    }

    fn cause_of_code(&self, code: i32) -> Option<Cause> {
        let text = match code {
            137 => {
                "its container was killed (exit code 137) and AWS Batch does not say why: it used more memory than it had \
                 asked for (raise `memory` of @resources or @batch), or somebody ended the job"
            }
            139 => "its process crashed (segmentation fault, exit code 139)",
            _ => return None,
        };
        Some(Cause::new(CauseKind::Signal, text))
    }
}

/// Exit statuses above 128 are signals.
pub fn exit_of(code: i32) -> ProcessExit {
    if (129..=192).contains(&code) { ProcessExit::Signal(code - 128) } else { ProcessExit::Code(code) }
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
