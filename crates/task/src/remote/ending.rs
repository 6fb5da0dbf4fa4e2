//! How a remote task ended: what is known of it, why it died, and the container's termination
//! message. Texts are for users.

use std::path::Path;

use ferroflow_core::task::{Cause, CauseKind, ProcessExit, TaskOutcome, TaskSpec, Usage};
use ferroflow_core::wire::{TaskMessage, TerminationMessage};

use super::memory::Memory;

/// What Kubernetes keeps of a termination message.
pub const MOST_BYTES: usize = 4096;
const LEAST_FREE_BYTES: u64 = 1 << 20;
const SIGTERM: i32 = 15;

/// Gathered while the task runs; turned into the message when it has ended.
#[derive(Debug)]
pub struct Facts {
    spec: TaskSpec,
    layer: String,
    memory: Memory,
    outcome: Option<TaskOutcome>,
    metadata: Vec<(String, String)>,
    exit: ProcessExit,
    usage: Usage,
    cause: Option<Cause>,
    fault: Option<String>,
    stopped: bool,
    exhausted: bool,
}

impl Facts {
    pub fn new(spec: TaskSpec, layer: &str, memory: Memory) -> Self {
        Self {
            spec,
            layer: layer.to_owned(),
            memory,
            outcome: None,
            metadata: Vec::new(),
            exit: ProcessExit::Code(0),
            usage: Usage::default(),
            cause: None,
            fault: None,
            stopped: false,
            exhausted: false,
        }
    }

    pub fn hear(&mut self, message: TaskMessage) {
        match message {
            TaskMessage::Outcome { outcome } => self.outcome = Some(outcome),
            TaskMessage::Metadata { name, value } => self.metadata.push((name, value)),
            TaskMessage::Imported { .. } => {}
        }
    }

    /// What came on the control channel is not the task's.
    pub fn control_fault(&mut self, text: String) {
        self.fault = Some(text);
    }

    pub fn told_to_stop(&mut self) {
        self.stopped = true;
    }

    pub fn lease_expired(&mut self, seconds: f64) {
        let after = if seconds >= 120.0 { format!("{} minutes", seconds / 60.0) } else { format!("{seconds} s") };
        self.cause = Some(Cause::new(
            CauseKind::EngineLost,
            format!(
                "stopped: no engine has renewed the lease of run {} for {after}, so the run was abandoned; resume it",
                self.spec.run
            ),
        ));
    }

    pub fn overran(&mut self, limit: f64, grace: f64) {
        self.cause = Some(Cause::new(
            CauseKind::TimedOut,
            format!(
                "the task was still running {grace} s after its time limit of {limit} s and was killed; native code that \
                 runs for so long cannot be interrupted"
            ),
        ));
    }

    /// The task's process could not be started, or watched.
    pub fn supervisor_failed(&mut self, error: &str) {
        self.exit = ProcessExit::Code(1);
        let text = format!("the process that supervises the task failed: {error}; the container's log has more");
        self.cause = Some(Cause::new(CauseKind::LayerError, text));
    }

    pub fn ended(&mut self, exit: ProcessExit, usage: Usage) {
        self.exit = exit;
        self.usage = usage;
    }

    /// To be called before processes that the task left behind are killed.
    pub fn note_leftovers(&mut self) {
        self.exhausted = self.memory.was_exhausted();
    }

    /// As a shell would say it.
    pub fn exit_code(&self) -> i32 {
        match self.exit {
            ProcessExit::Code(code) => code,
            ProcessExit::Signal(signal) => 128 + signal,
        }
    }

    /// `free` is the room on the container's disk, in bytes.
    pub fn message(&self, free: Option<u64>) -> TerminationMessage {
        let done = self.exit == ProcessExit::Code(0) && self.outcome.as_ref().is_some_and(|outcome| outcome.ok);
        TerminationMessage {
            outcome: self.outcome.clone(),
            exit: self.exit,
            usage: self.usage,
            cause: if done { None } else { self.cause_of_failure(free) },
            sign_again: false,
            log_is_short: false,
            metadata: self.metadata.clone(),
        }
    }

    fn cause_of_failure(&self, free: Option<u64>) -> Option<Cause> {
        let layer_error = |text: String| Some(Cause::new(CauseKind::LayerError, text));
        if self.cause.is_some() {
            return self.cause.clone();
        }
        if self.exhausted {
            return Some(Cause::new(CauseKind::OutOfMemory, self.out_of_memory()));
        }
        if self.disk_is_full(free) {
            return layer_error(format!(
                "the container's disk is full: ask for more with `{}(disk = ...)`, or write less to local files",
                self.layer
            ));
        }
        if let Some(fault) = self.fault.as_ref().filter(|_| self.outcome.is_none()) {
            return layer_error(format!(
                "the task's report cannot be used: {fault}; its control channel was written to by something else"
            ));
        }
        if self.stopped && self.exit == ProcessExit::Signal(SIGTERM) {
            let text = "killed by SIGTERM: the container was told to stop";
            return Some(Cause::new(CauseKind::Signal, text));
        }
        None
    }

