//! The metadata store as engines and clients use it, many at once.

use ferroflow_core::id::StepName;
use ferroflow_core::metadata::{DataRef, EngineIdentity, RunState, TaskRecord};
use ferroflow_core::task::{AttemptState, Cause, CauseKind, Usage};

use super::*;
use crate::identity::engine_identity_of_this_process;

fn new_run(flow: &str) -> NewRun {
    NewRun {
        flow: flow.to_owned(),
        user: "ann".to_owned(),
        tags: vec!["b".to_owned(), "a".to_owned(), "b".to_owned()],
        system_tags: vec!["user:ann".to_owned(), "runtime:dev".to_owned()],
        origin_run: None,
        graph: "{\"name\":\"F\"}".to_owned(),
        created_at: 1_000,
        engine: engine_identity_of_this_process(),
        store: None,
    }
}

fn task(id: u64, attempt: u32, state: AttemptState) -> TaskRecord {
    TaskRecord {
        step: StepName::from("train"),
        task: TaskId(id),
        attempt,
        state,
        cause: None,
        foreach_path: vec![3, id],
        iteration: 0,
        num_splits: Some(7),
        targets: vec![StepName::from("a"), StepName::from("b")],
        created_at: 10,
        started_at: Some(11),
        finished_at: state.is_final().then_some(12),
        ok: Some(true),
        success: Some(false),
        usage: Some(Usage { cpu_seconds: 0.5, peak_memory: 1 << 40 }),
        pid: Some(77),
        layer: "local".to_owned(),
        data: Some(DataRef { run: RunId::from("9"), task: TaskId(2), attempt: 1 }),
        origin: None,
    }
}

fn store() -> (tempfile::TempDir, SqliteMetadata) {
    let root = tempfile::tempdir().expect("folder");
    let store = SqliteMetadata::open(root.path()).expect("open");
    (root, store)
}

#[test]
fn run_ids_are_small_integers_of_each_flow() {
    let (_root, store) = store();
    let ids: Vec<String> =
        ["F", "F", "G", "F"].iter().map(|flow| store.create_run(&new_run(flow)).expect("run").to_string()).collect();
    assert_eq!(ids, ["1", "2", "1", "3"]);
    assert_eq!(store.flows().expect("flows"), ["F", "G"]);
    let runs: Vec<String> = store.runs("F").expect("runs").into_iter().map(|run| run.run.to_string()).collect();
    assert_eq!(runs, ["3", "2", "1"]);
    let run = store.run("F", &RunId::from("2")).expect("run");
    assert_eq!(run.tags, ["a", "b"]);
    assert_eq!((run.state, run.graph.as_str()), (RunState::Running, "{\"name\":\"F\"}"));
    for wrong in ["4", "02", "+2", "x", ""] {
        let error = store.run("F", &RunId::from(wrong)).expect_err("no such run");
        assert_eq!(error.to_string(), format!("there is no run `F/{wrong}`"));
    }
}

#[test]
fn every_field_of_a_task_comes_back() {
    let (_root, store) = store();
    let run = store.create_run(&new_run("F")).expect("run");
    let mut failed = task(5, 0, AttemptState::Failed);
    failed.cause = Some(Cause::new(CauseKind::ExitCode, "exit code 3"));
    let second = TaskRecord {
        foreach_path: Vec::new(),
        targets: Vec::new(),
        num_splits: None,
        usage: None,
        data: None,
        origin: Some(DataRef { run: RunId::from("8"), task: TaskId(1), attempt: 0 }),
        ..task(5, 1, AttemptState::Done)
    };
    let records = [failed.clone(), task(5, 1, AttemptState::Queued), second.clone(), task(4, 0, AttemptState::Running)];
    let records: Vec<Record> = records.into_iter().map(Record::Task).collect();
    store.record("F", &run, &records).expect("record");
    let attempts: Vec<TaskRecord> =
        store.attempts("F", &run, TaskId(5)).expect("attempts").into_iter().map(|row| row.record).collect();
    assert_eq!(attempts, [failed, second.clone()], "earlier attempts stay, a later write of one replaces it");
    let latest: Vec<TaskRecord> = store.tasks("F", &run).expect("tasks").into_iter().map(|row| row.record).collect();
    assert_eq!(latest, [task(4, 0, AttemptState::Running), second]);
    assert_eq!(store.tasks_of("F", &run, Some("train")).expect("tasks").len(), 2);
    assert_eq!(store.tasks_of("F", &run, Some("other")).expect("tasks").len(), 0);
    let steps = store.steps("F", &run).expect("steps");
    assert_eq!(steps, [StepRow { step: StepName::from("train"), created_at: 10 }]);
}

