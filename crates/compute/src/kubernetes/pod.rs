//! What a pod's status says about its attempt, as a pure function of the object: why it waits,
//! that it runs, how it ended. Texts are the cluster's own words with a hint.

use ferroflow_core::task::{AttemptReport, Cause, CauseKind, ProcessExit, Usage};
use serde_json::Value;

use crate::remote::ending::{lacks_interpreter, termination_message};

/// What is kept of a pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodView {
    pub name: String,
    pub uid: String,
    /// Of the object as it was seen.
    pub version: String,
    /// The Job it belongs to.
    pub job: String,
    pub node: String,
    pub node_address: String,
    pub service_account: String,
    pub phase: String,
    reason: String,
    message: String,
    pub deleting: bool,
    /// Message of the condition `PodScheduled` while it is false.
    unschedulable: Option<String>,
    /// Reason and message of the condition `DisruptionTarget`.
    disruption: Option<(String, String)>,
    pub image: String,
    interpreter: String,
    memory_request: String,
    memory_limit: String,
    state: ContainerState,
    /// A container of it, ours or another, runs.
    runs: bool,
    /// The cluster calls the pod unready although its containers were last said to be ready: its node
    /// has not been heard of for a while.
    pub node_is_silent: bool,
}

#[derive(Clone, Debug, Default, PartialEq)]
enum ContainerState {
    #[default]
    Unknown,
    Waiting {
        reason: String,
        message: String,
    },
    Running,
    Ended {
        code: i32,
        reason: String,
        message: String,
    },
}

/// What an attempt's pod is up to.
#[derive(Clone, Debug, PartialEq)]
pub enum Phase {
    /// Nothing to say yet.
    Quiet,
    /// It cannot run yet, and why.
    Waiting(String),
    /// A node prepares it.
    Preparing,
    /// It will not run unless something changes soon; `certain` when nothing can.
    Stuck {
        cause: Cause,
        certain: bool,
    },
    Running,
    Ended(Ending),
}

/// How a pod ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Ending {
    /// The container ran and ended.
    Report {
        report: Box<AttemptReport>,
        /// Entries that the task asked to record.
        metadata: Vec<(String, String)>,
        /// Its addresses had expired: sign again and submit again.
        sign_again: bool,
        /// It died before all that it printed was in the store.
        silent: bool,
    },
    /// The container never ran.
    NeverRan(Cause),
    /// The cluster took the pod away; what it did is not known.
    Taken(Cause),
}

impl PodView {
    /// One of which nothing is known but its name: it was missing from a list.
    pub fn missing(name: &str, job: &str) -> Self {
        Self { name: name.to_owned(), job: job.to_owned(), ..Self::default() }
    }

    pub fn of(pod: &Value) -> Self {
        let (meta, spec, status) = (&pod["metadata"], &pod["spec"], &pod["status"]);
        let condition = |name: &str, value: &str| {
            let conditions = status["conditions"].as_array()?;
            conditions.iter().find(|c| c["type"] == name && c["status"] == value)
        };
        // The first container is ours; others come from `pod_spec`.
        let container = &spec["containers"][0];
        let state = status["containerStatuses"]
            .as_array()
            .and_then(|all| all.iter().find(|s| s["name"] == container["name"]))
            .map_or(&Value::Null, |status| &status["state"]);
        let resources = &container["resources"];
        Self {
            name: text(&meta["name"]),
            uid: text(&meta["uid"]),
            version: text(&meta["resourceVersion"]),
            job: text(&meta["labels"]["job-name"]),
            node: text(&spec["nodeName"]),
            node_address: text(&status["hostIP"]),
            service_account: text(&spec["serviceAccountName"]),
            phase: text(&status["phase"]),
            reason: text(&status["reason"]),
            message: text(&status["message"]),
            deleting: meta["deletionTimestamp"].is_string(),
            unschedulable: condition("PodScheduled", "False").map(|c| text(&c["message"])),
            disruption: condition("DisruptionTarget", "True").map(|c| (text(&c["reason"]), text(&c["message"]))),
            image: text(&container["image"]),
            interpreter: text(&container["command"][0]),
            memory_request: text(&resources["requests"]["memory"]),
            memory_limit: text(&resources["limits"]["memory"]),
            state: ContainerState::of(state),
            runs: ["containerStatuses", "initContainerStatuses"]
                .iter()
                .flat_map(|list| status[list].as_array().into_iter().flatten())
                .any(|status| status["state"]["running"].is_object()),
            node_is_silent: condition("Ready", "False").is_some()
                && condition("ContainersReady", "True").is_some()
                && !spec["readinessGates"].is_array(),
        }
    }

