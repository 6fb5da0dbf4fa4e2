//! The finished attempts a task reads from: ranges unfolded, thousands of packs read at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ferroflow_core::id::{AttemptId, TaskId};
use ferroflow_core::task::InputRef;
use ferroflow_store::pack::Pack;
use ferroflow_store::{Datastore, PackPlace, StoreError};

/// More threads do not help a local disk.
const MOST_THREADS: usize = 8;
/// Packs one thread takes at a time.
const BATCH: usize = 32;

/// Every attempt an input reference names, in order.
pub fn places_of<'a>(flow: &Arc<str>, input: &'a InputRef) -> impl Iterator<Item = PackPlace> + 'a {
    let flow = Arc::clone(flow);
    input.tasks.iter().flat_map(move |&(first, last, attempt)| {
        let flow = Arc::clone(&flow);
        (first.0..=last.0).map(move |task| PackPlace {
            flow: Arc::clone(&flow),
            run: input.run.clone(),
            step: Arc::clone(&input.step.0),
            id: AttemptId { task: TaskId(task), attempt },
        })
    })
}

/// Reads and verifies packs with a few threads that end before this returns. The first error in
/// the order of `places` wins.
pub fn load_packs(store: &Datastore, places: &[PackPlace]) -> Result<Vec<Pack>, StoreError> {
    Pack::fetch(store, places)?;
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = processors.min(MOST_THREADS).min(places.len().div_ceil(BATCH));
    if threads <= 1 {
        return places.iter().map(|place| Pack::open(store, place)).collect();
    }
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let start = next.fetch_add(BATCH, Ordering::Relaxed);
            if start >= places.len() {
                return done;
            }
            let batch = &places[start..places.len().min(start + BATCH)];
            done.push((start, batch.iter().map(|place| Pack::open(store, place)).collect()));
        }
    };
    let mut batches: Vec<(usize, Result<Vec<Pack>, StoreError>)> = std::thread::scope(|scope| {
        // A thread that cannot be had (a process limit) is work for the others.
        let helpers: Vec<_> =
            (1..threads).filter_map(|_| std::thread::Builder::new().spawn_scoped(scope, work).ok()).collect();
        let mut batches = work();
        for helper in helpers {
            batches.extend(helper.join().expect("reading packs does not panic"));
        }
        batches
    });
    batches.sort_unstable_by_key(|(start, _)| *start);
    let mut packs = Vec::with_capacity(places.len());
    for (_, batch) in batches {
        packs.extend(batch?);
    }
    Ok(packs)
}
