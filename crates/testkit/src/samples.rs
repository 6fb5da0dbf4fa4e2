//! Small flows of every shape, each valid.

use ferroflow_core::graph::Graph;
use ferroflow_core::ir::Flow;
use std::sync::Arc;

use crate::flows::FlowBuilder;

/// start → end
pub fn two_steps() -> Flow {
    FlowBuilder::new("TwoSteps").linear("start", "end").end().build()
}

/// start → middle → end
pub fn linear() -> Flow {
    FlowBuilder::new("Linear").linear("start", "middle").linear("middle", "end").end().build()
}

/// start → b, a → join → end: the order of `self.next` is not that of the source.
pub fn branches() -> Flow {
    FlowBuilder::new("Branches")
        .split("start", &["b", "a"])
        .linear("a", "join")
        .linear("b", "join")
        .join("join", "end")
        .end()
        .build()
}

/// start → body × n → join → end
pub fn foreach() -> Flow {
    FlowBuilder::new("Foreach").foreach("start", "body").linear("body", "join").join("join", "end").end().build()
}

/// start → outer × n → inner × m → inner_join → outer_join → end
pub fn nested() -> Flow {
    FlowBuilder::new("Nested")
        .foreach("start", "outer")
        .foreach("outer", "inner")
        .linear("inner", "inner_join")
        .join("inner_join", "outer_join")
        .join("outer_join", "end")
        .end()
        .build()
}

/// start → choose → left or right → end
pub fn switch() -> Flow {
    FlowBuilder::new("Switch")
        .linear("start", "choose")
        .switch("choose", &["left", "right"])
        .linear("left", "end")
        .linear("right", "end")
        .end()
        .build()
}

/// start → again (→ again …) → end
pub fn recursion() -> Flow {
    FlowBuilder::new("Recursion").linear("start", "again").switch("again", &["again", "end"]).end().build()
}

/// start → rank × n → join → end, the ranks being a gang
pub fn gang() -> Flow {
    FlowBuilder::new("Gang")
        .parallel("start", "rank")
        .linear("rank", "join")
        .with("parallel", &serde_json::json!({}))
        .join("join", "end")
        .end()
        .build()
}

/// The graph of a flow that is known to be valid.
///
/// # Panics
/// When the flow is not valid.
pub fn graph(flow: Flow) -> Arc<Graph> {
    match Graph::build(flow) {
        Ok(graph) => Arc::new(graph),
        Err(finding) => panic!("the flow is not valid:\n{finding}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_valid() {
        for flow in [two_steps(), linear(), branches(), foreach(), nested(), switch(), recursion(), gang()] {
            let name = flow.name.clone();
            assert!(graph(flow).check_can_run().is_ok(), "{name}");
        }
    }
}
