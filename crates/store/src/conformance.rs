//! What every kind of datastore must do, as a suite that each kind's tests run against it: local,
//! memory, S3, Azure, Google Cloud. It panics with what is wrong; it knows nothing of any kind
//! beyond what a location says.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ferroflow_core::id::{AttemptId, RunId, TaskId};
use ferroflow_core::port::{LogPlace, ObjectAccess, Stream};
use ferroflow_core::task::StoreLocation;
use serde_json::json;

use crate::blob::{BlobMapping, INLINE_LIMIT, StoredValue, ValueWriter, fetch, read_into, read_remote_parts};
use crate::pack::{Description, Encoding, Pack, PackBuilder, ValuePlace};
use crate::remote::access::RemoteObjects;
use crate::remote::log::log_store;
use crate::{Datastore, PackPlace, StoreError};

/// A datastore under test. Its root is empty or does not exist yet, and its own.
#[derive(Debug)]
pub struct Candidate {
    location: StoreLocation,
    /// Where the machines of the suite keep their copies.
    scratch: PathBuf,
    machines: AtomicUsize,
}

/// Runs the whole suite; panics at the first promise that is broken.
pub fn run(location: StoreLocation, scratch: &Path) {
    let candidate = Candidate { location, scratch: scratch.to_owned(), machines: AtomicUsize::new(0) };
    packs_come_back_on_another_machine(&candidate);
    values_of_every_size_come_back(&candidate);
    what_is_missing_is_named(&candidate);
    a_repeated_attempt_replaces_the_first(&candidate);
    many_packs_and_writers_at_once(&candidate);
    wrong_bytes_are_never_handed_on(&candidate);
    logs_come_back_on_another_machine(&candidate);
    if candidate.is_remote() {
        parts_are_read_without_the_rest(&candidate);
        plain_objects(&candidate);
    }
}

impl Candidate {
    fn is_remote(&self) -> bool {
        self.location.kind != "local"
    }

    /// The datastore as a machine sees it that has read and written nothing yet.
    fn on_another_machine(&self) -> Datastore {
        let mut location = self.location.clone();
        if self.is_remote() {
            let number = self.machines.fetch_add(1, Ordering::Relaxed);
            let folder = self.scratch.join(format!("machine{number}"));
            location.options.insert("cache".to_owned(), folder.to_string_lossy().into_owned());
        }
        Datastore::open(&location).expect("a location that opens")
    }
}

fn place(step: &str, task: u64, attempt: u32) -> PackPlace {
    PackPlace {
        flow: Arc::from("Conformance"),
        run: RunId::from("1"),
        step: Arc::from(step),
        id: AttemptId { task: TaskId(task), attempt },
    }
}

/// Bytes that do not repeat, so that compressing does not pay.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn description() -> Description {
    let type_name = "<class 'bytes'>".to_owned();
    Description { type_name, preview: None, encoding: Encoding::Raw, pickle: 0, buffers: Vec::new(), tag: None }
}

fn stored(store: &Datastore, name: &str, bytes: &[u8]) -> StoredValue {
    let mut writer = ValueWriter::new(store.clone(), name);
    for chunk in bytes.chunks(1 << 20) {
        writer.write(chunk).expect("write a value");
    }
    writer.finish().expect("finish a value")
}

fn commit(store: &Datastore, place: &PackPlace, values: &[(&str, &[u8])]) {
    let mut pack = PackBuilder::new(store.clone(), place.clone());
    for (name, bytes) in values {
        pack.add(name, description(), &stored(store, name, bytes));
    }
    pack.commit(json!({"ok": true}), 1).expect("commit a pack");
}

fn read(store: &Datastore, pack: &Pack, name: &str) -> Result<Vec<u8>, StoreError> {
    match &pack.require(name)?.at {
        ValuePlace::Inline(offset, length) => Ok(pack.inline(*offset, *length)?.to_vec()),
        ValuePlace::Blob(hash, length) => {
            let what = || pack.describe(name);
            let mapped = BlobMapping::open(store, hash, *length, &what)?.bytes().to_vec();
            let mut read = vec![0; mapped.len()];
            read_into(store, hash, &mut read, &what)?;
            assert_eq!(read, mapped, "mapped and read differ");
            Ok(mapped)
        }
    }
}

fn blob_of(pack: &Pack, name: &str) -> (String, u64) {
    match &pack.require(name).expect("an artifact").at {
        ValuePlace::Blob(hash, length) => (hash.clone(), *length),
        ValuePlace::Inline(..) => panic!("`{name}` is stored inline"),
    }
}

