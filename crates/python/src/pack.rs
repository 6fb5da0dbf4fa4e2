//! Packs for reading.

use std::sync::Arc;

use ferroflow_core::id::{AttemptId, RunId, TaskId};
use ferroflow_store::blob::{BlobMapping, read_into};
use ferroflow_store::pack::{Artifact, Encoding, Pack as StoredPack, ValuePlace};
use ferroflow_store::{Datastore, PackPlace};
use ferroflow_task::{load_packs as read_packs, output::place, read_item};
use pyo3::exceptions::PyKeyError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};

use crate::error::store_error;
use crate::json;
use crate::mapping::Mapping;

/// A verified pack.
#[pyclass(frozen, module = "metaflow._native")]
pub struct Pack {
    pub store: Datastore,
    pub pack: StoredPack,
}

#[pymethods]
impl Pack {
    #[staticmethod]
    fn open(py: Python<'_>, root: &str, flow: &str, run: &str, step: &str, task: u64, attempt: u32) -> PyResult<Self> {
        let store = Datastore::at(root).map_err(|error| store_error(&error))?;
        let place = place(flow, run, step, task, attempt);
        let pack = py.detach(|| StoredPack::open(&store, &place)).map_err(|error| store_error(&error))?;
        Ok(Self { store, pack })
    }

    fn names<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        PyList::new(py, self.pack.header.artifacts.iter().map(|(name, _)| name.as_str()))
    }

    fn __contains__(&self, name: &str) -> bool {
        self.pack.artifact(name).is_some()
    }

    fn digest(&self, name: &str) -> PyResult<&str> {
        Ok(&self.require(name)?.hash)
    }

    /// Type, size, hash, encoding and preview.
    fn info<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyDict>> {
        artifact_info(py, self.require(name)?)
    }

    #[getter]
    fn outcome<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        json::value_to_python(py, &self.pack.header.outcome)
    }

    /// Bytes of the pack, for deciding whether to keep it.
    #[getter]
    fn size(&self) -> usize {
        self.pack.size()
    }

    /// `(encoding, value, buffers, mapping)`: for `json` and `raw` the value itself; for
    /// `pickle-5` the pickle, its out-of-band buffers and the mapping behind them, if there is one.
    fn load<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyTuple>> {
        let artifact = self.require(name)?;
        match artifact.encoding {
            Encoding::Json => self.load_json(py, name, artifact),
            Encoding::Raw => self.load_raw(py, name, artifact),
            Encoding::Pickle => self.load_pickle(py, name, artifact),
        }
    }

    /// Item `index` of a foreach over `variable` as `(encoding, value)`; `None` when its items
    /// are not stored one by one.
    fn item<'py>(&self, py: Python<'py>, variable: &str, index: u64) -> PyResult<Option<Bound<'py, PyTuple>>> {
        let item = read_item(&self.store, &self.pack, variable, index).map_err(|error| store_error(&error))?;
        item.map(|item| {
            let value = match item.encoding {
                Encoding::Json => json::decode(py, &item.bytes)?,
                Encoding::Raw | Encoding::Pickle => PyBytes::new(py, &item.bytes).into_any(),
            };
            (item.encoding.as_str(), value).into_pyobject(py)
        })
        .transpose()
    }
}

impl Pack {
    fn require(&self, name: &str) -> PyResult<&Artifact> {
        self.pack.artifact(name).ok_or_else(|| PyKeyError::new_err(name.to_owned()))
    }

