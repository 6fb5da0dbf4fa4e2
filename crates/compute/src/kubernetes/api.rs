//! The cluster's API as this layer uses it: few calls, JSON in and out, errors sorted by what can
//! be done about them. Which calls are made when is decided elsewhere.

use std::time::Duration;

use ferroflow_core::port::NodeLine;
use futures_util::{Stream, StreamExt};
use kube::api::{DeleteParams, ListParams, LogParams, PostParams, Preconditions, WatchEvent, WatchParams};
use kube::core::Request;
use serde_json::Value;

/// Requests that nobody answers are given up after this; watches have their own limit.
const ANSWER: Duration = Duration::from_secs(30);
/// The server ends a watch after this, in seconds; it is then begun again.
const WATCH_LIMIT: u32 = 240;

/// Why the API did not do as asked. Texts are the server's sentences.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApiFault {
    /// No permission, or not signed in: no retry helps.
    #[error("{0}")]
    Denied(String),
    /// The object or its namespace is not there.
    #[error("{0}")]
    Missing(String),
    /// It is there already.
    #[error("{0}")]
    Exists(String),
    /// The request makes no sense to the server: no retry helps.
    #[error("{0}")]
    Invalid(String),
    /// A watch that is too old: list again.
    #[error("{0}")]
    Gone(String),
    /// Too many requests; wait that long.
    #[error("{text}")]
    Busy { text: String, after: Duration },
    /// No answer, or a server in trouble: try again.
    #[error("{0}")]
    Unavailable(String),
}

impl ApiFault {
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Busy { .. } | Self::Unavailable(_))
    }
}

impl From<kube::Error> for ApiFault {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => {
                let text = if status.message.is_empty() { status.reason.clone() } else { status.message.clone() };
                let after = status.details.as_ref().map_or(1, |details| details.retry_after_seconds.max(1));
                of_status(status.code, text, u64::from(after))
            }
            other => Self::Unavailable(innermost(&other)),
        }
    }
}

fn of_status(code: u16, text: String, after: u64) -> ApiFault {
    match code {
        401 | 403 => ApiFault::Denied(text),
        404 => ApiFault::Missing(text),
        409 => ApiFault::Exists(text),
        410 => ApiFault::Gone(text),
        429 => ApiFault::Busy { text, after: Duration::from_secs(after.min(60)) },
        400..500 => ApiFault::Invalid(text),
        _ => ApiFault::Unavailable(text),
    }
}

/// The last of a chain of causes says what happened; the others only where.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

/// One cluster, as the user's kubeconfig (or the pod this runs in) says.
#[derive(Clone)]
pub struct Cluster {
    client: kube::Client,
    /// The server's address, for sentences.
    pub address: String,
}

/// What is deleted: one object by name, or all that a selector matches.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    Name(&'a str),
    Selector(&'a str),
}

impl Cluster {
    /// `$KUBECONFIG`, else the pod's own service account, else `~/.kube/config`.
    pub async fn connect() -> Result<Self, ApiFault> {
        // The object store brings the other provider in, and rustls then wants to be told.
        let _another_was_first = rustls::crypto::ring::default_provider().install_default();
        let mut config = kube::Config::infer().await.map_err(|error| {
            let why = innermost(&error);
            if let Some(named) = std::env::var_os("KUBECONFIG").filter(|named| !named.is_empty()) {
                let named = named.to_string_lossy().into_owned();
                return ApiFault::Invalid(format!("the cluster that KUBECONFIG=`{named}` names cannot be used: {why}"));
            }
            ApiFault::Invalid(format!(
                "no Kubernetes cluster is configured: neither KUBECONFIG nor ~/.kube/config nor a service account says \
                 which ({why})"
            ))
        })?;
        config.connect_timeout = Some(Duration::from_secs(5));
        let address = config.cluster_url.to_string();
        Ok(Self { client: kube::Client::try_from(config)?, address })
    }

    async fn ask(
        &self,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<Value, ApiFault> {
        let request = request.map_err(|error| ApiFault::Invalid(error.to_string()))?;
        match tokio::time::timeout(ANSWER, self.client.request::<Value>(request)).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(ApiFault::Unavailable(format!("no answer within {} seconds", ANSWER.as_secs()))),
        }
    }

    pub async fn create_job(&self, namespace: &str, job: &Value, dry_run: bool) -> Result<(), ApiFault> {
        self.create(&jobs_path(namespace), job, dry_run).await
    }

    /// Creates an object under a path.
    pub async fn create(&self, path: &str, object: &Value, dry_run: bool) -> Result<(), ApiFault> {
        let parameters = PostParams { dry_run, field_manager: None };
        self.ask(Request::new(path).create(&parameters, object.to_string().into_bytes())).await.map(drop)
    }

