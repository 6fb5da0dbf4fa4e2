//! The pack a task writes.

use ferroflow_store::Datastore;
use ferroflow_store::blob::{INLINE_LIMIT, ValueWriter};
use ferroflow_store::pack::Encoding;
use ferroflow_task::ItemsWriter;
use ferroflow_task::output::{Label, TaskOutput, place};
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyBufferError, PyKeyError, PyValueError};
use pyo3::prelude::*;

use crate::error::store_error;
use crate::json;
use crate::pack::Pack;

/// Shorter writes are not worth giving up the interpreter lock for.
const LONG: usize = 1 << 20;

/// What a pickler writes into. Spills to a file when it grows.
#[pyclass(module = "metaflow._native")]
pub struct Sink {
    writer: Option<ValueWriter>,
}

#[pymethods]
impl Sink {
    fn write(&mut self, py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<usize> {
        let writer = self.writer.as_mut().ok_or_else(used_up)?;
        let buffer = PyBuffer::<u8>::get(data)?;
        let bytes = contiguous(&buffer)?;
        let written = if bytes.len() < LONG { writer.write(bytes) } else { py.detach(|| writer.write(bytes)) };
        written.map_err(|error| store_error(&error))?;
        Ok(bytes.len())
    }

    /// Bytes written so far.
    #[getter]
    fn length(&self) -> PyResult<u64> {
        Ok(self.writer.as_ref().ok_or_else(used_up)?.length())
    }
}

impl Sink {
    /// Whether what was written is exactly `data`.
    pub fn holds(&self, data: &[u8]) -> PyResult<bool> {
        let writer = self.writer.as_ref().ok_or_else(used_up)?;
        Ok(writer.length() == data.len() as u64 && writer.content_hash() == blake3::hash(data))
    }
}

fn used_up() -> PyErr {
    PyValueError::new_err("this sink was handed over already")
}

/// The bytes of a contiguous buffer.
fn contiguous(buffer: &PyBuffer<u8>) -> PyResult<&[u8]> {
    if !buffer.is_c_contiguous() {
        return Err(PyBufferError::new_err("the buffer is not contiguous"));
    }
    if buffer.len_bytes() == 0 {
        return Ok(&[]);
    }
    // SAFETY: the buffer is contiguous, of bytes, and held for as long as the slice lives. That no
    // other thread writes to it meanwhile is the caller's duty, as with any pickling.
    Ok(unsafe { std::slice::from_raw_parts(buffer.buf_ptr().cast::<u8>(), buffer.len_bytes()) })
}

/// A task's pack until it is committed.
#[pyclass(module = "metaflow._native")]
pub struct PackWriter {
    output: TaskOutput,
}

#[pymethods]
impl PackWriter {
    #[new]
    fn new(root: &str, flow: &str, run: &str, step: &str, task: u64, attempt: u32) -> PyResult<Self> {
        let place = place(flow, run, step, task, attempt);
        let store = Datastore::at(root).map_err(|error| store_error(&error))?;
        Ok(Self { output: TaskOutput::new(store, place) })
    }

    /// Adds a plain value as JSON; `False` when it is not one or too large to be inline.
    fn add_json(
        &mut self,
        name: &str,
        type_name: String,
        preview: Option<String>,
        value: &Bound<'_, PyAny>,
    ) -> PyResult<bool> {
        let Some(text) = json::encode(value, INLINE_LIMIT)? else { return Ok(false) };
        self.output.add_json(name, Label { type_name, preview, tag: None }, text);
        Ok(true)
    }

    /// Adds bytes as they are.
    fn add_raw(
        &mut self,
        py: Python<'_>,
        name: &str,
        type_name: String,
        preview: Option<String>,
        data: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let buffer = PyBuffer::<u8>::get(data)?;
        let bytes = contiguous(&buffer)?;
        py.detach(|| self.output.add_raw(name, Label { type_name, preview, tag: None }, bytes))
            .map_err(|error| store_error(&error))
    }

    fn sink(&self, name: &str) -> Sink {
        Sink { writer: Some(self.output.value_writer(name)) }
    }

