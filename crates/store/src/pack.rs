//! The pack: one file per task attempt, with the artifacts' descriptions and the small values.
//!
//! ```text
//! magic (8) | version (u32) | header length (u32) | BLAKE3 of all other bytes (32) | header, JSON | inline values
//! ```

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use ferroflow_core::id::{AttemptId, TaskId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::blob::{StoredValue, damaged};
use crate::error::StoreError;
use crate::location::{Datastore, PackPlace, create_in_folder};

const MAGIC: &[u8; 8] = b"FERROPCK";
const VERSION: u32 = 1;
const PREAMBLE: usize = 48;
const CHECKSUM: std::ops::Range<usize> = 16..48;

/// How a value became bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Encoding {
    /// Plain values that round-trip exactly.
    Json,
    /// The bytes themselves.
    Raw,
    /// Pickle protocol 5, with out-of-band buffers after it.
    #[serde(rename = "pickle-5")]
    Pickle,
}

impl Encoding {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Raw => "raw",
            Self::Pickle => "pickle-5",
        }
    }
}

/// Where the bytes are. Offsets of inline values count from the end of the header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ValuePlace {
    Inline(u64, u64),
    Blob(String, u64),
}

/// Description of one artifact.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Artifact {
    #[serde(rename = "type")]
    pub type_name: String,
    /// Encoded bytes.
    pub size: u64,
    /// BLAKE3 of encoding, buffer table and bytes: equal digests, equal values.
    pub hash: String,
    pub encoding: Encoding,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preview: Option<String>,
    pub at: ValuePlace,
    /// Length of the pickle when buffers follow it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub pickle: u64,
    /// Offset and length of each out-of-band buffer within the value.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub buffers: Vec<(u64, u64)>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The items of a foreach, stored one by one so that a split reads only its own. The bytes are
/// the items and then one [`ItemEntry`] for each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ForeachItems {
    pub variable: String,
    pub count: u64,
    pub at: ValuePlace,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PackHeader {
    pub flow: String,
    pub run: String,
    pub step: String,
    pub task: u64,
    pub attempt: u32,
    pub outcome: Value,
    pub artifacts: Vec<(String, Artifact)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub items: Option<ForeachItems>,
}

/// A pack that was read and verified.
#[derive(Clone, Debug)]
pub struct Pack {
    pub place: PackPlace,
    pub header: PackHeader,
    path: PathBuf,
    bytes: Vec<u8>,
    inline_start: usize,
}

impl Pack {
    pub fn open(store: &Datastore, place: &PackPlace) -> Result<Self, StoreError> {
        let path = store.pack_path(place);
        let Some(remote) = store.remote() else {
            let bytes = fs::read(&path).map_err(|error| missing_or_io(place, &path, error))?;
            return Self::parse(place, path, bytes);
        };
        // A copy of this machine that is damaged is as good as none.
        if let Ok(bytes) = fs::read(&path)
            && let Ok(pack) = Self::parse(place, path.clone(), bytes)
        {
            return Ok(pack);
        }
        remote.fetch_packs(store, &[place])?;
        let bytes = fs::read(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                missing(place, &format!("object `{}`", remote.url(&remote.pack_key(place))))
            }
            _ => StoreError::io("read", &path, error),
        })?;
        Self::parse(place, path, bytes)
    }

    /// Brings the packs that this machine has not seen yet from a remote store, all at once, so
    /// that [`Self::open`] finds them.
    pub fn fetch(store: &Datastore, places: &[PackPlace]) -> Result<(), StoreError> {
        let Some(remote) = store.remote() else { return Ok(()) };
        let absent: Vec<&PackPlace> = places.iter().filter(|place| !store.pack_path(place).exists()).collect();
        if absent.is_empty() { Ok(()) } else { remote.fetch_packs(store, &absent) }
    }

    fn parse(place: &PackPlace, path: PathBuf, bytes: Vec<u8>) -> Result<Self, StoreError> {
        let what = || format!("task {place}");
        let bad = |how: &str| damaged(&path, &what, how);
        if bytes.len() < PREAMBLE || &bytes[..8] != MAGIC {
            return Err(bad("is not a pack"));
        }
        if checksum(&bytes) != bytes[CHECKSUM] {
            return Err(bad("does not match its checksum"));
        }
        if number_at(&bytes, 8) != VERSION {
            return Err(StoreError::Damaged(format!(
                "the file `{}` was written by another version of Ferroflow; read it with that version",
                path.display()
            )));
        }
        let inline_start = PREAMBLE + number_at(&bytes, 12) as usize;
        let header = bytes
            .get(PREAMBLE..inline_start)
            .and_then(|header| serde_json::from_slice::<PackHeader>(header).ok())
            .ok_or_else(|| bad("has an unreadable header"))?;
        if !belongs_to(&header, place) {
            return Err(bad("holds the data of another task"));
        }
        Ok(Self { place: place.clone(), header, path, bytes, inline_start })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn artifact(&self, name: &str) -> Option<&Artifact> {
        self.header.artifacts.iter().find(|(own, _)| own == name).map(|(_, artifact)| artifact)
    }

    /// The artifact, or the error that names what is missing and where.
    pub fn require(&self, name: &str) -> Result<&Artifact, StoreError> {
        self.artifact(name).ok_or_else(|| StoreError::Missing(format!("task {} has no artifact `{name}`", self.place)))
    }

    /// Bytes of an inline value.
    pub fn inline(&self, offset: u64, length: u64) -> Result<&[u8], StoreError> {
        let start = self.inline_start as u64;
        let range = start.checked_add(offset).and_then(|from| Some((from, from.checked_add(length)?)));
        range
            .and_then(|(from, to)| self.bytes.get(from as usize..to as usize))
            .ok_or_else(|| damaged(&self.path, &|| format!("task {}", self.place), "is too short"))
    }

    /// `` artifact `x` of task `F/1/s/2` (attempt 0) ``, for messages.
    pub fn describe(&self, name: &str) -> String {
        format!("artifact `{name}` of task {}", self.place)
    }

    pub fn size(&self) -> usize {
        self.bytes.len()
    }
}

