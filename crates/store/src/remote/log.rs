//! Logs of a remote datastore: written to this machine's folder while a task runs, uploaded as one
//! object when it is over. The engine's side has one thread that uploads; readers have none.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;
use ferroflow_core::log_segment::{RunKeys, SegmentReader, segment_of};
use ferroflow_core::port::{LogLine, LogPlace, LogStore, MetadataError, ObjectEntry, ObjectError, Stream};
use ferroflow_core::task::{Millis, StoreLocation};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::{ObjectStoreExt, PutPayload};

use super::transfer::local;
use super::{Client, Doing, Remote};
use crate::error::StoreError;
use crate::location::Datastore;
use crate::log::{FileLogStore, decode};

const UPLOADS_AT_ONCE: usize = 4;

/// Logs below a bucket.
#[derive(Debug)]
pub struct RemoteLogStore {
    store: Datastore,
    spool: FileLogStore,
    uploader: Mutex<Option<Uploader>>,
}

#[derive(Debug)]
struct Uploader {
    places: Sender<LogPlace>,
    thread: JoinHandle<Vec<String>>,
}

impl RemoteLogStore {
    /// The store must be a remote one.
    pub fn new(store: Datastore) -> Self {
        let spool = FileLogStore::new(store.clone());
        Self { store, spool, uploader: Mutex::new(None) }
    }

    /// Waits until every log that was closed is in the bucket. What could not be uploaded stays in
    /// this machine's folder, where readers on this machine find it; the sentences say why.
    pub fn finish(&self) -> Vec<String> {
        let uploader = self.uploader.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Uploader { places, thread }) = uploader else { return Vec::new() };
        drop(places);
        thread.join().unwrap_or_else(|_| vec!["uploading logs ended in a panic".to_owned()])
    }

    fn upload_later(&self, place: &LogPlace) {
        let mut slot = self.uploader.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.is_none() {
            *slot = start(self.store.clone());
        }
        if let Some(uploader) = &*slot {
            // A thread that is gone has said why; the file stays.
            let _ = uploader.places.send(place.clone());
        }
    }

    fn remote(&self) -> Result<&Remote, MetadataError> {
        self.store.remote().ok_or_else(|| MetadataError::Unavailable("this datastore is not a remote one".to_owned()))
    }
}

fn start(store: Datastore) -> Option<Uploader> {
    let (places, receiver) = channel();
    let thread = std::thread::Builder::new().name("logs".to_owned()).spawn(move || upload_all(&store, receiver));
    Some(Uploader { places, thread: thread.ok()? })
}

/// Uploads until the sender is gone; returns what went wrong.
fn upload_all(store: &Datastore, places: Receiver<LogPlace>) -> Vec<String> {
    let Some(remote) = store.remote() else { return Vec::new() };
    let mut problems = Vec::new();
    // Shared with a helper thread where one is needed to enter a runtime.
    let places = Mutex::new(places);
    let next = || places.lock().unwrap_or_else(PoisonError::into_inner).recv();
    while let Ok(first) = next() {
        let places = &places;
        let uploaded = remote.block_on(async |client| {
            let mut under_way = FuturesUnordered::new();
            let mut problems = Vec::new();
            under_way.push(upload(remote, client, store, first.clone()).boxed_local());
            // Whatever came meanwhile shares this client's connections.
            loop {
                while under_way.len() < UPLOADS_AT_ONCE
                    && let Ok(place) = places.lock().unwrap_or_else(PoisonError::into_inner).try_recv()
                {
                    under_way.push(upload(remote, client, store, place).boxed_local());
                }
                match under_way.next().await {
                    Some(Err(error)) => problems.push(error.to_string()),
                    Some(Ok(())) => {}
                    None => return Ok(problems),
                }
            }
        });
        match uploaded {
            Ok(said) => problems.extend(said),
            Err(error) => problems.push(error.to_string()),
        }
    }
    problems
}

async fn upload(remote: &Remote, client: &Client, store: &Datastore, place: LogPlace) -> Result<(), ObjectError> {
    let path = store.log_path(&place);
    let data = match std::fs::read(&path) {
        Ok(data) => data,
        // It printed nothing, or was uploaded already.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(local("read", &path, &error)),
    };
    put(remote, client, &place, data).await?;
    // What is in the bucket now need not be here; should it stay, it is the same.
    let _ = std::fs::remove_file(&path);
    Ok(())
}

