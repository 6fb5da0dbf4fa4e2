//! Replies of DescribeJobs as AWS gives them, and what a user reads of them.

use serde_json::json;

use super::*;

const ASKED: Asked<'static> = Asked { image: "team/train:1", interpreter: "python3", memory: 4096.0 };

#[allow(clippy::needless_pass_by_value, reason = "literals read better")]
fn failed(more: Value) -> JobView {
    let mut job = json!({"jobId": "j-1", "jobName": "n", "status": "FAILED", "container": {}, "attempts": []});
    for (name, value) in more.as_object().expect("an object") {
        job[name] = value.clone();
    }
    JobView::of(&job)
}

/// Kind, text and exit of a failure; `None` for an exit that was not the container's.
fn told(job: Value) -> (CauseKind, String, Option<ProcessExit>) {
    match failed(job).ending(&ASKED).expect("it is over") {
        Ending::Ran { exit, cause } => {
            let cause = cause.expect("a cause");
            (cause.kind, cause.text, Some(exit))
        }
        Ending::Taken(cause) => (cause.kind, cause.text, None),
    }
}

#[test]
fn statuses_are_in_order() {
    let names = ["SUBMITTED", "PENDING", "RUNNABLE", "STARTING", "RUNNING", "SUCCEEDED", "FAILED"];
    let statuses: Vec<Status> = names.iter().map(|name| JobView::of(&json!({ "status": name })).status).collect();
    assert!(statuses.is_sorted());
    assert_eq!(statuses.iter().filter(|status| status.is_over()).count(), 2);
}

#[test]
fn success_has_no_exit_code_in_some_replies() {
    let job = JobView::of(&json!({"status": "SUCCEEDED", "statusReason": "Essential container in task exited"}));
    assert_eq!(job.ending(&ASKED), Some(Ending::Ran { exit: ProcessExit::Code(0), cause: None }));
}

#[test]
fn an_exit_code_speaks_for_itself() {
    let job = failed(json!({"statusReason": "Essential container in task exited", "container": {"exitCode": 3}}));
    assert_eq!(job.ending(&ASKED), Some(Ending::Ran { exit: ProcessExit::Code(3), cause: None }));
}

#[test]
fn out_of_memory_names_what_was_asked() {
    let reason = "OutOfMemoryError: Container killed due to memory usage";
    let container = json!({"exitCode": 137, "reason": reason});
    let said = told(json!({"statusReason": "Essential container in task exited", "container": container}));
    let text = "out of memory: it asked for 4096 MB and used more (OutOfMemoryError: Container killed due to memory \
                usage). Raise `memory` of @resources or @batch";
    assert_eq!(said, (CauseKind::OutOfMemory, text.to_owned(), Some(ProcessExit::Signal(9))));
}

#[test]
fn a_reclaimed_instance_is_no_fault_of_the_task() {
    let said = told(json!({"statusReason": "Host EC2 (instance i-0a1b2c3d4e5f67890) terminated."}));
    let text = "its instance went away: Host EC2 (instance i-0a1b2c3d4e5f67890) terminated. A Spot instance was taken \
                back, or the instance failed";
    assert_eq!(said, (CauseKind::SpotReclaimed, text.to_owned(), None));
    let said = told(json!({"statusReason": "Your Spot Task was interrupted."}));
    let text = "its Spot capacity was taken back: Your Spot Task was interrupted";
    assert_eq!(said, (CauseKind::SpotReclaimed, text.to_owned(), None));
}

#[test]
fn images_that_cannot_be_pulled_or_have_no_python() {
    let reason = "CannotPullContainerError: Error response from daemon: pull access denied for team/train, repository \
                  does not exist or may require 'docker login'";
    let said = told(json!({"statusReason": "Task failed to start", "container": {"reason": reason}}));
    assert_eq!(said, (CauseKind::Image, format!("the image `team/train:1` cannot be pulled: {reason}"), None));
    let reason = "500 Server Error for http+docker://localhost/v1.41/images/create?tag=1&fromImage=team: refused";
    let said = told(json!({ "statusReason": reason }));
    assert_eq!(said, (CauseKind::Image, format!("the image `team/train:1` cannot be pulled: {reason}"), None));
    let reason = "CannotCreateContainerError: invalid reference format: repository name must be lowercase";
    let said = told(json!({"statusReason": "Task failed to start", "container": {"reason": reason}}));
    assert_eq!(said, (CauseKind::Image, format!("`team/train:1` is not the name of an image: {reason}"), None));
    let reason = "CannotStartContainerError: Error response from daemon: failed to create task for container: exec: \
                  \"python3\": executable file not found in $PATH";
    let said = told(json!({"statusReason": "Task failed to start", "container": {"reason": reason}}));
    let text = "the image `team/train:1` has no `python3`: a task needs an image with Python 3.11 or newer, such as \
                `python:3.11`";
    assert_eq!(said, (CauseKind::Image, text.to_owned(), None));
    let reason =
        "ResourceInitializationError: unable to pull secrets or registry auth: execution resource retrieval failed";
    let said =
        told(json!({"statusReason": "ResourceInitializationError", "attempts": [{"container": {"reason": reason}}]}));
    assert_eq!(said.0, CauseKind::Image);
    assert!(said.1.starts_with(&format!("the container of the image `team/train:1` cannot be started: {reason}")));
}

#[test]
fn the_services_time_limit() {
    let said = told(json!({"statusReason": "Job attempt duration exceeded timeout", "container": {"exitCode": 137}}));
    let text = "timed out: it ran past its time limit, and AWS Batch stopped it. Raise it with @timeout";
    assert_eq!(said, (CauseKind::TimedOut, text.to_owned(), Some(ProcessExit::Signal(9))));
}

#[test]
fn ended_by_somebody() {
    let container = json!({"exitCode": 143, "reason": ""});
    let said = told(json!({"statusReason": "wrong data", "isTerminated": true, "container": container}));
    let text = "somebody ended the job: wrong data".to_owned();
    assert_eq!(said, (CauseKind::Killed, text.clone(), None));
    let said = told(json!({"statusReason": "wrong data", "isCancelled": true}));
    assert_eq!(said, (CauseKind::Killed, text, None));
    let text = format!("somebody ended the job: {KILLED_BY_HAND}");
    assert_eq!(told(json!({ "statusReason": KILLED_BY_HAND })), (CauseKind::Killed, text, None));
}

#[test]
fn killed_without_a_word() {
    let said = told(json!({"statusReason": "Container exited with code 137", "container": {"exitCode": 137}}));
    let text = "its container was killed (exit code 137) and AWS Batch does not say why: it used more memory than it had \
                asked for (raise `memory` of @resources or @batch), or somebody ended the job";
    assert_eq!(said, (CauseKind::Signal, text.to_owned(), Some(ProcessExit::Signal(9))));
}

#[test]
fn anything_else_in_the_services_words() {
    let said = told(json!({"statusReason": "DockerTimeoutError: Could not transition to started; timed out"}));
    let text = "AWS Batch could not run the job: DockerTimeoutError: Could not transition to started; timed out";
    assert_eq!(said, (CauseKind::LayerError, text.to_owned(), None));
    let said = told(json!({}));
    assert_eq!(said, (CauseKind::LayerError, "AWS Batch does not say why the job failed".to_owned(), None));
}
