//! Admission (design D7): a job queue that does not exist or takes no jobs, and what no compute
//! environment of it can ever hold, are refused before anything starts. The judgement is pure; reading
//! the queues is around it.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use ferroflow_core::decorator::batch::BatchOptions;
use ferroflow_core::id::StepName;

use super::api::{BatchFault, Service};
use super::definition::Platform;
use super::instances::{Shape, shapes};
use super::queue::{EnvironmentView, QueueView, read_queues};
use super::submit::refusal;
use super::{QueuePlan, StepPlan, fargate};
use crate::remote::refusal::Refusal;

/// Of all reads together.
const PATIENCE: Duration = Duration::from_secs(4);

/// What became of asking for admission.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Admission {
    /// The run must not start if there is one.
    pub refusals: Vec<Refusal>,
    pub warnings: Vec<String>,
    /// Where the tasks of the steps go.
    pub steps: HashMap<StepName, StepPlan>,
}

/// Steps and what they ask for.
pub type Asked = HashMap<StepName, BatchOptions>;

/// Asks the service whether the steps can ever run there.
pub async fn admit(service: &Service, asked: &Asked, gangs: &HashSet<StepName>) -> Admission {
    let mut found = Admission::default();
    let mut steps: Vec<(&StepName, &BatchOptions)> = asked.iter().collect();
    steps.sort_by_key(|(name, _)| (*name).clone());
    // With a step that names none all are needed.
    let mut names: Vec<String> = steps.iter().filter_map(|(_, options)| options.queue.clone()).collect();
    names.sort();
    names.dedup();
    if steps.iter().any(|(_, options)| options.queue.is_none()) {
        names.clear();
    }
    let queues = match read_queues(service, &names, PATIENCE).await {
        Ok(queues) => queues,
        Err(fault) => return cannot_look(service, asked, &fault),
    };
    for (step, options) in steps {
        match place(options, &queues) {
            Ok(queue) => {
                let no_gangs = gangs.contains(step).then(|| takes_no_gang(queue)).flatten();
                found.refusals.extend(no_gangs.or_else(|| judge(options, queue)).map(|text| Refusal::of(step, text)));
                found.warnings.extend(warning(step, options, queue.platform()));
                let queue =
                    QueuePlan { name: queue.name.clone(), platform: queue.platform(), fair_share: queue.fair_share };
                found.steps.insert(step.clone(), StepPlan { options: options.clone(), queue });
            }
            Err(sentence) => found.refusals.push(Refusal::of(step, format!(": {sentence}"))),
        }
    }
    found
}

/// Without permission to look, steps that name their queue may still run.
fn cannot_look(service: &Service, asked: &Asked, fault: &BatchFault) -> Admission {
    let mut found = Admission::default();
    let all_named = asked.values().all(|options| options.queue.is_some());
    if !matches!(fault, BatchFault::Denied(_)) || !all_named {
        let refusal = refusal("describe job queues", "batch:DescribeJobQueues", &service.place, fault);
        found.refusals.push(Refusal::of_all(refusal.text));
        return found;
    }
    found.warnings.push(format!(
        "Whether the job queues can hold the steps is not known: {fault}. A step that none can hold will wait."
    ));
    for (step, options) in asked {
        let queue = QueuePlan { name: options.queue.clone().unwrap_or_default(), ..QueuePlan::default() };
        found.steps.insert(step.clone(), StepPlan { options: options.clone(), queue });
    }
    found
}

/// The queue of a step.
fn place<'a>(options: &BatchOptions, queues: &'a [QueueView]) -> Result<&'a QueueView, String> {
    let names = || queues.iter().take(12).map(|queue| format!("`{}`", queue.name)).collect::<Vec<_>>().join(", ");
    let Some(wanted) = &options.queue else {
        return queues.iter().find(|queue| queue.is_usable()).ok_or_else(|| {
            "there is no job queue that is enabled and valid: create one, and name it with METAFLOW_BATCH_JOB_QUEUE or \
             @batch(queue=…)"
                .to_owned()
        });
    };
    let Some(queue) = queues.iter().find(|queue| queue.is_named(wanted)) else {
        let there = if queues.is_empty() { String::new() } else { format!(" (there are {})", names()) };
        return Err(format!(
            "there is no job queue `{wanted}` in this account and region{there}: name one with METAFLOW_BATCH_JOB_QUEUE \
             or @batch(queue=…)"
        ));
    };
    if !queue.enabled {
        return Err(format!(
            "the job queue `{wanted}` is disabled and takes no jobs: enable it, or name another one with @batch(queue=…)"
        ));
    }
    Ok(queue)
}

