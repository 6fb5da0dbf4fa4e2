//! What all remote layers share, against a store in memory that counts what it is asked and refuses
//! when told to.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ferroflow_compute::remote::{Language, PackageSources, Remote, RemoteSettings};
use ferroflow_core::id::{AttemptId, RunId, StepName, TaskId};
use ferroflow_core::log_segment::RunKeys;
use ferroflow_core::port::{
    EventSink, Later, LayerEvent, MetadataAnswers, ObjectAccess, ObjectEntry, ObjectError, RemoteSign, RemoteTasks,
    Stream, TellSign, Versioned,
};
use ferroflow_core::task::{InputRef, StoreLocation, TaskDecorator, TaskLaunch, TaskSpec};

/// Metadata that answers every question with it.
struct Echo;

impl MetadataAnswers for Echo {
    fn answer(&self, question: &[u8]) -> Vec<u8> {
        [b"answer to ", question].concat()
    }
}

#[derive(Default)]
struct Bucket {
    objects: Mutex<BTreeMap<String, Vec<u8>>>,
    puts: Mutex<Vec<String>>,
    lists: AtomicUsize,
    reads: AtomicUsize,
    reading: AtomicUsize,
    most_reading: AtomicUsize,
    refuses: AtomicBool,
    slow: AtomicBool,
}

impl Bucket {
    fn set(&self, key: &str, data: &[u8]) {
        self.objects.lock().expect("lock").insert(key.to_owned(), data.to_vec());
    }

    fn check(&self) -> Result<(), ObjectError> {
        if self.refuses.load(Ordering::SeqCst) {
            return Err(ObjectError::Unavailable("the store answered 503".to_owned()));
        }
        Ok(())
    }

    fn puts_of(&self, prefix: &str) -> usize {
        self.puts.lock().expect("lock").iter().filter(|key| key.starts_with(prefix)).count()
    }
}

impl ObjectAccess for Bucket {
    fn put<'a>(&'a self, key: &'a str, data: Vec<u8>, only_if_absent: bool) -> Later<'a, Result<bool, ObjectError>> {
        Box::pin(async move {
            self.check()?;
            self.puts.lock().expect("lock").push(key.to_owned());
            let mut objects = self.objects.lock().expect("lock");
            if only_if_absent && objects.contains_key(key) {
                return Ok(false);
            }
            objects.insert(key.to_owned(), data);
            Ok(true)
        })
    }

    fn get_from<'a>(&'a self, key: &'a str, from: u64) -> Later<'a, Result<Option<Vec<u8>>, ObjectError>> {
        Box::pin(async move {
            self.check()?;
            self.reads.fetch_add(1, Ordering::SeqCst);
            let now = self.reading.fetch_add(1, Ordering::SeqCst) + 1;
            self.most_reading.fetch_max(now, Ordering::SeqCst);
            if self.slow.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            self.reading.fetch_sub(1, Ordering::SeqCst);
            let objects = self.objects.lock().expect("lock");
            Ok(objects.get(key).map(|data| data[usize::try_from(from).expect("small")..].to_vec()))
        })
    }

    /// Contents are their own version.
    fn get_versioned<'a>(&'a self, key: &'a str) -> Later<'a, Result<Option<Versioned>, ObjectError>> {
        Box::pin(async move {
            let found = self.get_from(key, 0).await?;
            Ok(found.map(|data| (data.clone(), String::from_utf8_lossy(&data).into_owned())))
        })
    }

