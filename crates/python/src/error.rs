//! Rust errors as exceptions of `metaflow.exception`, by variant.

use ferroflow_core::port::MetadataError;
use ferroflow_store::StoreError;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

pub fn store_error(error: &StoreError) -> PyErr {
    let class = match error {
        StoreError::Missing(_) => "MetaflowDataMissing",
        StoreError::Damaged(_) | StoreError::Io { .. } | StoreError::Remote(_) => "DataException",
    };
    raise(class, error.to_string())
}

pub fn metadata_error(error: &MetadataError) -> PyErr {
    let class = match error {
        MetadataError::NotFound(_) => "MetaflowNotFound",
        MetadataError::Refused(_) => "MetaflowTaggingError",
        MetadataError::TakenOver(_) | MetadataError::Unavailable(_) => "DataException",
    };
    raise(class, error.to_string())
}

fn raise(class: &str, message: String) -> PyErr {
    Python::attach(|py| {
        let built = py
            .import("metaflow.exception")
            .and_then(|module| module.getattr(class))
            .and_then(|class| class.call1((&message,)));
        match built {
            Ok(exception) => PyErr::from_value(exception),
            // The SDK's module is not importable (the extension is used on its own).
            Err(_) => PyRuntimeError::new_err(message),
        }
    })
}
