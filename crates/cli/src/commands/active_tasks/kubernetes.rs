//! `kubernetes list|kill`.

use std::collections::BTreeSet;

use ferroflow_compute::kubernetes::listing::{self, ActiveTask};
use ferroflow_compute::kubernetes::{ApiFault, Cluster};
use ferroflow_compute::remote::TaskFilter;
use ferroflow_core::decorator::{apply_with, makes_gang};
use ferroflow_core::id::RunId;
use ferroflow_core::ir::Flow;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::Layer;
use crate::context::Context;
use crate::report::Failure;

const HEADLINE: &str = "Kubernetes error";
const NAMESPACE_VARIABLE: &str = "METAFLOW_KUBERNETES_NAMESPACE";

pub struct Kubernetes {
    cluster: Cluster,
    namespaces: BTreeSet<String>,
    /// The flow has steps that `num_parallel` leads to.
    gangs: bool,
}

impl Kubernetes {
    pub async fn connect(context: &Context) -> Result<Self, Failure> {
        let mut flow = context.flow.clone();
        apply_with(&mut flow, &context.top.with)?;
        let namespaces = namespaces(context, &flow);
        let cluster = Cluster::connect().await.map_err(|fault| Failure::new(HEADLINE, fault.to_string()))?;
        let mut decorators = flow.steps.iter().flat_map(|step| &step.decorators);
        let gangs = decorators.any(|decorator| makes_gang(&decorator.name));
        Ok(Self { cluster, namespaces, gangs })
    }

    fn unreachable(&self, fault: &ApiFault) -> Failure {
        Failure::new(
            HEADLINE,
            format!("the Kubernetes API server at {} cannot be reached: {fault}", self.cluster.address),
        )
    }

    fn cannot_list(&self, namespace: &str, fault: &ApiFault) -> Failure {
        match fault {
            ApiFault::Denied(said) => Failure::new(
                HEADLINE,
                format!(
                    "Kubernetes does not let you see pods in the namespace `{namespace}`: {said}. Ask for a role with \
                     pods (list) and jobs (list) there"
                ),
            ),
            fault => self.unreachable(fault),
        }
    }

    fn cannot_kill(&self, fault: &ApiFault) -> Failure {
        match fault {
            ApiFault::Denied(said) => Failure::new(
                HEADLINE,
                format!(
                    "Kubernetes does not let you delete Jobs, so tasks still run: {said}. Ask for a role with jobs \
                     (delete) and pods (delete)"
                ),
            ),
            fault => self.unreachable(fault),
        }
    }
}

/// The configured namespace, and those that the flow's steps name.
fn namespaces(context: &Context, flow: &Flow) -> BTreeSet<String> {
    let configured = context.config.lookup.value(NAMESPACE_VARIABLE).unwrap_or_else(|| "default".to_owned());
    let decorators = flow.steps.iter().flat_map(|step| &step.decorators).filter(|d| d.name == "kubernetes");
    let named = decorators.filter_map(|d| d.attributes.get("namespace")?.as_str().map(str::to_owned));
    named.chain([configured]).collect()
}

/// How a user kills a run whose tasks are in these namespaces. A namespace that came with `--with`
/// has to be given again.
pub fn kill_command(context: &Context, of_run: &BTreeSet<&str>, run: &RunId) -> String {
    let known = namespaces(context, &context.flow);
    let elsewhere = of_run.iter().filter(|namespace| !known.contains(**namespace));
    let with = elsewhere.flat_map(|namespace| ["--with".to_owned(), format!("kubernetes:namespace={namespace}")]);
    let kill = ["kubernetes", "kill", "--run-id", run.as_str()].map(str::to_owned);
    context.hello.typed(&with.chain(kill).collect::<Vec<String>>())
}

impl Layer for Kubernetes {
    type Task = ActiveTask;

    async fn list(&self, filter: &TaskFilter) -> Result<Vec<ActiveTask>, Failure> {
        let mut tasks = Vec::new();
        for namespace in &self.namespaces {
            let there = listing::namespace_exists(&self.cluster, namespace).await;
            if !there.map_err(|fault| self.unreachable(&fault))? {
                return Err(Failure::new(
                    HEADLINE,
                    format!(
                        "Kubernetes has no namespace `{namespace}`: set {NAMESPACE_VARIABLE}, or the `namespace` of \
                         @kubernetes, to one that is there"
                    ),
                ));
            }
            let found = listing::list(&self.cluster, namespace, filter, self.gangs).await;
            tasks.extend(found.map_err(|fault| self.cannot_list(namespace, &fault))?);
        }
        Ok(tasks)
    }

    async fn kill(&self, tasks: &[ActiveTask]) -> Result<(), Failure> {
        listing::kill(&self.cluster, tasks).await.map_err(|fault| self.cannot_kill(&fault))
    }

    async fn wait_until_gone(&self, tasks: &[ActiveTask], filter: &TaskFilter) -> Result<Vec<ActiveTask>, Failure> {
        listing::wait_until_gone(&self.cluster, tasks, filter).await.map_err(|fault| self.unreachable(&fault))
    }

    fn line(&self, task: &ActiveTask) -> String {
        let started = task.started_at.as_deref().map_or_else(|| "-".to_owned(), local_time);
        format!("Run: {} {} Started At: {started} Status: {}", task.run, colon(task), task.status)
    }

    fn killing(&self, task: &ActiveTask) -> String {
        match &task.pod {
            Some(pod) => format!("Killing Kubernetes pod {pod}"),
            None => format!("Killing Kubernetes job {}", task.job),
        }
    }

    fn nothing_listed(&self) -> String {
        "No active Kubernetes pods found.".to_owned()
    }

    fn nothing_killed(&self, run: Option<&RunId>) -> String {
        match run {
            Some(run) => format!("No active Kubernetes pods found for run {run}"),
            None => self.nothing_listed(),
        }
    }

    fn left(&self, tasks: &[ActiveTask]) -> Failure {
        let names: Vec<String> = tasks.iter().map(|task| format!("`{}`", name(task))).collect();
        let namespaces: BTreeSet<&str> = tasks.iter().map(|task| task.namespace.as_str()).collect();
        let namespaces: Vec<&str> = namespaces.into_iter().collect();
        Failure::new(
            HEADLINE,
            format!(
                "the cluster has not confirmed the end of {}: its node may be unreachable. They go when it answers, or \
                 with: kubectl -n {} delete pod --force NAME",
                names.join(", "),
                namespaces.join(",")
            ),
        )
    }
}

fn name(task: &ActiveTask) -> &str {
    task.pod.as_deref().unwrap_or(&task.job)
}

fn colon(task: &ActiveTask) -> String {
    let kind = if task.pod.is_some() { "Pod" } else { "Job" };
    format!("{kind}: {}", name(task))
}

/// RFC 3339 as local time; what cannot be read is shown as it is.
fn local_time(text: &str) -> String {
    match text.parse::<Timestamp>() {
        Ok(at) => at.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string(),
        Err(_) => text.to_owned(),
    }
}
