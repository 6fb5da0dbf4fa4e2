//! Many objects of S3 at once for the `S3` client: downloads to files, uploads, listings, what is
//! known of objects. Addresses are whole; whose they are and what they are called is the caller's.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use ferroflow_core::port::ObjectError;
use ferroflow_core::task::StoreLocation;
use futures::StreamExt;
use futures::stream;
use memmap2::Mmap;
use object_store::path::Path as ObjectPath;
use object_store::{
    Attribute, Attributes, GetOptions, GetRange, GetResult, ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions,
    PutPayload,
};

use super::requests::{ENCRYPTION, with_stand_ins, without_stand_ins};
use super::told::is_outside;
use super::{Client, Doing, Remote, RequestCount};
use crate::error::StoreError;

/// Objects in flight at once.
const AT_ONCE: usize = 64;
/// Larger objects travel in parts of this size.
const PART: u64 = 16 << 20;
const PARTS_AT_ONCE: usize = 6;
/// The first request asks for so much: of few objects little, so that parts come side by side; of many
/// more, since these come side by side already, and each part costs the store something.
const FIRST_OF_FEW: u64 = 2 * PART;
const FIRST_OF_MANY: u64 = 8 * PART;
const MANY: usize = 8;
/// A transfer that was cut off is begun anew this often.
const TRIES: u32 = 6;

/// An object by its bucket and key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    pub bucket: String,
    pub key: String,
}

/// What went wrong, sorted by what a caller can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    Missing(String),
    Denied(String),
    NoBucket(String),
    InvalidRange(String),
    DiskFull(String),
    /// The connection broke on the way; another try may succeed.
    CutOff(String),
    Other(String),
}

/// What is known of an object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Info {
    /// Bytes of the whole object.
    pub size: u64,
    /// Milliseconds since the Unix epoch.
    pub modified: i64,
    pub content_type: Option<String>,
    pub metadata: Vec<(String, String)>,
    /// How S3 keeps it: `AES256`, `aws:kms` …
    pub encryption: Option<String>,
    /// First byte and number of bytes that were fetched.
    pub range: (u64, u64),
}

/// A download: where from, where to, and which part (`length` as in `S3GetObject`).
#[derive(Clone, Debug)]
pub struct Download {
    pub from: Address,
    pub to: PathBuf,
    pub part: Option<(u64, Option<i64>)>,
}

/// What is uploaded.
pub enum Content {
    Memory(Bytes),
    File(PathBuf),
}

pub struct Upload {
    pub to: Address,
    pub content: Content,
    pub content_type: Option<String>,
    pub metadata: Vec<(String, String)>,
    /// In place of the client's.
    pub encryption: Option<String>,
}

/// One entry of a listing; `None` in place of size and time for a common prefix.
pub type Listed = (String, Option<(u64, i64)>);

/// How S3 is reached.
#[derive(Clone, Debug, Default)]
pub struct S3 {
    options: BTreeMap<String, String>,
    requests: Arc<RequestCount>,
}

/// A bucket, and how what is put there is encrypted.
type Door<'a> = (&'a str, Option<&'a str>);

impl S3 {
    /// Options are those of a [`StoreLocation`] (`endpoint`, `region`, `encryption`), and `profile`,
    /// `role`, `certificates`, `access_key_id`, `secret_access_key`, `session_token`.
    pub fn new(options: BTreeMap<String, String>) -> Self {
        Self { options, requests: Arc::default() }
    }

    /// Requests sent so far.
    pub fn requests(&self) -> u64 {
        self.requests.get()
    }

    /// Downloads all at once; the results are in the order asked for.
    pub fn get(&self, downloads: &[Download]) -> Result<Vec<Result<Info, Problem>>, StoreError> {
        let at_first = if downloads.len() < MANY { FIRST_OF_FEW } else { FIRST_OF_MANY };
        self.all(
            downloads,
            |download| (&download.from.bucket, None),
            async |remote, client, download| {
                let outcome = download_one(remote, client, download, at_first).await;
                if outcome.is_err() {
                    // What came so far would only take room; nothing may have come.
                    let _ = std::fs::remove_file(&download.to);
                }
                outcome
            },
        )
    }