    /// Adds a pickle written to `sink` and its out-of-band buffers (contiguous, of bytes).
    fn add_pickle(
        &mut self,
        py: Python<'_>,
        name: &str,
        type_name: String,
        preview: Option<String>,
        sink: &mut Sink,
        buffers: Vec<Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let writer = sink.writer.take().ok_or_else(used_up)?;
        let held = buffers.iter().map(PyBuffer::<u8>::get).collect::<PyResult<Vec<_>>>()?;
        let slices = held.iter().map(contiguous).collect::<PyResult<Vec<_>>>()?;
        let label = Label { type_name, preview, tag: None };
        py.detach(|| self.output.add_pickle(name, label, writer, &slices)).map_err(|error| store_error(&error))
    }

    /// Forwards an artifact without decoding it.
    fn pass_on(&mut self, name: &str, source: &Pack) -> PyResult<()> {
        self.output.pass_on(name, &source.pack).map_err(|error| store_error(&error))
    }

    /// Forwards `source`'s artifact if it is a blob of exactly these bytes.
    fn pass_on_equal_bytes(&mut self, py: Python<'_>, name: &str, source: &Pack, data: &[u8]) -> PyResult<bool> {
        py.detach(|| self.output.pass_on_equal_bytes(name, &source.pack, data)).map_err(|error| store_error(&error))
    }

    fn items_sink(&self, variable: &str) -> ItemsSink {
        ItemsSink { writer: Some(ItemsWriter::new(self.output.store().clone(), variable)) }
    }

    /// Makes the items of `sink` those of a foreach over `variable`.
    fn set_items(&mut self, py: Python<'_>, variable: &str, sink: &mut ItemsSink) -> PyResult<()> {
        let writer = sink.writer.take().ok_or_else(used_up)?;
        let (count, value) = py.detach(|| writer.finish()).map_err(|error| store_error(&error))?;
        self.output.set_items(variable, count, &value);
        Ok(())
    }

    fn __contains__(&self, name: &str) -> bool {
        self.output.artifact(name).is_some()
    }

    fn digest(&self, name: &str) -> PyResult<&str> {
        let artifact = self.output.artifact(name).ok_or_else(|| PyKeyError::new_err(name.to_owned()))?;
        Ok(&artifact.hash)
    }

    /// Encoded bytes of an artifact.
    fn size(&self, name: &str) -> PyResult<u64> {
        let artifact = self.output.artifact(name).ok_or_else(|| PyKeyError::new_err(name.to_owned()))?;
        Ok(artifact.size)
    }

    /// Bytes that must be decoded to get at any part of an artifact: all but its buffers.
    fn in_band_size(&self, name: &str) -> PyResult<u64> {
        let artifact = self.output.artifact(name).ok_or_else(|| PyKeyError::new_err(name.to_owned()))?;
        Ok(if artifact.buffers.is_empty() { artifact.size } else { artifact.pickle })
    }

    /// Writes the pack durably; `outcome` is a plain dict.
    fn commit(&mut self, py: Python<'_>, outcome: &Bound<'_, PyAny>) -> PyResult<()> {
        let text =
            json::encode(outcome, 64 << 20)?.ok_or_else(|| PyValueError::new_err("the outcome is not plain data"))?;
        let outcome = serde_json::from_slice(&text).map_err(|error| PyValueError::new_err(error.to_string()))?;
        py.detach(|| self.output.commit(outcome)).map_err(|error| store_error(&error))
    }
}

/// Takes the items of a foreach one by one.
#[pyclass(module = "metaflow._native")]
pub struct ItemsSink {
    writer: Option<ItemsWriter>,
}

#[pymethods]
impl ItemsSink {
    /// Adds a plain item; `False` when it is not one.
    fn add_json(&mut self, value: &Bound<'_, PyAny>) -> PyResult<bool> {
        let Some(text) = json::encode(value, INLINE_LIMIT)? else { return Ok(false) };
        self.push(Encoding::Json, &text)?;
        Ok(true)
    }

    fn add_raw(&mut self, data: &[u8]) -> PyResult<()> {
        self.push(Encoding::Raw, data)
    }

    fn add_pickle(&mut self, data: &[u8]) -> PyResult<()> {
        self.push(Encoding::Pickle, data)
    }
}

impl ItemsSink {
    fn push(&mut self, encoding: Encoding, data: &[u8]) -> PyResult<()> {
        let writer = self.writer.as_mut().ok_or_else(used_up)?;
        writer.push(encoding, data).map_err(|error| store_error(&error))
    }
}
