//! Content-addressed blobs: written once under their BLAKE3 hash, mapped copy-on-write when read.
//! A blob is complete and durable before its name exists.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use memmap2::{MmapMut, MmapOptions};

use crate::error::StoreError;
use crate::location::{Datastore, create_in_folder};
use crate::parallel_hash;

/// Start of the names of blobs that are not complete.
pub(crate) const UNFINISHED: &str = ".new-";
/// Values up to this many bytes stay inside the pack.
pub const INLINE_LIMIT: usize = 64 * 1024;
/// Alignment of out-of-band buffers within a value.
pub const ALIGNMENT: u64 = 64;
/// From here on hashing and writing run side by side.
const LARGE: usize = 4 << 20;
/// Up to this size a blob takes less time as a whole than as two parts.
const FETCHED_WHOLE: u64 = 1 << 20;
/// How much is handed to the disk at a time while a large value is being written.
const STRIDE: usize = 8 << 20;
/// A reused blob is touched so that collection spares it, but not again within this time:
/// a new time stamp makes every machine verify it again.
const TOUCH_AFTER: Duration = Duration::from_secs(3600);

/// A value being encoded: kept in memory while small, spilled to a file in the blob folder
/// beyond [`INLINE_LIMIT`]. Dropping it unfinished leaves nothing behind.
pub struct ValueWriter {
    store: Datastore,
    artifact: String,
    memory: Vec<u8>,
    spill: Option<Spill>,
    hasher: blake3::Hasher,
    length: u64,
    broken: bool,
}

struct Spill {
    artifact: String,
    file: File,
    path: PathBuf,
}

impl Drop for Spill {
    fn drop(&mut self) {
        // Gone already when it was renamed to its hash.
        let _ = fs::remove_file(&self.path);
    }
}

/// An encoded value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoredValue {
    Inline(Vec<u8>),
    Blob { hash: String, length: u64 },
}

impl ValueWriter {
    /// `artifact` is whose value it is, for messages.
    pub fn new(store: Datastore, artifact: &str) -> Self {
        Self {
            store,
            artifact: artifact.to_owned(),
            memory: Vec::new(),
            spill: None,
            hasher: blake3::Hasher::new(),
            length: 0,
            broken: false,
        }
    }

    /// Bytes written so far.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Hash of what was written so far.
    pub fn content_hash(&self) -> blake3::Hash {
        self.hasher.finalize()
    }

    pub fn write(&mut self, data: &[u8]) -> Result<(), StoreError> {
        self.length += data.len() as u64;
        if self.spill.is_none() {
            if self.memory.len() + data.len() <= INLINE_LIMIT {
                self.hasher.update(data);
                self.memory.extend_from_slice(data);
                return Ok(());
            }
            self.start_spill()?;
        }
        let result = self.write_spill(data);
        self.broken |= result.is_err();
        result
    }

    /// What was written, as long as it did not outgrow memory.
    pub fn in_memory(&self) -> Option<&[u8]> {
        self.spill.is_none().then_some(&self.memory)
    }

    /// Pads with zeros to the next multiple of [`ALIGNMENT`].
    pub fn align(&mut self) -> Result<(), StoreError> {
        let padding = (self.length.next_multiple_of(ALIGNMENT) - self.length) as usize;
        self.write(&[0; ALIGNMENT as usize][..padding])
    }

    fn start_spill(&mut self) -> Result<(), StoreError> {
        let mut spill = Spill::create(&self.store, &self.artifact)?;
        let kept = std::mem::take(&mut self.memory);
        if let Err(error) = spill.file.write_all(&kept) {
            self.broken = true;
            return Err(spill.failed(error));
        }
        self.spill = Some(spill);
        Ok(())
    }

    fn write_spill(&mut self, data: &[u8]) -> Result<(), StoreError> {
        let Some(spill) = &mut self.spill else { return Ok(()) };
        let hasher = &mut self.hasher;
        let written = if data.len() < LARGE {
            hasher.update(data);
            spill.file.write_all(data)
        } else {
            write_and_hash(&mut spill.file, hasher, data)
        };
        written.map_err(|error| spill.failed(error))
    }

