//! The front-end protocol (design D1), version 1: what the engine and the flow's own process say
//! to each other. One frame is a little-endian `u32` length and that many bytes of JSON, over a
//! Unix stream socket; file descriptors travel with the first byte of a frame.
//! `docs/contributing/front-end-protocol.md` tells the same with examples.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::id::{AttemptId, RunId, StepName};
use crate::ir::Flow;
use crate::task::{ProcessExit, StoreLocation, TaskOutcome, TaskSpec, Usage};
use crate::typed;

/// Version of the protocol; both sides must say the same.
pub const PROTOCOL_VERSION: u32 = 1;

/// First frame, front end → engine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hello {
    pub protocol: u32,
    /// `python` or `R`.
    pub language: String,
    /// Version of the language, e.g. `3.11.7`.
    pub language_version: String,
    /// The interpreter's path.
    pub executable: String,
    /// The flow file as the user typed it, for messages and hints.
    pub script: String,
    /// The flow file as a module of a package, where it was run as one (`python -m package.flow`).
    #[serde(default)]
    pub module: Option<String>,
    /// Arguments after the flow file.
    pub arguments: Vec<String>,
    /// Process id of the front end (the fork server).
    pub pid: u32,
    /// Folder of the language's own part (the installed module `metaflow`): remote tasks take it along.
    #[serde(default)]
    pub module_folder: String,
    /// File that holds the flow of a session, which has no flow file (R).
    #[serde(default)]
    pub saved_flow: Option<String>,
    pub flow: Flow,
}

impl Hello {
    /// What the user types before a command of the flow, for hints: `python flow.py`.
    pub fn command(&self) -> String {
        let interpreter = if self.language == "R" { "Rscript" } else { "python" };
        match &self.module {
            Some(module) => format!("{interpreter} -m {module}"),
            None => format!("{interpreter} {}", typed::quoted(&self.script)),
        }
    }

    /// Whether the flow was typed into an R session. A script that goes on after `run()` has its flow
    /// saved, too, but can be started again.
    pub fn is_of_session(&self) -> bool {
        self.saved_flow.is_some() && self.script.starts_with('<')
    }

    /// What the user types to give the flow a command with its options. A flow of an R session has no
    /// file: there it is a call of `run()`.
    pub fn typed(&self, words: &[String]) -> String {
        if self.is_of_session() {
            return typed::in_session(&self.flow.name, words);
        }
        typed::in_shell(&self.command(), words)
    }
}

/// Engine → front end. `id` numbers a request; the reply carries it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Request {
    /// Convert parameters from text, evaluate defaults, keep the values for
    /// `write_parameters`. `given` holds what the user typed, by parameter name; with `multiple`
    /// several texts.
    Convert { id: u64, given: BTreeMap<String, Vec<String>>, user: String },
    /// Write parameters and constants as task 0 of step `_parameters`.
    WriteParameters { id: u64, store: StoreLocation, flow: String, run: RunId },
    /// Read artifacts and print them as text (`dump`).
    Dump { id: u64, store: StoreLocation, request: DumpRequest },
    /// Fork a step zygote; the frame carries one descriptor, the zygote's socket.
    OpenZygote { step: StepName, settings: ZygoteSettings },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ZygoteSettings {
    /// `@environment` of the step.
    pub environment: BTreeMap<String, String>,
    /// Packages to import before the first fork (learned by an earlier zygote of the step).
    pub learned: Vec<String>,
    /// `false` turns learned imports off.
    pub learn_imports: bool,
    /// Start every task as a new interpreter.
    pub spawn: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DumpRequest {
    /// Where each task's pack is, with the pathspec to show.
    pub tasks: Vec<DumpTask>,
    /// Show names that start with an underscore.
    pub private: bool,
    /// Bytes; larger values show as too large, and so does everything at 0.
    pub max_value_size: u64,
    /// Only these names; empty is all.
    pub include: Vec<String>,
    /// Pickle `{pathspec: {name: value}}` here instead of printing.
    pub file: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DumpTask {
    pub pathspec: String,
    pub flow: String,
    pub run: RunId,
    pub step: StepName,
    pub attempt: AttemptId,
}

/// Front end → engine: the answer to request `id`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reply {
    pub id: u64,
    /// Result of the request; `null` where it has none.
    #[serde(default)]
    pub ok: Option<Value>,
    #[serde(default)]
    pub error: Option<FrontEndError>,
}

/// A mistake the front end found. `usage` errors end with exit code 2, others with 1.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FrontEndError {
    pub usage: bool,
    pub headline: String,
    pub message: String,
    #[serde(default)]
    pub file: Option<String>,
    #[serde(default)]
    pub line: u32,
}

/// Engine → zygote.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ZygoteRequest {
    /// Start a task; the frame carries three descriptors: stdout, stderr, control.
    Task { attempt: AttemptId, spec: Box<TaskSpec> },
    /// Send a signal to a task's process group, if it still runs.
    Signal { attempt: AttemptId, signal: i32 },
    /// Import these packages before the next fork.
    Learn { packages: Vec<String> },
}

/// Zygote → engine.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ZygoteEvent {
    /// `spawn_reason` says, in one line, why tasks of this step are spawned instead of forked.
    Ready {
        pid: u32,
        spawn_reason: Option<String>,
    },
    Started {
        attempt: AttemptId,
        pid: u32,
    },
    /// The task's process was waited for. `leftover` counts processes it left behind.
    Exited {
        attempt: AttemptId,
        exit: ProcessExit,
        usage: Usage,
        leftover: u32,
    },
    /// The task could not be started.
    StartFailed {
        attempt: AttemptId,
        message: String,
    },
    /// Outcome of `Learn`: what is imported now, and what could not be and why.
    Learned {
        packages: Vec<String>,
        refused: Vec<String>,
    },
}

/// Task → engine, on the control descriptor; same framing.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum TaskMessage {
    /// User code imported something worth learning; said as it happens.
    Imported {
        packages: Vec<String>,
    },
    /// A metadata entry to record for this attempt.
    Metadata {
        name: String,
        value: String,
    },
    Outcome {
        outcome: TaskOutcome,
    },
}

/// What a remote task's container says as it ends, in at most 4,096 bytes (the pod's termination
/// message): the watch delivers it, so no store has to be asked. Long texts are cut; the pack has
/// them whole.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TerminationMessage {
    pub outcome: Option<TaskOutcome>,
    pub exit: ProcessExit,
    pub usage: Usage,
    #[serde(default)]
    pub cause: Option<crate::task::Cause>,
    /// The container could not fetch the code (the address had expired, 403): sign again and
    /// resubmit, without spending a user's retry.
    #[serde(default)]
    pub sign_again: bool,
    /// Not all that the task printed could be written to the store.
    #[serde(default)]
    pub log_is_short: bool,
    /// Entries that the task asked to record, `(name, value)`; the layer passes them to
    /// `EventSink::metadata`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metadata: Vec<(String, String)>,
}
