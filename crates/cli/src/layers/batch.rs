//! What a run's steps on AWS Batch come to: options and configuration made into settings, checked
//! with the service before anything starts. Joining layers into one is `layers`' part.

use ferroflow_compute::batch::{Admission, BatchSettings, QueuePlan, Service, admit};
use ferroflow_core::decorator::batch::{BatchOptions, CONTAINER_REGISTRY};
use ferroflow_core::graph::Graph;
use ferroflow_core::id::RunId;

use super::ADMISSION;
use super::steps::{self, Layer};
use crate::context::Context;
use crate::datastore;
use crate::report::Failure;

const BATCH: Layer = Layer { name: "batch", headline: "AWS Batch error", registry: CONTAINER_REGISTRY };

/// The service and what the run says to it; `None` when no step runs there.
pub async fn plan(context: &Context, graph: &Graph) -> Result<Option<(Service, BatchSettings)>, Failure> {
    let Some(first) = BATCH.first(graph) else { return Ok(None) };
    let fail = |text: String| Failure::new(BATCH.headline, text);
    let kind = datastore::kind(&context.config, &context.top);
    if kind != "s3" {
        return Err(fail(format!(
            "step `{first}` runs on AWS Batch, which requires --datastore=s3, not {kind}: its containers reach S3 by their \
             role. {}",
            steps::how_with_s3(context, "batch")
        )));
    }
    let asked = BATCH.options(context, graph, BatchOptions::resolve)?;
    let admission = async {
        let service = Service::connect().await.map_err(|fault| fail(fault.to_string()))?;
        let admission = admit(&service, &asked, &steps::gangs(graph)).await;
        Ok::<(Service, Admission), Failure>((service, admission))
    };
    let (service, admission) = tokio::time::timeout(ADMISSION, admission)
        .await
        .map_err(|_| fail("AWS Batch, or what gives credentials for it, does not answer".to_owned()))??;
    BATCH.admitted(graph, &admission.refusals, &admission.warnings)?;
    Ok(Some((service, settings(context, graph, admission))))
}

fn settings(context: &Context, graph: &Graph, admission: Admission) -> BatchSettings {
    let lookup = &context.config.lookup;
    BatchSettings {
        identity: steps::identity(context),
        default_queue: admission.steps.values().next().map_or_else(QueuePlan::default, |plan| plan.queue.clone()),
        steps: admission.steps,
        default_image: BATCH.default_image(context),
        environments: steps::environments(graph),
        emit_tags: lookup.flag("METAFLOW_BATCH_EMIT_TAGS", false),
        array_jobs: lookup.flag("FERROFLOW_BATCH_ARRAY_JOBS", false),
        kill_command: String::new(),
    }
}

/// Says which run the layer's jobs are of.
pub fn identify(context: &Context, settings: &mut BatchSettings, run: &RunId, created_at: i64) -> Result<(), Failure> {
    steps::identify(context, &mut settings.identity, run, created_at)?;
    let words = ["batch", "kill", "--run-id", run.as_str()].map(str::to_owned);
    settings.kill_command = context.hello.typed(&words);
    Ok(())
}
