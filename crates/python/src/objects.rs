//! `Objects`: a bucket's plain objects, for the supervisor of a remote task.

use ferroflow_core::port::ObjectError;
use ferroflow_core::task::StoreLocation;
use ferroflow_store::remote::blocking::BlockingObjects;
use pyo3::exceptions::{PyFileNotFoundError, PyOSError, PyPermissionError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

#[pyclass(frozen, module = "metaflow._native")]
pub struct Objects {
    objects: BlockingObjects,
}

#[pymethods]
impl Objects {
    /// Of a `core::task::StoreLocation` as JSON. Nothing is connected yet.
    #[new]
    fn new(location: &str) -> PyResult<Self> {
        let location: StoreLocation =
            serde_json::from_str(location).map_err(|error| PyValueError::new_err(error.to_string()))?;
        let objects = BlockingObjects::open(&location).map_err(|error| PyOSError::new_err(error.to_string()))?;
        Ok(Self { objects })
    }

    /// Writes an object in place of what is there; `OSError` when that fails.
    fn put(&self, py: Python<'_>, key: &str, data: &[u8]) -> PyResult<()> {
        let data = data.to_vec();
        py.detach(|| self.objects.put(key, data)).map_err(raised)
    }

    /// An object's bytes, `None` when there is none; `OSError` when it cannot be known.
    fn get<'py>(&self, py: Python<'py>, key: &str) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let found = py.detach(|| self.objects.get(key)).map_err(raised)?;
        Ok(found.map(|bytes| PyBytes::new(py, &bytes)))
    }

    /// Takes an object away; `OSError` when that fails.
    fn delete(&self, py: Python<'_>, key: &str) -> PyResult<()> {
        py.detach(|| self.objects.delete(key)).map_err(raised)
    }
}

/// A kind of `OSError`; that of a store which is only out of reach is `OSError` itself.
#[allow(clippy::needless_pass_by_value, reason = "it is handed to map_err")]
fn raised(error: ObjectError) -> PyErr {
    let text = error.to_string();
    match error {
        ObjectError::Denied(_) => PyPermissionError::new_err(text),
        ObjectError::NotFound(_) => PyFileNotFoundError::new_err(text),
        ObjectError::Unavailable(_) => PyOSError::new_err(text),
    }
}
