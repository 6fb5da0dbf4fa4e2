//! Where credentials come from, and having them at hand: what the environment and profiles say, and
//! asking again before they expire. How each source is asked is in `ask`.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use ferroflow_core::port::ObjectError;
use object_store::CredentialProvider;
use object_store::aws::AwsCredential;
use tokio::sync::Mutex;

use super::ask::Asking;
use super::{Files, environment};

/// Credentials are asked for again this long before they expire.
const AHEAD: Duration = Duration::from_secs(300);

/// Where credentials come from.
#[derive(Clone, Debug)]
pub enum Source {
    Keys(Keys),
    /// A command that prints them as JSON.
    Process(String),
    /// A signed-in session of `aws sso login`.
    SingleSignOn {
        start: String,
        session: Option<String>,
        region: String,
        account: String,
        role: String,
    },
    /// A role that the inner source may assume.
    Role {
        arn: String,
        session: String,
        external_id: Option<String>,
        region: String,
        inner: Box<Source>,
    },
    /// A role for whoever has the token in a file.
    WebIdentity {
        arn: String,
        session: String,
        token_file: String,
        region: String,
    },
    /// The agent beside a container.
    Container(String),
    /// The machine's own role.
    Instance,
}

#[derive(Clone)]
pub struct Keys {
    pub id: String,
    pub secret: String,
    pub token: Option<String>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keys({})", self.id)
    }
}

/// What the environment says; `None` when it has no credentials.
pub(super) fn of_environment(region: Option<&str>) -> Option<Source> {
    if let (Some(id), Some(secret)) = (environment("AWS_ACCESS_KEY_ID"), environment("AWS_SECRET_ACCESS_KEY")) {
        return Some(Source::Keys(Keys { id, secret, token: environment("AWS_SESSION_TOKEN") }));
    }
    let token_file = environment("AWS_WEB_IDENTITY_TOKEN_FILE")?;
    let arn = environment("AWS_ROLE_ARN")?;
    let session = environment("AWS_ROLE_SESSION_NAME").unwrap_or_else(default_session);
    Some(Source::WebIdentity { arn, session, token_file, region: region.unwrap_or("us-east-1").to_owned() })
}

/// The agent that a container's environment names.
pub(super) fn of_container() -> Option<Source> {
    let base = "http://169.254.170.2";
    let relative = environment("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI").map(|path| format!("{base}{path}"));
    relative.or_else(|| environment("AWS_CONTAINER_CREDENTIALS_FULL_URI")).map(Source::Container)
}

pub(super) fn default_session() -> String {
    "ferroflow".to_owned()
}

/// What a profile says; `None` when it has no credentials. `seen` guards against circles.
pub(super) fn of_profile(files: &Files, profile: &str, seen: &mut Vec<String>) -> Result<Option<Source>, ObjectError> {
    if seen.iter().any(|name| name == profile) {
        return Err(ObjectError::Denied(format!("the AWS profile `{profile}` takes its credentials from itself")));
    }
    seen.push(profile.to_owned());
    let value = |name: &str| files.value(profile, name);
    let region = || environment("AWS_REGION").or_else(|| value("region")).unwrap_or_else(|| "us-east-1".to_owned());
    if let (Some(arn), Some(token_file)) = (value("role_arn"), value("web_identity_token_file")) {
        let session = value("role_session_name").unwrap_or_else(default_session);
        return Ok(Some(Source::WebIdentity { arn, session, token_file, region: region() }));
    }
    if let Some(device) = value("role_arn").and_then(|_| value("mfa_serial")) {
        return Err(ObjectError::Denied(format!(
            "the AWS profile `{profile}` asks for a code of the device `{device}` (mfa_serial), which nobody can type \
             in here: put temporary keys into the environment, for example from `aws sts get-session-token`"
        )));
    }
    if let Some(arn) = value("role_arn")
        && let Some(inner) = inner_of_role(files, profile, seen)?
    {
        let session = value("role_session_name").unwrap_or_else(default_session);
        let external_id = value("external_id");
        return Ok(Some(Source::Role { arn, session, external_id, region: region(), inner: Box::new(inner) }));
    }
    if let Some(keys) = keys_in(files, profile) {
        return Ok(Some(Source::Keys(keys)));
    }
    if let Some(command) = value("credential_process") {
        return Ok(Some(Source::Process(command)));
    }
    let session = value("sso_session");
    let of_sso = |name: &str| {
        let section = session.as_ref().map(|session| format!("sso-session {session}"));
        section.and_then(|section| files.section_value(&section, name)).or_else(|| value(name))
    };
    match (of_sso("sso_start_url"), value("sso_account_id"), value("sso_role_name")) {
        (Some(start), Some(account), Some(role)) => {
            let region = of_sso("sso_region").unwrap_or_else(region);
            Ok(Some(Source::SingleSignOn { start, session, region, account, role }))
        }
        _ => Ok(None),
    }
}

