//! What tasks stored, brought from one datastore to another: for a run that resumes one whose data
//! is elsewhere. Which tasks these are is the caller's business.

use std::sync::Mutex;

use ferroflow_core::port::{LogPlace, MetadataError};

use crate::blob::BlobMapping;
use crate::error::StoreError;
use crate::location::{Datastore, PackPlace};
use crate::pack::{Pack, PackBuilder};
use crate::remote::log::log_store;

/// Tasks under way at once; each waits for a few requests.
const AT_ONCE: usize = 8;

/// A task's data, or its log, could not be brought.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error(transparent)]
    Data(#[from] StoreError),
    #[error(transparent)]
    Log(#[from] MetadataError),
}

/// Brings artifacts and logs of tasks; under their names they are the same afterwards. What is there
/// already is not sent again.
pub fn tasks(from: &Datastore, to: &Datastore, places: &[PackPlace]) -> Result<(), CopyError> {
    Pack::fetch(from, places)?;
    let left = Mutex::new(places.iter());
    let next = || left.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
    let work = || -> Result<(), CopyError> {
        while let Some(place) = next() {
            artifacts(from, to, place)?;
            log(from, to, place)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_ONCE.min(places.len())).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no copying thread panics"))
    })
}

fn artifacts(from: &Datastore, to: &Datastore, place: &PackPlace) -> Result<(), StoreError> {
    let source = Pack::open(from, place)?;
    let mut pack = PackBuilder::new(to.clone(), place.clone());
    pack.bring_all(&source, &|name, hash, length| BlobMapping::open(from, hash, length, &|| source.describe(name)))?;
    pack.commit(source.header.outcome.clone(), 0)
}

fn log(from: &Datastore, to: &Datastore, place: &PackPlace) -> Result<(), MetadataError> {
    let place =
        LogPlace { flow: place.flow.to_string(), run: place.run.clone(), step: place.step.to_string(), id: place.id };
    let lines = log_store(from.clone()).read(&place)?;
    if lines.is_empty() { Ok(()) } else { log_store(to.clone()).replace(&place, &lines) }
}
