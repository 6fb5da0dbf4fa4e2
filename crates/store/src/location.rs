//! Where things are under the datastore root, and which attempt a pack belongs to.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use ferroflow_core::id::{AttemptId, RunId};
use ferroflow_core::port::LogPlace;
use ferroflow_core::task::StoreLocation;

use crate::error::StoreError;
use crate::remote::{Remote, cache};
use crate::verified::VerifiedFiles;

/// A datastore: a root folder (`.metaflow`), or a bucket with a folder of this machine before it,
/// which has the same layout and through which everything passes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Datastore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    remote: Option<Remote>,
    verified: OnceLock<VerifiedFiles>,
}

/// One attempt of one task, whose pack it names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PackPlace {
    pub flow: Arc<str>,
    pub run: RunId,
    pub step: Arc<str>,
    pub id: AttemptId,
}

impl fmt::Display for PackPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}/{}/{}/{}` (attempt {})", self.flow, self.run, self.step, self.id.task, self.id.attempt)
    }
}

impl Datastore {
    /// The local datastore in a folder.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { inner: Arc::new(Inner { root: root.into(), remote: None, verified: OnceLock::new() }) }
    }

    /// The datastore at a location. Nothing is asked of a remote one yet.
    pub fn open(location: &StoreLocation) -> Result<Self, StoreError> {
        let Some(remote) = Remote::of(location)? else { return Ok(Self::new(&location.root)) };
        let root = cache::folder_of(location)?;
        Ok(Self { inner: Arc::new(Inner { root, remote: Some(remote), verified: OnceLock::new() }) })
    }

    /// The datastore that a text names: a folder's path, or a [`StoreLocation`] as JSON.
    pub fn at(text: &str) -> Result<Self, StoreError> {
        if !text.starts_with('{') {
            return Ok(Self::new(text));
        }
        let location = serde_json::from_str(text)
            .map_err(|error| StoreError::Damaged(format!("`{text}` is not the location of a datastore: {error}")))?;
        Self::open(&location)
    }

    /// The bucket behind the folder, if there is one.
    pub fn remote(&self) -> Option<&Remote> {
        self.inner.remote.as_ref()
    }

    /// The root folder; of a remote datastore, this machine's copy of some of it.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    pub fn pack_path(&self, place: &PackPlace) -> PathBuf {
        self.step_folder(&place.flow, &place.run, &place.step)
            .join(format!("{}.{}.pack", place.id.task, place.id.attempt))
    }

    pub fn log_path(&self, place: &LogPlace) -> PathBuf {
        self.step_folder(&place.flow, &place.run, &place.step)
            .join(format!("{}.{}.log", place.id.task, place.id.attempt))
    }

    pub fn blob_path(&self, hash: &str) -> PathBuf {
        let prefix = hash.get(..2).unwrap_or("__");
        self.inner.root.join("data").join(prefix).join(hash)
    }

    pub(crate) fn blob_folder(&self) -> PathBuf {
        self.inner.root.join("data")
    }

    fn step_folder(&self, flow: &str, run: &RunId, step: &str) -> PathBuf {
        let mut path = self.inner.root.join(flow);
        path.push("runs");
        path.push(run.as_str());
        path.push(step);
        path
    }

    pub(crate) fn verified(&self) -> &VerifiedFiles {
        self.inner.verified.get_or_init(|| VerifiedFiles::open(&self.inner.root))
    }
}

/// Opens a file for writing and makes its folder if that is missing; folders almost always exist,
/// so they are not asked for first.
pub(crate) fn create_in_folder(
    path: &Path,
    open: impl Fn() -> std::io::Result<fs::File>,
) -> Result<fs::File, StoreError> {
    match open() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder).map_err(|error| StoreError::io("create the folder", folder, error))?;
            }
            open().map_err(|error| StoreError::io("write", path, error))
        }
        other => other.map_err(|error| StoreError::io("write", path, error)),
    }
}