    fn out_of_memory(&self) -> String {
        let mut text = "out of memory, the kernel killed the task".to_owned();
        let peak = self.memory.peak().unwrap_or(self.usage.peak_memory);
        text += &format!(": it used up to {}", human(peak));
        if let Some(limit) = self.memory.limit() {
            text += &format!(", and its container may use {}", human(limit));
        }
        if let Some(asked) = self.asked("memory") {
            text += &format!("; the step asks for {asked} MB");
        }
        format!("{text}; ask for more with `{}(memory = ...)` or `resources(memory = ...)`", self.layer)
    }

    fn asked(&self, name: &str) -> Option<String> {
        let of = |kind: &str| {
            let found = self.spec.decorators.iter().find(|decorator| decorator.name == kind)?;
            let value = found.attributes.get(name).filter(|value| !value.is_null())?;
            Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
        };
        of(&self.layer).or_else(|| of("resources"))
    }

    fn disk_is_full(&self, free: Option<u64>) -> bool {
        let message = self.outcome.as_ref().and_then(|outcome| outcome.exception.as_ref()).map(|e| e.message.as_str());
        if self.outcome.is_some() {
            return message.is_some_and(|text| text.contains("No space left on device"));
        }
        free.is_some_and(|free| free < LEAST_FREE_BYTES)
    }
}

/// Room on the disk that a path is on, in bytes.
pub fn free_space(path: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(path).ok()?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}

/// The message as JSON of at most `MOST_BYTES`. What can be read elsewhere goes first: the inside of
/// long texts (the log and the pack have them whole).
pub fn fitted(message: &TerminationMessage) -> String {
    let encode = |message: &TerminationMessage| serde_json::to_string(message).expect("a message is plain data");
    let whole = encode(message);
    if whole.len() <= MOST_BYTES {
        return whole;
    }
    for most in [2000, 1000, 500, 200, 60, 0] {
        let shorter = encode(&with_short_texts(message, most));
        if shorter.len() <= MOST_BYTES {
            return shorter;
        }
    }
    encode(&TerminationMessage { metadata: Vec::new(), ..with_short_texts(message, 0) })
}

fn with_short_texts(message: &TerminationMessage, most: usize) -> TerminationMessage {
    let mut short = message.clone();
    if let Some(cause) = &mut short.cause {
        // The sentence for the user is worth more than a traceback that the log has.
        cause.text = cut(&cause.text, most.max(300));
    }
    if let Some(outcome) = &mut short.outcome {
        outcome.imports.clear();
        if let Some(exception) = &mut outcome.exception {
            exception.type_name = cut(&exception.type_name, 100);
            exception.message = cut(&exception.message, most.max(100));
            exception.traceback = cut(&exception.traceback, most).into();
        }
    }
    for (name, value) in &mut short.metadata {
        *name = cut(name, 100);
        *value = cut(value, most);
    }
    short
}

/// Beginning and end of a long text, by its bytes.
fn cut(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let half = most / 2;
    let from = text.ceil_char_boundary(text.len() - half);
    format!("{} … {}", &text[..text.floor_char_boundary(half)], &text[from..])
}

fn human(size: u64) -> String {
    for (unit, factor) in [("GiB", 1u64 << 30), ("MiB", 1 << 20)] {
        if size >= factor {
            return format!("{:.1} {unit}", size as f64 / factor as f64);
        }
    }
    format!("{size} bytes")
}

#[cfg(test)]
mod tests {
    use super::super::memory::tests::memory_in;
    use super::*;
    use ferroflow_core::task::ExceptionInfo;
    use serde_json::json;
    use std::fs;

    fn spec() -> TaskSpec {
        let before = json!({"run": "7", "step": "start", "tasks": [[1, 1, 0]]});
        serde_json::from_value(json!({
            "flow": "F", "run": "7", "step": "fit", "task": 2, "attempt": 0, "max_user_code_retries": 0,
            "fallback": false, "join": false, "inputs": [before], "parameters": before, "foreach_stack": [],
            "store": {"kind": "s3", "root": "s3://b", "options": {}},
            "decorators": [{"name": "resources", "attributes": {"memory": 500}}],
            "user": "ada", "identity": "user:ada", "namespace": null, "tags": [], "max_num_splits": 100,
        }))
        .expect("spec")
    }

