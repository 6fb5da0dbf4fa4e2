//! A task's pack being written, and others' being read. Which artifacts a task has, and when they
//! are read, is decided in R.

use std::sync::Arc;

use extendr_api::prelude::*;
use ferroflow_core::task::InputRef;
use ferroflow_store::blob::{BlobMapping, INLINE_LIMIT};
use ferroflow_store::pack::{Artifact, Encoding, Pack, ValuePlace};
use ferroflow_store::{Datastore, StoreError};
use ferroflow_task::output::{Label, TaskOutput, place};
use ferroflow_task::{ItemsWriter, load_packs, places_of, read_item};
use serde_json::{Value, json};

use crate::{Answer, columns, plain, unpickle};

/// Tag of values that R's `serialize` wrote.
const SERIALIZED: &str = "serialized";
/// Tag of raw vectors.
const RAW: &str = "raw";

/// A finished attempt's pack.
pub struct InputPack {
    store: Datastore,
    pack: Pack,
}

fn told(error: &StoreError) -> String {
    error.to_string()
}

/// Opens every attempt that an input reference names, in order, all at once.
pub fn open_packs(root: &str, flow: &str, reference: &str) -> Answer {
    loaded(root, flow, reference)?.map_err(|error| told(&error))
}

/// The same, but NULL when one of the attempts stored nothing.
pub fn find_packs(root: &str, flow: &str, reference: &str) -> Answer {
    match loaded(root, flow, reference)? {
        Err(StoreError::Missing(_)) => Ok(().into()),
        packs => packs.map_err(|error| told(&error)),
    }
}

fn loaded(
    root: &str,
    flow: &str,
    reference: &str,
) -> std::result::Result<std::result::Result<Robj, StoreError>, String> {
    let reference: InputRef = serde_json::from_str(reference).map_err(|error| error.to_string())?;
    let store = Datastore::at(root).map_err(|error| told(&error))?;
    let places: Vec<_> = places_of(&Arc::from(flow), &reference).collect();
    Ok(load_packs(&store, &places).map(|packs| {
        let pointers = packs.into_iter().map(|pack| ExternalPtr::new(InputPack { store: store.clone(), pack }));
        List::from_values(pointers).into()
    }))
}

pub fn names(pack: &InputPack) -> Vec<String> {
    pack.pack.header.artifacts.iter().map(|(name, _)| name.clone()).collect()
}

/// What a pack says of an artifact, without reading it.
pub fn info(pack: &InputPack, name: &str) -> Answer {
    let artifact = pack.pack.require(name).map_err(|error| told(&error))?;
    Ok(plain::as_lists(&json!({
        "type": artifact.type_name, "size": artifact.size, "hash": artifact.hash,
        "encoding": artifact.encoding.as_str(), "preview": artifact.preview, "tag": artifact.tag,
    })))
}

pub fn outcome(pack: &InputPack) -> Robj {
    plain::as_lists(&pack.pack.header.outcome)
}

/// `list(value=…)`, `list(serialized=raw)` for R to unserialize, or `list(pickle=TRUE)`.
pub fn read(pack: &InputPack, name: &str) -> Answer {
    let artifact = pack.pack.require(name).map_err(|error| told(&error))?;
    match &artifact.at {
        ValuePlace::Inline(offset, length) => {
            decode(pack.pack.inline(*offset, *length).map_err(|error| told(&error))?, artifact, pack, name)
        }
        ValuePlace::Blob(hash, length) => {
            let mapping = BlobMapping::open(&pack.store, hash, *length, &|| pack.pack.describe(name))
                .map_err(|error| told(&error))?;
            decode(mapping.bytes(), artifact, pack, name)
        }
    }
}

fn decode(bytes: &[u8], artifact: &Artifact, pack: &InputPack, name: &str) -> Answer {
    let tag = artifact.tag.as_deref();
    let strange = || format!("{} is of a form this version does not know", pack.pack.describe(name));
    match artifact.encoding {
        Encoding::Json => {
            let value: Value = serde_json::from_slice(bytes).map_err(|error| format!("{}: {error}", strange()))?;
            let decoded = match tag {
                None => plain::simplify(&value),
                Some(tag) => {
                    let tag = serde_json::from_str(tag).map_err(|_| strange())?;
                    plain::decode(&value, &tag).ok_or_else(strange)?
                }
            };
            Ok(list!(value = decoded).into())
        }
        Encoding::Raw if tag == Some(SERIALIZED) => Ok(list!(serialized = Raw::from_bytes(bytes)).into()),
        Encoding::Raw => Ok(list!(value = Raw::from_bytes(bytes)).into()),
        Encoding::Pickle => match tag {
            None => Ok(match unpickle::plain(bytes).as_ref().and_then(unpickle::to_r) {
                Some(value) => list!(value = value).into(),
                None => list!(pickle = true).into(),
            }),
            Some(tag) => {
                let header = serde_json::from_str(tag).map_err(|_| strange())?;
                Ok(list!(value = columns::decode(&header, bytes, &artifact.buffers).ok_or_else(strange)?).into())
            }
        },
    }
}

