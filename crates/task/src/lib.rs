//! What a task process needs and no more: the packs it reads, the pack it writes, its foreach
//! item; and what stands around it in a remote container (`remote`). No metadata, no engine, no
//! runtime, and outside of `remote` no thread that outlives a call.

pub mod foreach;
pub mod input;
pub mod output;
pub mod remote;
mod untouched;

pub use foreach::{Item, ItemsWriter, read_item};
pub use input::{load_packs, places_of};
pub use output::TaskOutput;
pub use untouched::is_untouched;
