//! AWS Batch's API as this layer uses it: JSON in and out, errors sorted by what can be done about
//! them. The SDK signs, finds credentials, region and address; which calls are made when is decided
//! elsewhere, and so is the pace, which all calls of a run share.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_sdk_batch::config::interceptors::AfterDeserializationInterceptorContextRef;
use aws_sdk_batch::config::retry::RetryConfig;
use aws_sdk_batch::config::{ConfigBag, Intercept, ProvideCredentials, RuntimeComponents};
use aws_sdk_batch::error::BoxError;
use serde_json::{Value, json};

use super::http;
use super::pace::Pace;

/// Requests that nobody answers are given up after this.
const ANSWER: Duration = Duration::from_secs(20);
/// Most jobs that one DescribeJobs takes.
pub const DESCRIBED_AT_ONCE: usize = 100;

/// Why the API did not do as asked. Texts are the service's sentences.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchFault {
    /// No permission, or no credentials: no retry helps.
    #[error("{0}")]
    Denied(String),
    /// The request makes no sense to the service: no retry helps.
    #[error("{0}")]
    Invalid(String),
    /// Too many requests: later.
    #[error("{0}")]
    Busy(String),
    /// No answer, or a service in trouble: try again. What was asked may have been done.
    #[error("{0}")]
    Unavailable(String),
}

impl BatchFault {
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Busy(_) | Self::Unavailable(_))
    }
}

/// The calls in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    SubmitJob,
    DescribeJobs,
    ListJobs,
    TerminateJob,
    RegisterJobDefinition,
    DescribeJobDefinitions,
    DescribeJobQueues,
    DescribeComputeEnvironments,
}

/// AWS Batch of one account and region, as the user's AWS configuration says.
#[derive(Clone)]
pub struct Service {
    client: aws_sdk_batch::Client,
    pace: Arc<Pace>,
    /// For sentences: region or address.
    pub place: String,
}

/// What came back, whatever the SDK makes of it.
#[derive(Clone, Debug, Default)]
struct Answer {
    status: u16,
    kind: String,
    body: Vec<u8>,
}

/// Keeps the answer as it came.
#[derive(Clone, Debug, Default)]
struct Listener(Arc<Mutex<Option<Answer>>>);

impl Intercept for Listener {
    fn name(&self) -> &'static str {
        "Listener"
    }

    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let response = context.response();
        let answer = Answer {
            status: response.status().as_u16(),
            kind: response.headers().get("x-amzn-errortype").unwrap_or_default().to_owned(),
            body: response.body().bytes().unwrap_or_default().to_vec(),
        };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
        Ok(())
    }
}

/// Sends a body through an operation of the SDK; its own error matters only where no answer came.
macro_rules! send {
    ($operation:expr, $body:expr, $listener:expr) => {{
        let body: Vec<u8> = $body;
        let sent = $operation
            .customize()
            .mutate_request(move |request| {
                request.headers_mut().insert("content-length", body.len().to_string());
                *request.body_mut() = body.clone().into();
            })
            .interceptor($listener)
            .send();
        match tokio::time::timeout(ANSWER, sent).await {
            Ok(done) => done.map(drop).map_err(|error| innermost(&error)),
            Err(_) => Err(format!("no answer within {} seconds", ANSWER.as_secs())),
        }
    }};
}

impl Service {
    /// Region, credentials and address as every AWS tool finds them.
    pub async fn connect() -> Result<Self, BatchFault> {
        // The object store brings the other provider in, and rustls then wants to be told.
        let _another_was_first = rustls::crypto::ring::default_provider().install_default();
        let config = aws_config::defaults(aws_config::BehaviorVersion::latest())
            .http_client(http::client()?)
            .retry_config(RetryConfig::disabled()) // our own pace repeats, for all calls together
            .load()
            .await;
        let Some(region) = config.region().cloned() else {
            return Err(BatchFault::Invalid(
                "no AWS region is configured: set AWS_REGION, or `region` in your AWS profile".to_owned(),
            ));
        };
        let Some(credentials) = config.credentials_provider() else {
            return Err(BatchFault::Denied("no AWS credentials are configured".to_owned()));
        };
        credentials.provide_credentials().await.map_err(|error| {
            BatchFault::Denied(format!(
                "no AWS credentials were found: sign in with `aws sso login` or `aws configure`, or set AWS_PROFILE ({})",
                innermost(&error)
            ))
        })?;
        let client = aws_sdk_batch::Client::new(&config);
        Ok(Self { client, pace: Arc::default(), place: region.to_string() })
    }

    /// One call, once, in its turn. A service that is busy slows all calls down.
    pub async fn call(&self, call: Call, body: &Value) -> Result<Value, BatchFault> {
        self.turn(call).await;
        self.call_now(call, body).await
    }

    /// Waits for the turn of a call.
    pub async fn turn(&self, call: Call) {
        self.pace.turn(matches!(call, Call::SubmitJob)).await;
    }