    fn outcome(ok: bool, message: &str) -> TaskOutcome {
        let exception = ExceptionInfo {
            type_name: "simpleError".to_owned(),
            class_name: None,
            message: message.to_owned(),
            traceback: "Error: ü".repeat(2000).into(),
        };
        let exception = (!ok).then_some(exception);
        TaskOutcome { ok, success: ok, transition: None, exception, imports: Vec::new(), may_retry: true }
    }

    fn facts(folder: &Path) -> Facts {
        Facts::new(spec(), "kubernetes", memory_in(folder, "536870912\n", "536870912\n"))
    }

    fn text_of(facts: &Facts, free: Option<u64>) -> (CauseKind, String) {
        let cause = facts.message(free).cause.expect("a cause");
        (cause.kind, cause.text)
    }

    #[test]
    fn a_task_that_is_done_has_no_cause() {
        let folder = tempfile::tempdir().expect("folder");
        let mut facts = facts(folder.path());
        facts.hear(TaskMessage::Outcome { outcome: outcome(true, "") });
        facts.told_to_stop();
        facts.ended(ProcessExit::Code(0), Usage::default());
        assert_eq!((facts.message(Some(0)).cause, facts.exit_code()), (None, 0));
    }

    #[test]
    fn out_of_memory_says_how_much_there_was() {
        let folder = tempfile::tempdir().expect("folder");
        let mut facts = facts(folder.path());
        facts.ended(ProcessExit::Signal(9), Usage::default());
        fs::write(folder.path().join("memory.events"), "oom_kill 3\n").expect("file");
        facts.note_leftovers();
        let text = "out of memory, the kernel killed the task: it used up to 512.0 MiB, and its container may use \
                    512.0 MiB; the step asks for 500 MB; ask for more with `kubernetes(memory = ...)` or \
                    `resources(memory = ...)`";
        assert_eq!(text_of(&facts, None), (CauseKind::OutOfMemory, text.to_owned()));
        assert_eq!(facts.exit_code(), 137);
    }

    #[test]
    fn a_full_disk_a_stop_and_a_foreign_report_are_told_apart() {
        let folder = tempfile::tempdir().expect("folder");
        let mut full = facts(folder.path());
        full.ended(ProcessExit::Code(1), Usage::default());
        assert!(text_of(&full, Some(0)).1.starts_with("the container's disk is full: ask for more with `kubernetes("));
        let mut stopped = facts(folder.path());
        stopped.told_to_stop();
        stopped.ended(ProcessExit::Signal(SIGTERM), Usage::default());
        assert_eq!(text_of(&stopped, Some(1 << 30)).0, CauseKind::Signal);
        let mut strange = facts(folder.path());
        strange.control_fault("it is not JSON".to_owned());
        strange.ended(ProcessExit::Code(0), Usage::default());
        let text =
            "the task's report cannot be used: it is not JSON; its control channel was written to by something else";
        assert_eq!(text_of(&strange, None).1, text);
    }

    #[test]
    fn what_ended_it_first_is_the_cause() {
        let folder = tempfile::tempdir().expect("folder");
        let mut abandoned = facts(folder.path());
        abandoned.lease_expired(3600.0);
        abandoned.ended(ProcessExit::Signal(SIGTERM), Usage::default());
        let text =
            "stopped: no engine has renewed the lease of run 7 for 60 minutes, so the run was abandoned; resume it";
        assert_eq!(text_of(&abandoned, None), (CauseKind::EngineLost, text.to_owned()));
        let mut late = facts(folder.path());
        late.overran(5.0, 60.0);
        late.ended(ProcessExit::Signal(9), Usage::default());
        assert_eq!(text_of(&late, None).0, CauseKind::TimedOut);
    }

    #[test]
    fn a_message_fits_whatever_is_in_it() {
        let folder = tempfile::tempdir().expect("folder");
        let mut facts = facts(folder.path());
        facts.hear(TaskMessage::Outcome { outcome: outcome(false, &"m".repeat(9000)) });
        facts.ended(ProcessExit::Code(1), Usage::default());
        for entries in [0, 100] {
            for n in 0..entries {
                facts.hear(TaskMessage::Metadata { name: format!("n{n}"), value: "v".repeat(500) });
            }
            let text = fitted(&facts.message(None));
            assert!(text.len() <= MOST_BYTES, "{}", text.len());
            let read: TerminationMessage = serde_json::from_str(&text).expect("JSON");
            assert_eq!(read.outcome.and_then(|o| o.exception).map(|e| e.type_name).as_deref(), Some("simpleError"));
        }
    }
}
