//! The pack a task writes, until it is committed: what stays inline, what becomes a blob, and the
//! bytes in the end.

use std::fs;
use std::io::Write;
use std::path::Path;

use serde_json::Value;

use crate::blob::{BlobMapping, StoredValue, store_as_blob};
use crate::error::StoreError;
use crate::location::{Datastore, PackPlace, create_in_folder};
use crate::pack::{
    Artifact, CHECKSUM, Encoding, ForeachItems, MAGIC, PREAMBLE, Pack, PackHeader, VERSION, ValuePlace, checksum,
};
use crate::remote::BlobUpload;

/// From here on a value may be worth a blob when many tasks are about to copy it …
const SHARED_FROM: u64 = 4 << 10;
/// … which it is once the copies would take this much.
const SHARED_COPIES: u64 = 1 << 20;

/// Opens a blob by artifact, hash and length.
pub(crate) type OpenBlob<'a> = dyn Fn(&str, &str, u64) -> Result<BlobMapping, StoreError> + 'a;

/// A pack being put together.
#[derive(Debug)]
pub struct PackBuilder {
    store: Datastore,
    place: PackPlace,
    artifacts: Vec<(String, Artifact)>,
    items: Option<ForeachItems>,
    inline: Vec<u8>,
    /// Blobs that this builder was given, as opposed to those it passes on.
    own_blobs: Vec<BlobUpload>,
}

/// What [`PackBuilder::add`] has to know about a value beside its bytes.
#[derive(Clone, Debug)]
pub struct Description {
    pub type_name: String,
    pub preview: Option<String>,
    pub encoding: Encoding,
    /// Length of the pickle when buffers follow it.
    pub pickle: u64,
    pub buffers: Vec<(u64, u64)>,
    /// See [`Artifact::tag`].
    pub tag: Option<String>,
}

impl PackBuilder {
    pub fn new(store: Datastore, place: PackPlace) -> Self {
        Self { store, place, artifacts: Vec::new(), items: None, inline: Vec::new(), own_blobs: Vec::new() }
    }

    pub fn store(&self) -> &Datastore {
        &self.store
    }

    pub fn place(&self) -> &PackPlace {
        &self.place
    }

    pub fn artifact(&self, name: &str) -> Option<&Artifact> {
        self.artifacts.iter().find(|(own, _)| own == name).map(|(_, artifact)| artifact)
    }

    /// Adds a value or replaces the one of that name.
    pub fn add(&mut self, name: &str, description: Description, value: &StoredValue) {
        let hash = digest(&description, value);
        let size = stored_length(value);
        let at = self.keep(name, value, false);
        let artifact = Artifact {
            type_name: description.type_name,
            size,
            hash,
            encoding: description.encoding,
            preview: description.preview,
            at,
            pickle: description.pickle,
            buffers: description.buffers,
            tag: description.tag,
        };
        self.put(name, artifact);
    }

    /// Forwards an artifact of another pack as it is: inline bytes are copied, blobs named.
    pub fn pass_on(&mut self, name: &str, source: &Pack) -> Result<(), StoreError> {
        let mut artifact = source.require(name)?.clone();
        if let ValuePlace::Inline(offset, length) = artifact.at {
            let bytes = source.inline(offset, length)?;
            artifact.at = ValuePlace::Inline(self.inline.len() as u64, length);
            self.inline.extend_from_slice(bytes);
        }
        self.put(name, artifact);
        Ok(())
    }

    /// Takes over all that a pack of another datastore has, the blobs' contents included, which
    /// `open` reads there by artifact, hash and length.
    pub(crate) fn bring_all(&mut self, source: &Pack, open: &OpenBlob<'_>) -> Result<(), StoreError> {
        for (name, artifact) in &source.header.artifacts {
            let value = self.brought(name, &artifact.at, source, open)?;
            let at = self.keep(name, &value, false);
            self.put(name, Artifact { at, ..artifact.clone() });
        }
        if let Some(items) = &source.header.items {
            let value = self.brought(&items.variable, &items.at, source, open)?;
            self.set_items(&items.variable, items.count, &value);
        }
        Ok(())
    }

    fn brought(
        &self,
        name: &str,
        at: &ValuePlace,
        source: &Pack,
        open: &OpenBlob<'_>,
    ) -> Result<StoredValue, StoreError> {
        match at {
            ValuePlace::Inline(offset, length) => Ok(StoredValue::Inline(source.inline(*offset, *length)?.to_vec())),
            ValuePlace::Blob(hash, length) => store_as_blob(&self.store, name, open(name, hash, *length)?.bytes()),
        }
    }

    pub fn set_items(&mut self, variable: &str, count: u64, value: &StoredValue) {
        let at = self.keep(variable, value, true);
        self.items = Some(ForeachItems { variable: variable.to_owned(), count, at });
    }

    fn keep(&mut self, artifact: &str, value: &StoredValue, in_parts: bool) -> ValuePlace {
        match value {
            StoredValue::Inline(bytes) => {
                let offset = self.inline.len() as u64;
                self.inline.extend_from_slice(bytes);
                ValuePlace::Inline(offset, bytes.len() as u64)
            }
            StoredValue::Blob { hash, length } => {
                let artifact = artifact.to_owned();
                self.own_blobs.push(BlobUpload { hash: hash.clone(), artifact, in_parts });
                ValuePlace::Blob(hash.clone(), *length)
            }
        }
    }