    fn load_json<'py>(&self, py: Python<'py>, name: &str, artifact: &Artifact) -> PyResult<Bound<'py, PyTuple>> {
        let value = match &artifact.at {
            ValuePlace::Inline(offset, length) => {
                let text = self.pack.inline(*offset, *length).map_err(|error| store_error(&error))?;
                json::decode(py, text)?
            }
            ValuePlace::Blob(hash, length) => json::decode(py, self.map(py, name, hash, *length)?.bytes())?,
        };
        (artifact.encoding.as_str(), value, py.None(), py.None()).into_pyobject(py)
    }

    fn load_raw<'py>(&self, py: Python<'py>, name: &str, artifact: &Artifact) -> PyResult<Bound<'py, PyTuple>> {
        let value = match &artifact.at {
            ValuePlace::Inline(offset, length) => {
                PyBytes::new(py, self.pack.inline(*offset, *length).map_err(|error| store_error(&error))?)
            }
            ValuePlace::Blob(hash, length) => {
                let length = usize::try_from(*length).unwrap_or(usize::MAX);
                PyBytes::new_with(py, length, |target| {
                    py.detach(|| read_into(&self.store, hash, target, &|| self.pack.describe(name)))
                        .map_err(|error| store_error(&error))
                })?
            }
        };
        (artifact.encoding.as_str(), value, py.None(), py.None()).into_pyobject(py)
    }

    fn load_pickle<'py>(&self, py: Python<'py>, name: &str, artifact: &Artifact) -> PyResult<Bound<'py, PyTuple>> {
        match &artifact.at {
            ValuePlace::Inline(offset, length) => {
                let whole = self.pack.inline(*offset, *length).map_err(|error| store_error(&error))?;
                self.inline_pickle(py, artifact, whole)
            }
            ValuePlace::Blob(hash, length) => {
                let blob = self.map(py, name, hash, *length)?;
                let table = PyList::new(py, &artifact.buffers)?;
                let mapping = Bound::new(py, Mapping { blob })?;
                (artifact.encoding.as_str(), artifact.pickle, table, mapping).into_pyobject(py)
            }
        }
    }

    fn inline_pickle<'py>(&self, py: Python<'py>, artifact: &Artifact, whole: &[u8]) -> PyResult<Bound<'py, PyTuple>> {
        let part = |offset: u64, length: u64| {
            whole.get(offset as usize..(offset + length) as usize).ok_or_else(|| {
                store_error(&ferroflow_store::StoreError::Damaged(format!(
                    "the buffer table of task {} does not fit its data",
                    self.pack.place
                )))
            })
        };
        let pickle = if artifact.buffers.is_empty() { whole } else { part(0, artifact.pickle)? };
        let buffers = PyList::empty(py);
        for &(offset, length) in &artifact.buffers {
            buffers.append(pyo3::types::PyByteArray::new(py, part(offset, length)?))?;
        }
        (artifact.encoding.as_str(), PyBytes::new(py, pickle), buffers, py.None()).into_pyobject(py)
    }

    fn map(&self, py: Python<'_>, name: &str, hash: &str, length: u64) -> PyResult<BlobMapping> {
        py.detach(|| BlobMapping::open(&self.store, hash, length, &|| self.pack.describe(name)))
            .map_err(|error| store_error(&error))
    }
}

pub fn artifact_info<'py>(py: Python<'py>, artifact: &Artifact) -> PyResult<Bound<'py, PyDict>> {
    let info = PyDict::new(py);
    info.set_item("type", &artifact.type_name)?;
    info.set_item("size", artifact.size)?;
    info.set_item("hash", &artifact.hash)?;
    info.set_item("encoding", artifact.encoding.as_str())?;
    info.set_item("preview", artifact.preview.as_deref())?;
    info.set_item("inline", matches!(artifact.at, ValuePlace::Inline(..)))?;
    Ok(info)
}

/// Reads many packs of one flow at once; `places` are `(run, step, task, attempt)`.
#[pyfunction]
pub fn load_packs(
    py: Python<'_>,
    root: &str,
    flow: &str,
    places: Vec<(String, String, u64, u32)>,
) -> PyResult<Vec<Pack>> {
    let store = Datastore::at(root).map_err(|error| store_error(&error))?;
    let places = shared_places(flow, places);
    let packs = py.detach(|| read_packs(&store, &places)).map_err(|error| store_error(&error))?;
    Ok(packs.into_iter().map(|pack| Pack { store: store.clone(), pack }).collect())
}

/// Brings the blobs of one artifact of many packs from a remote store, all at once; those that are
/// on this machine, and packs without the artifact, cost nothing.
#[pyfunction]
pub fn fetch_artifact(py: Python<'_>, packs: Vec<PyRef<'_, Pack>>, name: &str) -> PyResult<()> {
    let Some(store) = packs.first().map(|pack| pack.store.clone()) else { return Ok(()) };
    let mut blobs: Vec<(String, u64)> = packs
        .iter()
        .filter_map(|pack| match &pack.pack.artifact(name)?.at {
            ValuePlace::Blob(hash, length) => Some((hash.clone(), *length)),
            ValuePlace::Inline(..) => None,
        })
        .collect();
    blobs.sort_unstable();
    blobs.dedup();
    drop(packs);
    py.detach(|| ferroflow_store::blob::fetch(&store, &blobs)).map_err(|error| store_error(&error))
}

/// Neighbours mostly share run and step; so do their texts.
fn shared_places(flow: &str, places: Vec<(String, String, u64, u32)>) -> Vec<PackPlace> {
    let flow: Arc<str> = Arc::from(flow);
    let mut last: Option<(RunId, Arc<str>)> = None;
    let mut shared = Vec::with_capacity(places.len());
    for (run, step, task, attempt) in places {
        let (run, step) = match &last {
            Some((same_run, same_step)) if same_run.as_str() == run && **same_step == *step => {
                (same_run.clone(), Arc::clone(same_step))
            }
            _ => (RunId::from(run), Arc::from(step)),
        };
        last = Some((run.clone(), Arc::clone(&step)));
        let id = AttemptId { task: TaskId(task), attempt };
        shared.push(PackPlace { flow: Arc::clone(&flow), run, step, id });
    }
    shared
}