    /// What is known of objects, without their content.
    pub fn info(&self, addresses: &[Address]) -> Result<Vec<Result<Info, Problem>>, StoreError> {
        self.all(
            addresses,
            |address| (&address.bucket, None),
            async |remote, client, address| {
                let options = GetOptions { head: true, ..GetOptions::default() };
                let result = client.store.get_opts(&path_of(&address.key)?, options).await;
                result
                    .map(|result| info_of(&result))
                    .map_err(|error| problem(remote, Doing::Read, &address.key, &error))
            },
        )
    }

    /// Uploads all at once; `false` for what was there already and stays (`overwrite` off).
    pub fn put(&self, uploads: &[Upload], overwrite: bool) -> Result<Vec<Result<bool, Problem>>, StoreError> {
        self.all(
            uploads,
            |upload| (&upload.to.bucket, upload.encryption.as_deref()),
            async |remote, client, upload| upload_one(remote, client, upload, overwrite).await,
        )
    }

    /// What is below prefixes: everything, or the next level.
    pub fn list(&self, prefixes: &[Address], recursive: bool) -> Result<Vec<Result<Vec<Listed>, Problem>>, StoreError> {
        self.all(
            prefixes,
            |prefix| (&prefix.bucket, None),
            async |remote, client, prefix| list_one(remote, client, prefix, recursive).await,
        )
    }

    fn all<'a, Item: Sync, Output: Send>(
        &self,
        items: &'a [Item],
        door: impl Fn(&'a Item) -> Door<'a> + Sync,
        work: impl AsyncFn(&Remote, &Client, &'a Item) -> Result<Output, Problem> + Sync,
    ) -> Result<Vec<Result<Output, Problem>>, StoreError> {
        let Some(first) = items.first() else { return Ok(Vec::new()) };
        self.remote(door(first))?.block_on_threads(async |_| {
            let mut clients: HashMap<Door<'a>, (Remote, Client)> = HashMap::new();
            for item in items {
                if let Entry::Vacant(free) = clients.entry(door(item)) {
                    let remote = self.remote(*free.key()).map_err(told)?;
                    let client = super::connect::connect(&remote, super::connect::Patience::Long)?;
                    free.insert((remote, client));
                }
            }
            let (clients, work, door) = (&clients, &work, &door);
            let each = |item: &'a Item| async move {
                let (remote, client) = &clients[&door(item)];
                let mut tries = 1;
                loop {
                    match work(remote, client, item).await {
                        Err(Problem::CutOff(_)) if tries < TRIES => tries += 1,
                        done => return done,
                    }
                }
            };
            Ok(stream::iter(items.iter().map(each)).buffered(AT_ONCE).collect().await)
        })
    }

    fn remote(&self, (bucket, encryption): Door<'_>) -> Result<Remote, StoreError> {
        let root = format!("s3://{bucket}");
        let mut options = self.options.clone();
        if let Some(encryption) = encryption {
            options.insert("encryption".to_owned(), encryption.to_owned());
        }
        let location = StoreLocation { kind: "s3".to_owned(), root, options };
        let mut remote = Remote::of(&location)?.expect("s3 is a remote kind");
        remote.requests = Arc::clone(&self.requests);
        Ok(remote)
    }
}

fn told(error: StoreError) -> ObjectError {
    match error {
        StoreError::Remote(error) => error,
        other => ObjectError::Unavailable(other.to_string()),
    }
}

/// Keys are taken as they are, also those that the library underneath cannot name.
fn path_of(key: &str) -> Result<ObjectPath, Problem> {
    let whole = with_stand_ins(key);
    ObjectPath::parse(&whole).map_err(|error| Problem::Other(format!("the key `{key}` cannot be used: {error}")))
}

