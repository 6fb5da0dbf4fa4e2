//! What tests share: flows to build graphs from (by hand and at random), a clock that only moves
//! when told, a compute layer that records what it was asked, and a world in which a run machine
//! runs without processes. Only ever a dev-dependency.

pub mod clock;
pub mod flows;
pub mod layer;
pub mod samples;
pub mod shapes;
pub mod world;
