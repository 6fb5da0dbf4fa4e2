//! What many tasks are about to copy is stored once, and what was replaced is not stored at all.

use std::fs;

use ferroflow_store::blob::BlobMapping;
use ferroflow_store::pack::{Pack, ValuePlace};
use ferroflow_store::{Datastore, PackPlace};
use ferroflow_task::output::{Label, TaskOutput, place};
use serde_json::json;

fn label() -> Label {
    Label { type_name: "<class 'list'>".to_owned(), preview: None, tag: None }
}

fn parent() -> PackPlace {
    place("F", "1", "start", 1, 0)
}

fn committed(store: &Datastore, values: &[(&str, usize)], splits: u64) -> Pack {
    let mut output = TaskOutput::new(store.clone(), parent());
    for (name, size) in values {
        output.add_json(name, label(), vec![b'7'; *size]);
    }
    let digests: Vec<String> =
        values.iter().map(|(name, _)| output.artifact(name).expect("added").hash.clone()).collect();
    output.commit(json!({"ok": true, "transition": {"targets": ["work"], "num_splits": splits}})).expect("commit");
    let pack = Pack::open(store, &parent()).expect("open");
    for ((name, _), digest) in values.iter().zip(digests) {
        assert_eq!(pack.require(name).expect("there").hash, digest, "a digest does not tell where the bytes are");
    }
    pack
}

#[test]
fn a_thousand_splits_name_one_blob() {
    let folder = tempfile::tempdir().expect("folder");
    let store = Datastore::new(folder.path());
    let pack = committed(&store, &[("items", 60_000), ("tiny", 100)], 1000);
    let ValuePlace::Blob(hash, 60_000) = &pack.require("items").expect("there").at else { panic!("not shared") };
    let read = BlobMapping::open(&store, hash, 60_000, &|| pack.describe("items")).expect("map");
    assert_eq!(read.bytes(), vec![b'7'; 60_000]);
    assert!(matches!(pack.require("tiny").expect("there").at, ValuePlace::Inline(_, 100)));
    let mut child = TaskOutput::new(store.clone(), place("F", "1", "work", 2, 0));
    child.pass_on("items", &pack).expect("pass on");
    child.pass_on("tiny", &pack).expect("pass on");
    child.commit(json!({"ok": true})).expect("commit");
    let size = fs::metadata(store.pack_path(child.place())).expect("a pack").len();
    assert!(size < 2000, "the pack of a split has {size} bytes");
}

#[test]
fn a_few_copies_are_no_file_each() {
    let folder = tempfile::tempdir().expect("folder");
    let store = Datastore::new(folder.path());
    let pack = committed(&store, &[("items", 60_000)], 10);
    assert!(matches!(pack.require("items").expect("there").at, ValuePlace::Inline(_, 60_000)));
    assert!(!folder.path().join("data").exists());
}

#[test]
fn replaced_values_leave_no_bytes_behind() {
    let folder = tempfile::tempdir().expect("folder");
    let store = Datastore::new(folder.path());
    let mut output = TaskOutput::new(store.clone(), parent());
    for letter in [b'1', b'2', b'3'] {
        output.add_json("same", label(), vec![letter; 10_000]);
        output.add_json(&format!("other{letter}"), label(), vec![letter]);
    }
    output.commit(json!({"ok": true})).expect("commit");
    let pack = Pack::open(&store, &parent()).expect("open");
    assert!(pack.size() < 13_000, "the pack has {} bytes", pack.size());
    let inline = |name: &str| match pack.require(name).expect("there").at {
        ValuePlace::Inline(offset, length) => pack.inline(offset, length).expect("inside").to_vec(),
        ValuePlace::Blob(..) => panic!("{name} is small"),
    };
    assert_eq!(inline("same"), vec![b'3'; 10_000]);
    assert_eq!([inline("other49"), inline("other50"), inline("other51")].concat(), b"123");
}
