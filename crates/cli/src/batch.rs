//! What a run's steps on AWS Batch come to: options and configuration made into settings, checked
//! with the service before anything starts. Joining layers into one is `layers`' part.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use ferroflow_compute::batch::{Admission, Asked, BatchSettings, QueuePlan, Service, admit};
use ferroflow_compute::remote::RunIdentity;
use ferroflow_core::decorator::batch::{BatchOptions, CONTAINER_REGISTRY};
use ferroflow_core::decorator::kubernetes::in_registry;
use ferroflow_core::decorator::{DecoratorKind, find};
use ferroflow_core::graph::{Graph, StepKind};
use ferroflow_core::id::RunId;
use serde_json::Map;

use crate::config::Lookup;
use crate::context::Context;
use crate::datastore;
use crate::report::Failure;

const HEADLINE: &str = "AWS Batch error";
/// A run must not start, or be refused, later than this.
const ADMISSION: Duration = Duration::from_secs(5);

/// The service and what the run says to it; `None` when no step runs there.
pub async fn plan(context: &Context, graph: &Graph) -> Result<Option<(Service, BatchSettings)>, Failure> {
    let Some(first) = graph.steps.iter().find(|s| s.policy.layer == Some("batch")) else { return Ok(None) };
    let kind = datastore::kind(&context.config, &context.top);
    if kind != "s3" {
        return Err(Failure::new(
            HEADLINE,
            format!(
                "step `{}` runs on AWS Batch, which requires --datastore=s3, not {kind}: its containers reach S3 by \
                 their role. Give it before the command, for example: {} --datastore s3 run --with batch",
                first.name,
                context.hello.command()
            ),
        ));
    }
    refuse_gangs(graph)?;
    let asked = asked(context, graph)?;
    let admission = async {
        let service = Service::connect().await.map_err(|fault| Failure::new(HEADLINE, fault.to_string()))?;
        let admission = admit(&service, &asked).await;
        Ok::<(Service, Admission), Failure>((service, admission))
    };
    let (service, admission) = tokio::time::timeout(ADMISSION, admission).await.map_err(|_| {
        Failure::new(HEADLINE, "AWS Batch, or what gives credentials for it, does not answer".to_owned())
    })??;
    for warning in &admission.warnings {
        eprintln!("{warning}");
    }
    if !admission.refusals.is_empty() {
        return Err(Failure::new(HEADLINE, crate::again::said_once(&admission.refusals, graph)));
    }
    let settings = settings(context, graph, admission);
    Ok(Some((service, settings)))
}

/// Says which run the layer's jobs are of.
pub fn identify(context: &Context, settings: &mut BatchSettings, run: &RunId, created_at: i64) -> Result<(), Failure> {
    settings.identity.run = run.clone();
    settings.identity.metadata = datastore::scope(&context.root)?;
    settings.identity.created_at = created_at;
    settings.kill_command = format!("{} batch kill --run-id {run}", context.hello.command());
    Ok(())
}

/// Ranks of a gang would not find each other: their containers are jobs of their own here.
fn refuse_gangs(graph: &Graph) -> Result<(), Failure> {
    let splits = graph.steps.iter().filter(|step| step.kind == StepKind::Parallel);
    let mut ranks = splits.flat_map(|step| &step.children).map(|rank| &graph.steps[*rank]);
    match ranks.find(|step| step.policy.layer == Some("batch")) {
        None => Ok(()),
        Some(step) => Err(Failure::new(
            HEADLINE,
            format!(
                "step `{}` is a gang (num_parallel), which does not run on AWS Batch in this version; run it on \
                 Kubernetes or on this machine",
                step.name
            ),
        )),
    }
}

/// What the steps ask for.
fn asked(context: &Context, graph: &Graph) -> Result<Asked, Failure> {
    let configured = configured(&context.config.lookup);
    let mut steps = HashMap::new();
    for step in graph.steps.iter().filter(|s| s.policy.layer == Some("batch")) {
        let attributes = |name: &str| step.policy.decorators.iter().find(|d| d.name == name).map(|d| &d.attributes);
        let nothing = Map::new();
        let own = attributes("batch").unwrap_or(&nothing);
        let options = BatchOptions::resolve(own, attributes("resources"), &configured)
            .map_err(|mistake| Failure::new(HEADLINE, format!("@batch of step `{}`: {mistake}.", step.name)))?;
        steps.insert(step.name.clone(), options);
    }
    Ok(steps)
}

/// The configuration that decorators fall back to.
fn configured(lookup: &Lookup) -> BTreeMap<String, String> {
    let spec = find(DecoratorKind::Step, "batch");
    let names = spec.into_iter().flat_map(|spec| spec.attributes.iter().filter_map(|a| a.configured));
    names.chain([CONTAINER_REGISTRY]).filter_map(|name| Some((name.to_owned(), lookup.value(name)?))).collect()
}

fn settings(context: &Context, graph: &Graph, admission: Admission) -> BatchSettings {
    let version: Vec<&str> = context.hello.language_version.split('.').take(2).collect();
    let mut default_image = match context.hello.language.as_str() {
        "R" => format!("rocker/ml:{}", context.hello.language_version),
        _ => format!("python:{}", version.join(".")),
    };
    if let Some(registry) = context.config.lookup.value(CONTAINER_REGISTRY) {
        default_image = in_registry(&default_image, &registry);
    }
    let identity = RunIdentity {
        flow: context.flow.name.clone(),
        run: RunId::from("0"),
        user: context.config.user.clone(),
        metadata: String::new(),
        created_at: 0,
    };
    let environments = graph.steps.iter().map(|step| (step.name.clone(), step.policy.environment.clone())).collect();
    BatchSettings {
        identity,
        default_queue: admission.steps.values().next().map_or_else(QueuePlan::default, |plan| plan.queue.clone()),
        steps: admission.steps,
        default_image,
        environments,
        emit_tags: context.config.lookup.flag("METAFLOW_BATCH_EMIT_TAGS", false),
        array_jobs: context.config.lookup.flag("FERROFLOW_BATCH_ARRAY_JOBS", false),
        kill_command: String::new(),
    }
}
