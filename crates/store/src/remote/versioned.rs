//! Objects that several engines may write, where only one may win: writes on condition that nobody
//! wrote since. Also what a pack says of its task's end, for an engine that was not there.

use ferroflow_core::port::ObjectError;
use ferroflow_core::task::TaskOutcome;
use object_store::{Error, ObjectStoreExt, PutMode, PutOptions, PutPayload, PutResult, UpdateVersion};

use super::Doing;
use super::access::RemoteObjects;
use crate::location::PackPlace;
use crate::pack::Pack;

/// An object's version as one text.
fn text_of(e_tag: Option<String>, version: Option<String>) -> String {
    serde_json::to_string(&(e_tag, version)).expect("plain data")
}

fn version_of(text: &str) -> UpdateVersion {
    let (e_tag, version) = serde_json::from_str(text).unwrap_or_default();
    UpdateVersion { e_tag, version }
}

impl RemoteObjects {
    pub(super) async fn read_versioned(&self, key: &str) -> Result<Option<(Vec<u8>, String)>, ObjectError> {
        let client = self.client()?;
        let got = async {
            let found = client.store.get(&self.remote().path(key)).await?;
            let version = text_of(found.meta.e_tag.clone(), found.meta.version.clone());
            Ok((found.bytes().await?.to_vec(), version))
        };
        match got.await {
            Ok(found) => Ok(Some(found)),
            Err(error @ Error::NotFound { .. }) => match self.remote().tell(Doing::Read, key, &error) {
                ObjectError::NotFound(text) if text.contains("there is no such object") => Ok(None),
                told => Err(told),
            },
            Err(error) => Err(self.remote().tell(Doing::Read, key, &error)),
        }
    }

    pub(super) async fn write_if(
        &self,
        key: &str,
        data: Vec<u8>,
        version: Option<&str>,
    ) -> Result<Option<String>, ObjectError> {
        let mode = version.map_or(PutMode::Create, |version| PutMode::Update(version_of(version)));
        let written = match self.put_with(key, data.clone(), mode).await {
            // A store that knows no conditions; the metadata store still sees to it that one wins.
            Err(Error::NotImplemented { .. }) => self.put_with(key, data, PutMode::Overwrite).await,
            other => other,
        };
        match written {
            Ok(put) => Ok(Some(text_of(put.e_tag, put.version))),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(None),
            // What was to be replaced is gone.
            Err(Error::NotFound { .. }) if version.is_some() => Ok(None),
            Err(error) => Err(self.remote().tell(Doing::Write, key, &error)),
        }
    }

    async fn put_with(&self, key: &str, data: Vec<u8>, mode: PutMode) -> Result<PutResult, Error> {
        let client = self.client().map_err(|error| Error::Generic { store: "datastore", source: Box::new(error) })?;
        let options = PutOptions { mode, ..PutOptions::default() };
        client.store.put_opts(&self.remote().path(key), PutPayload::from(data), options).await
    }

    pub(super) async fn read_outcome(&self, place: &PackPlace) -> Result<Option<TaskOutcome>, ObjectError> {
        let key = self.remote().pack_key(place);
        let Some((data, _)) = self.read_versioned(&key).await? else { return Ok(None) };
        let pack = Pack::of_bytes(place, &key, data).map_err(|error| ObjectError::Unavailable(error.to_string()))?;
        Ok(serde_json::from_value(pack.header.outcome).ok())
    }
}