fn inner_of_role(files: &Files, profile: &str, seen: &mut Vec<String>) -> Result<Option<Source>, ObjectError> {
    if let Some(source) = files.value(profile, "source_profile") {
        if source == profile {
            // The profile's own keys, which `of_profile` would take for a circle.
            return Ok(keys_in(files, profile).map(Source::Keys));
        }
        let missing = || {
            ObjectError::Denied(format!(
                "the AWS profile `{profile}` names `{source}` as source_profile, which has no credentials"
            ))
        };
        return of_profile(files, &source, seen)?.ok_or_else(missing).map(Some);
    }
    let Some(name) = files.value(profile, "credential_source") else { return Ok(None) };
    let source = match name.as_str() {
        "Ec2InstanceMetadata" => Some(Source::Instance),
        "Environment" => of_environment(None),
        "EcsContainer" => of_container(),
        _ => None,
    };
    let missing = || {
        ObjectError::Denied(format!(
            "the AWS profile `{profile}` names `{name}` as credential_source, where there are no credentials"
        ))
    };
    source.ok_or_else(missing).map(Some)
}

fn keys_in(files: &Files, profile: &str) -> Option<Keys> {
    let value = |name: &str| files.value(profile, name);
    Some(Keys {
        id: value("aws_access_key_id")?,
        secret: value("aws_secret_access_key")?,
        token: value("aws_session_token"),
    })
}

/// Credentials, and until when they hold.
#[derive(Debug)]
pub struct Found {
    pub keys: Keys,
    pub expires: Option<SystemTime>,
}

/// Asks when credentials are needed and before they expire: an engine keeps its client for days.
#[derive(Debug)]
pub struct Provider {
    source: Source,
    asking: Asking,
    found: Mutex<Option<(Arc<AwsCredential>, Option<SystemTime>)>>,
}

impl Provider {
    /// `certificates` is a file of those to trust in place of the system's.
    pub fn new(source: Source, certificates: Option<String>) -> Self {
        Self { source, asking: Asking { certificates }, found: Mutex::new(None) }
    }
}

#[async_trait]
impl CredentialProvider for Provider {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let mut slot = self.found.lock().await;
        let holds_for = |wanted: Duration| {
            let holds = |expires: &Option<SystemTime>| expires.is_none_or(|at| at > SystemTime::now() + wanted);
            slot.as_ref().filter(|(_, expires)| holds(expires)).map(|(keys, _)| Arc::clone(keys))
        };
        if let Some(keys) = holds_for(AHEAD) {
            return Ok(keys);
        }
        match self.asking.ask(&self.source).await {
            Ok(Found { keys: Keys { id, secret, token }, expires }) => {
                let keys = Arc::new(AwsCredential { key_id: id, secret_key: secret, token });
                *slot = Some((Arc::clone(&keys), expires));
                Ok(keys)
            }
            Err(text) => holds_for(Duration::ZERO).ok_or_else(|| object_store::Error::Generic {
                store: "S3",
                source: Box::new(ObjectError::Denied(text)),
            }),
        }
    }
}