    /// The cluster's own word for taking it away.
    pub fn disrupted(&self) -> Option<String> {
        let (reason, message) = self.disruption.as_ref()?;
        Some(format!("taken off node `{}` ({reason}): {message}", self.node))
    }

    /// Nothing of it runs any more, or ever will.
    pub fn is_over(&self) -> bool {
        let over = matches!(self.phase.as_str(), "Succeeded" | "Failed");
        !self.runs && (over || matches!(self.state, ContainerState::Ended { .. }))
    }

    /// No container of it has been started.
    pub fn never_started(&self) -> bool {
        !self.runs && !self.is_over()
    }

    pub fn phase(&self) -> Phase {
        if let Some(ending) = self.ending() {
            return Phase::Ended(ending);
        }
        match &self.state {
            ContainerState::Running => Phase::Running,
            ContainerState::Waiting { reason, message } => self.waiting(reason, message),
            _ => match &self.unschedulable {
                Some(message) if !message.is_empty() => Phase::Waiting(format!("no node fits yet: {message}")),
                Some(_) => Phase::Waiting("no node fits yet".to_owned()),
                None if self.node.is_empty() => Phase::Quiet,
                None => Phase::Preparing,
            },
        }
    }

    fn waiting(&self, reason: &str, message: &str) -> Phase {
        let image = &self.image;
        let said = if message.is_empty() { String::new() } else { format!(": {message}") };
        match reason {
            "InvalidImageName" => stuck(CauseKind::Image, format!("`{image}` is not the name of an image{said}"), true),
            "ErrImageNeverPull" => stuck(
                CauseKind::Image,
                format!("the image `{image}` is not on node `{}`, and `image_pull_policy` is Never{said}", self.node),
                true,
            ),
            "ErrImagePull" | "ImagePullBackOff" | "RegistryUnavailable" | "ImageInspectError" => stuck(
                CauseKind::Image,
                format!("the image `{image}` cannot be pulled{said}. Check its name, and `image_pull_secrets`"),
                image_is_missing(message),
            ),
            "CreateContainerConfigError" => stuck(
                CauseKind::Refused,
                format!("the container cannot be made{said}. Secrets and config maps that a step names must exist"),
                false,
            ),
            "CreateContainerError" | "RunContainerError" => {
                Phase::Stuck { cause: self.not_started(message), certain: false }
            }
            _ => Phase::Preparing,
        }
    }

    fn ending(&self) -> Option<Ending> {
        if let ContainerState::Ended { code, reason, message } = &self.state {
            return Some(self.container_ended(*code, reason, message));
        }
        let said = self.sentence();
        match (self.phase.as_str(), self.reason.as_str()) {
            (_, "NodeLost") => {
                let text = format!("node `{}` does not answer any more{said}", self.node);
                Some(Ending::Taken(Cause::new(CauseKind::Evicted, text)))
            }
            ("Failed", "DeadlineExceeded") => Some(self.timed_out()),
            ("Failed", _) => Some(self.taken()),
            _ => None,
        }
    }

    /// The cluster's message as the rest of a sentence.
    fn sentence(&self) -> String {
        let message = self.message.trim().trim_end_matches('.');
        if message.is_empty() { String::new() } else { format!(": {message}") }
    }

    fn timed_out(&self) -> Ending {
        let text = "timed out: it ran past its time limit, and Kubernetes stopped it. Raise it with @timeout";
        let cause = Some(Cause::new(CauseKind::TimedOut, text));
        let report = AttemptReport { outcome: None, exit: ProcessExit::Signal(9), usage: Usage::default(), cause };
        Ending::Report { report: Box::new(report), metadata: Vec::new(), sign_again: false, silent: true }
    }

    fn taken(&self) -> Ending {
        let node = &self.node;
        let said = self.sentence();
        let own_fault = ["ephemeral local storage usage exceeds", "emptyDir volume"];
        if self.reason == "Evicted" && own_fault.iter().any(|words| self.message.contains(words)) {
            let text = format!("evicted from node `{node}`{said}. Raise `disk`");
            let cause = Some(Cause::new(CauseKind::Evicted, text));
            let report = AttemptReport { outcome: None, exit: ProcessExit::Signal(9), usage: Usage::default(), cause };
            return Ending::Report { report: Box::new(report), metadata: Vec::new(), sign_again: false, silent: true };
        }
        let text = match (self.reason.as_str(), &self.disruption) {
            ("Evicted", _) => format!("evicted from node `{node}`{said}"),
            ("Preempting" | "Preempted", _) => format!("preempted on node `{node}` by a task of higher priority{said}"),
            (_, Some(_)) => self.disrupted().unwrap_or_default(),
            ("", None) => {
                let text = format!("the pod failed before its container ended{said}");
                return Ending::Taken(Cause::new(CauseKind::LayerError, text));
            }
            (reason, None) => {
                let text = format!("node `{node}` did not run the pod ({reason}){said}");
                return Ending::NeverRan(Cause::new(CauseKind::LayerError, text));
            }
        };
        Ending::Taken(Cause::new(CauseKind::Evicted, text))
    }