    fn replace<'a>(
        &'a self,
        key: &'a str,
        data: Vec<u8>,
        version: Option<&'a str>,
    ) -> Later<'a, Result<Option<String>, ObjectError>> {
        Box::pin(async move {
            self.check()?;
            let there = self.objects.lock().expect("lock").get(key).cloned();
            if there.as_deref() != version.map(str::as_bytes) {
                return Ok(None);
            }
            let text = String::from_utf8_lossy(&data).into_owned();
            self.put(key, data, false).await?;
            Ok(Some(text))
        })
    }

    fn delete<'a>(&'a self, key: &'a str) -> Later<'a, Result<(), ObjectError>> {
        Box::pin(async move {
            self.check()?;
            self.objects.lock().expect("lock").remove(key);
            Ok(())
        })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> Later<'a, Result<Vec<ObjectEntry>, ObjectError>> {
        Box::pin(async move {
            self.lists.fetch_add(1, Ordering::SeqCst);
            self.check()?;
            let objects = self.objects.lock().expect("lock");
            let found = objects.iter().filter(|(key, _)| key.starts_with(prefix));
            Ok(found.map(|(key, data)| ObjectEntry { key: key.clone(), size: data.len() as u64 }).collect())
        })
    }

    fn presigned<'a>(
        &'a self,
        key: &'a str,
        _valid_seconds: u64,
        endpoint: Option<&'a str>,
    ) -> Later<'a, Result<String, ObjectError>> {
        Box::pin(async move { Ok(format!("{}/{key}?signed", endpoint.unwrap_or("http://here"))) })
    }
}

#[derive(Default)]
struct Events {
    lines: Mutex<Vec<(AttemptId, Stream, String, Instant)>>,
    notices: Mutex<Vec<String>>,
    taken_over: Mutex<Vec<String>>,
}

impl Events {
    fn texts(&self, id: AttemptId) -> Vec<String> {
        self.lines.lock().expect("lock").iter().filter(|line| line.0 == id).map(|line| line.2.clone()).collect()
    }

    fn count(&self) -> usize {
        self.lines.lock().expect("lock").len()
    }
}

impl EventSink for Events {
    fn send(&self, event: LayerEvent) {
        match event {
            LayerEvent::Log { id, stream, lines, .. } => {
                let texts = lines.iter().map(|line| String::from_utf8_lossy(line).into_owned());
                let now = Instant::now();
                self.lines.lock().expect("lock").extend(texts.map(|text| (id, stream, text, now)));
            }
            LayerEvent::Notice { text } => self.notices.lock().expect("lock").push(text),
            other => panic!("unexpected {other:?}"),
        }
    }

    fn taken_over(&self, text: String) {
        self.taken_over.lock().expect("lock").push(text);
    }
}

struct Lab {
    folder: tempfile::TempDir,
    bucket: Arc<Bucket>,
    events: Arc<Events>,
}

impl Lab {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        for (name, text) in [("flow/flow.py", "the flow"), ("module/__init__.py", ""), ("module/_native.abi3.so", "")] {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().expect("parent")).expect("folder");
            std::fs::write(path, text).expect("file");
        }
        Self { folder, bucket: Arc::default(), events: Arc::default() }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn settings(&self) -> RemoteSettings {
        let options = [("cache", "/tmp/here"), ("scope", "laptop"), ("region", "eu")];
        RemoteSettings {
            flow: "F".to_owned(),
            run: RunId::from("7"),
            store: StoreLocation {
                kind: "s3".to_owned(),
                root: "s3://bucket/prefix".to_owned(),
                options: options.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            },
            endpoints: [("kubernetes".to_owned(), "http://inside:8333".to_owned())].into(),
            code: PackageSources {
                script: self.path().join("flow/flow.py"),
                module: None,
                suffixes: Vec::new(),
                language: Language::Python,
                saved_flow: None,
                module_folder: self.path().join("module"),
                info: serde_json::Map::new(),
            },
            lease: Duration::from_secs(3600),
            environment: [("METAFLOW_SERVICE_URL".to_owned(), "http://service".to_owned())].into(),
        }
    }

    fn remote(&self) -> Remote {
        Remote::new(self.settings(), self.bucket.clone(), Arc::new(Echo), self.events.clone())
    }

    fn keys(&self) -> RunKeys {
        let settings = self.settings();
        RunKeys::new("F", &settings.run, &settings.store)
    }

    fn print(&self, id: AttemptId, segment: u32, chunks: &str) {
        self.bucket.set(&self.keys().segment("work", id, segment), chunks.as_bytes());
    }
}

