//! Where a profile's credentials come from, and asking for them: keys in the file, a process, single
//! sign-on, a role assumed with another profile's, and at last the machine's own role.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use ferroflow_core::port::ObjectError;
use object_store::CredentialProvider;
use object_store::aws::{AwsAuthorizer, AwsCredential};
use object_store::client::{HttpRequest, HttpRequestBody};
use serde_json::Value;
use tokio::sync::OnceCell;

use super::{Files, environment, home};
use crate::remote::connect::use_ring;

const INSTANCE: &str = "http://169.254.169.254";

/// Where credentials come from.
#[derive(Debug)]
pub enum Source {
    Keys(AwsCredential),
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
    /// The machine's own role.
    Instance,
}

/// What a profile says; `None` when it has no credentials. `seen` guards against circles.
pub(super) fn of_profile(files: &Files, profile: &str, seen: &mut Vec<String>) -> Result<Option<Source>, ObjectError> {
    if seen.iter().any(|name| name == profile) {
        return Err(ObjectError::Denied(format!("the AWS profile `{profile}` takes its credentials from itself")));
    }
    seen.push(profile.to_owned());
    let value = |name: &str| files.value(profile, name);
    let region = || environment("AWS_REGION").or_else(|| value("region")).unwrap_or_else(|| "us-east-1".to_owned());
    if let Some(arn) = value("role_arn")
        && let Some(inner) = inner_of_role(files, profile, seen)?
    {
        let session = value("role_session_name").unwrap_or_else(|| "ferroflow".to_owned());
        let external_id = value("external_id");
        return Ok(Some(Source::Role { arn, session, external_id, region: region(), inner: Box::new(inner) }));
    }
    if let (Some(key_id), Some(secret_key)) = (value("aws_access_key_id"), value("aws_secret_access_key")) {
        return Ok(Some(Source::Keys(AwsCredential { key_id, secret_key, token: value("aws_session_token") })));
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
            let value = |name: &str| files.value(profile, name);
            return Ok(value("aws_access_key_id").zip(value("aws_secret_access_key")).map(|(key_id, secret_key)| {
                Source::Keys(AwsCredential { key_id, secret_key, token: value("aws_session_token") })
            }));
        }
        let missing = || {
            ObjectError::Denied(format!(
                "the AWS profile `{profile}` names `{source}` as source_profile, which has no credentials"
            ))
        };
        return of_profile(files, &source, seen)?.ok_or_else(missing).map(Some);
    }
    Ok((files.value(profile, "credential_source").as_deref() == Some("Ec2InstanceMetadata"))
        .then_some(Source::Instance))
}

/// Asks once per client; a client lives for one call only, so nothing expires under it.
#[derive(Debug)]
pub struct Provider {
    source: Source,
    found: OnceCell<Arc<AwsCredential>>,
}

impl Provider {
    pub fn new(source: Source) -> Self {
        Self { source, found: OnceCell::new() }
    }
}

#[async_trait]
impl CredentialProvider for Provider {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let asked = self.found.get_or_try_init(|| async { ask(&self.source).await.map(Arc::new) }).await;
        asked
            .cloned()
            .map_err(|text| object_store::Error::Generic { store: "S3", source: Box::new(ObjectError::Denied(text)) })
    }
}

async fn ask(source: &Source) -> Result<AwsCredential, String> {
    match source {
        Source::Keys(keys) => Ok(AwsCredential {
            key_id: keys.key_id.clone(),
            secret_key: keys.secret_key.clone(),
            token: keys.token.clone(),
        }),
        Source::Process(command) => of_process(command),
        Source::SingleSignOn { start, session, region, account, role } => {
            let token = sso_token(session.as_deref().unwrap_or(start)).ok_or_else(|| {
                format!("you are not signed in to `{start}`, or no longer: run `aws sso login` and try again")
            })?;
            of_sso(&token, region, account, role).await
        }
        Source::Role { arn, session, external_id, region, inner } => {
            let own = Box::pin(ask(inner)).await?;
            assume(&own, arn, session, external_id.as_deref(), region).await
        }
        Source::Instance => of_instance().await.map_err(|reason| {
            format!(
                "no AWS credentials were found: not in the environment (AWS_ACCESS_KEY_ID), not in a profile of \
                 `{}`, and this machine has no role ({reason}); set one of them up, for example with `aws configure`",
                Files::credentials_path().display()
            )
        }),
    }
}

fn of_process(command: &str) -> Result<AwsCredential, String> {
    let output = std::process::Command::new("/bin/sh").arg("-c").arg(command).output();
    let output = output.map_err(|error| format!("credential_process `{command}` cannot be started: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("credential_process `{command}` failed ({}): {}", output.status, said.trim()));
    }
    let said: Value = serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("credential_process `{command}` did not print JSON: {error}"))?;
    keys_of(&said, ["AccessKeyId", "SecretAccessKey", "SessionToken"])
        .ok_or_else(|| format!("credential_process `{command}` printed no AccessKeyId and SecretAccessKey"))
}

fn keys_of(value: &Value, names: [&str; 3]) -> Option<AwsCredential> {
    let text = |name: &str| value[name].as_str().map(str::to_owned);
    Some(AwsCredential { key_id: text(names[0])?, secret_key: text(names[1])?, token: text(names[2]) })
}

/// The token that `aws sso login` left, unless it has expired.
fn sso_token(name: &str) -> Option<String> {
    let digest = ring_sha1(name);
    let path = home().join(format!(".aws/sso/cache/{digest}.json"));
    let cached: Value = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    let expires = cached["expiresAt"].as_str()?;
    (expires > utc_now().as_str()).then(|| cached["accessToken"].as_str().map(str::to_owned))?
}