    /// Ends the value; a blob is durable and has its name when this returns.
    pub fn finish(mut self) -> Result<StoredValue, StoreError> {
        debug_assert!(!self.broken, "a value whose write failed is never finished");
        let Some(spill) = self.spill.take() else { return Ok(StoredValue::Inline(self.memory)) };
        let hash = self.hasher.finalize().to_hex().to_string();
        if !reuse(&self.store, &hash, self.length) {
            spill.publish(&self.store, &hash)?;
        }
        Ok(StoredValue::Blob { hash, length: self.length })
    }
}

/// Stores bytes that are complete in memory, one part after the other: hashed first, so that
/// nothing is written if the store has them already.
pub fn store_parts(store: &Datastore, artifact: &str, parts: &[&[u8]]) -> Result<StoredValue, StoreError> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    if length <= INLINE_LIMIT { Ok(StoredValue::Inline(parts.concat())) } else { parts_as_blob(store, artifact, parts) }
}

/// Like [`store_parts`], but whatever the size.
pub fn store_as_blob(store: &Datastore, artifact: &str, data: &[u8]) -> Result<StoredValue, StoreError> {
    parts_as_blob(store, artifact, &[data])
}

fn parts_as_blob(store: &Datastore, artifact: &str, parts: &[&[u8]]) -> Result<StoredValue, StoreError> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let hash = parallel_hash::hash_parts(parts).to_hex().to_string();
    if !reuse(store, &hash, length as u64) {
        let mut spill = Spill::create(store, artifact)?;
        for part in parts {
            write_in_strides(&mut spill.file, part).map_err(|error| spill.failed(error))?;
        }
        spill.publish(store, &hash)?;
    }
    Ok(StoredValue::Blob { hash, length: length as u64 })
}

/// The hash [`store_parts`] would store them under.
pub fn hash_of_bytes(data: &[u8]) -> String {
    parallel_hash::hash(data).to_hex().to_string()
}

impl Spill {
    fn create(store: &Datastore, artifact: &str) -> Result<Self, StoreError> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{UNFINISHED}{}-{number}-{}", std::process::id(), start_nanos());
        let path = store.blob_folder().join(name);
        let file = create_in_folder(&path, || OpenOptions::new().write(true).create_new(true).open(&path))?;
        Ok(Self { artifact: artifact.to_owned(), file, path })
    }

    fn failed(&self, error: std::io::Error) -> StoreError {
        writing(&self.artifact, &self.path, error)
    }

    fn publish(self, store: &Datastore, hash: &str) -> Result<(), StoreError> {
        let target = store.blob_path(hash);
        if store.remote().is_none() {
            self.file.sync_data().map_err(|error| writing(&self.artifact, &target, error))?;
        }
        let folder = target.parent().expect("a blob lies in a folder");
        let renamed = match fs::rename(&self.path, &target) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                fs::create_dir_all(folder).map_err(|error| StoreError::io("create the folder", folder, error))?;
                fs::rename(&self.path, &target)
            }
            other => other,
        };
        renamed.map_err(|error| writing(&self.artifact, &target, error))?;
        if store.remote().is_some() {
            return Ok(());
        }
        // After a power cut no pack may name a blob that is not there. Some file systems cannot
        // sync a folder; those keep their own order.
        let _ = File::open(folder).and_then(|folder| folder.sync_all());
        Ok(())
    }
}

fn writing(artifact: &str, path: &Path, error: std::io::Error) -> StoreError {
    StoreError::io(format!("write artifact `{artifact}` to"), path, error)
}

/// Pid namespaces share a folder over a network file system, so a pid alone is not unique.
fn start_nanos() -> u32 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.subsec_nanos())
}

