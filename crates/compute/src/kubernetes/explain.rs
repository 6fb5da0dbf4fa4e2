//! Why nothing happens with Jobs that have no pod yet, or pods whose container is not there yet:
//! the events that the cluster's controllers wrote about them, in a few lists for all of them.

use std::collections::HashMap;

use serde_json::Value;

use super::api::{ApiFault, Cluster};

/// The latest words about objects of a namespace, by name.
#[derive(Debug, Default)]
pub struct Explanations {
    /// By Job: why its pod cannot be created.
    pub jobs: HashMap<String, String>,
    /// By pod: what its node does, or cannot do.
    pub pods: HashMap<String, String>,
}

/// Reads the events of a namespace.
pub async fn explain(cluster: &Cluster, namespace: &str) -> Result<Explanations, ApiFault> {
    let mut found = Explanations::default();
    let failed = cluster.list_events(namespace, "involvedObject.kind=Job,reason=FailedCreate").await?;
    found.jobs = latest(&failed);
    let pulling = cluster.list_events(namespace, "involvedObject.kind=Pod,reason=Pulling").await?;
    found.pods = latest(&pulling);
    let warnings = cluster.list_events(namespace, "involvedObject.kind=Pod,type=Warning").await?;
    let warnings: Vec<Value> = warnings.into_iter().filter(|event| event["reason"] != "FailedScheduling").collect();
    found.pods.extend(latest(&warnings));
    Ok(found)
}

/// Why a pod is being taken away, where the cluster's events say so.
pub async fn why_taken(cluster: &Cluster, namespace: &str, pod: &str) -> Option<String> {
    let events = cluster.list_events(namespace, &format!("involvedObject.name={pod}")).await.ok()?;
    events.iter().find_map(taken_by)
}

fn taken_by(event: &Value) -> Option<String> {
    let node = event["source"]["host"].as_str().filter(|node| !node.is_empty());
    let on = node.map_or_else(String::new, |node| format!(" from node `{node}`"));
    let message = event["message"].as_str().unwrap_or_default();
    match event["reason"].as_str()? {
        "Preempted" => Some(format!("preempted by a pod of higher priority: {message}")),
        "TaintManagerEviction" => {
            Some("its node does not answer any more, or is being emptied, and Kubernetes took its pod away".to_owned())
        }
        "Evicted" => Some(format!("evicted{on}: {message}")),
        _ => None,
    }
}

fn latest(events: &[Value]) -> HashMap<String, String> {
    let mut sorted: Vec<&Value> = events.iter().collect();
    sorted.sort_by_key(|event| event["lastTimestamp"].as_str().unwrap_or_default());
    sorted
        .into_iter()
        .filter_map(|event| {
            let name = event["involvedObject"]["name"].as_str()?;
            Some((name.to_owned(), event["message"].as_str().unwrap_or_default().trim().to_owned()))
        })
        .collect()
}

/// A `FailedCreate` as a reason to wait.
pub fn cannot_create(message: &str) -> String {
    let said = message.strip_prefix("Error creating: ").unwrap_or(message);
    if message.contains("exceeded quota") {
        format!("the namespace's quota has no room for it yet: {said}")
    } else {
        format!("Kubernetes cannot create its pod: {said}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_latest_words_count() {
        let event = |name: &str, at: &str, message: &str| json!({ "involvedObject": { "name": name }, "lastTimestamp": at, "message": message });
        let events = [event("a", "2026-01-02T00:00:00Z", "new"), event("a", "2026-01-01T00:00:00Z", "old")];
        assert_eq!(latest(&events)["a"], "new");
    }

    #[test]
    fn events_say_who_took_a_pod_away() {
        let said = |reason: &str, message: &str| taken_by(&json!({ "reason": reason, "message": message }));
        assert_eq!(
            said("Preempted", "Preempted by team/urgent on node n1").as_deref(),
            Some("preempted by a pod of higher priority: Preempted by team/urgent on node n1")
        );
        assert_eq!(said("Evicted", "low on memory").as_deref(), Some("evicted: low on memory"));
        assert!(said("TaintManagerEviction", "Marking for deletion").is_some_and(|text| text.contains("its node")));
        assert_eq!(said("Scheduled", "assigned"), None);
    }

    #[test]
    fn quota_is_a_reason_to_wait() {
        let said =
            "Error creating: pods \"x\" is forbidden: exceeded quota: q, requested: cpu=1, used: cpu=4, limited: cpu=4";
        assert_eq!(
            cannot_create(said),
            "the namespace's quota has no room for it yet: pods \"x\" is forbidden: exceeded quota: q, requested: \
             cpu=1, used: cpu=4, limited: cpu=4"
        );
    }
}
