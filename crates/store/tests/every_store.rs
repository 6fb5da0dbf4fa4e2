//! Every kind of datastore passes the one suite. The real ones are named by the environment:
//! `FERROFLOW_TEST_STORE` is a location as JSON, and the variables of its cloud say how to reach it
//! (tests/e2e/test_object_store.py starts them).

use ferroflow_core::task::StoreLocation;
use ferroflow_store::conformance;

fn location(kind: &str, root: &str) -> StoreLocation {
    StoreLocation { kind: kind.to_owned(), root: root.to_owned(), options: Default::default() }
}

#[test]
fn a_folder() {
    let folder = tempfile::tempdir().expect("folder");
    let root = folder.path().join("root");
    conformance::run(location("local", &root.to_string_lossy()), folder.path());
}

#[test]
fn memory() {
    let folder = tempfile::tempdir().expect("folder");
    conformance::run(location("memory", "memory://suite/a/prefix"), folder.path());
}

#[test]
fn the_named_store() {
    let Ok(named) = std::env::var("FERROFLOW_TEST_STORE") else {
        eprintln!("skipped: FERROFLOW_TEST_STORE names no store");
        return;
    };
    let folder = tempfile::tempdir().expect("folder");
    conformance::run(serde_json::from_str(&named).expect("a location as JSON"), folder.path());
}