/// Whether the store has the blob. It must have the right size and, unless this machine
/// verified it before, the right content: a damaged blob is written anew instead of being
/// handed on.
fn reuse(store: &Datastore, hash: &str, length: u64) -> bool {
    let path = store.blob_path(hash);
    let Ok(metadata) = fs::metadata(&path) else { return false };
    if metadata.len() != length {
        return false;
    }
    if !store.verified().knows(&metadata, hash) {
        let Ok(mapping) = BlobMapping::map(&path) else { return false };
        if mapping.content_hash() != hash {
            return false;
        }
        store.verified().remember(&mapping.metadata, hash);
    }
    touch(&path, &metadata);
    true
}

fn touch(path: &Path, metadata: &Metadata) {
    let fresh =
        metadata.modified().is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age < TOUCH_AFTER));
    if !fresh {
        // Another user's blob cannot be touched; its owner's collection then decides.
        let _ = File::open(path).and_then(|file| file.set_modified(SystemTime::now()));
    }
}

fn write_and_hash(file: &mut File, hasher: &mut blake3::Hasher, data: &[u8]) -> std::io::Result<()> {
    let mut ahead = hasher.clone();
    let hash = move || {
        ahead.update(data);
        ahead
    };
    std::thread::scope(|scope| {
        let helper = std::thread::Builder::new().spawn_scoped(scope, hash);
        let written = write_in_strides(file, data);
        match helper.map(|helper| helper.join()) {
            Ok(Ok(hashed)) => *hasher = hashed,
            // No second thread to be had (a process limit).
            _ => {
                hasher.update(data);
            }
        }
        written
    })
}

/// Writes and at once asks the disk to begin, so that the final sync has little left to do.
fn write_in_strides(file: &mut File, data: &[u8]) -> std::io::Result<()> {
    for stride in data.chunks(STRIDE) {
        file.write_all(stride)?;
        begin_write_out(file);
    }
    Ok(())
}

#[cfg(target_os = "linux")]
fn begin_write_out(file: &File) {
    use std::os::fd::AsRawFd;
    // SAFETY: plain system call on an open descriptor. It is advice: its result does not matter.
    unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

#[cfg(not(target_os = "linux"))]
fn begin_write_out(_file: &File) {}

/// A blob in memory: shared with the page cache until written to, never written back.
#[derive(Debug)]
pub struct BlobMapping {
    map: MmapMut,
    metadata: Metadata,
}

impl BlobMapping {
    /// Maps a blob and verifies it, unless this machine did so before. `what` names the
    /// artifact and its task in errors.
    pub fn open(store: &Datastore, hash: &str, length: u64, what: &dyn Fn() -> String) -> Result<Self, StoreError> {
        let path = store.blob_path(hash);
        let opened = fetch_if_absent(store, hash, length).and_then(|()| Self::open_here(store, hash, length, what));
        match opened {
            Err(StoreError::Damaged(_)) if store.remote().is_some() => {
                // The copy of this machine is damaged, or the object is: fetching it anew tells.
                fs::remove_file(&path).map_err(|error| StoreError::io("remove the damaged", &path, error))?;
                fetch_if_absent(store, hash, length)?;
                Self::open_here(store, hash, length, what)
            }
            other => other,
        }
    }

    fn open_here(store: &Datastore, hash: &str, length: u64, what: &dyn Fn() -> String) -> Result<Self, StoreError> {
        let path = store.blob_path(hash);
        let mapping = Self::map(&path).map_err(|error| missing_or_io(&path, error, what))?;
        if mapping.metadata.len() != length {
            return Err(damaged(&path, what, "has the wrong size"));
        }
        if !store.verified().knows(&mapping.metadata, hash) {
            if mapping.content_hash() != hash {
                return Err(damaged(&path, what, "does not match its checksum"));
            }
            store.verified().remember(&mapping.metadata, hash);
        }
        Ok(mapping)
    }

    fn map(path: &Path) -> std::io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        // SAFETY: published blobs are never modified or truncated, only replaced by rename; the
        // mapping is private, so writes to it stay in this process.
        let map = unsafe { MmapOptions::new().map_copy(&file)? };
        Ok(Self { map, metadata })
    }

    fn content_hash(&self) -> String {
        parallel_hash::hash(&self.map).to_hex().to_string()
    }

    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Start of the mapping; writing through it is private to this process.
    pub fn pointer(&self) -> *mut u8 {
        self.map.as_ptr().cast_mut()
    }
}

