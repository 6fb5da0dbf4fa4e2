//! Blobs and packs between this machine and the bucket. A blob's object is a small head (magic,
//! version, how it is packed) and then the content, compressed with zstd where a sample shows that
//! it pays. Its hash and length are those of the content.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use ferroflow_core::port::ObjectError;
use futures::StreamExt;
use futures::stream;
use memmap2::Mmap;
use object_store::{GetOptions, GetRange, MultipartUpload, ObjectStoreExt, PutPayload, UploadPart};

use super::told::is_outside;
use super::{Client, Doing, Remote};
use crate::blob::hash_of_bytes;
use crate::error::StoreError;
use crate::location::{Datastore, PackPlace};

const MAGIC: &[u8; 8] = b"FERROBLB";
const HEAD: usize = 16;
const RAW: u8 = 0;
const ZSTD: u8 = 1;
/// Objects in flight at once.
const AT_ONCE: usize = 64;
/// Larger values travel in parts of this size.
const PART: usize = 8 << 20;
const PARTS_AT_ONCE: usize = 8;
/// How much is compressed to see whether it pays, and by how much it has to.
const SAMPLE: usize = 256 << 10;
const WORTH: f64 = 0.8;
const LEVEL: i32 = 1;

/// A blob to be uploaded, and whose it is.
#[derive(Clone, Debug)]
pub(crate) struct BlobUpload {
    pub hash: String,
    pub artifact: String,
    /// Readers want parts of it: it is not compressed.
    pub in_parts: bool,
}

/// A blob by its hash, and its length.
pub(crate) type BlobName = (String, u64);

impl Remote {
    /// Uploads what the bucket does not have yet, then the pack that names it.
    pub(crate) fn put_pack(
        &self,
        store: &Datastore,
        place: &PackPlace,
        bytes: Vec<u8>,
        blobs: &[BlobUpload],
    ) -> Result<(), StoreError> {
        let key = self.pack_key(place);
        self.block_on(async |client| {
            let mut uploads = stream::iter(blobs.iter().map(|blob| self.put_blob_of(client, store, blob)))
                .buffer_unordered(PARTS_AT_ONCE);
            while let Some(result) = uploads.next().await {
                result?;
            }
            let put = client.store.put(&self.path(&key), PutPayload::from(bytes)).await;
            put.map(drop).map_err(|error| self.tell(Doing::Write, &key, &error))
        })
    }

    async fn put_blob_of(&self, client: &Client, store: &Datastore, blob: &BlobUpload) -> Result<(), ObjectError> {
        let named = |text: String| format!("artifact `{}` cannot be stored: {text}", blob.artifact);
        self.put_blob(client, store, blob).await.map_err(|error| match error {
            ObjectError::Denied(text) => ObjectError::Denied(named(text)),
            ObjectError::NotFound(text) => ObjectError::NotFound(named(text)),
            ObjectError::Unavailable(text) => ObjectError::Unavailable(named(text)),
        })
    }

    async fn put_blob(&self, client: &Client, store: &Datastore, blob: &BlobUpload) -> Result<(), ObjectError> {
        let key = Self::blob_key(&blob.hash);
        match client.store.head(&self.path(&key)).await {
            Ok(_) => return Ok(()),
            Err(object_store::Error::NotFound { .. }) => {}
            // Without the permission to list, S3 answers 403 for what is not there. Writing tells.
            Err(object_store::Error::PermissionDenied { .. }) => {}
            Err(error) => return Err(self.tell(Doing::Read, &key, &error)),
        }
        let path = store.blob_path(&blob.hash);
        let content = map(&path).map_err(|error| local("read", &path, &error))?;
        let source = if !blob.in_parts && pays(&content) { Source::zstd(content)? } else { Source::raw(content) };
        if source.length() <= PART {
            let put = client.store.put(&self.path(&key), source.whole()?).await;
            return put.map(drop).map_err(|error| self.tell(Doing::Write, &key, &error));
        }
        let mut upload = client
            .store
            .put_multipart(&self.path(&key))
            .await
            .map_err(|error| self.tell(Doing::Write, &key, &error))?;
        let sent = self.put_parts(&key, upload.as_mut(), source).await;
        if sent.is_err() {
            // Best effort: parts that nobody completes cost money until a lifecycle rule takes them.
            let _ = upload.abort().await;
        }
        sent
    }