#[test]
fn entries_come_back_in_order() {
    let (_root, store) = store();
    let run = store.create_run(&new_run("F")).expect("run");
    let entry = |name: &str| MetadataEntry {
        step: StepName::from("train"),
        task: TaskId(1),
        attempt: 0,
        name: name.to_owned(),
        value: "v".to_owned(),
        entry_type: "t".to_owned(),
        created_at: 3,
    };
    let written = [entry("z"), entry("a"), entry("z")];
    store.record("F", &run, &written.clone().map(Record::Metadata)).expect("record");
    assert_eq!(store.entries("F", &run, TaskId(1)).expect("entries"), written);
    assert_eq!(store.entries("F", &run, TaskId(2)).expect("entries"), []);
}

#[test]
fn nothing_runs_whose_engine_is_gone() {
    let (_root, store) = store();
    let mut run = new_run("F");
    run.engine.pid_start += 1;
    let id = store.create_run(&run).expect("run");
    let records = [task(1, 0, AttemptState::Done), task(2, 0, AttemptState::Running)].map(Record::Task);
    store.record("F", &id, &records).expect("record");
    let row = store.run("F", &id).expect("run");
    assert_eq!(row.state, RunState::Lost);
    let text = format!(
        "the engine of this run (process {}) ended without finishing it; use `resume` to go on",
        std::process::id()
    );
    assert_eq!(row.cause, Some(Cause::new(CauseKind::EngineLost, text)));
    let states: Vec<AttemptState> =
        store.tasks("F", &id).expect("tasks").into_iter().map(|row| row.record.state).collect();
    assert_eq!(states, [AttemptState::Done, AttemptState::Lost]);
    let done = Record::RunState { state: RunState::Done, cause: None, at: 5 };
    store.record("F", &id, &[done]).expect("record");
    assert_eq!(store.run("F", &id).expect("run").state, RunState::Done, "a run that ended is what it ended as");
}

#[test]
fn another_machine_is_lost_when_silent() {
    let (_root, store) = store();
    let mut run = new_run("F");
    run.engine = EngineIdentity { host: "elsewhere:1".to_owned(), pid: 1, pid_start: 1 };
    let id = store.create_run(&run).expect("run");
    assert_eq!(store.run("F", &id).expect("run").state, RunState::Lost);
    store.heartbeat("F", &id, now()).expect("heartbeat");
    assert_eq!(store.run("F", &id).expect("run").state, RunState::Running);
}

#[test]
fn tags_obey_their_rules() {
    let (_root, store) = store();
    let run = store.create_run(&new_run("F")).expect("run");
    let texts = |list: &[&str]| list.iter().map(|tag| (*tag).to_owned()).collect::<Vec<_>>();
    let mutate = |add: &[&str], remove: &[&str]| store.mutate_tags("F", &run, &texts(add), &texts(remove));
    assert_eq!(mutate(&["c", "user:ann"], &["a", "absent"]).expect("tags"), ["b", "c"]);
    assert_eq!(mutate(&["c"], &["c"]).expect("tags"), ["b", "c"], "removal comes first");
    let refused = |result: Result<Vec<String>, MetadataError>| match result {
        Err(MetadataError::Refused(text)) => text,
        other => panic!("not refused: {other:?}"),
    };
    assert_eq!(refused(mutate(&[""], &[])), "a tag must not be empty");
    assert_eq!(
        refused(mutate(&[&"ä".repeat(501)], &[])),
        format!("the tag `{}…` has 501 characters; at most 500 are allowed", "ä".repeat(20))
    );
    assert_eq!(
        refused(mutate(&[], &["user:ann"])),
        "`user:ann` is a system tag of run `F/1`; system tags cannot be removed"
    );
    let many: Vec<String> = (0..49).map(|number| format!("t{number}")).collect();
    assert_eq!(
        refused(store.mutate_tags("F", &run, &many, &[])),
        "a run can have at most 50 user tags, this would make 51; remove some first"
    );
    assert_eq!(store.mutate_tags("F", &run, &many[1..], &[]).expect("tags").len(), 50);
}

