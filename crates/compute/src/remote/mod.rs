//! What every remote layer needs and none has of its own (design D8, D9, D12): the code package,
//! what a container runs, the logs on their way back, and the lease that says the engine lives.
//! How a container gets to run is the layer's (`kubernetes/`, `batch/`).

mod bootstrap;
mod container;
pub(crate) mod drive;
pub mod ending;
mod filter;
pub(crate) mod gathering;
pub(crate) mod identity;
mod language;
pub(crate) mod layer;
mod lease;
mod logs;
pub mod package;
mod questions;
pub mod refusal;
pub(crate) mod shared;
mod spec;
mod tail;

pub use bootstrap::INIT_SCRIPT;
pub use container::{Remote, RemoteSettings};
pub use filter::TaskFilter;
pub use identity::{RunIdentity, metadata_label};
pub use language::Language;
pub use layer::RemoteLayer;
pub use package::{Package, PackageFault, PackageSources};
