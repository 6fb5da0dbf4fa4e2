//! What a run's steps on Kubernetes come to: options and configuration made into settings, checked
//! with the cluster before anything starts. Joining layers into one is `layers`' part.

use ferroflow_compute::kubernetes::{Cluster, KubernetesSettings, admit};
use ferroflow_core::decorator::kubernetes::{CONTAINER_REGISTRY, KubernetesOptions};
use ferroflow_core::graph::Graph;
use ferroflow_core::id::RunId;

use super::ADMISSION;
use super::steps::{self, Layer};
use crate::commands::active_tasks;
use crate::context::Context;
use crate::datastore;
use crate::report::Failure;

const KUBERNETES: Layer = Layer { name: "kubernetes", headline: "Kubernetes error", registry: CONTAINER_REGISTRY };

/// The cluster and what the run says to it; `None` when no step runs there.
pub async fn plan(context: &Context, graph: &Graph) -> Result<Option<(Cluster, KubernetesSettings)>, Failure> {
    let Some(first) = KUBERNETES.first(graph) else { return Ok(None) };
    let fail = |text: String| Failure::new(KUBERNETES.headline, text);
    if datastore::kind(&context.config, &context.top) == "local" {
        return Err(fail(format!(
            "step `{first}` runs on Kubernetes, which requires --datastore=s3, azure or gs: pods cannot reach a folder of \
             this machine. {}",
            steps::how_with_s3(context, "kubernetes")
        )));
    }
    let settings = settings(context, graph)?;
    let cluster = Cluster::connect().await.map_err(|fault| fail(fault.to_string()))?;
    let autoscaled = context.config.lookup.flag("METAFLOW_KUBERNETES_AUTOSCALED", false);
    let admission = tokio::time::timeout(ADMISSION, admit(&cluster, &settings, autoscaled))
        .await
        .map_err(|_| fail(format!("the Kubernetes API server at {} does not answer", cluster.address)))?;
    KUBERNETES.admitted(graph, &admission.refusals, &admission.warnings)?;
    Ok(Some((cluster, settings)))
}

/// What an earlier run of the graph left there is asked for.
pub async fn left_behind(context: &Context, graph: &Graph) -> Result<(Cluster, KubernetesSettings), Failure> {
    let cluster = Cluster::connect().await.map_err(|fault| {
        Failure::new(
            KUBERNETES.headline,
            format!(
                "the run to resume has tasks on Kubernetes that may still run, and they cannot be asked for: {fault}"
            ),
        )
    })?;
    Ok((cluster, settings(context, graph)?))
}

/// What the steps ask for; which run it is comes later.
fn settings(context: &Context, graph: &Graph) -> Result<KubernetesSettings, Failure> {
    Ok(KubernetesSettings {
        identity: steps::identity(context),
        steps: KUBERNETES.options(context, graph, KubernetesOptions::resolve)?,
        gangs: steps::gangs(graph),
        default_image: KUBERNETES.default_image(context),
        environments: steps::environments(graph),
        kill_command: String::new(),
    })
}

/// Says which run the layer's objects are of.
pub fn identify(
    context: &Context,
    settings: &mut KubernetesSettings,
    run: &RunId,
    created_at: i64,
) -> Result<(), Failure> {
    steps::identify(context, &mut settings.identity, run, created_at)?;
    let namespaces = settings.steps.values().map(|options| options.namespace.as_str()).collect();
    settings.kill_command = active_tasks::kubernetes::kill_command(context, &namespaces, run);
    Ok(())
}