    fn put(&mut self, name: &str, artifact: Artifact) {
        match self.artifacts.iter_mut().find(|(own, _)| own == name) {
            Some((_, old)) => *old = artifact,
            None => self.artifacts.push((name.to_owned(), artifact)),
        }
    }

    /// Writes the pack; it is durable and complete when its name appears. `readers` tasks follow
    /// this one, and each will copy what is inline here into its own pack.
    pub fn commit(&mut self, outcome: Value, readers: u64) -> Result<(), StoreError> {
        self.settle(readers)?;
        let header = PackHeader {
            flow: self.place.flow.as_ref().to_owned(),
            run: self.place.run.as_str().to_owned(),
            step: self.place.step.as_ref().to_owned(),
            task: self.place.id.task.0,
            attempt: self.place.id.attempt,
            outcome,
            artifacts: self.artifacts.clone(),
            items: self.items.clone(),
        };
        let path = self.store.pack_path(&self.place);
        let bytes = self.assemble(&header);
        let Some(remote) = self.store.remote() else { return write_durably(&path, &bytes) };
        remote.put_pack(&self.store, &self.place, bytes.clone(), &self.blobs_to_upload())?;
        // The copy saves the tasks after this one a download; doing without it is no error.
        let _ = write_durably(&path, &bytes);
        Ok(())
    }

    /// Drops the bytes of values that were replaced, and makes blobs of those that many would copy.
    fn settle(&mut self, readers: u64) -> Result<(), StoreError> {
        let inline = std::mem::take(&mut self.inline);
        let mut artifacts = std::mem::take(&mut self.artifacts);
        for (name, artifact) in &mut artifacts {
            let ValuePlace::Inline(offset, length) = artifact.at else { continue };
            let bytes = &inline[offset as usize..(offset + length) as usize];
            let shared = length >= SHARED_FROM && length.saturating_mul(readers) >= SHARED_COPIES;
            let value =
                if shared { store_as_blob(&self.store, name, bytes)? } else { StoredValue::Inline(bytes.to_vec()) };
            artifact.at = self.keep(name, &value, false);
        }
        self.artifacts = artifacts;
        if let Some(mut items) = self.items.take() {
            // Read by the splits, not copied by them.
            if let ValuePlace::Inline(offset, length) = items.at {
                let bytes = inline[offset as usize..(offset + length) as usize].to_vec();
                items.at = self.keep(&items.variable, &StoredValue::Inline(bytes), true);
            }
            self.items = Some(items);
        }
        Ok(())
    }

    /// Blobs given to this builder that the pack still names, each once.
    fn blobs_to_upload(&self) -> Vec<BlobUpload> {
        let places = self.artifacts.iter().map(|(_, artifact)| &artifact.at);
        let named: Vec<&String> = places
            .chain(self.items.iter().map(|items| &items.at))
            .filter_map(|at| if let ValuePlace::Blob(hash, _) = at { Some(hash) } else { None })
            .collect();
        let mut wanted = self.own_blobs.clone();
        wanted.retain(|blob| named.contains(&&blob.hash));
        wanted.sort_unstable_by(|a, b| a.hash.cmp(&b.hash));
        wanted.dedup_by(|a, b| a.hash == b.hash);
        wanted
    }

    fn assemble(&self, header: &PackHeader) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(PREAMBLE + 2048 + self.inline.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 36]);
        serde_json::to_writer(&mut bytes, header).expect("a header is plain data");
        let header_length = u32::try_from(bytes.len() - PREAMBLE).expect("a header is below 4 GiB");
        bytes[12..16].copy_from_slice(&header_length.to_le_bytes());
        bytes.extend_from_slice(&self.inline);
        let sum = checksum(&bytes);
        bytes[CHECKSUM].copy_from_slice(&sum);
        bytes
    }
}

fn stored_length(value: &StoredValue) -> u64 {
    match value {
        StoredValue::Inline(bytes) => bytes.len() as u64,
        StoredValue::Blob { length, .. } => *length,
    }
}

fn digest(description: &Description, value: &StoredValue) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(description.encoding.as_str().as_bytes());
    hasher.update(&description.pickle.to_le_bytes());
    hasher.update(&(description.buffers.len() as u64).to_le_bytes());
    for (offset, length) in &description.buffers {
        hasher.update(&offset.to_le_bytes());
        hasher.update(&length.to_le_bytes());
    }
    if let Some(tag) = &description.tag {
        hasher.update(tag.as_bytes());
    }
    match value {
        StoredValue::Inline(bytes) => hasher.update(blake3::hash(bytes).to_hex().as_bytes()),
        StoredValue::Blob { hash, .. } => hasher.update(hash.as_bytes()),
    };
    hasher.finalize().to_hex().to_string()
}

fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("pack");
    let temporary = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let result =
        write_new(&temporary, bytes).and_then(|()| fs::rename(&temporary, path).map_err(|error| writing(path, error)));
    if result.is_err() {
        // Best effort: the reason is already being told.
        let _ = fs::remove_file(&temporary);
    }
    result
}

fn write_new(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let mut file = create_in_folder(path, || fs::File::create(path))?;
    file.write_all(bytes).and_then(|()| file.sync_data()).map_err(|error| writing(path, error))
}

fn writing(path: &Path, error: std::io::Error) -> StoreError {
    StoreError::io("write this task's artifacts to", path, error)
}
