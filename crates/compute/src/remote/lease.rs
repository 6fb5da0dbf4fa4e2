//! The run's lease (design D9): an object that the engine writes anew while it lives. Containers
//! read it; when its contents stay the same for too long, by the container's own clock, they stop.
//!
//! It is the run's epoch as well. Each write is conditional on the one before, so an engine that
//! slept while another took the run over cannot renew, and learns who did.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ferroflow_core::id::RunId;
use ferroflow_core::port::{EventSink, LayerEvent, ObjectAccess, ObjectError};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

/// Renewals per lease: one that fails must not end the tasks.
const RENEWALS: u32 = 6;
const SHORTEST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(600);

/// Whose lease it is, and who renews it.
pub struct Lease {
    pub key: String,
    pub run: RunId,
    /// The run whose engine renews: `run` itself, or one that adopted its tasks.
    pub holder: RunId,
    pub length: Duration,
    pub objects: Arc<dyn ObjectAccess>,
    pub events: Arc<dyn EventSink>,
}

/// What stands in the object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Contents {
    /// Counts the engines that have held the run.
    epoch: u64,
    holder: RunId,
    /// Tells this process from all others.
    token: String,
    renewal: u64,
    /// How long the run's containers wait for a renewal.
    lease_seconds: f64,
}

/// Renews the lease until it is dropped.
#[derive(Debug)]
pub struct Renewal {
    work: JoinHandle<()>,
}

impl Drop for Renewal {
    fn drop(&mut self) {
        self.work.abort();
    }
}

impl Renewal {
    /// The lease is there when this returns, or the user was told that it is not.
    pub async fn start(lease: Lease) -> Self {
        let mut holding = Holding::new(lease);
        let first = holding.renew().await;
        Self { work: tokio::spawn(holding.go_on(first)) }
    }

    /// The same, without waiting for the first renewal.
    pub fn begin(lease: Lease) -> Self {
        let mut holding = Holding::new(lease);
        let work = async move {
            let first = holding.renew().await;
            holding.go_on(first).await;
        };
        Self { work: tokio::spawn(work) }
    }
}

enum Renewed {
    Yes,
    /// The store did not do it; it may next time.
    No(ObjectError),
    /// Another engine holds the run now.
    TakenOver(RunId),
}

struct Holding {
    lease: Lease,
    contents: Contents,
    /// Of the last write; nothing before the first.
    version: Option<String>,
    failing: bool,
}

impl Holding {
    fn new(lease: Lease) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let contents = Contents {
            epoch: 1,
            holder: lease.holder.clone(),
            token: format!("{}-{}", std::process::id(), since.as_nanos()),
            renewal: 0,
            lease_seconds: lease.length.as_secs_f64(),
        };
        Self { lease, contents, version: None, failing: false }
    }

    async fn go_on(mut self, first: Renewed) {
        let mut last = first;
        loop {
            match last {
                Renewed::Yes => self.failing = false,
                Renewed::No(error) => self.tell(&error),
                Renewed::TakenOver(by) => {
                    let text = format!(
                        "run {} was taken over by run {by} while this engine did not renew its lease (it was stopped, \
                         or its machine slept)",
                        self.lease.run
                    );
                    self.lease.events.taken_over(text);
                    return;
                }
            }
            // A failed renewal is tried again sooner than the next is due.
            let every = self.every();
            tokio::time::sleep(if self.failing { every / 4 } else { every }).await;
            last = self.renew().await;
        }
    }

    /// Containers go by the lease that they were started with, which may be shorter than ours.
    fn every(&self) -> Duration {
        let length = Duration::try_from_secs_f64(self.contents.lease_seconds).unwrap_or(self.lease.length);
        (length.min(self.lease.length) / RENEWALS).clamp(SHORTEST, LONGEST)
    }

    fn tell(&mut self, error: &ObjectError) {
        if !std::mem::replace(&mut self.failing, true) {
            let text = format!("remote tasks stop if this lasts: the run's lease could not be renewed: {error}");
            self.lease.events.send(LayerEvent::Notice { text });
        }
    }

    async fn renew(&mut self) -> Renewed {
        self.try_to_renew().await.unwrap_or_else(Renewed::No)
    }

    async fn try_to_renew(&mut self) -> Result<Renewed, ObjectError> {
        self.contents.renewal += 1;
        if self.version.is_none() && self.lease.holder != self.lease.run {
            self.look_before_taking().await?;
        }
        if self.write().await? {
            return Ok(Renewed::Yes);
        }
        // Somebody wrote in between, or our own last write was done and its answer got lost.
        let Some((there, version)) = self.read().await? else {
            self.version = None;
            return Ok(if self.write().await? { Renewed::Yes } else { Renewed::TakenOver("another".into()) });
        };
        if there.token != self.contents.token && self.version.is_some() {
            return Ok(Renewed::TakenOver(there.holder));
        }
        // Ours, or what an earlier engine of this run left.
        self.contents.epoch = self.contents.epoch.max(there.epoch);
        self.version = Some(version);
        Ok(if self.write().await? { Renewed::Yes } else { Renewed::TakenOver(there.holder) })
    }

    /// Before the first write over another engine's lease.
    async fn look_before_taking(&mut self) -> Result<(), ObjectError> {
        if let Some((there, version)) = self.read().await? {
            self.contents.epoch = there.epoch + 1;
            self.contents.lease_seconds = self.contents.lease_seconds.min(there.lease_seconds);
            self.version = Some(version);
        }
        Ok(())
    }

    async fn read(&self) -> Result<Option<(Contents, String)>, ObjectError> {
        let Some((data, version)) = self.lease.objects.get_versioned(&self.lease.key).await? else { return Ok(None) };
        let unreadable = Contents { epoch: 0, token: String::new(), holder: "another".into(), ..self.contents.clone() };
        Ok(Some((serde_json::from_slice(&data).unwrap_or(unreadable), version)))
    }

    async fn write(&mut self) -> Result<bool, ObjectError> {
        let data = serde_json::to_vec(&self.contents).expect("plain data");
        let written = self.lease.objects.replace(&self.lease.key, data, self.version.as_deref()).await?;
        if let Some(version) = &written {
            self.version = Some(version.clone());
        }
        Ok(written.is_some())
    }
}
