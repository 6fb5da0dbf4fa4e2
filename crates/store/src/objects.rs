//! The datastore as plain objects, through `object_store`: the part that is the same for a folder
//! and for remote stores. The fast local paths (streaming writes, mappings) are in `blob` and
//! `pack`.

use std::sync::Arc;

use ferroflow_core::id::{AttemptId, RunId, TaskId};
use futures::TryStreamExt;
use futures::executor::block_on;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};

use crate::error::StoreError;
use crate::location::Datastore;

/// Objects under a datastore's root.
#[derive(Clone, Debug)]
pub struct Objects {
    store: Arc<dyn ObjectStore>,
}

impl Objects {
    /// The objects of a local root, which must exist.
    pub fn open(datastore: &Datastore) -> Result<Self, StoreError> {
        let store = LocalFileSystem::new_with_prefix(datastore.root()).map_err(|error| told("open", "", &error))?;
        Ok(Self { store: Arc::new(store) })
    }

    /// Writes a small object in one go.
    pub fn put(&self, path: &str, data: Vec<u8>) -> Result<(), StoreError> {
        let target = ObjectPath::from(path);
        block_on(self.store.put(&target, PutPayload::from(data))).map_err(|error| told("write", path, &error))?;
        Ok(())
    }

    /// Reads an object; `None` when there is none.
    pub fn get(&self, path: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let target = ObjectPath::from(path);
        let read = async { self.store.get(&target).await?.bytes().await };
        match block_on(read) {
            Ok(bytes) => Ok(Some(bytes.to_vec())),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(told("read", path, &error)),
        }
    }

    /// Attempts of a step that have a pack, in order: what a reader goes by when the metadata
    /// is lost.
    pub fn packed_attempts(&self, flow: &str, run: &RunId, step: &str) -> Result<Vec<AttemptId>, StoreError> {
        let folder = format!("{flow}/runs/{run}/{step}");
        let listing = self.store.list(Some(&ObjectPath::from(folder.as_str())));
        let objects: Vec<_> = block_on(listing.try_collect()).map_err(|error| told("list", &folder, &error))?;
        let mut found: Vec<AttemptId> =
            objects.iter().filter_map(|object| attempt_of(object.location.filename()?)).collect();
        found.sort_unstable();
        Ok(found)
    }
}

fn attempt_of(name: &str) -> Option<AttemptId> {
    let (task, attempt) = name.strip_suffix(".pack")?.split_once('.')?;
    Some(AttemptId { task: TaskId(task.parse().ok()?), attempt: attempt.parse().ok()? })
}

fn told(doing: &'static str, path: &str, error: &object_store::Error) -> StoreError {
    StoreError::io(doing, std::path::Path::new(path), std::io::Error::other(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_come_back_and_packs_are_found() {
        let root = tempfile::tempdir().expect("folder");
        let objects = Objects::open(&Datastore::new(root.path())).expect("open");
        for name in ["10.0.pack", "2.1.pack", "2.0.pack", "2.0.log", ".3.0.pack.77"] {
            objects.put(&format!("F/runs/1/s/{name}"), vec![1, 2]).expect("put");
        }
        assert_eq!(objects.get("F/runs/1/s/2.0.log").expect("get"), Some(vec![1, 2]));
        assert_eq!(objects.get("F/none").expect("get"), None);
        let found = objects.packed_attempts("F", &RunId::from("1"), "s").expect("list");
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(found, ["2.0", "2.1", "10.0"]);
        assert_eq!(objects.packed_attempts("F", &RunId::from("2"), "s").expect("list"), []);
    }
}
