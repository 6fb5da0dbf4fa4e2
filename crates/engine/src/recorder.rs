//! Writes records of the run in batches on a thread of its own: one transaction for whatever came
//! in while the last one was written. A barrier ends the gathering: it is answered once everything
//! before it is kept, and this engine still holds the run.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ferroflow_core::id::RunId;
use ferroflow_core::metadata::Record;
use ferroflow_core::port::{MetadataError, MetadataStore};
use tokio::sync::mpsc::UnboundedSender;

use crate::clock;

/// How long records may gather; what a reader sees is at most this much behind.
const GATHER: Duration = Duration::from_millis(100);
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Records in one transaction, so that a reader is never kept out for long.
const MOST_RECORDS: usize = 5_000;

pub(crate) struct Recorder {
    sender: Sender<Entry>,
    thread: JoinHandle<Result<(), MetadataError>>,
}

enum Entry {
    Record(Box<Record>),
    Barrier(u64),
}

impl Recorder {
    /// Numbers of barriers come back through `passed`.
    pub(crate) fn start(
        metadata: Arc<dyn MetadataStore>,
        flow: String,
        run: RunId,
        failures: UnboundedSender<MetadataError>,
        passed: UnboundedSender<u64>,
    ) -> Self {
        let (sender, receiver) = mpsc::channel();
        let worker = Worker { metadata, flow, run, last_beat: Instant::now(), passed };
        let thread = std::thread::Builder::new()
            .name("recorder".to_owned())
            .spawn(move || {
                let result = worker.work(&receiver);
                if let Err(error) = &result {
                    // Nobody listens once the run is over; `finish` returns the error then.
                    let _ = failures.send(error.clone());
                }
                result
            })
            .expect("the system has a thread left");
        Self { sender, thread }
    }

    pub(crate) fn send(&self, record: Box<Record>) {
        // After a failed write the thread is gone; the failure itself was reported.
        let _ = self.sender.send(Entry::Record(record));
    }

    pub(crate) fn barrier(&self, number: u64) {
        let _ = self.sender.send(Entry::Barrier(number));
    }

    /// Waits until everything is written.
    pub(crate) fn finish(self) -> Result<(), MetadataError> {
        drop(self.sender);
        self.thread.join().expect("the recorder thread does not panic")
    }
}

struct Worker {
    metadata: Arc<dyn MetadataStore>,
    flow: String,
    run: RunId,
    last_beat: Instant,
    passed: UnboundedSender<u64>,
}

impl Worker {
    fn work(mut self, receiver: &Receiver<Entry>) -> Result<(), MetadataError> {
        loop {
            let first = match receiver.recv_timeout(HEARTBEAT) {
                Ok(entry) => entry,
                Err(RecvTimeoutError::Timeout) => {
                    self.beat()?;
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            };
            let (batch, barrier) = gather(first, receiver);
            // An empty one too: it fails when another engine holds the run.
            self.metadata.record(&self.flow, &self.run, &batch)?;
            if let Some(number) = barrier {
                // Nobody waits for it when the run is over.
                let _ = self.passed.send(number);
            }
            if self.last_beat.elapsed() >= HEARTBEAT {
                self.beat()?;
            }
        }
    }

    fn beat(&mut self) -> Result<(), MetadataError> {
        self.last_beat = Instant::now();
        self.metadata.heartbeat(&self.flow, &self.run, clock::now())
    }
}

/// Takes records until the time is up, the batch is full, a barrier comes, or no more can come.
fn gather(first: Entry, receiver: &Receiver<Entry>) -> (Vec<Record>, Option<u64>) {
    let until = Instant::now() + GATHER;
    let mut batch = Vec::new();
    let mut next = Some(first);
    while let Some(entry) = next {
        match entry {
            Entry::Record(record) => batch.push(*record),
            Entry::Barrier(number) => return (batch, Some(number)),
        }
        if batch.len() >= MOST_RECORDS {
            break;
        }
        next = receiver.recv_timeout(until.saturating_duration_since(Instant::now())).ok();
    }
    (batch, None)
}
