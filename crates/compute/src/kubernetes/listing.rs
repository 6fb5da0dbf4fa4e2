//! What of a flow is on a cluster now, and its removal by hand: for `kubernetes list|kill`. Works
//! from the labels alone, without the run's engine.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use futures_util::StreamExt;
use serde_json::Value;
use tokio::time::Instant;

use super::api::{ApiFault, Cluster, Target};
use super::jobset::{self, jobsets};
use super::names::{FLOW_LABEL, METADATA_LABEL, RUN_LABEL, USER_LABEL, label_value};
use super::parallel::remove_services;
use crate::remote::TaskFilter;
use crate::remote::metadata_label;

/// Seconds between SIGTERM and SIGKILL; 0 would only forget the pod.
const KILL_GRACE: u32 = 1;
/// Deletes under way at once.
const AT_ONCE: usize = 16;
/// How long killed tasks may take to be gone: their grace and a node's answer.
const GONE_WITHIN: Duration = Duration::from_secs(40);
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// A task that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActiveTask {
    pub namespace: String,
    pub run: String,
    /// Selects everything of its run.
    run_label: String,
    /// `None` while the Job has no pod yet.
    pub pod: Option<String>,
    pub job: String,
    /// The JobSet whose part it is, or which it is while it has no parts.
    jobset: Option<String>,
    /// As the cluster writes it (RFC 3339).
    pub started_at: Option<String>,
    pub status: String,
}

fn selector(filter: &TaskFilter) -> String {
    let mut terms = vec![format!("{FLOW_LABEL}={}", label_value(&filter.flow))];
    terms.extend(filter.user.as_ref().map(|user| format!("{USER_LABEL}={}", label_value(user))));
    terms.extend(filter.metadata.as_ref().map(|store| format!("{METADATA_LABEL}={}", metadata_label(store))));
    terms.join(",")
}

/// Run ids are annotations: a label holds only what tells runs of all metadata stores apart.
fn is_of_run(filter: &TaskFilter, object: &Value) -> bool {
    let run = object["metadata"]["annotations"]["metaflow/run_id"].as_str();
    filter.run.as_ref().is_none_or(|wanted| run == Some(wanted.as_str()))
}

/// Whether the namespace is there; `true` also where that may not be asked.
pub async fn namespace_exists(cluster: &Cluster, namespace: &str) -> Result<bool, ApiFault> {
    match cluster.get("/api/v1/namespaces", namespace).await {
        Ok(_) | Err(ApiFault::Denied(_)) => Ok(true),
        Err(ApiFault::Missing(_)) => Ok(false),
        Err(fault) => Err(fault),
    }
}

/// Unfinished tasks in a namespace, in order of run and name. `gangs`: the flow has some.
pub async fn list(
    cluster: &Cluster,
    namespace: &str,
    filter: &TaskFilter,
    gangs: bool,
) -> Result<Vec<ActiveTask>, ApiFault> {
    let selector = selector(filter);
    let (pods, _) = cluster.list_pods(namespace, &selector).await?;
    let jobs = match cluster.list_jobs(namespace, &selector).await {
        // Who may see pods alone sees what the pods tell.
        Err(ApiFault::Denied(_)) => Vec::new(),
        jobs => jobs?,
    };
    let with_pod: HashSet<&str> =
        pods.iter().filter_map(|pod| pod["metadata"]["labels"]["job-name"].as_str()).collect();
    let mut tasks: Vec<ActiveTask> = pods.iter().filter(|pod| is_of_run(filter, pod)).filter_map(of_pod).collect();
    let waiting = jobs.iter().filter(|job| is_of_run(filter, job)).filter_map(of_job);
    tasks.extend(waiting.filter(|task| !with_pod.contains(task.job.as_str())));
    if gangs {
        // A server without JobSets has none.
        let found = cluster.list_at(&jobsets(namespace), &selector).await.unwrap_or_default();
        let with_parts: HashSet<&str> = pods.iter().chain(&jobs).filter_map(jobset::whole_of).collect();
        let empty = found.iter().filter(|jobset| is_of_run(filter, jobset)).filter_map(of_jobset);
        tasks.extend(empty.filter(|task| !with_parts.contains(task.job.as_str())));
    }
    tasks.sort_by(|a, b| (a.run.len(), &a.run, &a.job, &a.pod).cmp(&(b.run.len(), &b.run, &b.job, &b.pod)));
    Ok(tasks)
}

