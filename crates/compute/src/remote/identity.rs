//! What tells one run from all others wherever its tasks run, and the short digests that names and
//! labels are made of. How a layer writes them into names is the layer's.

use std::collections::BTreeMap;

use ferroflow_core::id::{AttemptId, PARAMETERS_STEP, RunId, StepName, TaskId};
use ferroflow_core::task::{InputRef, StoreLocation, TaskLaunch, TaskSpec};

/// What tells one run from all others that may be on a cluster or in a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunIdentity {
    pub flow: String,
    pub run: RunId,
    pub user: String,
    /// The metadata store that numbers the runs: ids of local runs are small and come again.
    pub metadata: String,
    /// When the run was registered: a store that was deleted counts from 1 again.
    pub created_at: i64,
}

impl RunIdentity {
    /// The same for every task of the run, and for no other run.
    pub fn run_label(&self) -> String {
        let created = self.created_at.to_string();
        digest(&[&self.metadata, &self.flow, self.run.as_str(), &created], 20)
    }

    /// A launch that stands for a step's tasks where only what is asked for matters.
    pub(crate) fn probe_launch(&self, step: &StepName) -> TaskLaunch {
        let nothing = InputRef { run: self.run.clone(), step: StepName::from(PARAMETERS_STEP), tasks: Vec::new() };
        let spec = TaskSpec {
            flow: self.flow.clone(),
            run: self.run.clone(),
            step: step.clone(),
            task: TaskId(0),
            attempt: 0,
            max_user_code_retries: 0,
            fallback: false,
            previous_failure: None,
            join: false,
            inputs: Vec::new(),
            parameters: nothing,
            foreach_stack: Vec::new(),
            origin_run: None,
            store: StoreLocation { kind: String::new(), root: String::new(), options: BTreeMap::new() },
            decorators: Vec::new(),
            user: self.user.clone(),
            identity: String::new(),
            namespace: None,
            tags: Vec::new(),
            expected_inputs: None,
            max_num_splits: 0,
            gang: None,
        };
        TaskLaunch { id: AttemptId { task: TaskId(0), attempt: 0 }, spec, has_imports: false, time_limit: None }
    }
}

/// Stands for a metadata store where its address is too long, or nobody's business.
pub fn metadata_label(metadata: &str) -> String {
    digest(&[metadata], 20)
}

/// The first `length` (at most 64) hexadecimal digits of a hash of the parts.
pub(crate) fn digest(parts: &[&str], length: usize) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().to_hex()[..length].to_owned()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub fn identity() -> RunIdentity {
        RunIdentity {
            flow: "TrainFlow".into(),
            run: RunId::from("12"),
            user: "ann".into(),
            metadata: "local@machine:/home/ann/.metaflow".into(),
            created_at: 5,
        }
    }

    #[test]
    fn runs_that_differ_in_anything_have_labels_of_their_own() {
        let others = [
            RunIdentity { flow: "Train".into(), ..identity() },
            RunIdentity { run: RunId::from("1"), ..identity() },
            RunIdentity { metadata: "elsewhere".into(), ..identity() },
            RunIdentity { created_at: 6, ..identity() },
        ];
        assert!(others.iter().all(|other| other.run_label() != identity().run_label()));
        assert_eq!(identity().run_label(), identity().run_label());
    }
}