    /// Deletes an object by path and name; one that is not there is fine.
    pub async fn delete_named(&self, path: &str, name: &str) -> Result<(), ApiFault> {
        self.delete(&Request::new(path), Target::Name(name), &DeleteParams::background()).await
    }

    /// Deletes all objects under a path that a selector matches.
    pub async fn delete_selected(&self, path: &str, selector: &str) -> Result<(), ApiFault> {
        self.delete(&Request::new(path), Target::Selector(selector), &DeleteParams::background()).await
    }

    /// Whether the server has a kind of objects (`jobsets`) in a group and version.
    pub async fn serves(&self, group_version: &str, kind: &str) -> Result<bool, ApiFault> {
        let request = http::Request::get(format!("/apis/{group_version}")).body(Vec::new());
        match self.ask(request.map_err(kube::core::request::Error::BuildRequest)).await {
            Ok(found) => Ok(found["resources"].as_array().into_iter().flatten().any(|of| of["name"] == kind)),
            Err(ApiFault::Missing(_)) => Ok(false),
            Err(fault) => Err(fault),
        }
    }

    /// Whether the object is there and nobody has deleted it.
    pub async fn exists(&self, path: &str, name: &str) -> Result<bool, ApiFault> {
        match self.get(path, name).await {
            Ok(object) => Ok(!object["metadata"]["deletionTimestamp"].is_string()),
            Err(ApiFault::Missing(_)) => Ok(false),
            Err(fault) => Err(fault),
        }
    }

    /// Deletes Jobs, and by propagation their pods.
    pub async fn delete_jobs(&self, namespace: &str, target: Target<'_>) -> Result<(), ApiFault> {
        self.delete(&jobs(namespace), target, &DeleteParams::background()).await
    }

    /// Deletes pods, which get `grace` seconds after SIGTERM.
    pub async fn delete_pods(&self, namespace: &str, target: Target<'_>, grace: u32) -> Result<(), ApiFault> {
        self.delete(&pods(namespace), target, &DeleteParams::background().grace_period(grace)).await
    }

    /// Takes a pod off the server without waiting for its node, if it has not changed since that
    /// version. For pods without a live container: another one would run on, unknown to the server.
    pub async fn forget_pod(&self, namespace: &str, name: &str, version: &str) -> Result<(), ApiFault> {
        let mut how = DeleteParams::background().grace_period(0);
        how.preconditions = Some(Preconditions { resource_version: Some(version.to_owned()), uid: None });
        self.delete(&pods(namespace), Target::Name(name), &how).await
    }

    async fn delete(&self, of: &Request, target: Target<'_>, how: &DeleteParams) -> Result<(), ApiFault> {
        let done = match target {
            Target::Name(name) => self.ask(of.delete(name, how)).await,
            Target::Selector(selector) => {
                self.ask(of.delete_collection(how, &ListParams::default().labels(selector))).await
            }
        };
        match done {
            Ok(_) | Err(ApiFault::Missing(_)) => Ok(()),
            Err(fault) => Err(fault),
        }
    }