/// Removes tasks: their Jobs and, at once, their pods. Where deleting by label is not allowed, one
/// by one.
pub async fn kill(cluster: &Cluster, tasks: &[ActiveTask]) -> Result<(), ApiFault> {
    let mut runs: BTreeMap<(&str, &str), Vec<&ActiveTask>> = BTreeMap::new();
    for task in tasks {
        runs.entry((&task.namespace, &task.run_label)).or_default().push(task);
    }
    for ((namespace, run), tasks) in runs {
        // What somebody else labelled so is not ours to select by.
        if run.is_empty() {
            one_by_one(cluster, &tasks).await?;
            continue;
        }
        let selector = format!("{RUN_LABEL}={run}");
        remove_services(cluster, namespace, &selector).await;
        remove_jobsets(cluster, namespace, &tasks).await?;
        match cluster.delete_jobs(namespace, Target::Selector(&selector)).await {
            Ok(()) => {
                // The propagation takes the pods too, but later and with their own grace.
                let _propagated = cluster.delete_pods(namespace, Target::Selector(&selector), KILL_GRACE).await;
            }
            Err(ApiFault::Denied(_)) => one_by_one(cluster, &tasks).await?,
            Err(fault) => return Err(fault),
        }
    }
    Ok(())
}

/// Before their Jobs, which would come again.
async fn remove_jobsets(cluster: &Cluster, namespace: &str, tasks: &[&ActiveTask]) -> Result<(), ApiFault> {
    let names: BTreeSet<&String> = tasks.iter().filter_map(|task| task.jobset.as_ref()).collect();
    for name in names {
        cluster.delete_named(&jobsets(namespace), name).await?;
    }
    Ok(())
}

async fn one_by_one(cluster: &Cluster, tasks: &[&ActiveTask]) -> Result<(), ApiFault> {
    let deletes = tasks.iter().map(|task| async move {
        cluster.delete_jobs(&task.namespace, Target::Name(&task.job)).await?;
        if let Some(pod) = &task.pod {
            let _propagated = cluster.delete_pods(&task.namespace, Target::Name(pod), KILL_GRACE).await;
        }
        Ok(())
    });
    let mut results = futures_util::stream::iter(deletes).buffer_unordered(AT_ONCE);
    let mut worst = Ok(());
    while let Some(result) = results.next().await {
        worst = worst.and(result);
    }
    worst
}

