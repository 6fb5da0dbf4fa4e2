//! `metaflow._native`: what the Python SDK needs from Rust. Conversion and error mapping only;
//! no runtime, and no thread that is alive after a call returned.

#![allow(clippy::needless_pass_by_value, reason = "PyO3 hands arguments over by value")]

mod error;
mod json;
mod mapping;
mod metadata;
mod objects;
mod pack;
mod s3;
mod writer;

use pyo3::prelude::*;

/// Version of this extension; the same as the distribution's.
#[pyfunction]
fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(version, module)?)?;
    module.add_function(wrap_pyfunction!(json::encode_json, module)?)?;
    module.add_function(wrap_pyfunction!(json::decode_json, module)?)?;
    module.add_function(wrap_pyfunction!(pack::load_packs, module)?)?;
    module.add_function(wrap_pyfunction!(pack::fetch_artifact, module)?)?;
    module.add_function(wrap_pyfunction!(metadata::read_log, module)?)?;
    module.add_class::<mapping::Mapping>()?;
    module.add_class::<metadata::Metadata>()?;
    module.add_class::<objects::Objects>()?;
    module.add_class::<pack::Pack>()?;
    module.add_class::<s3::S3>()?;
    module.add_class::<writer::PackWriter>()?;
    module.add_class::<writer::Sink>()?;
    module.add_class::<writer::ItemsSink>()?;
    Ok(())
}
