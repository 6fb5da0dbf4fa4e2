//! Runs, tasks, tags and logs for the client, as plain dictionaries and lists.

use ferroflow_core::id::{AttemptId, RunId, TaskId};
use ferroflow_core::port::{LogLine, LogPlace, Stream};
use ferroflow_store::questions::{Question, answer};
use ferroflow_store::remote::log::log_store;
use ferroflow_store::{Datastore, Reader};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyTuple};

use crate::error::{metadata_error, store_error};
use crate::json;

/// Reader of one datastore root. A root without runs reads as empty.
#[pyclass(frozen, module = "metaflow._native")]
pub struct Metadata {
    reader: Reader,
}

impl Metadata {
    /// Asks without the interpreter lock.
    fn ask<'py>(&self, py: Python<'py>, question: &Question) -> PyResult<Bound<'py, PyAny>> {
        let answer = py.detach(|| answer(&self.reader, question));
        json::decode(py, &answer.map_err(|error| metadata_error(&error))?)
    }
}

#[pymethods]
impl Metadata {
    #[new]
    fn new(root: &str) -> Self {
        Self { reader: Reader::new(root) }
    }

    /// Names of flows.
    fn flows<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.ask(py, &Question::Flows)
    }

    /// Runs of a flow, newest first.
    fn runs<'py>(&self, py: Python<'py>, flow: String) -> PyResult<Bound<'py, PyAny>> {
        self.ask(py, &Question::Runs { flow })
    }

    /// A run, or `None`.
    fn run<'py>(&self, py: Python<'py>, flow: String, run: &str) -> PyResult<Bound<'py, PyAny>> {
        self.ask(py, &Question::Run { flow, run: RunId::from(run) })
    }

    /// Steps of a run that have tasks, newest first: `step` and `created_at`.
    fn steps<'py>(&self, py: Python<'py>, flow: String, run: &str) -> PyResult<Bound<'py, PyAny>> {
        self.ask(py, &Question::Steps { flow, run: RunId::from(run) })
    }

    /// Latest attempts of a run's tasks, or of one step's, in order of task id.
    #[pyo3(signature = (flow, run, step=None))]
    fn tasks<'py>(
        &self,
        py: Python<'py>,
        flow: String,
        run: &str,
        step: Option<String>,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.ask(py, &Question::Tasks { flow, run: RunId::from(run), step })
    }

    /// All attempts of a task, in order.
    fn attempts<'py>(&self, py: Python<'py>, flow: String, run: &str, task: u64) -> PyResult<Bound<'py, PyAny>> {
        self.ask(py, &Question::Attempts { flow, run: RunId::from(run), task: TaskId(task) })
    }

    /// Metadata entries of a task, of all its attempts.
    fn metadata<'py>(&self, py: Python<'py>, flow: String, run: &str, task: u64) -> PyResult<Bound<'py, PyAny>> {
        self.ask(py, &Question::Metadata { flow, run: RunId::from(run), task: TaskId(task) })
    }

    /// Removes, then adds tags; returns the user tags after it.
    fn mutate_tags<'py>(
        &self,
        py: Python<'py>,
        flow: String,
        run: &str,
        add: Vec<String>,
        remove: Vec<String>,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.ask(py, &Question::MutateTags { flow, run: RunId::from(run), add, remove })
    }

    /// Lines of an attempt in the order they were written: `(stream, epoch milliseconds, bytes)`
    /// with `stdout` or `stderr` for the stream.
    fn logs<'py>(
        &self,
        py: Python<'py>,
        flow: &str,
        run: &str,
        step: &str,
        task: u64,
        attempt: u32,
    ) -> PyResult<Bound<'py, PyList>> {
        let id = AttemptId { task: TaskId(task), attempt };
        let place = LogPlace { flow: flow.to_owned(), run: RunId::from(run), step: step.to_owned(), id };
        let lines = py.detach(|| self.reader.logs(&place)).map_err(|error| metadata_error(&error))?;
        lines_of(py, lines)
    }
}

fn lines_of(py: Python<'_>, lines: Vec<LogLine>) -> PyResult<Bound<'_, PyList>> {
    let list = PyList::empty(py);
    for line in lines {
        let stream = match line.stream {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        };
        let entry: Bound<'_, PyTuple> = (stream, line.at, PyBytes::new(py, &line.bytes)).into_pyobject(py)?;
        list.append(entry)?;
    }
    Ok(list)
}

/// Like [`Metadata::logs`], of a datastore that may be a remote one.
#[pyfunction]
pub fn read_log<'py>(
    py: Python<'py>,
    root: &str,
    flow: &str,
    run: &str,
    step: &str,
    task: u64,
    attempt: u32,
) -> PyResult<Bound<'py, PyList>> {
    let id = AttemptId { task: TaskId(task), attempt };
    let place = LogPlace { flow: flow.to_owned(), run: RunId::from(run), step: step.to_owned(), id };
    let store = Datastore::at(root).map_err(|error| store_error(&error))?;
    let lines = py.detach(|| log_store(store).read(&place)).map_err(|error| metadata_error(&error))?;
    lines_of(py, lines)
}
