//! Gangs (`num_parallel`) as plain Jobs: what a rank's Job has besides, and the headless Service by
//! which every rank finds rank 0. A pure function of the launch; works on every server. One that has
//! JobSets gets those instead (`jobset`).

use ferroflow_core::id::TaskId;
use ferroflow_core::task::{GangPlace, TaskLaunch};
use serde_json::{Value, json};

use super::api::{ApiFault, Cluster};
use crate::remote::RunIdentity;

/// Label of a gang's pods, which its Service selects.
pub const GANG_LABEL: &str = "ferroflow/gang";
/// Read by the task, which waits until that name has an address.
pub const MAIN_NAME: &str = "FERROFLOW_GANG_MAIN";

/// A rank of a gang.
pub struct Rank<'a> {
    identity: &'a RunIdentity,
    launch: &'a TaskLaunch,
    place: GangPlace,
}

impl<'a> Rank<'a> {
    /// `None` for a task that is in no gang.
    pub fn of(identity: &'a RunIdentity, launch: &'a TaskLaunch) -> Option<Self> {
        Some(Self { identity, launch, place: launch.spec.gang? })
    }

    pub fn is_first(&self) -> bool {
        self.place.rank == 0
    }

    /// Name of the Service: another one for each attempt, so that no rank finds a pod of an earlier
    /// one.
    pub fn service(&self) -> String {
        self.identity.gang_name(self.place.control_task, self.launch.id.attempt)
    }

    /// Adds to the Job of the rank what makes its pod a member of the gang.
    pub fn join(&self, job: &mut Value) {
        let service = self.service();
        let template = &mut job["spec"]["template"];
        template["metadata"]["labels"][GANG_LABEL] = json!(service);
        let (annotation, control) = control_annotation(self.place.control_task);
        template["metadata"]["annotations"][annotation] = json!(control);
        template["spec"]["hostname"] = json!(host(self.place.rank));
        template["spec"]["subdomain"] = json!(service);
        let variable = json!({ "name": MAIN_NAME, "value": format!("{}.{service}", host(0)) });
        if let Some(variables) = template["spec"]["containers"][0]["env"].as_array_mut() {
            variables.push(variable);
        }
    }

    /// The Service; it goes with the Job of rank 0, whoever removes that.
    fn manifest(&self, job: &str, uid: &str) -> Value {
        let service = self.service();
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": service,
                "labels": self.identity.labels(),
                "ownerReferences": [{ "apiVersion": "batch/v1", "kind": "Job", "name": job, "uid": uid }],
            },
            "spec": {
                "clusterIP": "None",
                // Ranks look for each other while they start.
                "publishNotReadyAddresses": true,
                "selector": { GANG_LABEL: service },
            },
        })
    }

    /// Makes the Service once the Job of rank 0 is there. `again`: that Job takes the place of an
    /// earlier one, with which the Service would go.
    pub async fn make_service(
        &self,
        cluster: &Cluster,
        namespace: &str,
        job: &str,
        again: bool,
    ) -> Result<(), ApiFault> {
        let found = cluster.get(&format!("/apis/batch/v1/namespaces/{namespace}/jobs"), job).await?;
        let uid = found["metadata"]["uid"].as_str().unwrap_or_default();
        let path = services(namespace);
        if again {
            cluster.delete_named(&path, &self.service()).await?;
        }
        match cluster.create(&path, &self.manifest(job, uid), false).await {
            // It is there from an earlier try whose answer did not reach us.
            Ok(()) | Err(ApiFault::Exists(_)) => Ok(()),
            Err(fault) => Err(fault),
        }
    }
}

/// What says on a rank's objects which task rank 0 is.
pub fn control_annotation(control: TaskId) -> (&'static str, String) {
    ("metaflow/control-task-id", control.to_string())
}

/// Lets the server check that Services may be made, without keeping one.
pub async fn try_service(cluster: &Cluster, namespace: &str) -> Result<(), ApiFault> {
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "generateName": "gang-" },
        "spec": { "clusterIP": "None", "selector": { GANG_LABEL: "none" } },
    });
    cluster.create(&services(namespace), &service, true).await
}

/// Removes the Services of a run. Where that is not allowed they go with their Jobs, when the
/// cluster's garbage collector comes to it.
pub async fn remove_services(cluster: &Cluster, namespace: &str, selector: &str) {
    let path = services(namespace);
    let Ok(found) = cluster.list_at(&path, selector).await else { return };
    for name in found.iter().filter_map(|service| service["metadata"]["name"].as_str()) {
        let _collected_later = cluster.delete_named(&path, name).await;
    }
}

fn services(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/services")
}

/// Why the ranks of a gang cannot find each other, as a sentence.
pub fn no_service(namespace: &str, fault: &ApiFault) -> String {
    match fault {
        ApiFault::Denied(said) => format!(
            "Kubernetes does not let you create Services in the namespace `{namespace}`, by which the ranks of a \
             num_parallel find each other: {said}. Ask for a role with services (create) there"
        ),
        fault => format!("the Service by which the ranks of a num_parallel find each other cannot be made: {fault}"),
    }
}

fn host(rank: u64) -> String {
    format!("rank-{rank}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::launch;

    fn identity() -> RunIdentity {
        RunIdentity { flow: "F".into(), run: "1".into(), user: "tester".into(), metadata: "here".into(), created_at: 0 }
    }

    fn rank(rank: u64, attempt: u32) -> TaskLaunch {
        let mut launch = launch(7 + rank, "train");
        launch.id.attempt = attempt;
        launch.spec.gang = Some(GangPlace { rank, nodes: 3, control_task: TaskId(7) });
        launch
    }

    #[test]
    fn ranks_share_a_service_that_selects_them() {
        let (identity, first, third) = (identity(), rank(0, 0), rank(2, 0));
        let first = Rank::of(&identity, &first).expect("a rank");
        let third = Rank::of(&identity, &third).expect("a rank");
        let service = first.service();
        assert!(service.starts_with("gang-") && service == third.service());
        let mut job = json!({"spec": {"template": {
            "metadata": {"labels": {}, "annotations": {}}, "spec": {"containers": [{"env": []}]},
        }}});
        third.join(&mut job);
        let wanted = json!({"spec": {"template": {
            "metadata": {
                "labels": {"ferroflow/gang": service},
                "annotations": {"metaflow/control-task-id": "7"},
            },
            "spec": {
                "containers": [{"env": [{"name": "FERROFLOW_GANG_MAIN", "value": format!("rank-0.{service}")}]}],
                "hostname": "rank-2",
                "subdomain": service,
            },
        }}});
        assert_eq!(job, wanted);
        let made = first.manifest("job", "u");
        assert_eq!(made["spec"]["selector"], json!({"ferroflow/gang": service}));
        assert_eq!(made["metadata"]["ownerReferences"][0]["uid"], "u");
        assert!(first.is_first() && !third.is_first());
    }

    #[test]
    fn each_attempt_has_a_service_of_its_own() {
        let (identity, now, later) = (identity(), rank(0, 0), rank(0, 1));
        let name = |launch| Rank::of(&identity, launch).expect("a rank").service();
        assert_ne!(name(&now), name(&later));
        assert!(Rank::of(&identity, &launch(1, "plain")).is_none());
    }
}
