//! What the first process of a remote task's container needs beside the task itself: its log on the
//! way to the store, the run's lease, and how the task ended. Starting and watching the task's
//! process is the language's (`r/src/rust/src/supervisor.rs`; Python has all of this in Python).

pub mod ending;
pub mod memory;
pub mod shipper;

use std::io::Read;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ferroflow_core::task::TaskSpec;

/// A spec as `compute::remote::spec` writes it: JSON, or base64 of compressed JSON.
pub fn decode_spec(text: &str) -> Result<String, String> {
    let json = if text.starts_with('{') { text.to_owned() } else { inflated(text)? };
    serde_json::from_str::<TaskSpec>(&json).map_err(|error| format!("the task's spec cannot be read: {error}"))?;
    Ok(json)
}

fn inflated(text: &str) -> Result<String, String> {
    let bytes = STANDARD.decode(text).map_err(|error| format!("the task's spec is not base64: {error}"))?;
    let mut json = String::new();
    let read = flate2::read::ZlibDecoder::new(bytes.as_slice()).read_to_string(&mut json);
    read.map(|_| json).map_err(|error| format!("the task's spec cannot be inflated: {error}"))
}