/// Waits until killed tasks are gone; gives those that are not after a while.
pub async fn wait_until_gone(
    cluster: &Cluster,
    tasks: &[ActiveTask],
    filter: &TaskFilter,
) -> Result<Vec<ActiveTask>, ApiFault> {
    let gangs = tasks.iter().any(|task| task.jobset.is_some());
    let namespaces: BTreeSet<&str> = tasks.iter().map(|task| task.namespace.as_str()).collect();
    let killed: HashSet<(&str, &str)> = tasks.iter().map(|task| (task.namespace.as_str(), task.job.as_str())).collect();
    let deadline = Instant::now() + GONE_WITHIN;
    loop {
        let mut left = match list_all(cluster, &namespaces, filter, gangs).await {
            Err(fault) if fault.may_pass() && Instant::now() < deadline => {
                tokio::time::sleep(LOOK_EVERY).await;
                continue;
            }
            left => left?,
        };
        left.retain(|task| killed.contains(&(task.namespace.as_str(), task.job.as_str())));
        if left.is_empty() || Instant::now() >= deadline {
            return Ok(left);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn list_all(
    cluster: &Cluster,
    namespaces: &BTreeSet<&str>,
    filter: &TaskFilter,
    gangs: bool,
) -> Result<Vec<ActiveTask>, ApiFault> {
    let mut tasks = Vec::new();
    for namespace in namespaces {
        tasks.extend(list(cluster, namespace, filter, gangs).await?);
    }
    Ok(tasks)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn of_object(object: &Value) -> ActiveTask {
    let meta = &object["metadata"];
    ActiveTask {
        namespace: text(&meta["namespace"]),
        run: text(&meta["annotations"]["metaflow/run_id"]),
        run_label: text(&meta["labels"][RUN_LABEL]),
        pod: None,
        job: text(&meta["name"]),
        jobset: jobset::whole_of(object).map(str::to_owned),
        started_at: None,
        status: String::new(),
    }
}

fn of_pod(pod: &Value) -> Option<ActiveTask> {
    let phase = text(&pod["status"]["phase"]);
    if matches!(phase.as_str(), "Succeeded" | "Failed") {
        return None;
    }
    let deleting = pod["metadata"]["deletionTimestamp"].is_string();
    Some(ActiveTask {
        pod: Some(text(&pod["metadata"]["name"])),
        job: text(&pod["metadata"]["labels"]["job-name"]),
        started_at: pod["status"]["startTime"].as_str().map(str::to_owned),
        status: if deleting { "Terminating".to_owned() } else { phase },
        ..of_object(pod)
    })
}

fn of_job(job: &Value) -> Option<ActiveTask> {
    let over = |name: &str| job["status"][name].as_u64().unwrap_or(0) > 0;
    if over("succeeded") || over("failed") || job["status"]["completionTime"].is_string() {
        return None;
    }
    Some(ActiveTask { status: "Waiting".to_owned(), ..of_object(job) })
}

/// A gang of which nothing is there yet.
fn of_jobset(object: &Value) -> Option<ActiveTask> {
    if jobset::is_over(object) {
        return None;
    }
    let task = of_object(object);
    Some(ActiveTask { status: "Waiting".to_owned(), jobset: Some(task.job.clone()), ..task })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn filters_add_up() {
        let filter = TaskFilter {
            flow: "F".into(),
            user: Some("ann@home".into()),
            run: Some("3".into()),
            metadata: Some("here".into()),
        };
        let selector = selector(&filter);
        assert!(selector.starts_with("ferroflow/flow=F,ferroflow/user=ann-home-"), "{selector}");
        assert!(selector.contains(",ferroflow/metadata="));
        assert!(is_of_run(&filter, &json!({"metadata": {"annotations": {"metaflow/run_id": "3"}}})));
        assert!(!is_of_run(&filter, &json!({"metadata": {"annotations": {"metaflow/run_id": "4"}}})));
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

    #[test]
    fn a_jobset_without_parts_waits_and_one_that_ended_is_over() {
        let object = |conditions: Value| json!({"metadata": {"name": "js-f"}, "status": {"conditions": conditions}});
        let waits = of_jobset(&object(json!([]))).expect("it waits");
        assert_eq!((waits.status.as_str(), waits.jobset.as_deref()), ("Waiting", Some("js-f")));
        assert!(of_jobset(&object(json!([{"type": "Suspended", "status": "True"}]))).is_some());
        assert!(of_jobset(&object(json!([{"type": "Failed", "status": "False"}]))).is_some());
        assert_eq!(of_jobset(&object(json!([{"type": "Failed", "status": "True"}]))), None);
        let pod = json!({"metadata": {"name": "p", "labels": {"jobset.sigs.k8s.io/jobset-name": "js-f"}}});
        assert_eq!(of_object(&pod).jobset.as_deref(), Some("js-f"));
    }

    #[test]
    fn a_pod_that_is_being_deleted_says_so() {
        let pod = json!({"metadata": {"name": "p", "deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": {"phase": "Running"}});
        assert_eq!(of_pod(&pod).map(|task| task.status), Some("Terminating".to_owned()));
    }
}