    /// One call by somebody who has waited for its turn.
    pub async fn call_now(&self, call: Call, body: &Value) -> Result<Value, BatchFault> {
        let listener = Listener::default();
        let sent = self.send(call, body.to_string().into_bytes(), listener.clone()).await;
        let answer = listener.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let result = match (answer, sent) {
            (Some(answer), _) => judge(&answer),
            (None, Err(said)) => Err(BatchFault::Unavailable(said)),
            (None, Ok(())) => Err(BatchFault::Unavailable("the answer was lost".to_owned())),
        };
        match &result {
            Err(BatchFault::Busy(_)) => self.pace.slow_down(),
            Err(BatchFault::Unavailable(_)) => {}
            _ => self.pace.answered(),
        }
        result
    }

    async fn send(&self, call: Call, body: Vec<u8>, listener: Listener) -> Result<(), String> {
        let client = &self.client;
        match call {
            Call::SubmitJob => send!(client.submit_job(), body, listener),
            Call::DescribeJobs => send!(client.describe_jobs(), body, listener),
            Call::ListJobs => send!(client.list_jobs(), body, listener),
            Call::TerminateJob => send!(client.terminate_job(), body, listener),
            Call::RegisterJobDefinition => send!(client.register_job_definition(), body, listener),
            Call::DescribeJobDefinitions => send!(client.describe_job_definitions(), body, listener),
            Call::DescribeJobQueues => send!(client.describe_job_queues(), body, listener),
            Call::DescribeComputeEnvironments => send!(client.describe_compute_environments(), body, listener),
        }
    }

    /// Again and again while the fault may pass, for so long.
    pub async fn call_patiently(&self, call: Call, body: &Value, patience: Duration) -> Result<Value, BatchFault> {
        let begun = tokio::time::Instant::now();
        let mut pause = Duration::from_millis(200);
        loop {
            match self.call(call, body).await {
                Err(fault) if fault.may_pass() && begun.elapsed() + pause < patience => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(5));
                }
                result => return result,
            }
        }
    }

    /// All pages of a list, `name` in the answers.
    pub async fn all(
        &self,
        call: Call,
        mut body: Value,
        name: &str,
        patience: Duration,
    ) -> Result<Vec<Value>, BatchFault> {
        let mut found = Vec::new();
        loop {
            let mut page = self.call_patiently(call, &body, patience).await?;
            if let Value::Array(items) = page[name].take() {
                found.extend(items);
            }
            match page["nextToken"].as_str().filter(|token| !token.is_empty()) {
                Some(token) => body["nextToken"] = json!(token),
                None => return Ok(found),
            }
        }
    }
}

fn judge(answer: &Answer) -> Result<Value, BatchFault> {
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    if (200..300).contains(&answer.status) {
        return Ok(body);
    }
    let said = ["message", "Message"].iter().find_map(|name| body[*name].as_str()).filter(|text| !text.is_empty());
    let kind = match answer.kind.split(':').next() {
        Some("") | None => body["__type"].as_str().unwrap_or_default(),
        Some(kind) => kind,
    };
    let kind = kind.rsplit('#').next().unwrap_or_default();
    let text = said.map_or_else(|| format!("HTTP {} {kind}", answer.status).trim().to_owned(), str::to_owned);
    Err(of_status(answer.status, kind, text))
}

fn of_status(status: u16, kind: &str, text: String) -> BatchFault {
    let throttled = kind.contains("TooManyRequests") || kind.contains("Throttl") || kind == "RequestLimitExceeded";
    let denied = ["AccessDenied", "UnrecognizedClient", "InvalidSignature", "ExpiredToken", "InvalidClientTokenId"];
    match status {
        429 => BatchFault::Busy(text),
        _ if throttled => BatchFault::Busy(text),
        401 | 403 => BatchFault::Denied(text),
        _ if denied.iter().any(|word| kind.contains(word)) => BatchFault::Denied(text),
        400..500 => BatchFault::Invalid(text),
        _ => BatchFault::Unavailable(text),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(status: u16, kind: &str, body: &str) -> BatchFault {
        let answer = Answer { status, kind: kind.to_owned(), body: body.as_bytes().to_vec() };
        judge(&answer).expect_err("a fault")
    }

    #[test]
    fn answers_are_sorted_by_what_can_be_done() {
        let said = r#"{"message": "Too Many Requests"}"#;
        let busy = BatchFault::Busy("Too Many Requests".into());
        assert_eq!(fault(429, "TooManyRequestsException", said), busy);
        assert_eq!(fault(400, "TooManyRequestsException:http://aws/", said), busy);
        assert_eq!(fault(400, "ThrottlingException", said), busy);
        let denied = r#"{"message": "User: x is not authorized to perform: batch:SubmitJob"}"#;
        assert!(
            matches!(fault(403, "AccessDeniedException", denied), BatchFault::Denied(text) if text.contains("batch:SubmitJob"))
        );
        assert!(matches!(fault(400, "ExpiredTokenException", "{}"), BatchFault::Denied(_)));
        assert_eq!(
            fault(400, "ClientException", r#"{"message": "JobQueue x not found"}"#),
            BatchFault::Invalid("JobQueue x not found".into())
        );
        assert_eq!(fault(502, "", "<html>"), BatchFault::Unavailable("HTTP 502".into()));
        assert!(fault(500, "ServerException", "{}").may_pass() && fault(429, "", "{}").may_pass());
        assert!(!fault(403, "", "{}").may_pass() && !fault(404, "", "{}").may_pass());
    }
}