fn packs_come_back_on_another_machine(candidate: &Candidate) {
    let writer = candidate.on_another_machine();
    let large = noise(INLINE_LIMIT + 1, 1);
    commit(&writer, &place("back", 1, 0), &[("small", b"small"), ("large", &large)]);
    for store in [writer, candidate.on_another_machine()] {
        let pack = Pack::open(&store, &place("back", 1, 0)).expect("the pack");
        assert_eq!(pack.header.outcome, json!({"ok": true}));
        assert_eq!(read(&store, &pack, "small").expect("inline"), b"small");
        assert_eq!(read(&store, &pack, "large").expect("blob"), large);
        let mut after = PackBuilder::new(store.clone(), place("back", 2, 0));
        after.pass_on("large", &pack).expect("pass on");
        after.commit(json!({"ok": true}), 1).expect("commit what was passed on");
    }
    let store = candidate.on_another_machine();
    let pack = Pack::open(&store, &place("back", 2, 0)).expect("the pack");
    assert_eq!(read(&store, &pack, "large").expect("passed on"), large);
}

/// Around every limit: inline, one request, several parts; what compresses and what does not.
fn values_of_every_size_come_back(candidate: &Candidate) {
    const MIB: usize = 1 << 20;
    let lengths = [0, 1, INLINE_LIMIT, INLINE_LIMIT + 1, 8 * MIB - 16, 8 * MIB - 15, 8 * MIB + 1, 21 * MIB + 7];
    let writer = candidate.on_another_machine();
    let values: Vec<(String, Vec<u8>)> = lengths
        .into_iter()
        .flat_map(|length| {
            [(format!("noise{length}"), noise(length, 2)), (format!("flat{length}"), vec![b'x'; length])]
        })
        .collect();
    let named: Vec<(&str, &[u8])> = values.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    commit(&writer, &place("sizes", 1, 0), &named);
    let store = candidate.on_another_machine();
    let pack = Pack::open(&store, &place("sizes", 1, 0)).expect("the pack");
    for (name, bytes) in &values {
        assert!(read(&store, &pack, name).expect("a value") == *bytes, "`{name}` came back changed");
    }
}

fn what_is_missing_is_named(candidate: &Candidate) {
    let store = candidate.on_another_machine();
    let gone = place("gone", 7, 3);
    match Pack::open(&store, &gone) {
        Err(StoreError::Missing(text)) => {
            assert!(text.contains("task `Conformance/1/gone/7` (attempt 3) has no stored data"), "{text}");
        }
        other => panic!("a missing pack: {other:?}"),
    }
    let hash = blake3::hash(b"never stored").to_hex().to_string();
    let opened = BlobMapping::open(&store, &hash, 12, &|| "artifact `x`".to_owned());
    match opened.map(drop) {
        Err(StoreError::Missing(text)) => assert!(text.contains("artifact `x`"), "{text}"),
        Err(StoreError::Remote(error)) => assert!(error.to_string().contains(&hash), "{error}"),
        other => panic!("a missing blob: {other:?}"),
    }
}

fn a_repeated_attempt_replaces_the_first(candidate: &Candidate) {
    for text in [b"first".as_slice(), b"second"] {
        commit(&candidate.on_another_machine(), &place("again", 1, 0), &[("x", text)]);
        let store = candidate.on_another_machine();
        let pack = Pack::open(&store, &place("again", 1, 0)).expect("the pack");
        assert_eq!(read(&store, &pack, "x").expect("inline"), text);
    }
}

fn many_packs_and_writers_at_once(candidate: &Candidate) {
    let same = noise(300_000, 3);
    let threads = 8_u64;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let same = &same;
            scope.spawn(move || {
                let store = candidate.on_another_machine();
                for task in 0..10 {
                    let own = format!("{thread} {task}").into_bytes();
                    commit(&store, &place("many", thread * 10 + task, 0), &[("own", &own), ("same", same)]);
                }
            });
        }
    });
    let store = candidate.on_another_machine();
    let places: Vec<PackPlace> = (0..threads * 10).map(|task| place("many", task, 0)).collect();
    Pack::fetch(&store, &places).expect("fetch all at once");
    for (number, place) in (0..).zip(&places) {
        let pack = Pack::open(&store, place).expect("the pack");
        let own = format!("{} {}", number / 10, number % 10);
        assert_eq!(read(&store, &pack, "own").expect("inline"), own.as_bytes());
        fetch(&store, &[blob_of(&pack, "same")]).expect("fetch");
        assert!(read(&store, &pack, "same").expect("blob") == same);
    }
}

