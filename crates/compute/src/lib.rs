//! Compute layers: where tasks run. One folder a layer, each an implementation of
//! `core::port::ComputeLayer` that passes `conformance::run_suite`. Deciding *what* runs is the
//! run machine's work and recording what became of it the engine's; neither belongs here.

pub mod admission;
pub mod adoption;
pub mod batch;
pub mod conformance;
pub mod frontend;
pub mod kubernetes;
pub mod local;
pub mod processes;
pub mod remote;
pub mod resources;
pub mod routing;
