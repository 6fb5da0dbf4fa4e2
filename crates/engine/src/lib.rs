//! The loop that feeds events to the run machine and carries out its actions. It knows the outside
//! world only through core's ports; concrete parts are joined in `cli`.

pub mod clock;
pub mod console;
mod drive;
mod held;
mod output;
mod recorder;
pub mod resume;
mod unstarted;

pub use drive::{Letters, Mailbox, Parts, StopRequest, Unfinished, drive};
