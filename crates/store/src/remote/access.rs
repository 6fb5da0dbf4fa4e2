//! The datastore as plain objects for the engine: code packages, and logs of remote tasks.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ferroflow_core::id::{AttemptId, RunId};
use ferroflow_core::port::{Later, LogPlace, ObjectAccess, ObjectEntry, ObjectError, Versioned};
use ferroflow_core::task::{StoreLocation, TaskOutcome};
use futures::TryStreamExt;
use object_store::{GetOptions, GetRange, ObjectStoreExt as _, PutMode, PutOptions, PutPayload};

use super::connect::{Patience, connect};
use super::requests::region_of;
use super::told::is_outside;
use super::{Client, Doing, Remote};
use crate::error::StoreError;
use crate::location::PackPlace;

/// A bucket for code that runs on a runtime. It belongs to the first runtime it is used on.
#[derive(Debug)]
pub struct RemoteObjects {
    remote: Remote,
    location: StoreLocation,
    client: Mutex<Option<Client>>,
}

impl RemoteObjects {
    /// The objects of a location; `None` for a local one.
    pub fn of(location: &StoreLocation) -> Result<Option<Self>, StoreError> {
        let remote = Remote::of(location)?;
        Ok(remote.map(|remote| Self { remote, location: location.clone(), client: Mutex::new(None) }))
    }

    pub fn remote(&self) -> &Remote {
        &self.remote
    }

    /// The key of an attempt's log, as readers of logs expect it.
    pub fn log_key(&self, place: &LogPlace) -> String {
        self.remote.log_key(place)
    }

    pub(super) fn client(&self) -> Result<Client, ObjectError> {
        let mut slot = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = &*slot {
            return Ok(client.clone());
        }
        let client = connect(&self.remote, Patience::Long)?;
        *slot = Some(client.clone());
        Ok(client)
    }

    async fn write(&self, key: &str, data: Vec<u8>, only_if_absent: bool) -> Result<bool, ObjectError> {
        let client = self.client()?;
        let mode = if only_if_absent { PutMode::Create } else { PutMode::Overwrite };
        let options = PutOptions { mode, ..PutOptions::default() };
        match client.store.put_opts(&self.remote.path(key), PutPayload::from(data), options).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
            Err(error) => Err(self.remote.tell(Doing::Write, key, &error)),
        }
    }

    async fn remove(&self, key: &str) -> Result<(), ObjectError> {
        let client = self.client()?;
        match client.store.delete(&self.remote.path(key)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.remote.tell(Doing::Write, key, &error)),
        }
    }

    async fn read_from(&self, key: &str, from: u64) -> Result<Option<Vec<u8>>, ObjectError> {
        let client = self.client()?;
        let range = (from > 0).then_some(GetRange::Offset(from));
        let options = GetOptions { range, ..GetOptions::default() };
        let got = async { client.store.get_opts(&self.remote.path(key), options).await?.bytes().await };
        match got.await {
            Ok(bytes) => Ok(Some(bytes.to_vec())),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            // Nothing new since `from`.
            Err(error) if from > 0 && is_outside(&error) => Ok(Some(Vec::new())),
            Err(error) => Err(self.remote.tell(Doing::Read, key, &error)),
        }
    }

    async fn entries(&self, prefix: &str) -> Result<Vec<ObjectEntry>, ObjectError> {
        let client = self.client()?;
        // A prefix of `object_store` is whole path segments: `a/b` does not list `a/bc`.
        let (folder, _) = prefix.rsplit_once('/').unwrap_or(("", prefix));
        // The scope goes behind `runs/`.
        let folder = folder.strip_suffix("/runs").map_or_else(|| folder.to_owned(), |flow| format!("{flow}/runs/"));
        let base = self.remote.path(&folder);
        let mut found: Vec<ObjectEntry> = client
            .store
            .list(Some(&base))
            .try_filter_map(|object| async move {
                let key = self.remote.key_of(&object.location).filter(|key| key.starts_with(prefix));
                Ok(key.map(|key| ObjectEntry { key, size: object.size }))
            })
            .try_collect()
            .await
            .map_err(|error| self.remote.tell(Doing::List, prefix, &error))?;
        found.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }

    async fn link(&self, key: &str, valid_seconds: u64, endpoint: Option<&str>) -> Result<String, ObjectError> {
        let client = match endpoint {
            None if region_of(&self.remote.bucket).is_none() => self.client()?,
            // Made before the bucket's region was known, that client would sign for another.
            None => connect(&self.remote, Patience::Long)?,
            // The address is part of what is signed.
            Some(endpoint) => {
                let mut location = self.location.clone();
                location.options.insert("endpoint".to_owned(), endpoint.to_owned());
                let elsewhere = Remote::of(&location).ok().flatten();
                let elsewhere =
                    elsewhere.ok_or_else(|| ObjectError::Unavailable(format!("`{endpoint}` is not an endpoint")))?;
                connect(&elsewhere, Patience::Short)?
            }
        };
        let valid = Duration::from_secs(valid_seconds);
        let signed = client.signer.signed_url(reqwest::Method::GET, &self.remote.path(key), valid).await;
        signed.map(|url| url.to_string()).map_err(|error| self.remote.tell(Doing::Sign, key, &error))
    }
}

impl ObjectAccess for RemoteObjects {
    fn put<'a>(&'a self, key: &'a str, data: Vec<u8>, only_if_absent: bool) -> Later<'a, Result<bool, ObjectError>> {
        Box::pin(self.write(key, data, only_if_absent))
    }

    fn get_from<'a>(&'a self, key: &'a str, from: u64) -> Later<'a, Result<Option<Vec<u8>>, ObjectError>> {
        Box::pin(self.read_from(key, from))
    }

    fn get_versioned<'a>(&'a self, key: &'a str) -> Later<'a, Result<Option<Versioned>, ObjectError>> {
        Box::pin(self.read_versioned(key))
    }

    fn replace<'a>(
        &'a self,
        key: &'a str,
        data: Vec<u8>,
        version: Option<&'a str>,
    ) -> Later<'a, Result<Option<String>, ObjectError>> {
        Box::pin(self.write_if(key, data, version))
    }

    fn outcome<'a>(
        &'a self,
        flow: &'a str,
        run: &'a RunId,
        step: &'a str,
        id: AttemptId,
    ) -> Later<'a, Result<Option<TaskOutcome>, ObjectError>> {
        let place = PackPlace { flow: flow.into(), run: run.clone(), step: step.into(), id };
        Box::pin(async move { self.read_outcome(&place).await })
    }

    fn delete<'a>(&'a self, key: &'a str) -> Later<'a, Result<(), ObjectError>> {
        Box::pin(self.remove(key))
    }

    fn list<'a>(&'a self, prefix: &'a str) -> Later<'a, Result<Vec<ObjectEntry>, ObjectError>> {
        Box::pin(self.entries(prefix))
    }

    fn presigned<'a>(
        &'a self,
        key: &'a str,
        valid_seconds: u64,
        endpoint: Option<&'a str>,
    ) -> Later<'a, Result<String, ObjectError>> {
        Box::pin(self.link(key, valid_seconds, endpoint))
    }
}
