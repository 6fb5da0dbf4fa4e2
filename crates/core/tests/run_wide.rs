//! A foreach of a million: memory while it waits, memory and time while it runs.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ferroflow_core::id::{AttemptId, TaskId};
use ferroflow_core::run::{Action, Event, Run, RunSettings};
use ferroflow_testkit::flows::FlowBuilder;
use ferroflow_testkit::samples;
use ferroflow_testkit::world::{settings, split, succeeded};

/// Counts bytes in use.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is passed on to the system's allocator; only a counter is kept beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        IN_USE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the pointer came from `alloc` above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const WIDTH: u64 = 1_000_000;

/// Both parts in one test, because the counter is the process's.
#[test]
fn a_million_splits() {
    one_step_in_the_body();
    two_steps_in_the_body();
}

fn one_step_in_the_body() {
    let graph = samples::graph(samples::foreach());
    let wide = RunSettings { max_num_splits: WIDTH, ..settings(16) };
    let mut run = Run::new(graph, wide, None).expect("nothing to resume");
    let (most, time) = run_it(&mut run, "join");
    assert!(most < 1 << 20, "{most} bytes for a foreach of quick tasks");
    assert!(time < Duration::from_secs(60), "{time:?}");
}

fn two_steps_in_the_body() {
    let flow = FlowBuilder::new("F")
        .foreach("start", "a")
        .linear("a", "b")
        .linear("b", "join")
        .join("join", "end")
        .end()
        .build();
    let wide = RunSettings { max_num_splits: WIDTH, ..settings(16) };
    let mut run = Run::new(samples::graph(flow), wide, None).expect("nothing to resume");
    let (most, time) = run_it(&mut run, "join");
    // Between the two steps every split waits for its second one.
    assert!(most < 200 << 20, "{most} bytes");
    assert!(time < Duration::from_secs(120), "{time:?}");
}

/// Runs all of it; finishes come in pairs the wrong way round. Returns the most memory in use.
fn run_it(run: &mut Run, join: &str) -> (usize, Duration) {
    let begin = Instant::now();
    let before = IN_USE.load(Ordering::Relaxed);
    let mut most = 0;
    let mut tasks = 0;
    let mut out: Vec<(AttemptId, String)> = Vec::new();
    let take = |actions: Vec<Action>, out: &mut Vec<(AttemptId, String)>| {
        for action in actions {
            if let Action::Submit(launch) = action {
                out.insert(0, (launch.id, launch.spec.step.to_string()));
                if launch.spec.step.as_str() == join {
                    assert_eq!(launch.spec.expected_inputs, Some(WIDTH));
                    let ranges = launch.spec.inputs.iter().flat_map(|i| &i.tasks);
                    assert_eq!(ranges.map(|(a, b, _)| b.0 - a.0 + 1).sum::<u64>(), WIDTH);
                }
            }
        }
    };
    take(run.start(0), &mut out);
    while !run.has_ended() {
        let second = out.len().saturating_sub(2);
        let (id, step) = out.remove(second);
        let report = match step.as_str() {
            "start" => split(if join_follows_b(run) { "a" } else { "body" }, WIDTH),
            "a" => succeeded(&["b"]),
            "body" | "b" => succeeded(&["join"]),
            "join" => succeeded(&["end"]),
            _ => succeeded(&[]),
        };
        take(run.on(Event::Started { id, pid: None }, 1), &mut out);
        take(run.on(Event::Finished { id, report }, 1), &mut out);
        tasks += 1;
        if tasks % 1024 == 0 {
            most = most.max(IN_USE.load(Ordering::Relaxed) - before);
        }
    }
    run.check_invariants();
    let time = begin.elapsed();
    println!("{tasks} tasks in {time:?}, at most {most} bytes; last id {:?}", TaskId(tasks));
    (most, time)
}

fn join_follows_b(run: &Run) -> bool {
    run.progress().iter().any(|s| s.step.as_str() == "b")
}
