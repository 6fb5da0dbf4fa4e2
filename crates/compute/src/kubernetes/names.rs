//! Names and labels of a run's objects on a cluster: the same for the same attempt, so that a
//! submit can be repeated, and within what Kubernetes allows (63 characters).

use std::collections::BTreeMap;

use ferroflow_core::decorator::kubernetes::is_label_value;
use ferroflow_core::id::{AttemptId, TaskId};

use crate::remote::identity::{RunIdentity, digest, metadata_label};

/// Label of everything that belongs to one run.
pub const RUN_LABEL: &str = "ferroflow/run";
/// Label: the flow's name.
pub const FLOW_LABEL: &str = "ferroflow/flow";
/// Label: who started the run.
pub const USER_LABEL: &str = "ferroflow/user";
/// Label: the metadata store that numbers the runs.
pub const METADATA_LABEL: &str = "ferroflow/metadata";
/// Label by which Kueue admits an object.
pub const QUEUE_LABEL: &str = "kueue.x-k8s.io/queue-name";
/// Label: `task-attempt`.
pub const ATTEMPT_LABEL: &str = "ferroflow/attempt";

const LONGEST: usize = 63;
const LONGEST_JOBSET: usize = LONGEST - "-worker-9998-0-xxxxx".len();

impl RunIdentity {
    /// Selects everything of the run.
    pub fn selector(&self) -> String {
        format!("{RUN_LABEL}={}", self.run_label())
    }

    pub fn labels(&self) -> BTreeMap<String, String> {
        let label = |name: &str, value: String| (name.to_owned(), value);
        BTreeMap::from([
            label("app.kubernetes.io/name", "metaflow-task".to_owned()),
            label("app.kubernetes.io/part-of", "metaflow".to_owned()),
            label(RUN_LABEL, self.run_label()),
            label(FLOW_LABEL, label_value(&self.flow)),
            label(USER_LABEL, label_value(&self.user)),
            label(METADATA_LABEL, metadata_label(&self.metadata)),
        ])
    }

    /// Name of the Job of an attempt; `round` counts submissions of the same attempt.
    pub fn job_name(&self, step: &str, id: AttemptId, round: u32) -> String {
        let (task, attempt) = (id.task.to_string(), id.attempt.to_string());
        let hash = digest(&[&self.run_label(), step, &task, &attempt, &round.to_string()], 10);
        let tail = format!("{task}-{attempt}-{hash}");
        // The Job's pods get `-xxxxx` after it, and their names become host names.
        let room = LONGEST - 6 - tail.len() - 1;
        let head = [slug(&self.flow, 20), slug(self.run.as_str(), 10), slug(step, 20)].join("-");
        let head: String = head.chars().take(room).collect();
        format!("{}-{tail}", head.trim_matches('-'))
    }

    /// Name of the JobSet of a gang in one attempt; `id` is rank 0's. It is a Service's name, too, and
    /// begins pods' names: `<name>-worker-9998-0-xxxxx` fits.
    pub fn jobset_name(&self, step: &str, id: AttemptId) -> String {
        let (task, attempt) = (id.task.to_string(), id.attempt.to_string());
        let hash = digest(&[&self.run_label(), step, &task, &attempt], 10);
        let parts = [slug(&self.flow, 12), slug(self.run.as_str(), 6), slug(step, 12)];
        let parts: Vec<&str> = parts.iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
        let head: String = parts.join("-").chars().take(LONGEST_JOBSET - 3 - hash.len() - 1).collect();
        format!("js-{}-{hash}", head.trim_matches('-'))
    }

    /// Name of what the ranks of a gang share, in one attempt.
    pub fn gang_name(&self, control_task: TaskId, attempt: u32) -> String {
        format!("gang-{}", digest(&[&self.run_label(), &control_task.to_string(), &attempt.to_string()], 20))
    }
}

/// Value of `ATTEMPT_LABEL`.
pub fn attempt_label(id: AttemptId) -> String {
    format!("{}-{}", id.task, id.attempt)
}

/// The text where it may be a label's value, else what can be kept of it with a hash.
pub fn label_value(text: &str) -> String {
    if !text.is_empty() && is_label_value(text) {
        return text.to_owned();
    }
    let kept: String =
        text.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' }).take(50).collect();
    format!("{}-{}", kept.trim_matches(|c: char| !c.is_ascii_alphanumeric()), digest(&[text], 8))
        .trim_matches('-')
        .to_owned()
}

/// Lower-case letters, digits and dashes, beginning with a letter.
fn slug(text: &str, longest: usize) -> String {
    let mut slug = String::new();
    for c in text.chars() {
        match c.to_ascii_lowercase() {
            c if c.is_ascii_lowercase() || c.is_ascii_digit() => slug.push(c),
            _ if !slug.is_empty() && !slug.ends_with('-') => slug.push('-'),
            _ => {}
        }
    }
    let slug: String = slug.chars().take(longest).collect();
    slug.trim_matches('-').to_owned()
}

/// Name of the container of a step.
pub fn container_name(step: &str) -> String {
    let name = slug(step, 50);
    if name.is_empty() { "task".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::identity::tests::identity;
    use ferroflow_core::id::RunId;

    fn id(task: u64, attempt: u32) -> AttemptId {
        AttemptId { task: TaskId(task), attempt }
    }

    #[test]
    fn names_say_what_they_are_of_and_are_the_same_again() {
        let name = identity().job_name("train_model", id(7, 1), 0);
        assert!(name.starts_with("trainflow-12-train-model-7-1-"), "{name}");
        assert_eq!(name, identity().job_name("train_model", id(7, 1), 0));
        let others = [
            identity().job_name("train_model", id(7, 2), 0),
            identity().job_name("train_model", id(7, 1), 1),
            RunIdentity { created_at: 6, ..identity() }.job_name("train_model", id(7, 1), 0),
            RunIdentity { metadata: "elsewhere".into(), ..identity() }.job_name("train_model", id(7, 1), 0),
        ];
        assert!(others.iter().all(|other| *other != name), "{others:?}");
    }

    #[test]
    fn names_fit_whatever_the_flow_is_called() {
        for text in
            ["X", "A_Very_Long_Flow_Name_That_Goes_On_And_On_And_On_For_More_Than_Sixty_Three", "Ünïcode", "___"]
        {
            let run = RunIdentity { flow: text.into(), run: RunId::from("argo-".to_owned() + text), ..identity() };
            let name = run.job_name(text, id(u64::MAX, 5), 3);
            assert!(name.len() <= 57, "{name}");
            assert!(name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'), "{name}");
            assert!(name.starts_with(|c: char| c.is_ascii_alphanumeric()), "{name}");
            let jobset = run.jobset_name(text, id(u64::MAX, 5));
            assert!(jobset.starts_with("js-") && !jobset.contains("--"), "{jobset}");
            assert!(format!("{jobset}-worker-9998-0-abcde").len() <= 63, "{jobset}");
            assert!(jobset.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'), "{jobset}");
            for value in run.labels().values() {
                assert!(is_label_value(value) && !value.is_empty(), "{value}");
            }
            assert!(!container_name(text).is_empty());
        }
    }

    #[test]
    fn users_that_are_no_label_values_stay_apart() {
        assert_eq!(label_value("ann"), "ann");
        assert_ne!(label_value("ann@example.com"), label_value("ann#example.com"));
    }
}
