//! Whatever happens to a stored byte, a reader gets an error that names the artifact or task and
//! the file, and never wrong data.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use ferroflow_store::blob::{BlobMapping, INLINE_LIMIT, read_into};
use ferroflow_store::pack::{Encoding, Pack, ValuePlace};
use ferroflow_store::{Datastore, PackPlace, StoreError};
use ferroflow_task::output::{Label, TaskOutput, place};
use ferroflow_task::{ItemsWriter, read_item};

fn label() -> Label {
    Label { type_name: "<class 'bytes'>".to_owned(), preview: Some("x".to_owned()), tag: None }
}

fn here() -> PackPlace {
    place("F", "1", "train", 7, 2)
}

fn big(seed: u8) -> Vec<u8> {
    (0..INLINE_LIMIT + 1000).map(|index| (index as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}

fn filled(root: &Path) -> Datastore {
    let store = Datastore::new(root);
    let mut output = TaskOutput::new(store.clone(), here());
    output.add_json("small", label(), b"[1,2]".to_vec());
    output.add_raw("raw", label(), b"bytes").expect("add");
    output.add_raw("large", label(), &big(1)).expect("add");
    let mut items = ItemsWriter::new(store.clone(), "small");
    for item in 0..3_u8 {
        items.push(Encoding::Json, &[b'0' + item]).expect("push");
    }
    let (count, value) = items.finish().expect("finish");
    output.set_items("small", count, &value);
    output.commit(serde_json::json!({"ok": true})).expect("commit");
    store
}

/// Everything a reader can get out of the store.
fn read_all(store: &Datastore) -> Result<Vec<Vec<u8>>, StoreError> {
    let pack = Pack::open(store, &here())?;
    let mut all = vec![pack.header.outcome.to_string().into_bytes()];
    for (name, artifact) in &pack.header.artifacts {
        all.push(name.clone().into_bytes());
        match &artifact.at {
            ValuePlace::Inline(offset, length) => all.push(pack.inline(*offset, *length)?.to_vec()),
            ValuePlace::Blob(hash, length) => {
                let what = || pack.describe(name);
                let mapped = BlobMapping::open(store, hash, *length, &what)?.bytes().to_vec();
                let mut read = vec![0; *length as usize];
                read_into(store, hash, &mut read, &what)?;
                assert_eq!(read, mapped);
                all.push(mapped);
            }
        }
    }
    for index in 0..3 {
        all.push(read_item(store, &pack, "small", index)?.expect("items").bytes);
    }
    Ok(all)
}

#[test]
fn every_flipped_byte_of_a_pack_is_found() {
    let root = tempfile::tempdir().expect("folder");
    let store = filled(root.path());
    let good = read_all(&store).expect("undamaged");
    let path = store.pack_path(&here());
    let bytes = fs::read(&path).expect("read");
    for index in 0..bytes.len() {
        for flip in [1, 128] {
            let mut damaged = bytes.clone();
            damaged[index] ^= flip;
            fs::write(&path, &damaged).expect("write");
            let error = read_all(&store).expect_err("a flipped byte is found").to_string();
            assert!(error.contains("`F/1/train/7` (attempt 2)") && error.contains("7.2.pack"), "{error}");
        }
    }
    fs::write(&path, &bytes).expect("write");
    assert_eq!(read_all(&store).expect("mended"), good);
}

#[test]
fn every_flipped_byte_of_a_blob_is_found() {
    let root = tempfile::tempdir().expect("folder");
    let store = filled(root.path());
    read_all(&store).expect("undamaged");
    let path = only_blob(&store);
    let bytes = fs::read(&path).expect("read");
    for index in (0..bytes.len()).step_by(97).chain([bytes.len() - 1]) {
        let mut damaged = bytes.clone();
        damaged[index] ^= 4;
        fs::write(&path, &damaged).expect("write");
        let error = read_all(&store).expect_err("a flipped byte is found").to_string();
        let expected = format!(
            "the data of artifact `large` of task `F/1/train/7` (attempt 2) is damaged: the file `{}` does not \
             match its checksum; run the step again to make it anew",
            path.display()
        );
        assert_eq!(error, expected);
    }
}

#[test]
fn a_flip_is_found_even_after_the_blob_was_remembered_as_verified() {
    let root = tempfile::tempdir().expect("folder");
    let store = filled(root.path());
    let path = only_blob(&store);
    // Old enough for its time stamps to be trusted: wait for the clock, not for an event.
    while fs::metadata(&path).and_then(|file| file.modified()).expect("time").elapsed().unwrap_or_default()
        < std::time::Duration::from_millis(150)
    {
        std::thread::yield_now();
    }
    read_all(&store).expect("undamaged");
    let verified = fs::read(root.path().join("verified")).expect("the memory of verified blobs");
    assert!(verified.iter().any(|byte| *byte != 0), "the blob was remembered");
    let mut bytes = fs::read(&path).expect("read");
    bytes[5] ^= 1;
    fs::write(&path, &bytes).expect("write");
    assert!(matches!(read_all(&store), Err(StoreError::Damaged(_))));
}

fn only_blob(store: &Datastore) -> std::path::PathBuf {
    let pack = Pack::open(store, &here()).expect("pack");
    match &pack.artifact("large").expect("artifact").at {
        ValuePlace::Blob(hash, _) => store.blob_path(hash),
        ValuePlace::Inline(..) => panic!("a large value is a blob"),
    }
}

#[test]
fn truncated_and_foreign_files_are_found() {
    let root = tempfile::tempdir().expect("folder");
    let store = filled(root.path());
    let blob = only_blob(&store);
    let pack = store.pack_path(&here());
    for path in [&pack, &blob] {
        let bytes = fs::read(path).expect("read");
        for length in [0, 1, 7, 47, 48, 49, bytes.len() / 2, bytes.len() - 1] {
            fs::write(path, &bytes[..length]).expect("write");
            assert!(matches!(read_all(&store), Err(StoreError::Damaged(_) | StoreError::Io { .. })), "{length}");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        fs::write(path, &longer).expect("write");
        assert!(matches!(read_all(&store), Err(StoreError::Damaged(_))));
        fs::write(path, vec![b'A'; bytes.len()]).expect("write");
        assert!(matches!(read_all(&store), Err(StoreError::Damaged(_))));
        fs::write(path, &bytes).expect("write");
        read_all(&store).expect("mended");
    }
    let other = PackPlace { id: place("F", "1", "train", 8, 0).id, ..here() };
    fs::copy(&pack, store.pack_path(&other)).expect("copy");
    let error = Pack::open(&store, &other).expect_err("another task's pack").to_string();
    assert!(error.contains("holds the data of another task"), "{error}");
    fs::remove_file(&blob).expect("remove");
    let error = read_all(&store).expect_err("gone");
    assert!(matches!(error, StoreError::Missing(_)));
    assert!(error.to_string().contains("artifact `large` of task `F/1/train/7` (attempt 2) is gone"), "{error}");
}

#[test]
fn flipped_bytes_of_items_are_found_by_the_split_that_reads_them() {
    let root = tempfile::tempdir().expect("folder");
    let store = Datastore::new(root.path());
    let mut output = TaskOutput::new(store.clone(), here());
    let mut items = ItemsWriter::new(store.clone(), "small");
    for index in 0..2000_u32 {
        items.push(Encoding::Raw, &[index as u8; 40]).expect("push");
    }
    let (count, value) = items.finish().expect("finish");
    output.set_items("x", count, &value);
    output.commit(serde_json::json!({})).expect("commit");
    let pack = Pack::open(&store, &here()).expect("open");
    let ValuePlace::Blob(hash, _) = &pack.header.items.as_ref().expect("items").at else { panic!("a blob") };
    let path = store.blob_path(hash);
    let bytes = fs::read(&path).expect("read");
    let item = 1234;
    let entry = bytes.len() - 2000 * 48 + item * 48;
    for index in (item * 40..item * 40 + 40).chain(entry..entry + 48) {
        let mut damaged = bytes.clone();
        damaged[index] ^= 2;
        fs::write(&path, &damaged).expect("write");
        assert!(read_item(&store, &pack, "x", item as u64).is_err(), "byte {index}");
        assert!(read_item(&store, &pack, "x", item as u64 + 1).expect("its neighbour is fine").is_some());
    }
}

#[test]
fn a_damaged_blob_is_written_anew_not_handed_on() {
    let root = tempfile::tempdir().expect("folder");
    let store = filled(root.path());
    let path = only_blob(&store);
    let mut bytes = fs::read(&path).expect("read");
    bytes[100] ^= 1;
    fs::write(&path, &bytes).expect("write");
    let good = read_all(&filled(root.path())).expect("the same value, stored again");
    assert!(good.contains(&big(1)));
}

#[test]
fn many_writers_of_one_blob_agree() {
    let root = tempfile::tempdir().expect("folder");
    let store = Datastore::new(root.path());
    let data = Arc::new(big(9));
    std::thread::scope(|scope| {
        for task in 0..16 {
            let (store, data) = (store.clone(), Arc::clone(&data));
            scope.spawn(move || {
                let mut output = TaskOutput::new(store.clone(), place("F", "1", "s", task, 0));
                output.add_raw("x", label(), &data).expect("add");
                let mut writer = output.value_writer("x");
                for part in data.chunks(1000) {
                    writer.write(part).expect("write");
                }
                output.add_pickle("y", label(), writer, &[]).expect("add");
                output.commit(serde_json::json!({})).expect("commit");
            });
        }
    });
    let places: Vec<PackPlace> = (0..16).map(|task| place("F", "1", "s", task, 0)).collect();
    for pack in ferroflow_task::load_packs(&store, &places).expect("packs") {
        for name in ["x", "y"] {
            let ValuePlace::Blob(hash, length) = &pack.artifact(name).expect("artifact").at else { panic!("a blob") };
            let mapping = BlobMapping::open(&store, hash, *length, &|| pack.describe(name)).expect("blob");
            assert_eq!(mapping.bytes(), &data[..]);
        }
    }
    let files: Vec<_> = walk(&root.path().join("data"));
    assert_eq!(files.len(), 1, "one blob and no leftovers: {files:?}");
}

fn walk(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("list") {
        let path = entry.expect("entry").path();
        if path.is_dir() { files.extend(walk(&path)) } else { files.push(path) }
    }
    files
}

#[test]
fn an_unfinished_value_leaves_nothing_behind() {
    let root = tempfile::tempdir().expect("folder");
    let store = Datastore::new(root.path());
    let output = TaskOutput::new(store, here());
    let mut writer = output.value_writer("x");
    writer.write(&big(3)).expect("write");
    assert_eq!(walk(&root.path().join("data")).len(), 1);
    drop(writer);
    assert_eq!(walk(&root.path().join("data")), [""; 0].map(std::path::PathBuf::from));
}