fn problem(remote: &Remote, doing: Doing, key: &str, error: &object_store::Error) -> Problem {
    let no_bucket = "there is no bucket";
    if let (Doing::Read, object_store::Error::Precondition { .. }) = (doing, error) {
        return Problem::CutOff(format!("`{key}` was written anew while it was read"));
    }
    match remote.tell(doing, key, error) {
        ObjectError::Denied(text) => Problem::Denied(text),
        ObjectError::NotFound(text) if text.contains(no_bucket) => Problem::NoBucket(text),
        ObjectError::NotFound(text) => Problem::Missing(text),
        ObjectError::Unavailable(text) if text.contains("the server answered 416") => Problem::InvalidRange(text),
        ObjectError::Unavailable(text) if text.contains("the server answered") => Problem::Other(text),
        ObjectError::Unavailable(text) => Problem::CutOff(text),
    }
}

fn disk(path: &Path, error: &std::io::Error) -> Problem {
    let text = format!("cannot write `{}`: {}", path.display(), crate::error::io_reason(error));
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Problem::DiskFull(text),
        _ => Problem::Other(text),
    }
}

fn info_of(result: &GetResult) -> Info {
    let mut info = Info {
        size: result.meta.size,
        modified: result.meta.last_modified.timestamp_millis(),
        range: (result.range.start, result.range.end - result.range.start),
        ..Info::default()
    };
    for (attribute, value) in result.attributes.iter() {
        match attribute {
            Attribute::ContentType => info.content_type = Some(value.to_string()),
            Attribute::Metadata(name) if name == ENCRYPTION => info.encryption = Some(value.to_string()),
            Attribute::Metadata(name) => info.metadata.push((name.to_string(), value.to_string())),
            _ => {}
        }
    }
    info
}

async fn download_one(remote: &Remote, client: &Client, download: &Download, at_first: u64) -> Result<Info, Problem> {
    let key = &download.from.key;
    let path = path_of(key)?;
    let tell = |error: object_store::Error| problem(remote, Doing::Read, key, &error);
    let (asked, last) = first_range(download.part, at_first);
    let first = match client.store.get_opts(&path, GetOptions { range: asked, ..GetOptions::default() }).await {
        // There is no range within an object of no bytes.
        Err(error) if download.part.is_none() && is_outside(&error) => client.store.get(&path).await,
        first => first,
    };
    let first = first.map_err(tell)?;
    let mut info = info_of(&first);
    let etag = first.meta.e_tag.clone();
    let file = File::create(&download.to).map_err(|error| disk(&download.to, &error))?;
    let (start, so_far) = (first.range.start, first.range.end);
    let end = last.map_or(so_far, |last| last.min(first.meta.size));
    info.range = (start, end - start);
    let later = (so_far..end).step_by(PART as usize).map(|from| (from..end.min(from + PART), None));
    let pieces = std::iter::once((start..so_far, Some(first))).chain(later).map(|(range, begun)| {
        let (file, path, etag) = (&file, &path, etag.clone());
        async move {
            let (mut at, end) = (range.start - start, range.end - start);
            let options = GetOptions { range: Some(range.into()), if_match: etag, ..GetOptions::default() };
            let result = match begun {
                Some(begun) => begun,
                None => client.store.get_opts(path, options).await.map_err(tell)?,
            };
            let mut chunks = result.into_stream();
            while let Some(chunk) = chunks.next().await {
                let chunk = chunk.map_err(tell)?;
                file.write_all_at(&chunk, at).map_err(|error| disk(&download.to, &error))?;
                at += chunk.len() as u64;
            }
            if at == end { Ok(()) } else { Err(Problem::CutOff(format!("`{key}` came in part only"))) }
        }
    });
    let mut pieces = stream::iter(pieces).buffer_unordered(PARTS_AT_ONCE);
    while let Some(piece) = pieces.next().await {
        piece?;
    }
    Ok(info)
}

/// What the first request asks for, and the end of everything that is wanted; `None` in its place
/// where the first request brings all.
fn first_range(part: Option<(u64, Option<i64>)>, at_first: u64) -> (Option<GetRange>, Option<u64>) {
    let (offset, end) = match part {
        Some((_, Some(last))) if last < 0 => return (Some(GetRange::Suffix(last.unsigned_abs())), None),
        Some((offset, Some(length))) => (offset, offset.saturating_add(length.unsigned_abs())),
        Some((offset, None)) => (offset, u64::MAX),
        None => (0, u64::MAX),
    };
    (Some(GetRange::Bounded(offset..end.min(offset.saturating_add(at_first)))), Some(end))
}

