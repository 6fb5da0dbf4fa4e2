//! Tasks that are held back for their step's imports.

use super::*;

/// Seconds at which something was noted, by what was noted.
fn times(file: &Path) -> HashMap<String, f64> {
    let text = std::fs::read_to_string(file).expect("the script's notes");
    let pair = |line: &str| line.split_once(' ').and_then(|(at, what)| Some((what.to_owned(), at.parse().ok()?)));
    text.lines().filter_map(pair).collect()
}

async fn run_importing(tasks: u64, options: Options, folder: &tempfile::TempDir) -> HashMap<String, f64> {
    let file = folder.path().join("notes");
    let mut environment = options.environment.clone();
    environment.insert("NOTES".to_owned(), file.display().to_string());
    let mut bench = Bench::with(Options { environment, ..options }).await;
    let all: Vec<AttemptId> = (0..tasks).map(|_| bench.submit_importing("imports")).collect();
    for id in all {
        bench.recorder.wait_for_end(id).await.report();
    }
    bench.finish().await;
    times(&file)
}

#[test]
fn others_start_once_the_zygote_has_learned() {
    alone(async {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let environment = BTreeMap::from([("LEARNING".to_owned(), "0.1".to_owned())]);
        let options = Options { learn_imports: true, environment, ..Options::default() };
        let at = run_importing(4, options, &folder).await;
        let learn = at["learn ['numpy']"];
        assert!(at["task 1"] < learn && learn - at["task 1"] < 1.2, "as soon as the first task told: {at:?}");
        for task in 2..=4 {
            let start = at[&format!("task {task}")];
            assert!(start - learn >= 0.1 && start - learn < 1.5, "task {task}: {at:?}");
        }
    });
}

#[test]
fn holds_are_short_when_nothing_comes_of_them() {
    alone(async {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let timings = Timings { first_import: Duration::from_millis(20), ..Timings::default() };
        // The first task tells of an import after 50 ms.
        let at = run_importing(2, Options { learn_imports: true, timings, ..Options::default() }, &folder).await;
        let wait = at["task 2"] - at["task 1"];
        assert!((0.015..1.0).contains(&wait), "long before the first task ended: {at:?}");
    });
}

#[test]
fn without_learning_nobody_waits_and_a_lone_task_teaches_nothing() {
    alone(async {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let timings = Timings { first_import: Duration::from_secs(20), ..Timings::default() };
        let at = run_importing(3, Options { timings, ..Options::default() }, &folder).await;
        assert!(at["task 3"] - at["task 1"] < 1.5, "before the first task ended: {at:?}");
        assert!(!at.contains_key("learn ['numpy']"));
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = run_importing(1, Options { learn_imports: true, ..Options::default() }, &folder).await;
        assert!(!at.contains_key("learn ['numpy']"), "{at:?}");
    });
}
