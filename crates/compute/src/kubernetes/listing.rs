//! What of a flow is on a cluster now, and its removal by hand: for `kubernetes list|kill`. Works
//! from the labels alone, without the run's engine.

use std::collections::HashSet;

use ferroflow_core::id::RunId;
use serde_json::Value;

use super::api::{ApiFault, Cluster, Target};
use super::names::{FLOW_LABEL, METADATA_LABEL, USER_LABEL, label_value, metadata_label};

/// Which of a flow's tasks are meant; the filters add up.
#[derive(Clone, Debug)]
pub struct Filter {
    pub flow: String,
    pub user: Option<String>,
    pub run: Option<RunId>,
    /// Only runs that this metadata store numbered.
    pub metadata: Option<String>,
}

/// A task that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActiveTask {
    pub run: String,
    /// `None` while the Job has no pod yet.
    pub pod: Option<String>,
    pub job: String,
    /// As the cluster writes it (RFC 3339).
    pub started_at: Option<String>,
    pub status: String,
}

impl Filter {
    fn selector(&self) -> String {
        let mut terms = vec![format!("{FLOW_LABEL}={}", label_value(&self.flow))];
        terms.extend(self.user.as_ref().map(|user| format!("{USER_LABEL}={}", label_value(user))));
        terms.extend(self.metadata.as_ref().map(|store| format!("{METADATA_LABEL}={}", metadata_label(store))));
        terms.join(",")
    }

    fn matches(&self, object: &Value) -> bool {
        let run = object["metadata"]["annotations"]["metaflow/run_id"].as_str();
        self.run.as_ref().is_none_or(|wanted| run == Some(wanted.as_str()))
    }
}

/// Unfinished tasks in a namespace, in order of run and name.
pub async fn list(cluster: &Cluster, namespace: &str, filter: &Filter) -> Result<Vec<ActiveTask>, ApiFault> {
    let selector = filter.selector();
    let (pods, _) = cluster.list_pods(namespace, &selector).await?;
    let with_pod: HashSet<&str> =
        pods.iter().filter_map(|pod| pod["metadata"]["labels"]["job-name"].as_str()).collect();
    let mut tasks: Vec<ActiveTask> = pods.iter().filter(|pod| filter.matches(pod)).filter_map(of_pod).collect();
    let jobs = cluster.list_jobs(namespace, &selector).await?;
    let waiting = jobs.iter().filter(|job| filter.matches(job)).filter_map(of_job);
    tasks.extend(waiting.filter(|task| !with_pod.contains(task.job.as_str())));
    tasks.sort_by(|a, b| (a.run.len(), &a.run, &a.job).cmp(&(b.run.len(), &b.run, &b.job)));
    Ok(tasks)
}

/// Removes a task: its Job and, at once, its pod.
pub async fn kill(cluster: &Cluster, namespace: &str, task: &ActiveTask) -> Result<(), ApiFault> {
    cluster.delete_jobs(namespace, Target::Name(&task.job)).await?;
    if let Some(pod) = &task.pod {
        // The propagation takes it too, only later.
        let _propagated = cluster.delete_pods(namespace, Target::Name(pod), 1).await;
    }
    Ok(())
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn of_pod(pod: &Value) -> Option<ActiveTask> {
    let status = text(&pod["status"]["phase"]);
    if matches!(status.as_str(), "Succeeded" | "Failed") {
        return None;
    }
    Some(ActiveTask {
        run: text(&pod["metadata"]["annotations"]["metaflow/run_id"]),
        pod: Some(text(&pod["metadata"]["name"])),
        job: text(&pod["metadata"]["labels"]["job-name"]),
        started_at: pod["status"]["startTime"].as_str().map(str::to_owned),
        status,
    })
}

fn of_job(job: &Value) -> Option<ActiveTask> {
    let over = |name: &str| job["status"][name].as_u64().unwrap_or(0) > 0;
    if over("succeeded") || over("failed") || job["status"]["completionTime"].is_string() {
        return None;
    }
    Some(ActiveTask {
        run: text(&job["metadata"]["annotations"]["metaflow/run_id"]),
        pod: None,
        job: text(&job["metadata"]["name"]),
        started_at: None,
        status: "Waiting".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn filters_add_up() {
        let filter = Filter {
            flow: "F".into(),
            user: Some("ann@home".into()),
            run: Some("3".into()),
            metadata: Some("here".into()),
        };
        let selector = filter.selector();
        assert!(selector.starts_with("ferroflow/flow=F,ferroflow/user=ann-home-"), "{selector}");
        assert!(selector.contains(",ferroflow/metadata="));
        assert!(filter.matches(&json!({"metadata": {"annotations": {"metaflow/run_id": "3"}}})));
        assert!(!filter.matches(&json!({"metadata": {"annotations": {"metaflow/run_id": "4"}}})));
    }

    #[test]
    fn what_is_over_is_not_listed() {
        assert_eq!(of_pod(&json!({"status": {"phase": "Succeeded"}})), None);
        assert_eq!(of_job(&json!({"status": {"failed": 1}})), None);
        assert_eq!(
            of_job(&json!({"metadata": {"name": "j"}, "status": {}})).map(|task| task.job),
            Some("j".to_owned())
        );
    }
}