    async fn put_parts(
        &self,
        key: &str,
        upload: &mut dyn MultipartUpload,
        mut source: Source,
    ) -> Result<(), ObjectError> {
        let tell = |error: object_store::Error| self.tell(Doing::Write, key, &error);
        let mut under_way: stream::FuturesUnordered<UploadPart> = stream::FuturesUnordered::new();
        while let Some(part) = source.next_part()? {
            if under_way.len() >= PARTS_AT_ONCE
                && let Some(done) = under_way.next().await
            {
                done.map_err(tell)?;
            }
            under_way.push(upload.put_part(part));
        }
        while let Some(done) = under_way.next().await {
            done.map_err(tell)?;
        }
        upload.complete().await.map(drop).map_err(tell)
    }

    /// Fetches packs that are not on this machine yet. One that the bucket does not have is left
    /// for its reader to find missing.
    pub(crate) fn fetch_packs(&self, store: &Datastore, places: &[&PackPlace]) -> Result<(), StoreError> {
        self.block_on(async |client| {
            let mut fetches = stream::iter(places.iter().map(|place| self.fetch_pack(client, store, place)))
                .buffer_unordered(AT_ONCE);
            while let Some(result) = fetches.next().await {
                result?;
            }
            Ok(())
        })
    }

    async fn fetch_pack(&self, client: &Client, store: &Datastore, place: &PackPlace) -> Result<(), ObjectError> {
        let key = self.pack_key(place);
        let got = async { client.store.get(&self.path(&key)).await?.bytes().await };
        let bytes = match got.await {
            Ok(bytes) => bytes,
            Err(error) => {
                let told = self.tell(Doing::Read, &key, &error);
                let only_the_object = matches!(error, object_store::Error::NotFound { .. })
                    && !matches!(&told, ObjectError::NotFound(text) if text.contains("there is no bucket") || text.contains("there is no container"));
                return if only_the_object { Ok(()) } else { Err(told) };
            }
        };
        let path = store.pack_path(place);
        write_aside(&path, |file| file.write_all(&bytes)).map_err(|error| local("write", &path, &error))
    }

    /// Fetches blobs that are not on this machine yet, verified on the way.
    pub(crate) fn fetch_blobs(&self, store: &Datastore, blobs: &[BlobName]) -> Result<(), StoreError> {
        self.block_on(async |client| {
            let mut fetches =
                stream::iter(blobs.iter().map(|blob| self.fetch_blob(client, store, blob))).buffer_unordered(AT_ONCE);
            while let Some(result) = fetches.next().await {
                result?;
            }
            Ok(())
        })
    }

    async fn fetch_blob(&self, client: &Client, store: &Datastore, blob: &BlobName) -> Result<(), ObjectError> {
        let (hash, length) = blob;
        let key = Self::blob_key(hash);
        let target = store.blob_path(hash);
        let mut sink = Sink::create(&target).map_err(|error| local("write", &target, &error))?;
        let damaged = || {
            ObjectError::Unavailable(format!(
                "`{}` is damaged: it does not match its checksum; run the step that made it again",
                self.url(&key)
            ))
        };
        let (size, bytes) = self.get_range(client, &key, 0..PART as u64).await?.ok_or_else(damaged)?;
        sink.take(&bytes).map_err(|error| local("write", &target, &error))?;
        let rest = (PART as u64..size).step_by(PART).map(|start| start..size.min(start + PART as u64));
        let mut parts = stream::iter(rest.map(|range| self.get_range(client, &key, range))).buffered(PARTS_AT_ONCE);
        while let Some(part) = parts.next().await {
            sink.take(&part?.ok_or_else(damaged)?.1).map_err(|error| local("write", &target, &error))?;
        }
        sink.finish(hash, *length).map_err(|error| match error.kind() {
            std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof => damaged(),
            _ => local("write", &target, &error),
        })
    }

    /// Two parts of a blob without the rest: the second is found by what the first says. `None`
    /// when that does not work out, as with a blob that is compressed; fetch all of it then.
    pub(crate) fn read_blob_parts(
        &self,
        hash: &str,
        first: Range<u64>,
        second: impl FnOnce(&[u8]) -> Option<Range<u64>> + Send,
    ) -> Option<Vec<u8>> {
        let key = Self::blob_key(hash);
        let inside = |part: Range<u64>| part.start + HEAD as u64..part.end + HEAD as u64;
        let read = self.block_on(async |client| {
            let Some((_, entry)) = self.get_range(client, &key, inside(first)).await? else { return Ok(None) };
            match second(&entry) {
                None => Ok(None),
                Some(part) if part.is_empty() => Ok(Some(Vec::new())),
                Some(part) => Ok(self.get_range(client, &key, inside(part)).await?.map(|(_, bytes)| bytes.to_vec())),
            }
        });
        read.ok().flatten()
    }

