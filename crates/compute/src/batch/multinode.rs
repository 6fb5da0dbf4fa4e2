//! Multi-node parallel jobs: a gang of tasks as one job whose nodes find each other. The definition
//! of a step and a submission made into those of a gang; pure.

use serde_json::{Value, json};

/// Index of the node that the others look for.
pub const MAIN_NODE: usize = 0;
/// Variables by which AWS Batch tells a container its place.
pub const INDEX_VARIABLE: &str = "AWS_BATCH_JOB_NODE_INDEX";
pub const MAIN_ADDRESS_VARIABLE: &str = "AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS";
pub const COUNT_VARIABLE: &str = "AWS_BATCH_JOB_NUM_NODES";

/// The same container on every node. Fargate has no such jobs.
pub fn definition(mut single: Value, nodes: usize) -> Value {
    let container = single["containerProperties"].take();
    if let Some(definition) = single.as_object_mut() {
        definition.remove("containerProperties");
        definition.remove("platformCapabilities");
    }
    single["type"] = json!("multinode");
    single["nodeProperties"] = json!({
        "numNodes": nodes,
        "mainNode": MAIN_NODE,
        "nodeRangeProperties": [{ "targetNodes": "0:", "container": container }],
    });
    single
}

/// A submission whose variables go to every node.
pub fn submission(mut single: Value, nodes: usize) -> Value {
    let overrides = single["containerOverrides"].take();
    if let Some(job) = single.as_object_mut() {
        job.remove("containerOverrides");
    }
    single["nodeOverrides"] = json!({
        "numNodes": nodes,
        "nodePropertyOverrides": [{ "targetNodes": "0:", "containerOverrides": overrides }],
    });
    single
}

/// The id of a node's job.
pub fn node_id(gang: &str, index: usize) -> String {
    format!("{gang}#{index}")
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
        assert_eq!(node_id("g", 1), "g#1");
    }
}