/// Bytes that are not what was written: an error that names the artifact, and no copy is kept.
fn wrong_bytes_are_never_handed_on(candidate: &Candidate) {
    let writer = candidate.on_another_machine();
    let value = noise(200_000, 4);
    let here = place("wrong", 1, 0);
    commit(&writer, &here, &[("x", &value)]);
    let (hash, _) = blob_of(&Pack::open(&writer, &here).expect("the pack"), "x");
    let keys = ["Conformance/runs/1/wrong/1.0.pack".to_owned(), format!("data/{}/{hash}", &hash[..2])];
    for key in keys.iter().rev() {
        let whole = raw_object(candidate, &writer, key);
        for damage in [flipped(&whole), whole[..whole.len() / 2].to_vec(), Vec::new(), b"<html>".to_vec()] {
            put_raw(candidate, &writer, key, &damage);
            let store = candidate.on_another_machine();
            let outcome = Pack::open(&store, &here).and_then(|pack| read(&store, &pack, "x"));
            let error = outcome.expect_err("wrong bytes").to_string();
            assert!(error.contains("is damaged"), "{error}");
            put_raw(candidate, &writer, key, &whole);
            let pack = Pack::open(&store, &here).expect("the pack, once it is right again");
            assert!(read(&store, &pack, "x").expect("right again") == value, "a damaged copy was kept");
        }
    }
}

fn flipped(bytes: &[u8]) -> Vec<u8> {
    let mut other = bytes.to_vec();
    let middle = other.len() / 2;
    other[middle] ^= 1;
    other
}

fn raw_object(candidate: &Candidate, store: &Datastore, key: &str) -> Vec<u8> {
    if !candidate.is_remote() {
        return std::fs::read(store.root().join(key)).expect("the file");
    }
    wait(async { objects(candidate).get_from(key, 0).await }).expect("get").expect("the object")
}

fn put_raw(candidate: &Candidate, store: &Datastore, key: &str, bytes: &[u8]) {
    if candidate.is_remote() {
        assert!(wait(async { objects(candidate).put(key, bytes.to_vec(), false).await }).expect("put"));
        return;
    }
    // As damage comes about: under the same name, not through a rename.
    std::fs::write(store.root().join(key), bytes).expect("write the file");
}

fn logs_come_back_on_another_machine(candidate: &Candidate) {
    let place = |task: u64| LogPlace {
        flow: "Conformance".into(),
        run: RunId::from("1"),
        step: "logs".into(),
        id: AttemptId { task: TaskId(task), attempt: 0 },
    };
    let logs = log_store(candidate.on_another_machine());
    for task in 0..20 {
        logs.append(&place(task), Stream::Stdout, 1, &[format!("out {task}").into_bytes()]).expect("append");
        logs.append(&place(task), Stream::Stderr, 2, &[b"\xff\n\0".to_vec()]).expect("append");
        logs.close(&place(task));
    }
    logs.close(&place(99));
    drop(logs);
    let logs = log_store(candidate.on_another_machine());
    for task in 0..20 {
        let lines = logs.read(&place(task)).expect("read");
        let bytes: Vec<Vec<u8>> = lines.iter().map(|line| line.bytes.clone()).collect();
        assert_eq!(bytes, [format!("out {task}").into_bytes(), b"\xff\n\0".to_vec()]);
    }
    assert!(logs.read(&place(99)).expect("read").is_empty(), "a task that printed nothing");
}

fn parts_are_read_without_the_rest(candidate: &Candidate) {
    let writer = candidate.on_another_machine();
    let items = vec![b'i'; 3 << 20];
    let mut pack = PackBuilder::new(writer.clone(), place("parts", 1, 0));
    pack.set_items("items", 1, &stored(&writer, "items", &items));
    pack.commit(json!({"ok": true}), 1).expect("commit");
    let hash = blake3::hash(&items).to_hex().to_string();
    let store = candidate.on_another_machine();
    let found = read_remote_parts(&store, &hash, 10..20, |first| (first == b"iiiiiiiiii").then_some(40..43));
    assert_eq!(found.as_deref(), Some(b"iii".as_slice()));
    assert!(!store.blob_path(&hash).exists(), "the whole blob was fetched");
}

// --- plain objects: code packages, logs of remote tasks, leases ---------------------------------

fn objects(candidate: &Candidate) -> RemoteObjects {
    RemoteObjects::of(&candidate.location).expect("a location").expect("a remote one")
}

fn wait<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(work)
}

fn plain_objects(candidate: &Candidate) {
    wait(async {
        let objects = objects(candidate);
        objects_are_listed_in_order(&objects).await;
        reading_goes_on_where_it_ended(&objects).await;
        one_of_many_writers_wins(&objects).await;
        only_who_knows_the_last_version_replaces_it(&objects).await;
        if candidate.location.kind != "memory" {
            a_link_needs_no_credentials(&objects).await;
        }
    });
}

