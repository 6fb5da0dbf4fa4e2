//! Why a job waits, as a sentence: what AWS Batch says of it, or what its queue and compute
//! environments show.

use ferroflow_core::decorator::batch::BatchOptions;

use super::admission::{fits, largest};
use super::queue::{EnvironmentView, QueueView};
use super::view::Status;

/// Words with which AWS Batch begins its own explanations.
const EXPLANATIONS: [&str; 3] = ["CAPACITY:", "MISCONFIGURATION:", "ACTION_REQUIRED"];

/// `queue` is `None` where it could not be looked at; `said` is the job's status reason.
pub fn reason(queue: Option<&QueueView>, options: &BatchOptions, status: Status, said: &str) -> Option<String> {
    let of_its_own = Some(said).filter(|said| !said.is_empty() && *said != "Job submitted");
    if let Some(queue) = queue
        && let Some(text) = of_queue(queue)
    {
        return Some(text);
    }
    if let Some(said) = of_its_own.filter(|said| EXPLANATIONS.iter().any(|word| said.starts_with(word))) {
        return Some(explained(said));
    }
    let environments = queue.and_then(|queue| of_environments(queue, options));
    environments.or_else(|| of_its_own.map(|said| format!("AWS Batch says: {said}"))).or_else(|| {
        let name = queue.map(|queue| queue.name.as_str()).unwrap_or_default();
        (!name.is_empty() && status == Status::Runnable).then(|| format!("for its turn in the job queue `{name}`"))
    })
}

/// `CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY - sentence` as a sentence with a hint.
fn explained(said: &str) -> String {
    let (word, sentence) = said.split_once(" - ").unwrap_or((said, said));
    let hint = if word.contains("INSUFFICIENT_INSTANCE_CAPACITY") {
        ". AWS has no such instances at the moment: allow more instance types, or wait"
    } else if word.contains("MAX_RESOURCE") {
        ". Raise the compute environment's maximum vCPUs, or wait for other jobs"
    } else if word.contains("JOB_RESOURCE_REQUIREMENT") {
        ". Ask for less, or add a compute environment with larger instances"
    } else {
        ""
    };
    format!("AWS Batch says: {}{hint}", sentence.trim().trim_end_matches('.'))
}

fn of_queue(queue: &QueueView) -> Option<String> {
    let name = &queue.name;
    if !queue.enabled {
        return Some(format!(
            "the job queue `{name}` is disabled: enable it, or name another one with @batch(queue=…)"
        ));
    }
    if !queue.is_usable() {
        let said = after_colon(&queue.reason);
        return Some(format!("the job queue `{name}` is not valid{said}"));
    }
    None
}

fn after_colon(said: &str) -> String {
    let said = said.trim_end_matches('.');
    if said.is_empty() { String::new() } else { format!(": {said}") }
}

fn of_environments(queue: &QueueView, options: &BatchOptions) -> Option<String> {
    if queue.environments.is_empty() {
        return None;
    }
    let usable: Vec<&EnvironmentView> = queue.environments.iter().filter(|e| e.is_usable()).collect();
    if usable.is_empty() {
        let states: Vec<String> = queue.environments.iter().map(state).collect();
        return Some(format!(
            "no compute environment of the job queue `{}` takes jobs: {}",
            queue.name,
            states.join("; ")
        ));
    }
    let fitting: Vec<&EnvironmentView> = usable.iter().copied().filter(|e| fits(e, options)).collect();
    if fitting.is_empty() {
        let largest: Vec<String> = usable.iter().map(|e| largest(e)).collect();
        return Some(format!(
            "no instance type of the job queue `{}` fits: it asks for {}, and {}",
            queue.name,
            super::admission::request(options),
            largest.join("; ")
        ));
    }
    let full = |e: &&&EnvironmentView| match (e.desired_cpus, e.most_cpus) {
        (Some(desired), Some(most)) => desired + options.cpu > most,
        _ => false,
    };
    let at_maximum: Vec<String> = fitting.iter().filter(full).map(|e| at_maximum(e)).collect();
    if at_maximum.len() == fitting.len() {
        return Some(at_maximum.join("; "));
    }
    None
}

fn state(environment: &EnvironmentView) -> String {
    let name = &environment.name;
    if environment.enabled {
        format!("`{name}` is not valid{}", after_colon(&environment.reason))
    } else {
        format!("`{name}` is disabled")
    }
}

fn at_maximum(environment: &EnvironmentView) -> String {
    let most = environment.most_cpus.unwrap_or_default();
    let used = environment.desired_cpus.unwrap_or_default();
    format!("the compute environment `{}` is at its maximum: {used} of {most} vCPUs are in use", environment.name)
}

#[cfg(test)]
#[path = "waiting_tests.rs"]
mod tests;
