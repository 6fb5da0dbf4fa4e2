//! Multi-node parallel jobs: a gang of tasks as one job, whose nodes are told where the first of them
//! is. The definition of a step and a submission made into those of a gang; pure. As for array jobs,
//! what is each rank's own is a list in the store, of which a node takes the entry of its index.

use serde_json::{Value, json};

/// Index of the node that the others look for, rank 0's. When it ends AWS Batch stops the others.
const MAIN_NODE: u64 = 0;

const ALL_NODES: &str = "0:";

/// The same container on every node. Fargate has no such jobs.
pub fn definition(mut single: Value, nodes: u64) -> Value {
    let container = single["containerProperties"].take();
    if let Some(definition) = single.as_object_mut() {
        definition.remove("containerProperties");
        definition.remove("platformCapabilities");
    }
    single["type"] = json!("multinode");
    single["nodeProperties"] = json!({
        "numNodes": nodes,
        "mainNode": MAIN_NODE,
        "nodeRangeProperties": [{ "targetNodes": ALL_NODES, "container": container }],
    });
    single
}

/// A submission whose variables go to every node.
pub fn submission(mut single: Value, nodes: u64) -> Value {
    let overrides = single["containerOverrides"].take();
    if let Some(job) = single.as_object_mut() {
        job.remove("containerOverrides");
    }
    single["nodeOverrides"] = json!({
        "numNodes": nodes,
        "nodePropertyOverrides": [{ "targetNodes": ALL_NODES, "containerOverrides": overrides }],
    });
    single
}

/// The id of a node's job.
pub fn node_id(gang: &str, index: usize) -> String {
    format!("{gang}#{index}")
}

/// The job that a node is part of; only that can be ended.
pub fn whole(job: &str) -> Option<&str> {
    job.split_once('#').map(|(gang, _)| gang)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_runs_the_steps_container() {
        let container = json!({"image": "i", "command": ["c"]});
        let single = json!({
            "jobDefinitionName": "n", "type": "container", "platformCapabilities": ["EC2"],
            "containerProperties": container, "retryStrategy": {"attempts": 1},
        });
        assert_eq!(
            definition(single, 3),
            json!({
                "jobDefinitionName": "n", "type": "multinode", "retryStrategy": {"attempts": 1},
                "nodeProperties": {
                    "numNodes": 3, "mainNode": 0,
                    "nodeRangeProperties": [{"targetNodes": "0:", "container": container}],
                },
            })
        );
    }

    #[test]
    fn every_node_gets_the_variables() {
        let overrides = json!({"environment": [{"name": "A", "value": "1"}]});
        let single = json!({"jobName": "n", "containerOverrides": overrides});
        assert_eq!(
            submission(single, 2),
            json!({
                "jobName": "n",
                "nodeOverrides": {
                    "numNodes": 2,
                    "nodePropertyOverrides": [{"targetNodes": "0:", "containerOverrides": overrides}],
                },
            })
        );
        assert_eq!((node_id("g", 1).as_str(), whole("g#1"), whole("g")), ("g#1", Some("g"), None));
    }
}