async fn objects_are_listed_in_order(objects: &RemoteObjects) {
    let names = ["b", "a/2", "a/10", "sp ace ü%20#+", "ab"];
    for name in names {
        let key = format!("Conformance/plain/{name}");
        assert!(objects.put(&key, name.as_bytes().to_vec(), false).await.expect("put"));
        assert_eq!(objects.get_from(&key, 0).await.expect("get").as_deref(), Some(name.as_bytes()));
    }
    let found = objects.list("Conformance/plain/").await.expect("list");
    let found: Vec<(&str, u64)> = found
        .iter()
        .map(|entry| (entry.key.strip_prefix("Conformance/plain/").expect("below the prefix"), entry.size))
        .collect();
    assert_eq!(found, [("a/10", 4), ("a/2", 3), ("ab", 2), ("b", 1), ("sp ace ü%20#+", 14)]);
    let of_part: Vec<String> = objects
        .list("Conformance/plain/a")
        .await
        .expect("list")
        .into_iter()
        .map(|entry| entry.key.rsplit('/').next().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(of_part, ["10", "2", "ab"]);
    assert!(objects.list("Conformance/nothing/").await.expect("list").is_empty());
    assert_eq!(objects.get_from("Conformance/nothing/x", 0).await.expect("get"), None);
}

async fn reading_goes_on_where_it_ended(objects: &RemoteObjects) {
    let key = "Conformance/grows/log";
    for (text, from, rest) in [("ab", 0, "ab"), ("abcd", 2, "cd"), ("abcd", 4, ""), ("abcdef", 4, "ef")] {
        objects.put(key, text.as_bytes().to_vec(), false).await.expect("put");
        let read = objects.get_from(key, from).await.expect("get").expect("it is there");
        assert_eq!(String::from_utf8_lossy(&read), rest, "from {from} of `{text}`");
    }
}

async fn one_of_many_writers_wins(objects: &RemoteObjects) {
    let key = "Conformance/epoch/1";
    let put = |number: usize| objects.put(key, number.to_string().into_bytes(), true);
    let outcomes = futures::future::join_all((0..16).map(put)).await;
    let winners: Vec<usize> =
        (0..16).filter(|&number| *outcomes[number].as_ref().expect("an answer, not an error")).collect();
    assert_eq!(winners.len(), 1, "writers that each believe to be first: {winners:?}");
    let kept = objects.get_from(key, 0).await.expect("get").expect("it is there");
    assert_eq!(kept, winners[0].to_string().into_bytes());
}

/// What leases rest on: an engine that did not see the last write does not write.
async fn only_who_knows_the_last_version_replaces_it(objects: &RemoteObjects) {
    let key = "Conformance/lease/1";
    assert!(objects.get_versioned(key).await.expect("get").is_none());
    let replace = |text: &str, version| {
        let data = text.as_bytes().to_vec();
        async move { objects.replace(key, data, version).await.expect("an answer, not an error") }
    };
    let first = replace("first", None).await.expect("nobody wrote before");
    assert_eq!(replace("a second first", None).await, None);
    assert_eq!(objects.get_versioned(key).await.expect("get"), Some((b"first".to_vec(), first.clone())));
    let texts: Vec<String> = (0..16).map(|number| format!("racer {number}")).collect();
    let outcomes = futures::future::join_all(texts.iter().map(|text| replace(text, Some(&first)))).await;
    let winners: Vec<usize> = (0..16).filter(|number| outcomes[*number].is_some()).collect();
    assert_eq!(winners.len(), 1, "writers that each believe to hold it: {winners:?}");
    assert_eq!(replace("too late", Some(&first)).await, None);
    let (kept, version) = objects.get_versioned(key).await.expect("get").expect("it is there");
    assert_eq!((kept, Some(&version)), (texts[winners[0]].clone().into_bytes(), outcomes[winners[0]].as_ref()));
    assert!(replace("renewed", Some(&version)).await.is_some());
    assert_eq!(objects.replace("Conformance/lease/gone", Vec::new(), Some(&version)).await.expect("an answer"), None);
}

async fn a_link_needs_no_credentials(objects: &RemoteObjects) {
    let key = "Conformance/code/package";
    objects.put(key, b"the code".to_vec(), false).await.expect("put");
    let link = objects.presigned(key, 60, None).await.expect("a link");
    let client = reqwest::Client::builder().timeout(Duration::from_secs(20)).build().expect("a client");
    let answer = client.get(&link).send().await.expect("an answer");
    assert_eq!(answer.status(), 200, "of {link}");
    assert_eq!(answer.bytes().await.expect("a body"), b"the code".as_slice());
}