fn ring_sha1(text: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `2026-11-21T20:15:00Z`: such texts compare like the times they name.
fn utc_now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days since 1970 to a civil date, after Howard Hinnant.
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

fn client(limit: Duration) -> Result<reqwest::Client, String> {
    use_ring();
    reqwest::Client::builder().timeout(limit).connect_timeout(limit).build().map_err(|error| error.to_string())
}

async fn body_of(response: Result<reqwest::Response, reqwest::Error>) -> Result<String, String> {
    let response = response.map_err(|error| error.without_url().to_string())?;
    let status = response.status();
    let text = response.text().await.map_err(|error| error.without_url().to_string())?;
    if status.is_success() { Ok(text) } else { Err(format!("{status}: {}", text.trim())) }
}

async fn of_sso(token: &str, region: &str, account: &str, role: &str) -> Result<AwsCredential, String> {
    let place = format!("https://portal.sso.{region}.amazonaws.com/federation/credentials");
    let place = format!("{place}?role_name={role}&account_id={account}");
    let request = client(Duration::from_secs(20))?.get(place).header("x-amz-sso_bearer_token", token);
    let text = body_of(request.send().await).await.map_err(|reason| {
        format!("single sign-on gave no credentials for the role `{role}` of account {account}: {reason}; run `aws sso login` and try again")
    })?;
    let said: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    keys_of(&said["roleCredentials"], ["accessKeyId", "secretAccessKey", "sessionToken"])
        .ok_or_else(|| format!("single sign-on gave no credentials for the role `{role}` of account {account}"))
}

async fn assume(
    own: &AwsCredential,
    arn: &str,
    session: &str,
    external_id: Option<&str>,
    region: &str,
) -> Result<AwsCredential, String> {
    let endpoint = environment("AWS_ENDPOINT_URL_STS").unwrap_or_else(|| format!("https://sts.{region}.amazonaws.com"));
    let mut query =
        format!("Action=AssumeRole&Version=2011-06-15&RoleArn={}&RoleSessionName={}", in_query(arn), in_query(session));
    if let Some(id) = external_id {
        query.push_str(&format!("&ExternalId={}", in_query(id)));
    }
    let address = format!("{}/?{query}", endpoint.trim_end_matches('/'));
    let failed = |reason: String| format!("the role `{arn}` cannot be assumed: {reason}");
    let mut request = HttpRequest::new(HttpRequestBody::empty());
    *request.uri_mut() = address.parse().map_err(|_| failed(format!("`{endpoint}` is not an address")))?;
    let authorizer = AwsAuthorizer::new(own, "sts", region);
    authorizer.try_authorize(&mut request, None).map_err(|error| failed(error.to_string()))?;
    let sent = client(Duration::from_secs(20))?.get(request.uri().to_string()).headers(request.headers().clone());
    let text = body_of(sent.send().await).await.map_err(failed)?;
    let part = |tag: &str| {
        let start = text.find(&format!("<{tag}>"))? + tag.len() + 2;
        let end = text[start..].find(&format!("</{tag}>"))? + start;
        Some(text[start..end].to_owned())
    };
    match (part("AccessKeyId"), part("SecretAccessKey"), part("SessionToken")) {
        (Some(key_id), Some(secret_key), token) => Ok(AwsCredential { key_id, secret_key, token }),
        _ => Err(failed("the answer has no credentials".to_owned())),
    }
}

fn in_query(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect()
}

async fn of_instance() -> Result<AwsCredential, String> {
    if environment("AWS_EC2_METADATA_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return Err("AWS_EC2_METADATA_DISABLED is set".to_owned());
    }
    let base = environment("AWS_EC2_METADATA_SERVICE_ENDPOINT").unwrap_or_else(|| INSTANCE.to_owned());
    let client = client(Duration::from_secs(2))?;
    let token = client.put(format!("{base}/latest/api/token")).header("X-aws-ec2-metadata-token-ttl-seconds", "300");
    let token = body_of(token.send().await).await?;
    let get = async |path: &str| {
        let place = format!("{base}/latest/meta-data/iam/security-credentials/{path}");
        body_of(client.get(place).header("X-aws-ec2-metadata-token", &token).send().await).await
    };
    let role = get("").await?;
    let said = get(role.lines().next().unwrap_or_default()).await?;
    let said: Value = serde_json::from_str(&said).map_err(|error| error.to_string())?;
    keys_of(&said, ["AccessKeyId", "SecretAccessKey", "Token"]).ok_or_else(|| "it has no credentials".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_names_read_as_aws_writes_them() {
        let now = utc_now();
        assert!(now.as_str() > "2024-01-01T00:00:00Z" && now.len() == 20 && now.ends_with('Z'), "{now}");
        assert_eq!(ring_sha1("https://x"), ring_sha1("https://x"));
        assert_eq!(ring_sha1("abc"), "a9993e364706816aba3e25717850c26c9cd0d89d");
        assert_eq!(in_query("arn:aws:iam::1:role/x y"), "arn%3Aaws%3Aiam%3A%3A1%3Arole%2Fx%20y");
    }

    #[test]
    fn a_process_gives_keys_or_says_why_not() {
        let keys = of_process("echo '{\"AccessKeyId\": \"a\", \"SecretAccessKey\": \"b\"}'").expect("keys");
        assert_eq!((keys.key_id.as_str(), keys.secret_key.as_str(), keys.token), ("a", "b", None));
        let error = of_process("echo no >&2; exit 3").expect_err("it failed");
        assert_eq!(error, "credential_process `echo no >&2; exit 3` failed (exit status: 3): no");
    }
}