#[test]
fn hundreds_of_engines_open_one_new_folder_at_once() {
    let root = tempfile::tempdir().expect("folder");
    let start = std::sync::Barrier::new(200);
    let mut ids: Vec<u64> = std::thread::scope(|scope| {
        let engines: Vec<_> = (0..200)
            .map(|_| {
                scope.spawn(|| {
                    start.wait();
                    let store = SqliteMetadata::open(root.path()).expect("open");
                    let run = store.create_run(&new_run("F")).expect("run");
                    store.record("F", &run, &[Record::Task(task(1, 0, AttemptState::Done))]).expect("record");
                    run.as_str().parse().expect("a number")
                })
            })
            .collect();
        engines.into_iter().map(|engine| engine.join().expect("no panic")).collect()
    });
    ids.sort_unstable();
    assert_eq!(ids, (1..=200).collect::<Vec<_>>());
}

/// What one of the processes below does; does nothing when the tests as such run.
#[test]
fn one_of_many_processes() {
    let Some(root) = std::env::var_os("FERROFLOW_TEST_ROOT") else { return };
    let store = SqliteMetadata::open(&root).expect("open");
    let run = store.create_run(&new_run("F")).expect("run");
    for round in 0..20 {
        store.record("F", &run, &[Record::Task(task(round, 0, AttemptState::Done))]).expect("record");
        store.heartbeat("F", &run, 2_000).expect("heartbeat");
        store.mutate_tags("F", &RunId::from("1"), &[format!("round{round}")], &[]).expect("tags");
        assert_eq!(store.tasks("F", &run).expect("tasks").len() as u64, round + 1);
    }
}

#[test]
fn eighty_processes_write_to_one_database() {
    let root = tempfile::tempdir().expect("folder");
    let this = std::env::current_exe().expect("this program");
    let processes: Vec<_> = (0..80)
        .map(|_| {
            std::process::Command::new(&this)
                .args(["--exact", "sqlite::tests::one_of_many_processes"])
                .env("FERROFLOW_TEST_ROOT", root.path())
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped())
                .spawn()
                .expect("start")
        })
        .collect();
    for process in processes {
        let done = process.wait_with_output().expect("wait");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
    }
    let store = SqliteMetadata::open(root.path()).expect("open");
    assert_eq!(store.runs("F").expect("runs").len(), 80);
    for run in 1..=80 {
        assert_eq!(store.tasks("F", &RunId::from(run.to_string())).expect("tasks").len(), 20);
    }
    assert_eq!(store.run("F", &RunId::from("1")).expect("run").tags.len(), 22);
}

#[test]
fn a_fork_opens_its_own_connection() {
    let (_root, store) = store();
    let run = store.create_run(&new_run("F")).expect("run");
    store.slot.lock().expect("lock").as_mut().expect("open").pid += 1;
    store.heartbeat("F", &run, 1).expect("heartbeat");
    assert_eq!(store.slot.lock().expect("lock").as_ref().expect("open").pid, std::process::id());
}

#[test]
fn a_damaged_database_is_told_in_a_sentence() {
    let root = tempfile::tempdir().expect("folder");
    let path = root.path().join(DATABASE);
    std::fs::write(&path, b"this is no database at all, but it is long enough to look like a file of some kind....")
        .expect("write");
    let error = SqliteMetadata::open(root.path()).expect_err("damaged");
    let text = error.to_string();
    assert!(matches!(error, MetadataError::Unavailable(_)));
    assert!(text.starts_with(&format!("the run metadata in `{}` is damaged", path.display())), "{text}");
}

#[test]
fn looking_creates_nothing() {
    let root = tempfile::tempdir().expect("folder");
    assert!(SqliteMetadata::open_existing(root.path()).expect("open").is_none());
    assert_eq!(std::fs::read_dir(root.path()).expect("list").count(), 0);
}

