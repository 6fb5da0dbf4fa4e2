//! The pack: one file per task attempt, with the artifacts' descriptions and the small values.
//!
//! ```text
//! magic (8) | version (u32) | header length (u32) | BLAKE3 of all other bytes (32) | header, JSON | inline values
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use ferroflow_core::id::{AttemptId, TaskId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::blob::damaged;
use crate::error::StoreError;
use crate::location::{Datastore, PackPlace};
pub use crate::pack_builder::{Description, PackBuilder};

pub(crate) const MAGIC: &[u8; 8] = b"FERROPCK";
pub(crate) const VERSION: u32 = 1;
pub(crate) const PREAMBLE: usize = 48;
pub(crate) const CHECKSUM: std::ops::Range<usize> = 16..48;

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
    /// What the language that wrote the value must know to have it back exactly; the others read
    /// it without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
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

    /// A pack that was fetched otherwise; `key` names it in sentences.
    pub(crate) fn of_bytes(place: &PackPlace, key: &str, bytes: Vec<u8>) -> Result<Self, StoreError> {
        Self::parse(place, PathBuf::from(key), bytes)
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

pub(crate) fn checksum(bytes: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&bytes[..CHECKSUM.start]);
    hasher.update(&bytes[CHECKSUM.end..]);
    *hasher.finalize().as_bytes()
}