    fn container_ended(&self, code: i32, reason: &str, message: &str) -> Ending {
        if matches!(reason, "StartError" | "ContainerCannotRun") {
            return Ending::NeverRan(self.not_started(message));
        }
        let spoken = termination_message(message);
        if self.reason == "DeadlineExceeded" && spoken.is_none() {
            return self.timed_out();
        }
        if self.reason == "Evicted" && spoken.is_none() {
            return self.taken();
        }
        if let Some(text) = self.disrupted().filter(|_| code != 0) {
            return Ending::Taken(Cause::new(CauseKind::Evicted, text));
        }
        let exit = exit_of(code, spoken.as_ref().map(|said| said.exit));
        let silent = spoken.as_ref().is_none_or(|said| said.log_is_short);
        let sign_again = spoken.as_ref().is_some_and(|said| said.sign_again);
        let (outcome, usage, cause, metadata) = match spoken {
            Some(said) => (said.outcome, said.usage, said.cause, said.metadata),
            None => (None, Usage::default(), None, Vec::new()),
        };
        let cause = if reason == "OOMKilled" { Some(self.out_of_memory()) } else { cause };
        let report = Box::new(AttemptReport { outcome, exit, usage, cause });
        Ending::Report { report, metadata, sign_again, silent }
    }

    fn out_of_memory(&self) -> Cause {
        let asked = if self.memory_request.is_empty() { "nothing" } else { &self.memory_request };
        let bound = if self.memory_limit.is_empty() {
            format!("the pod has no limit, so node `{}` had none left", self.node)
        } else {
            format!("its limit is {}", self.memory_limit)
        };
        let text =
            format!("out of memory: it asked for {asked} and {bound}. Raise `memory` of @resources or @kubernetes");
        Cause::new(CauseKind::OutOfMemory, text)
    }

    fn not_started(&self, message: &str) -> Cause {
        let (image, interpreter) = (&self.image, &self.interpreter);
        let lacks = ["executable file not found", "no such file or directory", "executable file `"];
        let text = if lacks.iter().any(|words| message.contains(words)) && message.contains("exec") {
            lacks_interpreter(image, interpreter)
        } else if message.contains("exec format error") {
            format!("the image `{image}` is for another processor architecture than node `{}`", self.node)
        } else {
            format!("the container of the image `{image}` cannot be started: {message}")
        };
        Cause::new(CauseKind::Image, text)
    }
}

impl ContainerState {
    fn of(state: &Value) -> Self {
        if let Some(ended) = state.get("terminated").filter(|v| v.is_object()) {
            let code = ended["exitCode"].as_i64().and_then(|code| i32::try_from(code).ok()).unwrap_or(-1);
            return Self::Ended { code, reason: text(&ended["reason"]), message: text(&ended["message"]) };
        }
        if state["running"].is_object() {
            return Self::Running;
        }
        match state.get("waiting").filter(|v| v.is_object()) {
            Some(waiting) => Self::Waiting { reason: text(&waiting["reason"]), message: text(&waiting["message"]) },
            None => Self::Unknown,
        }
    }
}

fn stuck(kind: CauseKind, text: String, certain: bool) -> Phase {
    Phase::Stuck { cause: Cause::new(kind, text), certain }
}

/// Registries that answer that there is no such image, or not for us: waiting does not help.
fn image_is_missing(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    let words =
        ["not found", "manifest unknown", "does not exist", "access denied", "unauthorized", "authorization failed"];
    words.iter().any(|word| message.contains(word))
}

/// Exit statuses above 128 are signals. What the container said of itself is more exact, unless
/// it ended differently in the end.
fn exit_of(code: i32, said: Option<ProcessExit>) -> ProcessExit {
    let seen = if (129..=192).contains(&code) { ProcessExit::Signal(code - 128) } else { ProcessExit::Code(code) };
    match said {
        Some(exit @ ProcessExit::Code(said)) if said == code => exit,
        Some(exit @ ProcessExit::Signal(signal)) if signal + 128 == code => exit,
        _ => seen,
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
#[path = "pod_tests.rs"]
mod tests;
