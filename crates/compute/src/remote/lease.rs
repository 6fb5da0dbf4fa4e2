//! The run's lease (design D9): an object that the engine writes anew while it lives. Containers
//! read it; when its contents stay the same for too long, by the container's own clock, they stop.

use std::sync::Arc;
use std::time::Duration;

use ferroflow_core::port::{EventSink, LayerEvent, ObjectAccess};
use serde_json::json;
use tokio::task::JoinHandle;

/// Renewals per lease: one that fails must not end the tasks.
const RENEWALS: u32 = 6;
const SHORTEST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(600);

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
    pub async fn start(
        key: String,
        lease: Duration,
        objects: Arc<dyn ObjectAccess>,
        events: Arc<dyn EventSink>,
    ) -> Self {
        let every = (lease / RENEWALS).clamp(SHORTEST, LONGEST);
        let mut number = 0_u64;
        let mut failing = renew(&*objects, &key, number, &*events, false).await;
        let work = tokio::spawn(async move {
            loop {
                // A failed renewal is tried again sooner than the next is due.
                tokio::time::sleep(if failing { every / 4 } else { every }).await;
                number += 1;
                failing = renew(&*objects, &key, number, &*events, failing).await;
            }
        });
        Self { work }
    }
}

/// Whether it failed; a first failure is told.
async fn renew(objects: &dyn ObjectAccess, key: &str, number: u64, events: &dyn EventSink, failing: bool) -> bool {
    let text = json!({"process": std::process::id(), "renewal": number}).to_string();
    match objects.put(key, text.into_bytes(), false).await {
        Ok(_) => false,
        Err(error) => {
            if !failing {
                let text = format!("remote tasks stop if this lasts: the run's lease could not be renewed: {error}");
                events.send(LayerEvent::Notice { text });
            }
            true
        }
    }
}
