//! Nodes that do not answer while tasks run on them: said once per node, since nothing else is to be
//! seen until the cluster gives the node up, minutes later. What becomes of its tasks is `taken`'s.

use ferroflow_core::port::LayerEvent;

use super::super::pod::PodView;
use super::Supervisor;

impl Supervisor {
    /// Takes what a pod of an attempt says of its node.
    pub(super) fn hear_of_node(&mut self, pod: &PodView) {
        let node = &pod.node;
        let text = if pod.node_is_silent {
            if !self.silent_nodes.insert(node.clone()) {
                return;
            }
            format!(
                "Node `{node}` does not answer. Its tasks may go on, and what they print still comes; when the cluster \
                 gives the node up, they start again elsewhere."
            )
        } else {
            if pod.deleting || !self.silent_nodes.remove(node) {
                return;
            }
            format!("Node `{node}` answers again.")
        };
        self.events.send(LayerEvent::Notice { text });
    }
}