async fn put(remote: &Remote, client: &Client, place: &LogPlace, data: Vec<u8>) -> Result<(), ObjectError> {
    let key = remote.log_key(place);
    let put = client.store.put(&remote.path(&key), PutPayload::from(data)).await;
    put.map(drop).map_err(|error| remote.tell(Doing::Write, &key, &error))
}

impl LogStore for RemoteLogStore {
    fn append(&self, place: &LogPlace, stream: Stream, at: Millis, lines: &[Vec<u8>]) -> Result<(), MetadataError> {
        self.spool.append(place, stream, at, lines)
    }

    fn close(&self, place: &LogPlace) {
        self.spool.close(place);
        self.upload_later(place);
    }

    fn replace(&self, place: &LogPlace, lines: &[LogLine]) -> Result<(), MetadataError> {
        let remote = self.remote()?;
        let data = crate::log::encode_all(lines);
        let replaced = remote.block_on(async |client| put(remote, client, place, data).await);
        replaced.map_err(unavailable)?;
        let _ = std::fs::remove_file(self.store.log_path(place));
        Ok(())
    }

    /// The finished log; before there is one, what the task's container has stored so far (its
    /// engine may have died), and for tasks of this machine what is in its folder.
    fn read(&self, place: &LogPlace) -> Result<Vec<LogLine>, MetadataError> {
        let remote = self.remote()?;
        let found = remote.block_on(async |client| match get(remote, client, &remote.log_key(place)).await? {
            Some(data) => Ok(Some(decode(&data))),
            None => read_segments(remote, client, place).await,
        });
        match found {
            Ok(Some(lines)) => Ok(lines),
            Ok(None) => self.spool.read(place),
            Err(error) => match self.spool.read(place) {
                Ok(lines) if !lines.is_empty() => Ok(lines),
                _ => Err(unavailable(error)),
            },
        }
    }
}

async fn get(remote: &Remote, client: &Client, key: &str) -> Result<Option<Bytes>, ObjectError> {
    let got = async { client.store.get(&remote.path(key)).await?.bytes().await };
    match got.await {
        Ok(bytes) => Ok(Some(bytes)),
        Err(object_store::Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(remote.tell(Doing::Read, key, &error)),
    }
}

/// The lines in an attempt's segments; `None` when it has none.
async fn read_segments(
    remote: &Remote,
    client: &Client,
    place: &LogPlace,
) -> Result<Option<Vec<LogLine>>, ObjectError> {
    let location = StoreLocation { kind: String::new(), root: String::new(), options: remote.options.clone() };
    let prefix = RunKeys::new(&place.flow, &place.run, &location).log_prefix(&place.step, place.id);
    let folder = remote.path(prefix.trim_end_matches('/'));
    let listed: Result<Vec<_>, _> = client.store.list(Some(&folder)).try_collect().await;
    let mut keys: Vec<String> = listed
        .map_err(|error| remote.tell(Doing::List, &prefix, &error))?
        .into_iter()
        .filter_map(|object| remote.key_of(&object.location))
        .filter(|key| segment_of(&ObjectEntry { key: key.clone(), size: 0 }).is_some())
        .collect();
    if keys.is_empty() {
        return Ok(None);
    }
    keys.sort_unstable();
    let mut reads = futures::stream::iter(keys.iter().map(|key| get(remote, client, key))).buffered(UPLOADS_AT_ONCE);
    let (mut reader, mut lines) = (SegmentReader::default(), Vec::new());
    while let Some(data) = reads.next().await {
        reader.feed(&data?.unwrap_or_default(), &mut lines);
    }
    reader.finish(&mut lines);
    Ok(Some(lines))
}

impl Drop for RemoteLogStore {
    fn drop(&mut self) {
        for problem in self.finish() {
            eprintln!("A log stays on this machine only: {problem}");
        }
    }
}

#[allow(clippy::needless_pass_by_value, reason = "it is handed to map_err")]
fn unavailable(error: StoreError) -> MetadataError {
    MetadataError::Unavailable(error.to_string())
}

/// The logs of a datastore, local or remote.
pub fn log_store(store: Datastore) -> Box<dyn LogStore> {
    if store.remote().is_some() { Box::new(RemoteLogStore::new(store)) } else { Box::new(FileLogStore::new(store)) }
}