    /// Bytes of a range and the size of the whole object; `None` where that is shorter.
    async fn get_range(
        &self,
        client: &Client,
        key: &str,
        range: Range<u64>,
    ) -> Result<Option<(u64, Bytes)>, ObjectError> {
        let options = GetOptions { range: Some(GetRange::Bounded(range)), ..GetOptions::default() };
        let got = async {
            let result = client.store.get_opts(&self.path(key), options).await?;
            let size = result.meta.size;
            Ok(Some((size, result.bytes().await?)))
        };
        got.await.or_else(|error| if is_outside(&error) { Ok(None) } else { Err(self.tell(Doing::Read, key, &error)) })
    }
}

pub(super) fn local(doing: &str, path: &Path, error: &std::io::Error) -> ObjectError {
    ObjectError::Unavailable(format!("cannot {doing} `{}`: {}", path.display(), crate::error::io_reason(error)))
}

fn map(path: &Path) -> std::io::Result<Mmap> {
    // SAFETY: published blobs are never modified or truncated, only replaced by rename.
    unsafe { Mmap::map(&File::open(path)?) }
}

/// Whether compressing is worth its time: judged by samples of the start, the middle and the end.
fn pays(content: &[u8]) -> bool {
    let third = SAMPLE / 3;
    let sample = if content.len() <= SAMPLE {
        content.to_vec()
    } else {
        let middle = content.len() / 2;
        [&content[..third], &content[middle..middle + third], &content[content.len() - third..]].concat()
    };
    zstd::bulk::compress(&sample, LEVEL).is_ok_and(|small| (small.len() as f64) < sample.len() as f64 * WORTH)
}

fn head(how: u8) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[..8].copy_from_slice(MAGIC);
    head[8] = 1;
    head[9] = how;
    head
}

/// What is uploaded, a part at a time.
enum Source {
    /// The content as it lies in the page cache; nothing is copied.
    Raw {
        content: Bytes,
        sent: usize,
    },
    Zstd(Box<Compressing>),
}

struct Compressing {
    content: Mmap,
    read: usize,
    encoder: Option<zstd::stream::write::Encoder<'static, Vec<u8>>>,
    /// What is left once the encoder is done.
    tail: Vec<u8>,
}

impl Source {
    fn raw(content: Mmap) -> Self {
        Self::Raw { content: Bytes::from_owner(content), sent: 0 }
    }

    fn zstd(content: Mmap) -> Result<Self, ObjectError> {
        let encoder =
            zstd::stream::write::Encoder::new(head(ZSTD).to_vec(), LEVEL).map_err(|error| compressing(&error))?;
        Ok(Self::Zstd(Box::new(Compressing { content, read: 0, encoder: Some(encoder), tail: Vec::new() })))
    }

    /// At most this many bytes.
    fn length(&self) -> usize {
        match self {
            Self::Raw { content, .. } => content.len() + HEAD,
            Self::Zstd(compressing) => compressing.content.len() + HEAD,
        }
    }

    fn whole(mut self) -> Result<PutPayload, ObjectError> {
        let mut parts: Vec<Bytes> = Vec::new();
        while let Some(part) = self.next_part()? {
            parts.extend(part);
        }
        Ok(parts.into_iter().collect())
    }

    fn next_part(&mut self) -> Result<Option<PutPayload>, ObjectError> {
        match self {
            Self::Raw { content, sent } => Ok(next_raw(content, sent)),
            Self::Zstd(compressing) => compressing.next_part().map_err(|error| self::compressing(&error)),
        }
    }
}

fn next_raw(content: &Bytes, sent: &mut usize) -> Option<PutPayload> {
    let first = *sent == 0;
    if !first && *sent >= content.len() {
        return None;
    }
    let room = if first { PART - HEAD } else { PART };
    let end = content.len().min(*sent + room);
    let slice = content.slice(*sent..end);
    *sent = end.max(1);
    let start = first.then(|| Bytes::copy_from_slice(&head(RAW)));
    Some(start.into_iter().chain([slice]).collect())
}

fn compressing(error: &std::io::Error) -> ObjectError {
    ObjectError::Unavailable(format!("cannot compress an artifact: {error}"))
}

