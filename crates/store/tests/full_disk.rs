//! A disk that fills up: the reason is told, nothing that was recorded is lost, and work goes on
//! once there is room. Needs the right to mount a small file system; says so where it has none.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use ferroflow_core::id::{AttemptId, RunId, StepName, TaskId};
use ferroflow_core::metadata::{MetadataEntry, NewRun, Record};
use ferroflow_core::port::{LogPlace, LogStore, MetadataError, MetadataStore, Stream};
use ferroflow_store::{Datastore, FileLogStore, SqliteMetadata, engine_identity_of_this_process};

/// A file system of one MiB, unmounted when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().expect("folder");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
            .arg(folder.path())
            .output()
            .is_ok_and(|done| done.status.success());
        if !mounted {
            eprintln!("skipped: no right to mount a file system here");
        }
        mounted.then_some(Self(folder))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// One file that stays: what is removed may take its room a little longer, while a process that
    /// another test starts has it open, too.
    fn fill(&self) {
        let mut filler = fs::File::create(self.path().join("filler")).expect("create");
        for _ in 0..1000 {
            if filler.write_all(&[1; 4096]).is_err() {
                return;
            }
        }
        panic!("the disk never filled up");
    }

    fn make_room(&self) {
        for entry in fs::read_dir(self.path()).expect("list").flatten() {
            if entry.file_name().to_string_lossy().starts_with("filler") {
                fs::remove_file(entry.path()).expect("remove");
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let done = Command::new("umount").arg("-l").arg(self.path()).status();
        assert!(done.is_ok_and(|status| status.success()), "cannot unmount {}", self.path().display());
    }
}

/// The room of a removed file comes back a little later, as said above.
fn with_room<E: std::fmt::Debug>(what: &str, mut work: impl FnMut() -> Result<(), E>) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Err(error) = work() {
        assert!(Instant::now() < deadline, "cannot {what}, though there is room again: {error:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn told_full<T: std::fmt::Debug>(result: Result<T, MetadataError>) {
    match result {
        Err(MetadataError::Unavailable(text)) => {
            assert!(text.contains("the disk is full; free some space and try again"), "{text}");
        }
        other => panic!("not told: {other:?}"),
    }
}

#[test]
fn metadata_survives_a_full_disk() {
    let Some(disk) = SmallDisk::mount() else { return };
    let store = SqliteMetadata::open(disk.path()).expect("open");
    let run = NewRun {
        flow: "F".to_owned(),
        user: "ann".to_owned(),
        tags: Vec::new(),
        system_tags: Vec::new(),
        origin_run: None,
        graph: "{}".to_owned(),
        created_at: 1,
        engine: engine_identity_of_this_process(),
        store: None,
    };
    let id = store.create_run(&run).expect("run");
    disk.fill();
    let entry = |number: u64| {
        Record::Metadata(MetadataEntry {
            step: StepName::from("s"),
            task: TaskId(1),
            attempt: 0,
            name: "n".to_owned(),
            value: format!("{number} {}", "x".repeat(4000)),
            entry_type: "t".to_owned(),
            created_at: 1,
        })
    };
    let mut recorded = 0;
    let error = loop {
        match store.record("F", &id, &[entry(recorded)]) {
            Ok(()) => recorded += 1,
            Err(error) => break error,
        }
        assert!(recorded < 1000, "the disk never filled up");
    };
    told_full::<()>(Err(error));
    told_full(SqliteMetadata::open(disk.path().join("other")).and_then(|other| other.create_run(&run)));
    disk.make_room();
    with_room("record", || store.record("F", &id, &[entry(recorded)]));
    let values = SqliteMetadata::open(disk.path()).expect("open").entries("F", &id, TaskId(1)).expect("entries");
    let numbers: Vec<u64> =
        values.iter().map(|entry| entry.value.split(' ').next().unwrap_or("").parse().expect("a number")).collect();
    assert_eq!(numbers, (0..=recorded).collect::<Vec<_>>());
}

#[test]
fn logs_survive_a_full_disk() {
    let Some(disk) = SmallDisk::mount() else { return };
    let logs = FileLogStore::new(Datastore::new(disk.path()));
    let id = AttemptId { task: TaskId(1), attempt: 0 };
    let place = LogPlace { flow: "F".into(), run: RunId::from("1"), step: "s".into(), id };
    let line = |letter: u8| vec![letter; 3000];
    logs.append(&place, Stream::Stdout, 1, &[line(b'a')]).expect("append");
    disk.fill();
    told_full(logs.append(&place, Stream::Stdout, 2, &[line(b'b'), line(b'b')]));
    disk.make_room();
    with_room("append", || logs.append(&place, Stream::Stderr, 3, &[line(b'c')]).map(drop));
    let lines: Vec<u8> = logs.read(&place).expect("read").iter().map(|line| line.bytes[0]).collect();
    assert_eq!(lines, b"ac");
}
