//! What of a flow is on AWS Batch now, and its removal by hand: for `batch list|kill`. Works from the
//! jobs' names and parameters alone, without the run's engine.

use std::collections::HashMap;
use std::time::Duration;

use ferroflow_core::id::{AttemptId, TaskId};
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::api::{BatchFault, Call, DESCRIBED_AT_ONCE, Service};
use super::names::mark_of_flow;
use super::queue::read_queues;
use super::view::KILLED_BY_HAND;
use crate::remote::TaskFilter;
use crate::remote::metadata_label;

/// Statuses of a job that has not ended.
const UNFINISHED: [&str; 5] = ["SUBMITTED", "PENDING", "RUNNABLE", "STARTING", "RUNNING"];
const PATIENCE: Duration = Duration::from_secs(20);
/// Requests under way at once.
const AT_ONCE: usize = 16;
/// How long killed tasks may take to be gone: AWS Batch gives a container 30 seconds after SIGTERM.
const GONE_WITHIN: Duration = Duration::from_secs(45);
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// A task that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActiveTask {
    pub run: String,
    pub step: String,
    /// `None` for a job that is not of this version's making.
    pub attempt: Option<AttemptId>,
    /// Label of the metadata store that numbers its run.
    pub metadata: String,
    pub job_name: String,
    pub job_id: String,
    /// As AWS Batch writes it: `RUNNABLE` …
    pub status: String,
}

/// Unfinished tasks in all job queues that are enabled, or in those named, in order of run and name.
pub async fn list(service: &Service, queues: &[String], filter: &TaskFilter) -> Result<Vec<ActiveTask>, BatchFault> {
    let found = read_queues(service, queues, PATIENCE).await?;
    let names: Vec<String> = found.into_iter().filter(|queue| queue.enabled).map(|queue| queue.name).collect();
    let mark = mark_of_flow(&filter.flow);
    let searches = names.iter().flat_map(|queue| UNFINISHED.iter().map(move |status| (queue, *status)));
    let lists = searches.map(|(queue, status)| {
        let body = json!({ "jobQueue": queue, "jobStatus": status });
        async move { service.all(Call::ListJobs, body, "jobSummaryList", PATIENCE).await }
    });
    let mut ids: Vec<String> = Vec::new();
    let mut lists = futures_util::stream::iter(lists.collect::<Vec<_>>()).buffer_unordered(4);
    while let Some(jobs) = lists.next().await {
        let of_flow = jobs?.into_iter().filter(|job| job["jobName"].as_str().is_some_and(|name| name.contains(&mark)));
        ids.extend(of_flow.filter_map(|job| job["jobId"].as_str().map(str::to_owned)));
    }
    ids.sort();
    ids.dedup(); // one may have moved on between two lists
    let mut tasks: Vec<ActiveTask> =
        describe(service, &ids).await?.iter().filter(|job| is_meant(filter, job)).filter_map(of_job).collect();
    tasks.sort_by(|a, b| (a.run.len(), &a.run, &a.job_name).cmp(&(b.run.len(), &b.run, &b.job_name)));
    Ok(tasks)
}

async fn describe(service: &Service, ids: &[String]) -> Result<Vec<Value>, BatchFault> {
    let mut found = Vec::new();
    for some in ids.chunks(DESCRIBED_AT_ONCE) {
        let mut answer = service.call_patiently(Call::DescribeJobs, &json!({ "jobs": some }), PATIENCE).await?;
        if let Value::Array(jobs) = answer["jobs"].take() {
            found.extend(jobs);
        }
    }
    Ok(found)
}

fn parameter<'a>(job: &'a Value, name: &str) -> &'a str {
    job["parameters"][format!("metaflow.{name}")].as_str().unwrap_or_default()
}

fn is_meant(filter: &TaskFilter, job: &Value) -> bool {
    parameter(job, "flow_name") == filter.flow
        && filter.user.as_ref().is_none_or(|user| parameter(job, "user") == user)
        && filter.run.as_ref().is_none_or(|run| parameter(job, "run_id") == run.as_str())
        && filter.metadata.as_ref().is_none_or(|store| parameter(job, "metadata") == metadata_label(store))
}

