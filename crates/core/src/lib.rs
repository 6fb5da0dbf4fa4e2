//! What Ferroflow decides, without doing any of it: the flow graph and its checks, the run
//! state machine, decorator and option specs, and the types and traits (ports) through which
//! the other crates meet. No file system, no clock, no runtime, no SDK in here.

pub mod decorator;
pub mod diagnostic;
pub mod graph;
pub mod id;
pub mod ir;
pub mod lines;
pub mod lint;
pub mod log_segment;
pub mod metadata;
pub mod port;
pub mod run;
pub mod show;
pub mod suggestion;
pub mod task;
pub mod typed;
pub mod wire;