fn attempt(task: u64) -> AttemptId {
    AttemptId { task: TaskId(task), attempt: 0 }
}

fn launch(task: u64, inputs: u64) -> TaskLaunch {
    let parent = |tasks| InputRef { run: RunId::from("7"), step: StepName::from("start"), tasks };
    let decorator = TaskDecorator {
        name: "kubernetes".to_owned(),
        attributes: serde_json::from_str(r#"{"image": "lab/image:1", "executable": null}"#).expect("JSON"),
    };
    TaskLaunch {
        id: attempt(task),
        has_imports: false,
        time_limit: Some(90.0),
        spec: TaskSpec {
            flow: "F".to_owned(),
            run: RunId::from("7"),
            step: StepName::from("work"),
            task: TaskId(task),
            attempt: 0,
            max_user_code_retries: 0,
            fallback: false,
            previous_failure: None,
            join: false,
            inputs: vec![parent((0..inputs).map(|n| (TaskId(n * n), TaskId(n * n), 0)).collect())],
            parameters: parent(vec![(TaskId(0), TaskId(0), 0)]),
            foreach_stack: Vec::new(),
            origin_run: None,
            store: StoreLocation { kind: "s3".to_owned(), root: String::new(), options: BTreeMap::new() },
            decorators: vec![decorator],
            user: "ada".to_owned(),
            identity: "user:ada".to_owned(),
            namespace: None,
            tags: Vec::new(),
            expected_inputs: None,
            max_num_splits: 100,
            gang: None,
        },
    }
}

async fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < end, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_container_knows_all_it_needs_and_code_is_uploaded_once() {
    let lab = Lab::new();
    let remote = lab.remote();
    let (one, two) = (launch(1, 1), launch(2, 1));
    let (first, second) = tokio::join!(remote.container(&one, "kubernetes"), remote.container(&two, "batch"));
    let (first, second) = (first.expect("container"), second.expect("container"));
    assert_eq!(first.command[..3], ["python3", "-u", "-c"]);
    assert!(first.command[3].len() < 8_000, "AWS Batch takes no longer command");
    let variable = |name: &str| first.environment.get(name).map_or("none", String::as_str);
    assert!(variable("FERROFLOW_CODE_URL").starts_with("http://inside:8333/code/"));
    assert!(second.environment["FERROFLOW_CODE_URL"].starts_with("http://here/code/"));
    assert_eq!(variable("FERROFLOW_LOG_PREFIX"), "F/runs/laptop/7/work/1.0.log/");
    assert_eq!(variable("FERROFLOW_LEASE_KEY"), "F/runs/laptop/7/lease");
    assert_eq!(variable("FERROFLOW_IMAGE"), "lab/image:1");
    assert_eq!(variable("FERROFLOW_TIME_LIMIT"), "90");
    assert_eq!(variable("FERROFLOW_FLOW_FILE"), "flow.py");
    assert_eq!(variable("METAFLOW_SERVICE_URL"), "http://service");
    assert_eq!(variable("METAFLOW_DATASTORE_SYSROOT_S3"), "s3://bucket/prefix");
    assert_eq!(variable("METAFLOW_KUBERNETES_WORKLOAD"), "1");
    assert!(!second.environment.contains_key("METAFLOW_KUBERNETES_WORKLOAD"));
    let spec: TaskSpec = serde_json::from_str(variable("FERROFLOW_TASK_SPEC")).expect("spec");
    assert_eq!(spec.store.options.keys().collect::<Vec<_>>(), ["endpoint", "region", "scope"]);
    assert_eq!(lab.bucket.puts_of("code/"), 1);
    assert_eq!(lab.bucket.puts_of("F/runs/laptop/7/lease"), 1);
    lab.remote().prepare().await.expect("another run");
    assert_eq!(lab.bucket.puts_of("code/"), 1, "the same content is there already");
    std::fs::write(lab.path().join("flow/flow.py"), "changed").expect("file");
    lab.remote().prepare().await.expect("a third run");
    assert_eq!(lab.bucket.puts_of("code/"), 2);
}

#[tokio::test]
async fn a_long_spec_goes_through_the_store_where_variables_are_short() {
    let lab = Lab::new();
    let remote = lab.remote();
    let wide = launch(3, 4_000);
    let kubernetes = remote.container(&wide, "kubernetes").await.expect("container");
    assert!(kubernetes.environment["FERROFLOW_TASK_SPEC"].len() < 100_000);
    let batch = remote.container(&wide, "batch").await.expect("container");
    assert!(!batch.environment.contains_key("FERROFLOW_TASK_SPEC"));
    assert_eq!(batch.environment["FERROFLOW_TASK_SPEC_URL"], "http://here/F/runs/laptop/7/work/3.0.spec?signed");
    assert_eq!(batch.environment["FERROFLOW_TASK_SPEC_SHA256"].len(), 64);
    let total: usize = batch.environment.iter().map(|(name, value)| name.len() + value.len()).sum();
    assert!(total < 8_192, "AWS Batch takes no more: {total}");
}

#[tokio::test]
async fn a_store_that_refuses_the_code_is_told() {
    let lab = Lab::new();
    lab.bucket.refuses.store(true, Ordering::SeqCst);
    let remote = lab.remote();
    let one = launch(1, 1);
    let error = remote.container(&one, "kubernetes").await.expect_err("refused");
    assert_eq!(error.to_string(), "the store answered 503");
    lab.bucket.refuses.store(false, Ordering::SeqCst);
    assert!(remote.container(&one, "kubernetes").await.is_ok(), "a later container tries again");
}

#[tokio::test]
async fn lines_follow_while_a_task_runs_and_the_rest_when_it_ended() {
    let lab = Lab::new();
    let remote = lab.remote();
    let one = launch(1, 1);
    remote.container(&one, "kubernetes").await.expect("container");
    remote.follow(one.id);
    lab.print(one.id, 0, "5 o 6 first\n\n");
    wait_for("the first line", || lab.events.texts(one.id) == ["first"]).await;
    lab.print(one.id, 0, "5 o 6 first\n\n6 e 4 bad\n\n7 o 7 half a \n");
    wait_for("the second line", || lab.events.texts(one.id) == ["first", "bad"]).await;
    lab.print(one.id, 1, "8 o 5 line\n\n9 o 4 last\n");
    remote.drained(one.id).await;
    assert_eq!(lab.events.texts(one.id), ["first", "bad", "half a line", "last"]);
    assert!(lab.events.notices.lock().expect("lock").is_empty());
}

#[tokio::test]
async fn a_task_that_was_never_followed_is_drained_all_the_same() {
    let lab = Lab::new();
    let remote = lab.remote();
    let one = launch(1, 1);
    remote.container(&one, "kubernetes").await.expect("container");
    lab.print(one.id, 0, "5 o 6 short\n\n");
    remote.drained(one.id).await;
    assert_eq!(lab.events.texts(one.id), ["short"]);
    remote.drained(attempt(99)).await;
}

#[tokio::test]
async fn the_store_tells_that_an_expected_task_runs_and_how_it_ended() {
    let lab = Lab::new();
    let remote = lab.remote();
    let one = launch(1, 1);
    remote.container(&one, "kubernetes").await.expect("container");
    let signs: Arc<Mutex<Vec<RemoteSign>>> = Arc::default();
    let heard = signs.clone();
    let tell: TellSign = Box::new(move |sign| heard.lock().expect("lock").push(sign));
    remote.expect(one.id, tell);
    lab.print(one.id, 0, "5 o 6 first\n\n");
    wait_for("the first sign", || !signs.lock().expect("lock").is_empty()).await;
    assert!(matches!(signs.lock().expect("lock")[..], [RemoteSign::Running]));
    assert_eq!(lab.events.count(), 0, "lines of a task that has not started");
    remote.follow(one.id);
    wait_for("the line", || lab.events.texts(one.id) == ["first"]).await;
    let ending = r#"{"outcome":null,"exit":{"code":3},"usage":{"cpu_seconds":0.5,"peak_memory":7}}"#;
    lab.print(one.id, 0, &format!("5 o 6 first\n\n6 o 4 last\n7 x {} {ending}\n", ending.len()));
    wait_for("the ending", || signs.lock().expect("lock").len() == 2).await;
    assert_eq!(lab.events.texts(one.id), ["first", "last"], "every line comes before the ending");
    let RemoteSign::Ended(message) = signs.lock().expect("lock")[1].clone() else { panic!("no ending") };
    assert_eq!(message.usage.peak_memory, 7);
    let lists = lab.bucket.lists.load(Ordering::SeqCst);
    remote.drained(one.id).await;
    assert_eq!(lab.bucket.lists.load(Ordering::SeqCst), lists, "there is nothing more to look for");
}

#[tokio::test]
async fn a_thousand_tasks_share_listings_and_few_connections() {
    let lab = Lab::new();
    lab.bucket.slow.store(true, Ordering::SeqCst);
    let remote = lab.remote();
    for task in 1..=1_000 {
        remote.container(&launch(task, 1), "kubernetes").await.expect("container");
        remote.follow(attempt(task));
    }
    let started = Instant::now();
    let before = lab.bucket.lists.load(Ordering::SeqCst);
    for task in 1..=1_000 {
        lab.print(attempt(task), 0, "5 o 3 one\n6 o 1 \n\n");
    }
    wait_for("all lines", || lab.events.count() == 1_000).await;
    let mut delays: Vec<Duration> =
        lab.events.lines.lock().expect("lock").iter().map(|line| line.3 - started).collect();
    delays.sort();
    // About a second and a half; the bound is for a machine that compiles at the same time.
    assert!(delays[949] < Duration::from_secs(5), "{:?}", delays[949]);
    let lists = lab.bucket.lists.load(Ordering::SeqCst) - before;
    assert!(lists as u128 <= started.elapsed().as_millis() / 150 + 2, "{lists} listings");
    assert!(lab.bucket.most_reading.load(Ordering::SeqCst) <= 6);
    let reads = lab.bucket.reads.load(Ordering::SeqCst);
    let before = lab.bucket.lists.load(Ordering::SeqCst);
    let mut ending = tokio::task::JoinSet::new();
    let remote = Arc::new(remote);
    for task in 1..=1_000 {
        let remote = remote.clone();
        ending.spawn(async move { remote.drained(attempt(task)).await });
    }
    ending.join_all().await;
    assert!(lab.bucket.lists.load(Ordering::SeqCst) - before <= 3, "they end together");
    assert_eq!(lab.bucket.reads.load(Ordering::SeqCst), reads, "nothing was new");
}

#[tokio::test]
async fn a_store_that_is_away_is_told_once_and_does_not_hold_the_run_up() {
    let lab = Lab::new();
    let remote = lab.remote();
    let (one, two) = (launch(1, 1), launch(2, 1));
    for each in [&one, &two] {
        remote.container(each, "kubernetes").await.expect("container");
        remote.follow(each.id);
    }
    lab.bucket.refuses.store(true, Ordering::SeqCst);
    lab.print(one.id, 0, "5 o 6 first\n\n");
    wait_for("the notice", || !lab.events.notices.lock().expect("lock").is_empty()).await;
    lab.bucket.refuses.store(false, Ordering::SeqCst);
    wait_for("the line", || lab.events.texts(one.id) == ["first"]).await;
    assert_eq!(
        *lab.events.notices.lock().expect("lock"),
        ["logs of remote tasks cannot be read at the moment: the store answered 503"]
    );
    lab.bucket.refuses.store(true, Ordering::SeqCst);
    tokio::time::timeout(Duration::from_secs(30), remote.drained(two.id)).await.expect("it gives up");
    let notices = lab.events.notices.lock().expect("lock").clone();
    assert!(notices.contains(&"the last lines of task 2 could not be read from the store".to_owned()), "{notices:?}");
}

#[tokio::test]
async fn the_lease_is_renewed_while_the_engine_lives() {
    let lab = Lab::new();
    let settings = RemoteSettings { lease: Duration::from_secs(2), ..lab.settings() };
    let remote = Remote::new(settings, lab.bucket.clone(), Arc::new(Echo), lab.events.clone());
    remote.container(&launch(1, 1), "kubernetes").await.expect("container");
    let lease = || lab.bucket.objects.lock().expect("lock").get("F/runs/laptop/7/lease").cloned();
    let first = lease();
    assert!(first.is_some());
    wait_for("a renewal", || lease() != first).await;
    drop(remote);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let last = lease();
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert_eq!(lease(), last, "a dropped lease is not renewed");
}

#[tokio::test]
async fn of_two_engines_that_renew_one_lease_the_first_loses() {
    let lab = Lab::new();
    let settings = RemoteSettings { lease: Duration::from_secs(2), ..lab.settings() };
    let first = Remote::new(settings.clone(), lab.bucket.clone(), Arc::new(Echo), lab.events.clone());
    first.container(&launch(1, 1), "kubernetes").await.expect("container");

    // The second would renew every ten minutes, were it not for the containers of the first.
    let lazy = RemoteSettings { lease: Duration::from_secs(7200), ..settings };
    let other = Arc::new(Events::default());
    let second = Remote::adopted(lazy, RunId::from("8"), lab.bucket.clone(), Arc::new(Echo), other.clone());
    second.adopt(&StepName::from("train"), AttemptId { task: TaskId(1), attempt: 0 });
    wait_for("the first to learn of it", || !lab.events.taken_over.lock().expect("lock").is_empty()).await;
    assert_eq!(
        *lab.events.taken_over.lock().expect("lock"),
        [
            "run 7 was taken over by run 8 while this engine did not renew its lease (it was stopped, or its machine slept)"
        ]
    );
    let lease = || {
        let objects = lab.bucket.objects.lock().expect("lock");
        serde_json::from_slice::<serde_json::Value>(&objects["F/runs/laptop/7/lease"]).expect("JSON")
    };
    assert_eq!((lease()["epoch"].as_u64(), lease()["holder"].as_str()), (Some(2), Some("8")));
    assert_eq!(lease()["lease_seconds"].as_f64(), Some(2.0));
    let renewal = lease()["renewal"].as_u64();
    wait_for("a renewal", || lease()["renewal"].as_u64() > renewal).await;
    assert!(other.taken_over.lock().expect("lock").is_empty());
}

#[tokio::test]
async fn a_client_in_a_container_is_answered_once_also_after_an_outage() {
    let lab = Lab::new();
    let remote = lab.remote();
    let id = launch(1, 1).id;
    remote.container(&launch(1, 1), "kubernetes").await.expect("container");
    remote.follow(id);
    let folder = lab.keys().log_prefix("work", id);
    let answer = || lab.bucket.objects.lock().expect("lock").get(&format!("{folder}answer-a1")).cloned();
    lab.bucket.refuses.store(true, Ordering::SeqCst);
    lab.bucket.set(&format!("{folder}ask-a1"), b"tags");
    let listed = lab.bucket.lists.load(Ordering::SeqCst);
    wait_for("a listing that fails", || lab.bucket.lists.load(Ordering::SeqCst) > listed).await;
    lab.bucket.refuses.store(false, Ordering::SeqCst);
    wait_for("the answer", || answer().is_some()).await;
    assert_eq!(answer().expect("answer"), b"answer to tags");
    let question = format!("{folder}ask-a1");
    wait_for("the question to go", || !lab.bucket.objects.lock().expect("lock").contains_key(&question)).await;
    assert_eq!(lab.bucket.puts_of(&format!("{folder}answer")), 1);
}