fn warning(step: &StepName, options: &BatchOptions, platform: Platform) -> Option<String> {
    match platform {
        Platform::Ec2 if options.disk.is_some() => Some(format!(
            "Step `{step}` asks for disk space; on EC2 that is the instance's, and AWS Batch cannot promise any. Choose \
             instances with enough of it."
        )),
        Platform::Fargate if options.iam_role.is_none() => Some(format!(
            "Step `{step}` has no `iam_role` (METAFLOW_ECS_S3_ACCESS_IAM_ROLE): on Fargate its tasks then have no \
             credentials of their own for the datastore."
        )),
        _ => None,
    }
}

/// What refuses a step, to follow its name, if its queue can never run it.
fn judge(options: &BatchOptions, queue: &QueueView) -> Option<String> {
    let fargate = queue.platform() == Platform::Fargate;
    if let Some(mistake) = wrong_platform(options, fargate) {
        return Some(format!(": {mistake}; the job queue `{}` is on {}", queue.name, platform(fargate)));
    }
    if queue.environments.is_empty() || queue.environments.iter().any(|e| fits(e, options)) {
        return None;
    }
    let environments: Vec<String> = queue.environments.iter().map(largest).collect();
    let mut text = format!(
        " asks for {}, which no compute environment of the job queue `{}` can ever hold: {}",
        request(options),
        queue.name,
        environments.join("; ")
    );
    text.push_str(&nearest(options, queue));
    Some(text)
}

/// What refuses a gang, to follow the step's name: its ranks are the nodes of one job.
fn takes_no_gang(queue: &QueueView) -> Option<String> {
    if queue.environments.is_empty() || queue.environments.iter().any(EnvironmentView::takes_gangs) {
        return None;
    }
    let kinds: Vec<String> =
        queue.environments.iter().map(|e| format!("`{}` ({})", e.name, e.kind_in_words())).collect();
    Some(format!(
        " is a gang (num_parallel), which AWS Batch runs on managed EC2 instances only, neither on Fargate nor on Spot, and \
         the job queue `{}` has {}: name another one with @batch(queue=…)",
        queue.name,
        kinds.join(", ")
    ))
}

fn platform(fargate: bool) -> &'static str {
    if fargate { "Fargate" } else { "EC2" }
}

fn wrong_platform(options: &BatchOptions, fargate: bool) -> Option<&'static str> {
    let only_on_ec2: [(bool, &str); 8] = [
        (options.gpu > 0, "Fargate has no GPUs: remove `gpu`"),
        (options.neuron > 0, "Fargate has no Inferentia or Trainium chips: remove them"),
        (options.efa > 0, "Fargate has no elastic fabric adapters: remove `efa`"),
        (options.tmpfs.is_some(), "Fargate mounts no file system in memory: remove `use_tmpfs` and `tmpfs_size`"),
        (
            !options.host_volumes.is_empty(),
            "Fargate has no instance whose folders could be mounted: remove `host_volumes`",
        ),
        (options.privileged, "Fargate has no privileged containers: remove `privileged`"),
        (
            options.max_swap.is_some() || options.swappiness.is_some() || options.shared_memory.is_some(),
            "Fargate cannot set swap space or shared memory: remove `max_swap`, `swappiness` and `shared_memory`",
        ),
        (
            options.execution_role.is_none(),
            "Fargate needs a role to start containers by: set METAFLOW_ECS_FARGATE_EXECUTION_ROLE or `execution_role`",
        ),
    ];
    if !fargate {
        return options.ephemeral_storage.map(|_| "`ephemeral_storage` is Fargate's: remove it");
    }
    only_on_ec2.into_iter().find(|(wrong, _)| *wrong).map(|(_, text)| text)
}

