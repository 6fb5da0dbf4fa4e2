//! Which of a flow's tasks `list` and `kill` mean, on any remote layer. How a layer finds them is
//! its own (`kubernetes/listing.rs`, `batch/listing.rs`).

use ferroflow_core::id::RunId;

/// Tasks of one flow that have not ended; the other fields narrow that down together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskFilter {
    pub flow: String,
    pub user: Option<String>,
    pub run: Option<RunId>,
    /// Only runs that this metadata store numbered: ids of local runs are small and come again
    /// elsewhere.
    pub metadata: Option<String>,
}