    /// Objects and the version at which a watch goes on.
    async fn list(&self, of: &Request, how: &ListParams) -> Result<(Vec<Value>, String), ApiFault> {
        let mut answer = self.ask(of.list(how)).await?;
        let version = answer["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
        match answer["items"].take() {
            Value::Array(items) => Ok((items, version)),
            _ => Ok((Vec::new(), version)),
        }
    }

    pub async fn list_pods(&self, namespace: &str, selector: &str) -> Result<(Vec<Value>, String), ApiFault> {
        self.list(&pods(namespace), &ListParams::default().labels(selector)).await
    }

    pub async fn list_jobs(&self, namespace: &str, selector: &str) -> Result<Vec<Value>, ApiFault> {
        Ok(self.list(&jobs(namespace), &ListParams::default().labels(selector)).await?.0)
    }

    /// Without the objects: a busy server gives the names of hundreds in a moment.
    async fn names(&self, of: &Request, selector: &str) -> Result<Vec<String>, ApiFault> {
        let answer = self.ask(of.list_metadata(&ListParams::default().labels(selector))).await?;
        let items = answer["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(items.iter().filter_map(|item| Some(item["metadata"]["name"].as_str()?.to_owned())).collect())
    }

    pub async fn pod_names(&self, namespace: &str, selector: &str) -> Result<Vec<String>, ApiFault> {
        self.names(&pods(namespace), selector).await
    }

    pub async fn job_names(&self, namespace: &str, selector: &str) -> Result<Vec<String>, ApiFault> {
        self.names(&jobs(namespace), selector).await
    }

    /// Objects of any kind, by path and label selector.
    pub async fn list_at(&self, path: &str, selector: &str) -> Result<Vec<Value>, ApiFault> {
        Ok(self.list(&Request::new(path), &ListParams::default().labels(selector)).await?.0)
    }

    /// Events of one kind, by field selector.
    pub async fn list_events(&self, namespace: &str, fields: &str) -> Result<Vec<Value>, ApiFault> {
        let of = Request::new(format!("/api/v1/namespaces/{namespace}/events"));
        Ok(self.list(&of, &ListParams::default().fields(fields)).await?.0)
    }

    pub async fn list_nodes(&self) -> Result<Vec<Value>, ApiFault> {
        Ok(self.list(&Request::new("/api/v1/nodes"), &ListParams::default()).await?.0)
    }

    /// Whether anything answers at that path of the API (an installed extension).
    pub async fn has(&self, path: &str) -> bool {
        self.ask(Request::new(path).list(&ListParams::default().limit(1))).await.is_ok()
    }

    /// An object by path and name.
    pub async fn get(&self, path: &str, name: &str) -> Result<Value, ApiFault> {
        self.ask(Request::new(path).get(name, &Default::default())).await
    }

    /// Whether an object of that path and name is there.
    pub async fn has_named(&self, path: &str, name: &str) -> bool {
        self.get(path, name).await.is_ok()
    }

    /// Changes of pods from a version on.
    pub async fn watch_pods(
        &self,
        namespace: &str,
        selector: &str,
        version: &str,
    ) -> Result<impl Stream<Item = Result<WatchEvent<Value>, ApiFault>> + use<>, ApiFault> {
        let how = WatchParams::default().labels(selector).timeout(WATCH_LIMIT);
        let request = pods(namespace).watch(&how, version).map_err(|error| ApiFault::Invalid(error.to_string()))?;
        let stream = tokio::time::timeout(ANSWER, self.client.request_events::<Value>(request))
            .await
            .map_err(|_| ApiFault::Unavailable("no answer to a watch".to_owned()))??;
        Ok(stream.map(|event| event.map_err(ApiFault::from)))
    }

    /// The last lines that the kubelet has of a pod, both streams together.
    pub async fn log_tail(&self, namespace: &str, pod: &str, container: &str, lines: i64) -> Result<String, ApiFault> {
        self.log(namespace, pod, container, lines, false).await
    }

    /// The same with the times at which the node wrote them down.
    pub async fn last_lines(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        lines: i64,
    ) -> Result<Vec<NodeLine>, ApiFault> {
        let text = self.log(namespace, pod, container, lines, true).await?;
        Ok(text.lines().filter_map(node_line).collect())
    }

    async fn log(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        lines: i64,
        timestamps: bool,
    ) -> Result<String, ApiFault> {
        let container = Some(container.to_owned());
        let how = LogParams { container, tail_lines: Some(lines), timestamps, ..LogParams::default() };
        let request = pods(namespace).logs(pod, &how).map_err(|error| ApiFault::Invalid(error.to_string()))?;
        match tokio::time::timeout(Duration::from_secs(3), self.client.request_text(request)).await {
            Ok(text) => Ok(text?),
            Err(_) => Err(ApiFault::Unavailable("the kubelet does not answer".to_owned())),
        }
    }
}

/// `2026-11-22T01:33:00.123456789Z text`.
fn node_line(line: &str) -> Option<NodeLine> {
    let (time, text) = line.split_once(' ').unwrap_or((line, ""));
    let at = time.parse::<k8s_openapi::jiff::Timestamp>().ok()?.as_millisecond();
    Some(NodeLine { at, bytes: text.as_bytes().to_vec() })
}

/// The path of a namespace's Jobs.
pub fn jobs_path(namespace: &str) -> String {
    format!("/apis/batch/v1/namespaces/{namespace}/jobs")
}

fn jobs(namespace: &str) -> Request {
    Request::new(jobs_path(namespace))
}

fn pods(namespace: &str) -> Request {
    Request::new(format!("/api/v1/namespaces/{namespace}/pods"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_node_have_their_time() {
        let line = node_line("1970-01-01T00:00:01.5025Z  indented").expect("a line");
        assert_eq!((line.at, line.bytes.as_slice()), (1502, &b" indented"[..]));
        assert_eq!(node_line("no time"), None);
    }

    #[test]
    fn answers_are_sorted_by_what_can_be_done() {
        let fault = |code| of_status(code, "said".into(), 2);
        assert_eq!(fault(403), ApiFault::Denied("said".into()));
        assert_eq!(fault(409), ApiFault::Exists("said".into()));
        assert_eq!(fault(422), ApiFault::Invalid("said".into()));
        assert_eq!(fault(429), ApiFault::Busy { text: "said".into(), after: Duration::from_secs(2) });
        assert!(fault(500).may_pass() && fault(503).may_pass() && fault(429).may_pass());
        assert!(!fault(403).may_pass() && !fault(404).may_pass() && !fault(422).may_pass());
    }
}