/// What a step asks for, in words.
pub fn request(options: &BatchOptions) -> String {
    let mut parts = vec![format!("cpu {}", options.cpu), format!("memory {} MB", options.memory)];
    if options.gpu > 0 {
        parts.push(format!("gpu {}", options.gpu));
    }
    parts.join(", ")
}

/// The shapes an environment's instances can have; `None` when not all are known.
fn known_shapes(environment: &EnvironmentView) -> Option<Vec<Shape>> {
    if environment.is_fargate() || environment.instance_types.is_empty() {
        return None;
    }
    let found: Option<Vec<Vec<Shape>>> = environment.instance_types.iter().map(|entry| shapes(entry)).collect();
    found.map(|found| found.into_iter().flatten().collect())
}

/// Whether an environment may ever run it; what is not known may.
pub fn fits(environment: &EnvironmentView, options: &BatchOptions) -> bool {
    if environment.is_fargate() {
        let size = fargate::size(options.cpu, options.memory);
        return size.is_some_and(|(cpu, _)| environment.most_cpus.is_none_or(|most| cpu <= most));
    }
    let cpu = options.cpu.ceil().max(1.0);
    if environment.most_cpus.is_some_and(|most| cpu > most) {
        return false;
    }
    known_shapes(environment)
        .is_none_or(|shapes| shapes.iter().any(|s| s.cpus >= cpu && s.memory > options.memory && s.gpus >= options.gpu))
}

/// What an environment has at most, in words.
pub fn largest(environment: &EnvironmentView) -> String {
    let name = &environment.name;
    let most = environment.most_cpus.map_or_else(String::new, |most| format!(" and at most {most} vCPUs in all"));
    if environment.is_fargate() {
        return format!(
            "`{name}` is Fargate: up to 16 vCPUs with 32768 to 122880 MB, fewer vCPUs with less memory{most}"
        );
    }
    let Some(shapes) = known_shapes(environment) else {
        return format!("`{name}` has {}{most}", environment.instance_types.join(", "));
    };
    let best = |of: fn(&Shape) -> f64| shapes.iter().map(of).fold(0.0, f64::max);
    let gpus = shapes.iter().map(|shape| shape.gpus).max().unwrap_or(0);
    let gpus = if gpus > 0 { format!(", {gpus} GPUs") } else { String::new() };
    format!(
        "`{name}` ({}) has instances with up to {} vCPUs, {} MB{gpus}{most}",
        environment.instance_types.join(", "),
        best(|s| s.cpus),
        best(|s| s.memory)
    )
}

/// What to ask for instead, as the rest of a sentence.
fn nearest(options: &BatchOptions, queue: &QueueView) -> String {
    if queue.platform() == Platform::Fargate {
        return match fargate::cpu_for(options.memory) {
            Some(cpu) if options.cpu <= fargate::LARGEST.0 => {
                format!(". The nearest fit is cpu {} with that memory", cpu.max(options.cpu))
            }
            _ => format!(
                ". The nearest fit is cpu {}, memory {} MB",
                options.cpu.min(fargate::LARGEST.0),
                fargate::most_memory(options.cpu)
            ),
        };
    }
    let shares = queue.environments.iter().flat_map(|environment| {
        let limit = environment.most_cpus.unwrap_or(f64::INFINITY);
        let bounded = move |shape: Shape| Shape { cpus: shape.cpus.min(limit), ..shape };
        known_shapes(environment).into_iter().flatten().map(bounded)
    });
    let share = |shape: &Shape| {
        let gpus = if options.gpu > 0 { shape.gpus as f64 / options.gpu as f64 } else { 1.0 };
        (shape.cpus / options.cpu).min(1.0) + (shape.memory / options.memory).min(1.0) + gpus.min(1.0)
    };
    let Some(best) = shares.max_by(|a, b| share(a).total_cmp(&share(b))) else {
        return ". Ask for less, or add a larger compute environment".to_owned();
    };
    let fit = BatchOptions {
        cpu: options.cpu.min(best.cpus),
        memory: options.memory.min(best.memory),
        gpu: options.gpu.min(best.gpus),
        ..BatchOptions::default()
    };
    format!(". The nearest fit is {}: ask for at most that, or add a larger compute environment", request(&fit))
}

#[cfg(test)]
#[path = "admission_tests.rs"]
mod tests;
