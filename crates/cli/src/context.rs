//! What every command of a flow starts from.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use ferroflow_compute::frontend::FrontEnd;
use ferroflow_core::id::RunId;
use ferroflow_core::ir::Flow;
use ferroflow_core::port::{LogStore, MetadataError, MetadataStore};
use ferroflow_core::task::StoreLocation;
use ferroflow_core::wire::{Hello, Request};
use ferroflow_store::remote::log::log_store;
use ferroflow_store::{Datastore, SqliteMetadata};
use serde_json::Value;

use crate::arguments::TopOptions;
use crate::config::Config;
use crate::datastore;
use crate::report::Failure;
use crate::unread;

pub struct Context {
    pub flow: Flow,
    pub hello: Hello,
    pub front_end: FrontEnd,
    pub config: Config,
    pub top: TopOptions,
    pub cwd: PathBuf,
    pub root: PathBuf,
    /// The local root is not there yet.
    pub root_is_new: bool,
}

impl Context {
    /// Talk that `--quiet` silences.
    pub fn say(&self, text: &str) {
        if !self.top.quiet {
            unread::say(&format!("{text}\n"));
        }
    }

    /// Talk in bold on a terminal.
    pub fn say_bold(&self, text: &str) {
        if std::io::stderr().is_terminal() { self.say(&format!("\x1b[1m{text}\x1b[0m")) } else { self.say(text) }
    }

    /// Where a recorded run's data is.
    pub fn store_of(&self, metadata: &dyn MetadataStore, run: &RunId) -> Result<StoreLocation, Failure> {
        let row = metadata.run(&self.flow.name, run)?;
        Ok(datastore::of_run(&self.config, &row, &self.root))
    }

    /// The logs of a recorded run.
    pub fn logs_of(&self, metadata: &dyn MetadataStore, run: &RunId) -> Result<Box<dyn LogStore>, Failure> {
        Ok(log_store(Datastore::open(&self.store_of(metadata, run)?)?))
    }

    /// The metadata store, which has to exist already unless `create`.
    pub fn metadata(&self, create: bool) -> Result<SqliteMetadata, Failure> {
        if self.root_is_new && !create {
            return Err(Failure::new(
                "Object not found",
                format!(
                    "there is no run of {} yet: nothing was run in or above {}",
                    self.flow.name,
                    self.cwd.display()
                ),
            ));
        }
        SqliteMetadata::open(&self.root).map_err(Failure::from)
    }

    /// Sends a request to the flow's process and waits for its answer.
    pub async fn ask(&self, request: Request) -> Result<Value, Failure> {
        let reply =
            self.front_end.request(request).await.map_err(|error| Failure::new("Internal error", error.to_string()))?;
        match reply.error {
            Some(error) => Err(error.into()),
            None => Ok(reply.ok.unwrap_or(Value::Null)),
        }
    }

    /// The latest run started from this folder, if there was one.
    pub fn latest_run(&self) -> Option<String> {
        let text = std::fs::read_to_string(latest_run_file(&self.root, &self.flow.name)).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    /// The newest recorded run, for hints.
    pub fn newest_run(&self, metadata: &dyn MetadataStore) -> Option<String> {
        Some(metadata.runs(&self.flow.name).ok()?.first()?.run.to_string())
    }
}

pub fn latest_run_file(root: &Path, flow: &str) -> PathBuf {
    root.join(flow).join("latest_run")
}

impl From<MetadataError> for Failure {
    fn from(error: MetadataError) -> Self {
        let headline = match error {
            MetadataError::NotFound(_) => "Object not found",
            MetadataError::Refused(_) => "Tagging error",
            MetadataError::TakenOver(_) => "Run taken over",
            MetadataError::Unavailable(_) => "Data store error",
        };
        Self::new(headline, error.to_string())
    }
}