async fn upload_one(remote: &Remote, client: &Client, upload: &Upload, overwrite: bool) -> Result<bool, Problem> {
    let key = &upload.to.key;
    let path = path_of(key)?;
    let tell = |error: object_store::Error| problem(remote, Doing::Write, key, &error);
    let content = match &upload.content {
        Content::Memory(bytes) => bytes.clone(),
        Content::File(path) => read_file(path)?,
    };
    let attributes = attributes_of(upload);
    if !overwrite {
        match client.store.head(&path).await {
            Ok(_) => return Ok(false),
            Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => return Err(tell(error)),
        }
    }
    if content.len() as u64 <= 2 * PART {
        let options = PutOptions { mode: PutMode::Overwrite, attributes, ..PutOptions::default() };
        return client.store.put_opts(&path, PutPayload::from(content), options).await.map(|_| true).map_err(tell);
    }
    let options = PutMultipartOptions { attributes, ..PutMultipartOptions::default() };
    let mut parts = client.store.put_multipart_opts(&path, options).await.map_err(tell)?;
    let slices = (0..content.len())
        .step_by(PART as usize)
        .map(|from| parts.put_part(PutPayload::from(content.slice(from..content.len().min(from + PART as usize)))));
    let sent: Vec<_> = slices.collect();
    let mut sent = stream::iter(sent).buffer_unordered(PARTS_AT_ONCE);
    let mut outcome = Ok(());
    while let Some(part) = sent.next().await {
        outcome = outcome.and(part);
    }
    drop(sent);
    if let Err(error) = outcome {
        // Best effort: the reason is being told.
        let _ = parts.abort().await;
        return Err(tell(error));
    }
    parts.complete().await.map(|_| true).map_err(tell)
}

fn read_file(path: &Path) -> Result<Bytes, Problem> {
    let problem = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => Problem::Missing(format!("there is no file `{}`", path.display())),
        _ => Problem::Other(format!("cannot read `{}`: {error}", path.display())),
    };
    let file = File::open(path).map_err(problem)?;
    let length = file.metadata().map_err(problem)?.len();
    if length < 1 << 20 {
        return Ok(Bytes::from(std::fs::read(path).map_err(problem)?));
    }
    // SAFETY: a file that its owner shortens while it is uploaded ends the upload, as with any tool
    // that maps files.
    let map = unsafe { Mmap::map(&file) }.map_err(problem)?;
    Ok(Bytes::from_owner(map))
}

fn attributes_of(upload: &Upload) -> Attributes {
    let mut attributes = Attributes::new();
    if let Some(kind) = &upload.content_type {
        attributes.insert(Attribute::ContentType, kind.clone().into());
    }
    for (name, value) in &upload.metadata {
        attributes.insert(Attribute::Metadata(name.clone().into()), value.clone().into());
    }
    attributes
}

async fn list_one(remote: &Remote, client: &Client, prefix: &Address, recursive: bool) -> Result<Vec<Listed>, Problem> {
    let tell = |error: object_store::Error| problem(remote, Doing::List, &prefix.key, &error);
    let folder = prefix.key.strip_suffix('/').unwrap_or(&prefix.key);
    let base = if folder.is_empty() { None } else { Some(path_of(folder)?) };
    let file = |object: object_store::ObjectMeta| {
        (without_stand_ins(object.location.as_ref()), Some((object.size, object.last_modified.timestamp_millis())))
    };
    if recursive {
        let mut found = Vec::new();
        let mut objects = client.store.list(base.as_ref());
        while let Some(object) = objects.next().await {
            found.push(file(object.map_err(tell)?));
        }
        return Ok(found);
    }
    let level = client.store.list_with_delimiter(base.as_ref()).await.map_err(tell)?;
    let prefixes = level.common_prefixes.iter().map(|path| (without_stand_ins(path.as_ref()) + "/", None));
    Ok(prefixes.chain(level.objects.into_iter().map(file)).collect())
}
