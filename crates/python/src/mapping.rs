//! A blob in memory, offered to Python as a writable buffer. Writing is private to the process.

use std::ffi::c_int;

use ferroflow_store::blob::BlobMapping;
use ferroflow_task::is_untouched;
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;

use crate::writer::Sink;

/// A mapped blob; `memoryview(mapping)` shares its memory.
#[pyclass(frozen, weakref, module = "metaflow._native")]
pub struct Mapping {
    pub blob: BlobMapping,
}

#[pymethods]
impl Mapping {
    fn __len__(&self) -> usize {
        self.blob.bytes().len()
    }

    /// Address of the first byte.
    #[getter]
    fn address(&self) -> usize {
        self.blob.pointer() as usize
    }

    /// Whether it is certain that nobody wrote to this part of the memory.
    fn is_untouched(&self, offset: usize, length: usize) -> bool {
        let within = offset.checked_add(length).is_some_and(|end| end <= self.blob.bytes().len());
        within && is_untouched(self.blob.pointer() as usize + offset, length)
    }

    /// Whether a value pickled anew is what this mapping holds: the same pickle (of `pickle`
    /// bytes, in `sink`), the same buffers at their place in this memory, none written to.
    fn is_unchanged(
        &self,
        py: Python<'_>,
        sink: &Sink,
        pickle: usize,
        table: Vec<(usize, usize)>,
        buffers: Vec<Bound<'_, PyAny>>,
    ) -> PyResult<bool> {
        if table.len() != buffers.len() || pickle > self.blob.bytes().len() {
            return Ok(false);
        }
        for ((offset, length), buffer) in table.iter().zip(&buffers) {
            let held = PyBuffer::<u8>::get(buffer)?;
            let in_place = held.buf_ptr() as usize == self.address() + offset;
            if !in_place || held.len_bytes() != *length || !self.is_untouched(*offset, *length) {
                return Ok(false);
            }
        }
        py.detach(|| sink.holds(&self.blob.bytes()[..pickle]))
    }

    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        if view.is_null() {
            return Err(PyBufferError::new_err("no view to fill"));
        }
        let blob = &slf.get().blob;
        // SAFETY: the memory lives as long as the mapping, which the view holds a reference to,
        // and is writable.
        let status = unsafe {
            ffi::PyBuffer_FillInfo(
                view,
                slf.as_ptr(),
                blob.pointer().cast(),
                blob.bytes().len() as ffi::Py_ssize_t,
                0,
                flags,
            )
        };
        if status == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}