#[test]
fn a_task_takes_little_room() {
    let (root, store) = store();
    let run = store.create_run(&new_run("F")).expect("run");
    for start in (0..100_000).step_by(1000) {
        let records: Vec<Record> = (start..start + 1000)
            .map(|id| {
                let plain = TaskRecord { data: None, foreach_path: vec![id], ..task(id, 0, AttemptState::Done) };
                Record::Task(plain)
            })
            .collect();
        store.record("F", &run, &records).expect("record");
    }
    let size = std::fs::metadata(root.path().join(DATABASE)).expect("size").len();
    assert!(size < 100_000 * 120, "{} bytes per task", size / 100_000);
    assert_eq!(store.tasks("F", &run).expect("tasks").len(), 100_000);
}

#[test]
fn a_database_of_the_first_version_is_brought_up_to_date() {
    let root = tempfile::tempdir().expect("folder");
    let store = SqliteMetadata::open(root.path()).expect("open");
    let old = store.create_run(&new_run("F")).expect("run");
    drop(store);
    let database = Connection::open(root.path().join(DATABASE)).expect("database");
    let newer = ["store", "epoch", "taken_by"].map(|column| format!("ALTER TABLE runs DROP COLUMN {column};"));
    database.execute_batch(&format!("{} PRAGMA user_version = 1", newer.concat())).expect("as it was");
    drop(database);
    let store = SqliteMetadata::open(root.path()).expect("open again");
    assert_eq!(store.run("F", &old).expect("the old run").store, None);
    let mut remote = new_run("F");
    let options = [("scope".to_owned(), "x".to_owned())].into();
    remote.store = Some(ferroflow_core::task::StoreLocation { kind: "s3".into(), root: "s3://b".into(), options });
    let id = store.create_run(&remote).expect("run");
    assert_eq!(store.run("F", &id).expect("the new run").store, remote.store);
}

#[test]
fn of_two_engines_for_one_run_one_loses() {
    let (root, first) = store();
    let run = first.create_run(&new_run("F")).expect("run");
    first.record("F", &run, &[Record::Task(task(1, 0, AttemptState::Running))]).expect("record");
    first.heartbeat("F", &run, now()).expect("heartbeat");
    let second = SqliteMetadata::open(root.path()).expect("open");
    let taken = [run.clone()];
    let error = second.create_run_from(&new_run("F"), &taken).expect_err("its engine lives");
    let pid = std::process::id();
    let refused = format!(
        "run 1 is still carried out by its engine (process {pid}, heard of 0 seconds ago): wait until it has ended, or \
         stop it (kill -INT {pid}), and resume then"
    );
    assert_eq!(error.to_string(), refused);
    assert_eq!(first.runs("F").expect("runs").len(), 1, "a resume that cannot start leaves no run behind");

    // As after a long sleep.
    let database = Connection::open(root.path().join(DATABASE)).expect("database");
    database.execute_batch("UPDATE runs SET heartbeat_at = 5").expect("silence");
    let mut resumed = new_run("F");
    resumed.created_at = now();
    assert_eq!(second.create_run_from(&resumed, &taken).expect("run 2").as_str(), "2");
    let row = first.run("F", &run).expect("run");
    assert_eq!(row.state, RunState::Lost);
    assert_eq!(row.cause.expect("cause").text, "its engine did not answer any more; run 2 went on with it");
    let sentence =
        "run 1 was taken over by run 2 while this engine did not answer (it was stopped, or its machine slept)";
    let writes = [
        first.heartbeat("F", &run, now()),
        first.record("F", &run, &[]),
        first.record("F", &run, &[Record::Task(task(1, 0, AttemptState::Done))]),
    ];
    for write in writes {
        let error = write.expect_err("not its run any more");
        assert!(matches!(&error, MetadataError::TakenOver(text) if text == sentence), "{error}");
    }
    assert_eq!(first.tasks("F", &run).expect("tasks")[0].record.state, AttemptState::Lost);

    let third = SqliteMetadata::open(root.path()).expect("open");
    let error = third.create_run_from(&resumed, &taken).expect_err("run 2 goes on with it");
    assert!(error.to_string().starts_with(
        "the tasks of run 1 were taken over by run 2, which is still carried out by its engine (process "
    ));
    let over = Record::RunState { state: RunState::Failed, cause: None, at: now() };
    second.record("F", &RunId::from("2"), &[over]).expect("record");
    assert_eq!(third.create_run_from(&resumed, &taken).expect("run 3").as_str(), "3");
}