fn missing(place: &PackPlace, what: &str) -> StoreError {
    StoreError::Missing(format!(
        "task {place} has no stored data: there is no {what}; it has not finished or its data was removed"
    ))
}

fn missing_or_io(place: &PackPlace, path: &Path, error: std::io::Error) -> StoreError {
    match error.kind() {
        std::io::ErrorKind::NotFound => missing(place, &format!("file `{}`", path.display())),
        _ => StoreError::io("read", path, error),
    }
}

fn belongs_to(header: &PackHeader, place: &PackPlace) -> bool {
    let id = AttemptId { task: TaskId(header.task), attempt: header.attempt };
    *header.flow == *place.flow && header.run == place.run.as_str() && *header.step == *place.step && id == place.id
}

fn number_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes([bytes[offset], bytes[offset + 1], bytes[offset + 2], bytes[offset + 3]])
}

fn checksum(bytes: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&bytes[..CHECKSUM.start]);
    hasher.update(&bytes[CHECKSUM.end..]);
    *hasher.finalize().as_bytes()
}

/// A pack being put together.
#[derive(Debug)]
pub struct PackBuilder {
    store: Datastore,
    place: PackPlace,
    artifacts: Vec<(String, Artifact)>,
    items: Option<ForeachItems>,
    inline: Vec<u8>,
    /// Blobs that this builder was given, as opposed to those it passes on.
    own_blobs: Vec<(String, u64)>,
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
        let at = self.keep(value);
        let artifact = Artifact {
            type_name: description.type_name,
            size,
            hash,
            encoding: description.encoding,
            preview: description.preview,
            at,
            pickle: description.pickle,
            buffers: description.buffers,
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

    pub fn set_items(&mut self, variable: &str, count: u64, value: &StoredValue) {
        let at = self.keep(value);
        self.items = Some(ForeachItems { variable: variable.to_owned(), count, at });
    }

    fn keep(&mut self, value: &StoredValue) -> ValuePlace {
        match value {
            StoredValue::Inline(bytes) => {
                let offset = self.inline.len() as u64;
                self.inline.extend_from_slice(bytes);
                ValuePlace::Inline(offset, bytes.len() as u64)
            }
            StoredValue::Blob { hash, length } => {
                self.own_blobs.push((hash.clone(), *length));
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

    /// Writes the pack; it is durable and complete when its name appears.
    pub fn commit(&mut self, outcome: Value) -> Result<(), StoreError> {
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

    /// Blobs given to this builder that the pack still names, each once.
    fn blobs_to_upload(&self) -> Vec<(String, u64)> {
        let places = self.artifacts.iter().map(|(_, artifact)| &artifact.at);
        let named: Vec<&String> = places
            .chain(self.items.iter().map(|items| &items.at))
            .filter_map(|at| if let ValuePlace::Blob(hash, _) = at { Some(hash) } else { None })
            .collect();
        let mut wanted = self.own_blobs.clone();
        wanted.retain(|(hash, _)| named.contains(&hash));
        wanted.sort_unstable();
        wanted.dedup();
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
    match value {
        StoredValue::Inline(bytes) => hasher.update(blake3::hash(bytes).to_hex().as_bytes()),
        StoredValue::Blob { hash, .. } => hasher.update(hash.as_bytes()),
    };
    hasher.finalize().to_hex().to_string()
}

fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("pack");
    let temporary = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let result = write_new(&temporary, bytes)
        .and_then(|()| fs::rename(&temporary, path).map_err(|error| StoreError::io("write", path, error)));
    if result.is_err() {
        // Best effort: the reason is already being told.
        let _ = fs::remove_file(&temporary);
    }
    result
}

fn write_new(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let mut file = create_in_folder(path, || fs::File::create(path))?;
    file.write_all(bytes).and_then(|()| file.sync_data()).map_err(|error| StoreError::io("write", path, error))
}
