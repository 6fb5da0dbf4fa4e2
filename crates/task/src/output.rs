//! The pack a task writes: values are encoded straight to where they stay, artifacts of other
//! packs are forwarded without decoding, the outcome seals it.

use std::sync::Arc;

use ferroflow_store::blob::{ALIGNMENT, StoredValue, ValueWriter, hash_of_bytes, store_parts};
use ferroflow_store::pack::{Artifact, Description, Encoding, Pack, PackBuilder, ValuePlace};
use ferroflow_store::{Datastore, PackPlace, StoreError};
use serde_json::Value;

/// How an artifact introduces itself.
#[derive(Clone, Debug)]
pub struct Label {
    pub type_name: String,
    pub preview: Option<String>,
    /// See [`Artifact::tag`].
    pub tag: Option<String>,
}

/// A task's pack until it is committed.
#[derive(Debug)]
pub struct TaskOutput {
    builder: PackBuilder,
}

impl TaskOutput {
    pub fn new(store: Datastore, place: PackPlace) -> Self {
        Self { builder: PackBuilder::new(store, place) }
    }

    /// A sink for a value's encoding; hand it to [`Self::add_pickle`] when it is complete.
    pub fn value_writer(&self, name: &str) -> ValueWriter {
        ValueWriter::new(self.builder.store().clone(), name)
    }

    /// JSON text of a plain value.
    pub fn add_json(&mut self, name: &str, label: Label, text: Vec<u8>) {
        let description = describe(label, Encoding::Json, 0, Vec::new());
        self.builder.add(name, description, &StoredValue::Inline(text));
    }

    /// Bytes as they are.
    pub fn add_raw(&mut self, name: &str, label: Label, data: &[u8]) -> Result<(), StoreError> {
        let value = store_parts(self.builder.store(), name, &[data])?;
        self.builder.add(name, describe(label, Encoding::Raw, 0, Vec::new()), &value);
        Ok(())
    }

    /// A pickle that was written to `writer`, and its out-of-band buffers, which follow it.
    pub fn add_pickle(
        &mut self,
        name: &str,
        label: Label,
        mut writer: ValueWriter,
        buffers: &[&[u8]],
    ) -> Result<(), StoreError> {
        let pickle = writer.length();
        let table = buffer_table(pickle, buffers);
        let value = match writer.in_memory() {
            Some(start) => store_parts(self.builder.store(), name, &aligned_parts(start, buffers))?,
            None => {
                for buffer in buffers {
                    writer.align()?;
                    writer.write(buffer)?;
                }
                writer.finish()?
            }
        };
        let pickle = if table.is_empty() { 0 } else { pickle };
        self.builder.add(name, describe(label, Encoding::Pickle, pickle, table), &value);
        Ok(())
    }

    /// Forwards an artifact of another pack without decoding it.
    pub fn pass_on(&mut self, name: &str, source: &Pack) -> Result<(), StoreError> {
        self.builder.pass_on(name, source)
    }

    /// Forwards `source`'s raw artifact if it holds exactly these bytes.
    pub fn pass_on_equal_bytes(&mut self, name: &str, source: &Pack, data: &[u8]) -> Result<bool, StoreError> {
        let equal = source.artifact(name).is_some_and(|artifact| holds_bytes(artifact, data));
        if equal {
            self.pass_on(name, source)?;
        }
        Ok(equal)
    }

    pub fn set_items(&mut self, variable: &str, count: u64, value: &StoredValue) {
        self.builder.set_items(variable, count, value);
    }

    pub fn artifact(&self, name: &str) -> Option<&Artifact> {
        self.builder.artifact(name)
    }

    pub fn place(&self) -> &PackPlace {
        self.builder.place()
    }

    pub fn store(&self) -> &Datastore {
        self.builder.store()
    }

    /// Writes the pack durably.
    pub fn commit(&mut self, outcome: Value) -> Result<(), StoreError> {
        let splits = outcome.pointer("/transition/num_splits").and_then(Value::as_u64);
        self.builder.commit(outcome, splits.unwrap_or(1))
    }
}

/// Offset and length of each buffer in a value that starts with `pickle` other bytes.
fn buffer_table(pickle: u64, buffers: &[&[u8]]) -> Vec<(u64, u64)> {
    let mut end = pickle;
    let mut table = Vec::with_capacity(buffers.len());
    for buffer in buffers {
        let start = end.next_multiple_of(ALIGNMENT);
        end = start + buffer.len() as u64;
        table.push((start, buffer.len() as u64));
    }
    table
}

/// The same layout as slices, padding included.
fn aligned_parts<'a>(start: &'a [u8], buffers: &[&'a [u8]]) -> Vec<&'a [u8]> {
    static PADDING: [u8; ALIGNMENT as usize] = [0; ALIGNMENT as usize];
    let mut parts = vec![start];
    let mut end = start.len() as u64;
    for buffer in buffers {
        let padding = (end.next_multiple_of(ALIGNMENT) - end) as usize;
        parts.push(&PADDING[..padding]);
        parts.push(buffer);
        end += (padding + buffer.len()) as u64;
    }
    parts
}

fn describe(label: Label, encoding: Encoding, pickle: u64, buffers: Vec<(u64, u64)>) -> Description {
    Description { type_name: label.type_name, preview: label.preview, encoding, pickle, buffers, tag: label.tag }
}

fn holds_bytes(artifact: &Artifact, data: &[u8]) -> bool {
    let ValuePlace::Blob(hash, length) = &artifact.at else { return false };
    artifact.encoding == Encoding::Raw && *length == data.len() as u64 && hash_of_bytes(data) == *hash
}

/// A place from its parts.
pub fn place(flow: &str, run: &str, step: &str, task: u64, attempt: u32) -> PackPlace {
    use ferroflow_core::id::{AttemptId, RunId, TaskId};
    PackPlace {
        flow: Arc::from(flow),
        run: RunId::from(run),
        step: Arc::from(step),
        id: AttemptId { task: TaskId(task), attempt },
    }
}
