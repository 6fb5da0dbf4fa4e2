//! Where runs leave what they made: packs, blobs and logs under one root (a folder, or a bucket with
//! a folder of this machine before it), and run metadata in SQLite. What a task may or may not write, and when, is decided elsewhere.

pub mod blob;
pub mod conformance;
pub mod copy;
pub mod error;
pub mod identity;
pub mod location;
pub mod log;
pub mod objects;
pub mod pack;
mod pack_builder;
mod parallel_hash;
pub mod questions;
pub mod read;
pub mod remote;
pub mod sqlite;
mod verified;

pub use error::StoreError;
pub use identity::engine_identity_of_this_process;
pub use location::{Datastore, PackPlace};
pub use log::FileLogStore;
pub use read::Reader;
pub use remote::Remote;
pub use sqlite::SqliteMetadata;