/// Brings a blob that this machine has not seen yet from a remote store.
fn fetch_if_absent(store: &Datastore, hash: &str, length: u64) -> Result<(), StoreError> {
    fetch(store, &[(hash.to_owned(), length)])
}

/// Brings those of the blobs that this machine has not seen yet from a remote store, all at once.
pub fn fetch(store: &Datastore, blobs: &[(String, u64)]) -> Result<(), StoreError> {
    let Some(remote) = store.remote() else { return Ok(()) };
    let absent: Vec<_> = blobs.iter().filter(|(hash, _)| !store.blob_path(hash).exists()).cloned().collect();
    if absent.is_empty() { Ok(()) } else { remote.fetch_blobs(store, &absent) }
}

/// Whether only parts of a blob should travel: it is large and not on this machine.
pub fn is_better_in_parts(store: &Datastore, hash: &str, length: u64) -> bool {
    length > FETCHED_WHOLE && store.remote().is_some() && !store.blob_path(hash).exists()
}

/// Two parts of a blob that stays where it is; see [`crate::Remote`]. Nothing is verified.
pub fn read_remote_parts(
    store: &Datastore,
    hash: &str,
    first: std::ops::Range<u64>,
    second: impl FnOnce(&[u8]) -> Option<std::ops::Range<u64>> + Send,
) -> Option<Vec<u8>> {
    store.remote()?.read_blob_parts(hash, first, second)
}

/// Reads part of a blob without mapping or verifying it: the caller has a checksum of the part.
pub fn read_part(
    store: &Datastore,
    (hash, whole): (&str, u64),
    offset: u64,
    length: usize,
    what: &dyn Fn() -> String,
) -> Result<Vec<u8>, StoreError> {
    fetch_if_absent(store, hash, whole)?;
    let path = store.blob_path(hash);
    let file = File::open(&path).map_err(|error| missing_or_io(&path, error, what))?;
    let size = file.metadata().map_err(|error| StoreError::io("read", &path, error))?.len();
    if offset.checked_add(length as u64).is_none_or(|end| end > size) {
        return Err(damaged(&path, what, "is too short"));
    }
    let mut data = vec![0; length];
    file.read_exact_at(&mut data, offset).map_err(|error| StoreError::io("read", &path, error))?;
    Ok(data)
}

/// Fills `target` with a whole blob, verifying it on the way.
pub fn read_into(
    store: &Datastore,
    hash: &str,
    target: &mut [u8],
    what: &dyn Fn() -> String,
) -> Result<(), StoreError> {
    fetch_if_absent(store, hash, target.len() as u64)?;
    let path = store.blob_path(hash);
    let file = File::open(&path).map_err(|error| missing_or_io(&path, error, what))?;
    let metadata = file.metadata().map_err(|error| StoreError::io("read", &path, error))?;
    if metadata.len() != target.len() as u64 {
        return Err(damaged(&path, what, "has the wrong size"));
    }
    file.read_exact_at(target, 0).map_err(|error| StoreError::io("read", &path, error))?;
    if store.verified().knows(&metadata, hash) {
        return Ok(());
    }
    if hash_of_bytes(target) != hash {
        return Err(damaged(&path, what, "does not match its checksum"));
    }
    store.verified().remember(&metadata, hash);
    Ok(())
}

fn missing_or_io(path: &Path, error: std::io::Error, what: &dyn Fn() -> String) -> StoreError {
    if error.kind() == std::io::ErrorKind::NotFound {
        return StoreError::Missing(format!(
            "the data of {} is gone: there is no file `{}`; run the step again to make it anew",
            what(),
            path.display()
        ));
    }
    StoreError::io("read", path, error)
}

pub(crate) fn damaged(path: &Path, what: &dyn Fn() -> String, how: &str) -> StoreError {
    StoreError::Damaged(format!(
        "the data of {} is damaged: the file `{}` {how}; run the step again to make it anew",
        what(),
        path.display()
    ))
}