/// An item of a foreach that was stored by itself, serialized; NULL when they are not.
pub fn item(pack: &InputPack, variable: &str, index: f64) -> Answer {
    let item = read_item(&pack.store, &pack.pack, variable, index as u64).map_err(|error| told(&error))?;
    Ok(item.map_or_else(|| ().into(), |item| Raw::from_bytes(&item.bytes).into()))
}

/// A task's pack until it is committed.
pub struct OutputPack {
    output: TaskOutput,
}

pub fn new_pack(root: &str, flow: &str, run: &str, step: &str, task: f64, attempt: i32) -> Answer {
    let store = Datastore::at(root).map_err(|error| told(&error))?;
    let place = place(flow, run, step, task as u64, attempt.cast_unsigned());
    Ok(ExternalPtr::new(OutputPack { output: TaskOutput::new(store, place) }).into())
}

/// Stores a value in a form that other languages read; FALSE when there is none for it.
pub fn write(pack: &mut OutputPack, name: &str, type_name: &str, preview: Nullable<String>, value: &Robj) -> Answer {
    let label = |tag: &str| Label {
        type_name: type_name.to_owned(),
        preview: match &preview {
            Nullable::NotNull(text) => Some(text.clone()),
            Nullable::Null => None,
        },
        tag: Some(tag.to_owned()),
    };
    if let Some(bytes) = value.as_raw_slice() {
        let attributes = crate::sexp::attribute_names(value);
        if !attributes.is_empty() {
            return Ok(false.into());
        }
        pack.output.add_raw(name, label(RAW), bytes).map_err(|error| told(&error))?;
        return Ok(true.into());
    }
    if let Some((json, tag)) = plain::encode(value, INLINE_LIMIT) {
        let text = json.to_string().into_bytes();
        if text.len() <= INLINE_LIMIT {
            pack.output.add_json(name, label(&tag.to_string()), text);
            return Ok(true.into());
        }
    }
    let Some(columnar) = columns::encode(value) else { return Ok(false.into()) };
    let header = columnar.header.to_string();
    let mut writer = pack.output.value_writer(name);
    writer.write(&columns::stream(&header, columnar.buffers.len())).map_err(|error| told(&error))?;
    let buffers: Vec<&[u8]> = columnar.buffers.iter().map(columns::Buffer::bytes).collect();
    pack.output.add_pickle(name, label(&header), writer, &buffers).map_err(|error| told(&error))?;
    Ok(true.into())
}

/// Stores what `serialize` made of a value.
pub fn write_serialized(pack: &mut OutputPack, name: &str, type_name: &str, bytes: &Robj) -> Answer {
    let bytes = bytes.as_raw_slice().ok_or("not a raw vector")?;
    let label = Label { type_name: type_name.to_owned(), preview: None, tag: Some(SERIALIZED.to_owned()) };
    pack.output.add_raw(name, label, bytes).map_err(|error| told(&error))?;
    Ok(().into())
}

/// Stores plain JSON that no R value stands behind.
pub fn write_json(pack: &mut OutputPack, name: &str, text: &str) -> Answer {
    let label = Label { type_name: "<class 'dict'>".to_owned(), preview: None, tag: None };
    pack.output.add_json(name, label, text.as_bytes().to_vec());
    Ok(().into())
}

/// Forwards an artifact without decoding it.
pub fn pass_on(pack: &mut OutputPack, name: &str, source: &InputPack) -> Answer {
    pack.output.pass_on(name, &source.pack).map_err(|error| told(&error))?;
    Ok(().into())
}

/// Bytes of an artifact that was written.
pub fn size(pack: &OutputPack, name: &str) -> f64 {
    pack.output.artifact(name).map_or(0.0, |artifact| artifact.size as f64)
}

/// Stores the items of a foreach, each serialized, so that a split reads its own alone.
pub fn write_items(pack: &mut OutputPack, variable: &str, items: &List) -> Answer {
    let mut writer = ItemsWriter::new(pack.output.store().clone(), variable);
    for (_, item) in items.iter() {
        let bytes = item.as_raw_slice().ok_or("an item is not serialized")?;
        writer.push(Encoding::Raw, bytes).map_err(|error| told(&error))?;
    }
    let (count, value) = writer.finish().map_err(|error| told(&error))?;
    pack.output.set_items(variable, count, &value);
    Ok(().into())
}

/// Writes the pack durably.
pub fn commit(pack: &mut OutputPack, outcome: &str) -> Answer {
    let outcome = serde_json::from_str(outcome).map_err(|error| error.to_string())?;
    pack.output.commit(outcome).map_err(|error| told(&error))?;
    Ok(().into())
}
