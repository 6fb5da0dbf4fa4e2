//! A store in this process' memory, for tests: one per root, as long as the process lives.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::signer::Signer;

use super::Client;

static STORES: LazyLock<Mutex<HashMap<String, Arc<InMemory>>>> = LazyLock::new(Mutex::default);

pub(super) fn connect(bucket: &str) -> Client {
    let mut stores = STORES.lock().unwrap_or_else(PoisonError::into_inner);
    let store = Arc::clone(stores.entry(bucket.to_owned()).or_default());
    Client { store, signer: Arc::new(NoAddress) }
}

/// No other process can reach this one's memory.
#[derive(Debug)]
struct NoAddress;

#[async_trait]
impl Signer for NoAddress {
    async fn signed_url(&self, _: reqwest::Method, _: &Path, _: Duration) -> object_store::Result<reqwest::Url> {
        Err(object_store::Error::NotImplemented { operation: "signed_url".into(), implementer: "memory".into() })
    }
}