fn of_job(job: &Value) -> Option<ActiveTask> {
    let text = |name: &str| job[name].as_str().unwrap_or_default().to_owned();
    let status = text("status");
    UNFINISHED.contains(&status.as_str()).then(|| ActiveTask {
        run: parameter(job, "run_id").to_owned(),
        step: parameter(job, "step_name").to_owned(),
        attempt: attempt_of(job),
        metadata: parameter(job, "metadata").to_owned(),
        job_name: text("jobName"),
        job_id: text("jobId"),
        status,
    })
}

fn attempt_of(job: &Value) -> Option<AttemptId> {
    let task = TaskId(parameter(job, "task_id").parse().ok()?);
    Some(AttemptId { task, attempt: parameter(job, "retry_count").parse().ok()? })
}

/// Ends tasks. Those that wait are gone at once; those that run get SIGTERM, and SIGKILL 30 seconds
/// later.
pub async fn kill(service: &Service, tasks: &[ActiveTask]) -> Result<(), BatchFault> {
    let calls = tasks.iter().map(|task| {
        let body = json!({ "jobId": task.job_id, "reason": KILLED_BY_HAND });
        async move { service.call_patiently(Call::TerminateJob, &body, PATIENCE).await }
    });
    let mut results = futures_util::stream::iter(calls.collect::<Vec<_>>()).buffer_unordered(AT_ONCE);
    let mut worst = Ok(());
    while let Some(result) = results.next().await {
        worst = worst.and(result.map(drop));
    }
    worst
}

/// Waits for the end of killed tasks; gives those that have not ended in time, as they are.
pub async fn wait_until_gone(service: &Service, tasks: &[ActiveTask]) -> Result<Vec<ActiveTask>, BatchFault> {
    let begun = Instant::now();
    let ids: Vec<String> = tasks.iter().map(|task| task.job_id.clone()).collect();
    loop {
        let now: HashMap<String, ActiveTask> =
            describe(service, &ids).await?.iter().filter_map(of_job).map(|task| (task.job_id.clone(), task)).collect();
        let left: Vec<ActiveTask> = ids.iter().filter_map(|id| now.get(id).cloned()).collect();
        if left.is_empty() || begun.elapsed() >= GONE_WITHIN {
            return Ok(left);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferroflow_core::id::RunId;

    #[test]
    fn filters_narrow_down_together() {
        let job = json!({
            "jobId": "j-1", "jobName": "ann-F-3-train-2-0-0123456789", "status": "RUNNABLE",
            "parameters": {
                "metaflow.flow_name": "F", "metaflow.user": "ann", "metaflow.run_id": "3",
                "metaflow.metadata": metadata_label("here"), "metaflow.step_name": "train",
                "metaflow.task_id": "2", "metaflow.retry_count": "0",
            },
        });
        let all = TaskFilter { flow: "F".into(), user: None, run: None, metadata: None };
        let exact = TaskFilter {
            user: Some("ann".into()),
            run: Some(RunId::from("3")),
            metadata: Some("here".into()),
            ..all.clone()
        };
        assert!(is_meant(&all, &job) && is_meant(&exact, &job));
        let others = [
            TaskFilter { flow: "G".into(), ..all },
            TaskFilter { user: Some("bob".into()), ..exact.clone() },
            TaskFilter { run: Some(RunId::from("30")), ..exact.clone() },
            TaskFilter { metadata: Some("elsewhere".into()), ..exact },
        ];
        assert!(others.iter().all(|filter| !is_meant(filter, &job)));
        let task = of_job(&job).expect("it has not ended");
        assert_eq!((task.run.as_str(), task.job_id.as_str(), task.status.as_str()), ("3", "j-1", "RUNNABLE"));
        let attempt = AttemptId { task: TaskId(2), attempt: 0 };
        assert_eq!((task.step.as_str(), task.attempt), ("train", Some(attempt)));
        let over = json!({"jobId": "j-1", "status": "SUCCEEDED"});
        assert_eq!(of_job(&over), None);
    }
}
