//! Names of jobs: the same for the same attempt, so that a job whose submission was not answered can
//! be found; within what AWS Batch allows (128 characters: letters, digits, `-`, `_`).

use ferroflow_core::id::AttemptId;

use crate::remote::identity::{RunIdentity, digest};

const LONGEST: usize = 128;
/// So much of a name's beginning is there however long its end is.
const SURE: usize = 58;

/// `<user>-<flow>-<run>-<step>-<task>-<attempt>-<hash>`; `round` counts submissions of one attempt.
pub fn job_name(of: &RunIdentity, step: &str, id: AttemptId, round: u32) -> String {
    let (task, attempt) = (id.task.to_string(), id.attempt.to_string());
    let hash = digest(&[&of.run_label(), step, &task, &attempt, &round.to_string()], 10);
    let tail = format!("{}-{task}-{attempt}-{hash}", kept(step, 24));
    let head = format!("{}-{}-{}", kept(&of.user, 16), kept(&of.flow, 40), kept(of.run.as_str(), 16));
    let head: String = head.chars().take(LONGEST - tail.len() - 1).collect();
    format!("{head}-{tail}")
}

/// Name of an array job, of its first task's and its last's number.
pub fn array_name(first: &str, last: &str) -> String {
    let name = format!("{first}-to-{last}");
    if name.len() <= LONGEST { name } else { format!("{}-{}", &first[..LONGEST - 11], digest(&[first, last], 10)) }
}

/// What the names of all jobs of a run begin with; less of it where names are shortened.
pub fn prefix_of_run(of: &RunIdentity) -> String {
    let head = format!("{}-{}-{}-", kept(&of.user, 16), kept(&of.flow, 40), kept(of.run.as_str(), 16));
    head.chars().take(SURE).collect()
}

/// What is within a job's name of one flow.
pub fn mark_of_flow(flow: &str) -> String {
    format!("-{}-", kept(flow, 40))
}

/// What can be kept of a text.
pub fn kept(text: &str, longest: usize) -> String {
    let kept: String = text
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '-' })
        .take(longest)
        .collect();
    let kept = kept.trim_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned();
    if kept.is_empty() { "x".to_owned() } else { kept }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    pub use crate::remote::identity::tests::identity;
    use ferroflow_core::id::TaskId;

    pub fn id(task: u64, attempt: u32) -> AttemptId {
        AttemptId { task: TaskId(task), attempt }
    }

    #[test]
    fn names_say_what_they_are_of_and_are_the_same_again() {
        let name = job_name(&identity(), "train_model", id(7, 1), 0);
        assert!(name.starts_with("ann-TrainFlow-12-train_model-7-1-"), "{name}");
        assert!(name.contains(&mark_of_flow("TrainFlow")));
        assert_eq!(name, job_name(&identity(), "train_model", id(7, 1), 0));
        let others = [
            job_name(&identity(), "train_model", id(7, 2), 0),
            job_name(&identity(), "train_model", id(7, 1), 1),
            job_name(&RunIdentity { created_at: 6, ..identity() }, "train_model", id(7, 1), 0),
        ];
        assert!(others.iter().all(|other| *other != name), "{others:?}");
    }

    #[test]
    fn names_fit_whatever_the_flow_is_called() {
        let long = "A_Very_Long_Name_".repeat(12);
        for text in ["X", &long, "Ünïcode", "___", "ann@example.com"] {
            let run = RunIdentity { flow: text.into(), user: text.into(), ..identity() };
            let name = job_name(&run, text, id(u64::MAX, 5), 3);
            assert!(name.len() <= LONGEST && name.starts_with(&prefix_of_run(&run)), "{name}");
            assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_'), "{name}");
            assert!(name.starts_with(|c: char| c.is_ascii_alphanumeric()), "{name}");
        }
    }
}