impl Compressing {
    /// Parts of one size, the last may be smaller: some stores insist on that.
    fn next_part(&mut self) -> std::io::Result<Option<PutPayload>> {
        const STRIDE: usize = 1 << 20;
        while let Some(encoder) = &mut self.encoder {
            if encoder.get_ref().len() >= PART {
                let rest = encoder.get_mut().split_off(PART);
                return Ok(Some(PutPayload::from(std::mem::replace(encoder.get_mut(), rest))));
            }
            if self.read < self.content.len() {
                let end = self.content.len().min(self.read + STRIDE);
                encoder.write_all(&self.content[self.read..end])?;
                self.read = end;
            } else if let Some(encoder) = self.encoder.take() {
                self.tail = encoder.finish()?;
            }
        }
        if self.tail.is_empty() {
            return Ok(None);
        }
        let rest = self.tail.split_off(self.tail.len().min(PART));
        Ok(Some(PutPayload::from(std::mem::replace(&mut self.tail, rest))))
    }
}

/// Where a download goes: a file beside its place until it is whole and verified.
struct Sink {
    target: PathBuf,
    aside: Option<Aside>,
    head: Vec<u8>,
    output: Output,
}

enum Output {
    Unknown,
    Raw(File),
    Zstd(zstd::stream::write::Decoder<'static, File>),
}

/// A file that goes unless it is published.
struct Aside {
    path: PathBuf,
}

impl Drop for Aside {
    fn drop(&mut self) {
        // Gone already when it was renamed.
        let _ = fs::remove_file(&self.path);
    }
}

impl Sink {
    fn create(target: &Path) -> std::io::Result<Self> {
        Ok(Self { target: target.to_owned(), aside: None, head: Vec::new(), output: Output::Unknown })
    }

    fn take(&mut self, mut bytes: &[u8]) -> std::io::Result<()> {
        if matches!(self.output, Output::Unknown) {
            let missing = HEAD - self.head.len();
            let (own, rest) = bytes.split_at(missing.min(bytes.len()));
            self.head.extend_from_slice(own);
            bytes = rest;
            if self.head.len() < HEAD {
                return Ok(());
            }
            self.begin()?;
        }
        match &mut self.output {
            Output::Raw(file) => file.write_all(bytes),
            Output::Zstd(decoder) => decoder.write_all(bytes),
            Output::Unknown => Err(std::io::ErrorKind::InvalidData.into()),
        }
    }

    fn begin(&mut self) -> std::io::Result<()> {
        if &self.head[..8] != MAGIC || self.head[8] != 1 {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        let (aside, file) = create_aside(&self.target)?;
        self.aside = Some(aside);
        self.output = match self.head[9] {
            RAW => Output::Raw(file),
            ZSTD => Output::Zstd(zstd::stream::write::Decoder::new(file)?),
            _ => return Err(std::io::ErrorKind::InvalidData.into()),
        };
        Ok(())
    }

    fn finish(mut self, hash: &str, length: u64) -> std::io::Result<()> {
        match &mut self.output {
            Output::Raw(file) => file.flush()?,
            Output::Zstd(decoder) => decoder.flush()?,
            Output::Unknown => return Err(std::io::ErrorKind::InvalidData.into()),
        }
        let aside = self.aside.take().ok_or(std::io::ErrorKind::InvalidData)?;
        let whole = fs::metadata(&aside.path)?.len() == length
            && if length == 0 { true } else { hash_of_bytes(&map(&aside.path)?) == hash };
        if !whole {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        fs::rename(&aside.path, &self.target)
    }
}

/// A new file in the folder of `target`, which is made if need be.
fn create_aside(target: &Path) -> std::io::Result<(Aside, File)> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = target.file_name().and_then(|name| name.to_str()).unwrap_or("object");
    let path = target.with_file_name(format!(".{name}.{}-{number}", std::process::id()));
    let open = || OpenOptions::new().write(true).create_new(true).open(&path);
    let file = match open() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
            open()?
        }
        other => other?,
    };
    Ok((Aside { path }, file))
}

/// Writes a file of the cache: whole or not at all; it need not survive a power cut.
fn write_aside(target: &Path, write: impl FnOnce(&mut File) -> std::io::Result<()>) -> std::io::Result<()> {
    let (aside, mut file) = create_aside(target)?;
    write(&mut file)?;
    fs::rename(&aside.path, target)
}
