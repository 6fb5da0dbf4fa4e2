//! A datastore in a bucket (S3, Azure, Google Cloud): where its objects are, and how a call that
//! blocks reaches them. What is stored, and when, is decided in `pack`, `blob` and `log`.
//!
//! A task process has no runtime: each call builds one, with a client, and drops both before it
//! returns. So no thread and no connection of ours is there while user code runs.

pub mod access;
mod aws;
pub mod blocking;
pub mod cache;
mod connect;
mod ini;
pub mod log;
mod memory;
mod requests;
pub mod s3;
mod told;
mod transfer;
mod versioned;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ferroflow_core::port::{LogPlace, ObjectError};
use ferroflow_core::task::StoreLocation;
use object_store::ObjectStore;
use object_store::path::Path as ObjectPath;
use object_store::signer::Signer;
use tokio::runtime::Builder;

use crate::error::StoreError;
use crate::location::PackPlace;

pub use connect::Kind;
pub(crate) use told::Doing;
pub(crate) use transfer::BlobUpload;

/// Requests sent, retries included.
#[derive(Debug, Default)]
pub struct RequestCount(AtomicU64);

impl RequestCount {
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A bucket and the prefix below which everything of the datastore is.
#[derive(Debug)]
pub struct Remote {
    pub(crate) kind: Kind,
    pub(crate) bucket: String,
    prefix: String,
    pub(crate) options: BTreeMap<String, String>,
    pub(crate) requests: Arc<RequestCount>,
}

/// A connected bucket; lives no longer than the runtime it was made in.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub store: Arc<dyn ObjectStore>,
    pub signer: Arc<dyn Signer>,
}

impl Remote {
    /// The bucket a location names; `None` for a local one.
    pub fn of(location: &StoreLocation) -> Result<Option<Self>, StoreError> {
        if location.kind == "local" {
            return Ok(None);
        }
        let kind = Kind::named(&location.kind).ok_or_else(|| {
            told::misconfigured(format!("`{}` is not a kind of datastore: use local, s3, azure or gs", location.kind))
        })?;
        let (bucket, prefix) = kind.split(&location.root).map_err(told::misconfigured)?;
        Ok(Some(Self { kind, bucket, prefix, options: location.options.clone(), requests: Arc::default() }))
    }

    /// Requests sent through this value so far.
    pub fn requests(&self) -> u64 {
        self.requests.get()
    }

    /// `s3://bucket/prefix/key`, for messages.
    pub fn url(&self, key: &str) -> String {
        let key = self.scoped(key);
        let path = [self.bucket.as_str(), self.prefix.as_str(), &key];
        let parts: Vec<&str> = path.into_iter().filter(|part| !part.is_empty()).collect();
        format!("{}://{}", self.kind.scheme(), parts.join("/"))
    }

    pub(crate) fn path(&self, key: &str) -> ObjectPath {
        let key = self.scoped(key);
        let whole = if self.prefix.is_empty() { key } else { format!("{}/{key}", self.prefix) };
        // As it is, not as `From` would escape it: what is listed has to read the same.
        ObjectPath::parse(&whole).unwrap_or_else(|_| ObjectPath::from(whole))
    }

    /// Run ids are numbers that each metadata store counts by itself, so two laptops that share a
    /// bucket would meet in run `1`. So `F/runs/1/…` is `F/runs/<scope>/1/…` in the bucket.
    fn scoped(&self, key: &str) -> String {
        match (self.options.get("scope"), key.split_once("/runs/")) {
            (Some(scope), Some((flow, rest))) if !flow.contains('/') => format!("{flow}/runs/{scope}/{rest}"),
            _ => key.to_owned(),
        }
    }

    /// The key of an object in the bucket; `None` for one that is not of this datastore.
    pub(crate) fn key_of(&self, path: &ObjectPath) -> Option<String> {
        let path: &str = path.as_ref();
        let key = if self.prefix.is_empty() { path } else { path.strip_prefix(&self.prefix)?.strip_prefix('/')? };
        match (self.options.get("scope"), key.split_once("/runs/")) {
            (Some(scope), Some((flow, rest))) if !flow.contains('/') => {
                Some(format!("{flow}/runs/{}", rest.strip_prefix(scope.as_str())?.strip_prefix('/')?))
            }
            _ => Some(key.to_owned()),
        }
    }

    pub(crate) fn pack_key(&self, place: &PackPlace) -> String {
        format!("{}/runs/{}/{}/{}.{}.pack", place.flow, place.run, place.step, place.id.task, place.id.attempt)
    }

    pub(crate) fn log_key(&self, place: &LogPlace) -> String {
        format!("{}/runs/{}/{}/{}.{}.log", place.flow, place.run, place.step, place.id.task, place.id.attempt)
    }

    pub(crate) fn blob_key(hash: &str) -> String {
        format!("data/{}/{hash}", hash.get(..2).unwrap_or("__"))
    }

    /// Makes a small request of the kind a run will make, so that what is wrong with the bucket,
    /// the credentials or the address is said before anything starts.
    pub fn check(&self, flow: &str, about: &str) -> Result<(), StoreError> {
        let key = format!("{flow}/stores/{}", self.options.get("scope").map_or("shared", String::as_str));
        self.block_on_with(connect::Patience::Short, &mut Builder::new_current_thread(), async |client| {
            let payload = object_store::PutPayload::from(about.as_bytes().to_vec());
            let put = client.store.put_opts(&self.path(&key), payload, object_store::PutOptions::default()).await;
            put.map(drop).map_err(|error| self.tell(Doing::Write, &key, &error))
        })
    }

    /// Runs asynchronous work to its end, with a client made for it.
    pub(crate) fn block_on<T: Send>(
        &self,
        work: impl AsyncFnOnce(&Client) -> Result<T, ObjectError> + Send,
    ) -> Result<T, StoreError> {
        self.block_on_with(connect::Patience::Long, &mut Builder::new_current_thread(), work)
    }

    /// The same for much data: connections are read by a thread for each processor, up to four.
    pub(crate) fn block_on_threads<T: Send>(
        &self,
        work: impl AsyncFnOnce(&Client) -> Result<T, ObjectError> + Send,
    ) -> Result<T, StoreError> {
        let threads = std::thread::available_parallelism().map_or(1, |processors| processors.get().min(4));
        self.block_on_with(connect::Patience::Long, Builder::new_multi_thread().worker_threads(threads), work)
    }

    fn block_on_with<T: Send>(
        &self,
        patience: connect::Patience,
        runtime: &mut Builder,
        work: impl AsyncFnOnce(&Client) -> Result<T, ObjectError> + Send,
    ) -> Result<T, StoreError> {
        let inside = || {
            let runtime = runtime.enable_all().build();
            let runtime =
                runtime.map_err(|error| ObjectError::Unavailable(format!("cannot prepare network access: {error}")))?;
            runtime.block_on(async {
                let client = connect::connect(self, patience)?;
                work(&client).await
            })
        };
        let result = if tokio::runtime::Handle::try_current().is_ok() {
            // The caller is on a runtime of its own (the engine), where another cannot be entered.
            std::thread::scope(|scope| {
                let helper = std::thread::Builder::new().spawn_scoped(scope, inside);
                match helper {
                    Ok(helper) => helper.join().expect("network access does not panic"),
                    Err(error) => Err(ObjectError::Unavailable(format!("cannot start a thread: {error}"))),
                }
            })
        } else {
            inside()
        };
        result.map_err(StoreError::Remote)
    }

    pub(crate) fn tell(&self, doing: Doing, key: &str, error: &object_store::Error) -> ObjectError {
        told::told(self, doing, key, error)
    }
}
