//! A bucket's plain objects for a process that may wait and keeps its connection: the supervisor of
//! a remote task. No user code runs in that process, so the runtime may stay.

use std::sync::Mutex;
use std::sync::PoisonError;

use ferroflow_core::port::{ObjectAccess, ObjectError};
use ferroflow_core::task::StoreLocation;
use tokio::runtime::{Builder, Runtime};

use super::access::RemoteObjects;
use super::told::misconfigured;
use crate::error::StoreError;

/// Calls block until the store has answered or the retries that make sense are spent.
#[derive(Debug)]
pub struct BlockingObjects {
    runtime: Mutex<Runtime>,
    objects: RemoteObjects,
}

impl BlockingObjects {
    /// The location must be a remote one.
    pub fn open(location: &StoreLocation) -> Result<Self, StoreError> {
        let objects = RemoteObjects::of(location)?
            .ok_or_else(|| misconfigured(format!("`{}` is a folder, not a bucket", location.root)))?;
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| {
            StoreError::Remote(ObjectError::Unavailable(format!("cannot prepare network access: {error}")))
        })?;
        Ok(Self { runtime: Mutex::new(runtime), objects })
    }

    /// Writes an object in place of what is there.
    pub fn put(&self, key: &str, data: Vec<u8>) -> Result<(), ObjectError> {
        self.wait(self.objects.put(key, data, false)).map(drop)
    }

    /// `None` when there is no such object.
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>, ObjectError> {
        self.wait(self.objects.get_from(key, 0))
    }

    /// One that is not there is no fault.
    pub fn delete(&self, key: &str) -> Result<(), ObjectError> {
        self.wait(self.objects.delete(key))
    }

    fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.lock().unwrap_or_else(PoisonError::into_inner).block_on(work)
    }
}
