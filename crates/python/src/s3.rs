//! `S3`: many objects at once, for `metaflow._s3`. Each outcome is the answer, or
//! `(kind, message)` with the kind of [`Problem`] in small letters.

use std::collections::BTreeMap;
use std::path::PathBuf;

use ferroflow_store::remote::s3::{Address, Content, Download, Info, Problem, S3 as Objects, Upload};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyList, PyTuple};

use crate::error::store_error;

#[pyclass(frozen, module = "metaflow._native")]
pub struct S3 {
    objects: Objects,
}

type Part = Option<(u64, Option<i64>)>;
type Source = (Option<PyBackedBytes>, Option<String>);

#[pymethods]
impl S3 {
    /// `options` are those of a datastore's location: `endpoint`, `region`, `encryption`.
    #[new]
    fn new(options: BTreeMap<String, String>) -> Self {
        Self { objects: Objects::new(options) }
    }

    /// Requests sent so far, retries included.
    #[getter]
    fn requests(&self) -> u64 {
        self.objects.requests()
    }

    /// Downloads `(bucket, key, file, (offset, length) or None)`.
    fn get<'py>(&self, py: Python<'py>, wanted: Vec<(String, String, PathBuf, Part)>) -> PyResult<Bound<'py, PyList>> {
        let downloads: Vec<Download> = wanted
            .into_iter()
            .map(|(bucket, key, to, part)| Download { from: Address { bucket, key }, to, part })
            .collect();
        let outcomes = py.detach(|| self.objects.get(&downloads)).map_err(|error| store_error(&error))?;
        answers(py, outcomes, info)
    }

    /// What is known of `(bucket, key)`.
    fn info<'py>(&self, py: Python<'py>, wanted: Vec<(String, String)>) -> PyResult<Bound<'py, PyList>> {
        let addresses = addresses(wanted);
        let outcomes = py.detach(|| self.objects.info(&addresses)).map_err(|error| store_error(&error))?;
        answers(py, outcomes, info)
    }

    /// Uploads `(bucket, key, (bytes, None) or (None, file), content type, metadata, encryption)`;
    /// `False` for what was there already and stays.
    #[allow(clippy::type_complexity, reason = "a tuple per object, as Python makes them")]
    fn put<'py>(
        &self,
        py: Python<'py>,
        given: Vec<(String, String, Source, Option<String>, Vec<(String, String)>, Option<String>)>,
        overwrite: bool,
    ) -> PyResult<Bound<'py, PyList>> {
        let uploads: Vec<Upload> = given
            .into_iter()
            .map(|(bucket, key, source, content_type, metadata, encryption)| {
                let content = match source {
                    (Some(bytes), _) => Content::Memory(bytes::Bytes::from_owner(bytes)),
                    (None, file) => Content::File(PathBuf::from(file.unwrap_or_default())),
                };
                Upload { to: Address { bucket, key }, content, content_type, metadata, encryption }
            })
            .collect();
        let outcomes = py.detach(|| self.objects.put(&uploads, overwrite)).map_err(|error| store_error(&error))?;
        answers(py, outcomes, |py, uploaded| Ok(uploaded.into_pyobject(py)?.to_owned().into_any()))
    }

    /// Lists below `(bucket, prefix)`: `(key, size or None, epoch milliseconds)`.
    fn list<'py>(
        &self,
        py: Python<'py>,
        prefixes: Vec<(String, String)>,
        recursive: bool,
    ) -> PyResult<Bound<'py, PyList>> {
        let prefixes = addresses(prefixes);
        let outcomes = py.detach(|| self.objects.list(&prefixes, recursive)).map_err(|error| store_error(&error))?;
        answers(py, outcomes, |py, found| {
            let entries =
                found.into_iter().map(|(key, known)| (key, known.map(|(size, _)| size), known.map(|(_, at)| at)));
            Ok(PyList::new(py, entries)?.into_any())
        })
    }
}

fn addresses(pairs: Vec<(String, String)>) -> Vec<Address> {
    pairs.into_iter().map(|(bucket, key)| Address { bucket, key }).collect()
}

/// `(size, epoch milliseconds, content type, metadata, first byte, number of bytes, encryption)`.
fn info<'py>(py: Python<'py>, info: Info) -> PyResult<Bound<'py, PyAny>> {
    let (first, length) = info.range;
    let tuple: Bound<'py, PyTuple> =
        (info.size, info.modified, info.content_type, info.metadata, first, length, info.encryption)
            .into_pyobject(py)?;
    Ok(tuple.into_any())
}

fn answers<'py, T>(
    py: Python<'py>,
    outcomes: Vec<Result<T, Problem>>,
    convert: impl Fn(Python<'py>, T) -> PyResult<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    for outcome in outcomes {
        let pair: Bound<'py, PyTuple> = match outcome {
            Ok(value) => (convert(py, value)?, py.None()).into_pyobject(py)?,
            Err(problem) => (py.None(), kind_and_text(problem)).into_pyobject(py)?,
        };
        list.append(pair)?;
    }
    Ok(list)
}

fn kind_and_text(problem: Problem) -> (&'static str, String) {
    match problem {
        Problem::Missing(text) => ("missing", text),
        Problem::Denied(text) => ("denied", text),
        Problem::NoBucket(text) => ("no bucket", text),
        Problem::InvalidRange(text) => ("invalid range", text),
        Problem::DiskFull(text) => ("disk full", text),
        Problem::CutOff(text) | Problem::Other(text) => ("other", text),
    }
}
