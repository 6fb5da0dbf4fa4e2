//! Array jobs: many tasks of one step as one submission. What is the same for all is in the job's
//! variables; what is each task's own is a list in the store, of which a container takes the entry of
//! its index. After the submission each child is a job like any other, named `<array>:<index>`.

use std::collections::BTreeMap;

use ferroflow_core::id::{AttemptId, TaskId};
use serde_json::{Value, json};

use super::definition::variables;

/// Fewer are submitted one by one.
pub const LEAST: usize = 8;
/// More are several arrays: every container reads the whole list.
pub const MOST: usize = 100;

/// The parameter that says whose the children are: `<task>.<attempt>` in order of their index.
const MEMBERS: &str = "metaflow.children";

type Variables = BTreeMap<String, String>;

/// The id of a child by its index.
pub fn child_id(array: &str, index: usize) -> String {
    format!("{array}:{index}")
}

/// The request for all of them, made of the first one's.
pub fn request(first: Value, name: &str, children: &[AttemptId], environment: &Variables) -> Value {
    let mut request = of_several(first, name, children, environment);
    request["arrayProperties"] = json!({ "size": children.len() });
    request
}

/// A request for one task made into one for several, whose own variables are in a list.
pub fn of_several(mut first: Value, name: &str, children: &[AttemptId], environment: &Variables) -> Value {
    first["jobName"] = json!(name);
    first["containerOverrides"] = json!({ "environment": variables(environment) });
    if let Some(parameters) = first["parameters"].as_object_mut() {
        // The children's own are in their list; a job is found by its flow, run, step and user.
        parameters.remove("metaflow.task_id");
        parameters.remove("metaflow.retry_count");
        let members: Vec<String> = children.iter().map(|id| format!("{}.{}", id.task, id.attempt)).collect();
        parameters.insert(MEMBERS.to_owned(), json!(members.join(" ")));
    }
    first
}

/// Whose the children of a job are, by its parameters.
pub fn members(parameters: &Value) -> Vec<AttemptId> {
    let member = |text: &str| {
        let (task, attempt) = text.split_once('.')?;
        Some(AttemptId { task: TaskId(task.parse().ok()?), attempt: attempt.parse().ok()? })
    };
    // Where one cannot be read, nobody knows the index of those after it.
    parameters[MEMBERS].as_str().unwrap_or_default().split(' ').map_while(member).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> Variables {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_request_has_a_size_and_only_what_all_share() {
        let first = json!({
            "jobName": "one", "jobQueue": "q", "jobDefinition": "d",
            "containerOverrides": {"environment": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]},
            "parameters": {"metaflow.run_id": "3", "metaflow.task_id": "7", "metaflow.retry_count": "0"},
        });
        let children: Vec<AttemptId> = (5..14).map(|task| AttemptId { task: TaskId(task), attempt: 0 }).collect();
        assert_eq!(child_id("a-1", 7), "a-1:7");
        let request = request(first, "all", &children, &environment(&[("A", "1")]));
        assert_eq!(members(&request["parameters"]), children);
        assert_eq!(
            request,
            json!({
                "jobName": "all", "jobQueue": "q", "jobDefinition": "d", "arrayProperties": {"size": 9},
                "containerOverrides": {"environment": [{"name": "A", "value": "1"}]},
                "parameters": {
                    "metaflow.run_id": "3", "metaflow.children": "5.0 6.0 7.0 8.0 9.0 10.0 11.0 12.0 13.0",
                },
            })
        );
    }
}
