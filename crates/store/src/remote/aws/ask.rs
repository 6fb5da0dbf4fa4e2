//! Asking each source for credentials: a process, single sign-on, a role, a web identity, the agent
//! beside a container, the machine. Answers and refusals become one sentence.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use object_store::aws::{AwsAuthorizer, AwsCredential};
use object_store::client::{HttpRequest, HttpRequestBody};
use serde_json::{Value, json};

use super::provider::{Found, Keys, Source};
use super::{Files, environment, home, time};
use crate::remote::connect::use_ring;

const INSTANCE: &str = "http://169.254.169.254";
const PATIENCE: Duration = Duration::from_secs(20);

/// How the services that give credentials are reached.
#[derive(Debug)]
pub struct Asking {
    /// A file of certificates to trust in place of the system's.
    pub certificates: Option<String>,
}

impl Asking {
    pub async fn ask(&self, source: &Source) -> Result<Found, String> {
        match source {
            Source::Keys(keys) => Ok(Found { keys: keys.clone(), expires: None }),
            Source::Process(command) => of_process(command),
            Source::SingleSignOn { start, session, region, account, role } => {
                let token = self.sso_token(start, session.as_deref(), region).await?;
                self.of_sso(&token, region, account, role).await
            }
            Source::Role { arn, session, external_id, region, inner } => {
                let own = Box::pin(self.ask(inner)).await?;
                self.assume(own.keys, arn, session, external_id.as_deref(), region).await
            }
            Source::WebIdentity { arn, session, token_file, region } => {
                self.of_web_identity(arn, session, token_file, region).await
            }
            Source::Container(place) => self
                .of_container(place)
                .await
                .map_err(|reason| format!("the container's agent at `{place}` gave no credentials: {reason}")),
            Source::Instance => self.of_instance().await.map_err(|reason| {
                format!(
                    "no AWS credentials were found: not in the environment (AWS_ACCESS_KEY_ID), not in a profile of \
                     `{}`, and this machine has no role ({reason}); {}",
                    Files::credentials_path().display(),
                    what_to_do()
                )
            }),
        }
    }

    fn client(&self, limit: Duration) -> Result<reqwest::Client, String> {
        use_ring();
        let mut builder = reqwest::Client::builder().timeout(limit).connect_timeout(limit);
        if let Some(file) = &self.certificates {
            let bad = |reason: String| format!("the certificates in `{file}` cannot be used: {reason}");
            let text = std::fs::read(file).map_err(|error| bad(error.to_string()))?;
            let bundle = reqwest::Certificate::from_pem_bundle(&text).map_err(|error| bad(error.to_string()))?;
            builder = builder.tls_certs_only(bundle);
        }
        builder.build().map_err(|error| error.to_string())
    }

    // --- single sign-on -------------------------------------------------------------------------

    /// The token that `aws sso login` left, made new where that is possible.
    async fn sso_token(&self, start: &str, session: Option<&str>, region: &str) -> Result<String, String> {
        let signed_out =
            || format!("you are not signed in to `{start}`, or no longer: run `aws sso login` and try again");
        let path = home().join(format!(".aws/sso/cache/{}.json", sha1(session.unwrap_or(start))));
        let cached = std::fs::read(&path).map_err(|_| signed_out())?;
        let cached: Value = serde_json::from_slice(&cached).map_err(|_| signed_out())?;
        let ends = |name: &str| cached[name].as_str().and_then(time::parse).unwrap_or(UNIX_EPOCH);
        let token = cached["accessToken"].as_str().map(str::to_owned);
        if ends("expiresAt") > SystemTime::now() + Duration::from_secs(60) {
            return token.ok_or_else(signed_out);
        }
        match self.renewed(&cached, region).await {
            Some(renewed) => {
                let token = renewed["accessToken"].as_str().map(str::to_owned);
                keep_private(&path, &renewed.to_string());
                token.ok_or_else(signed_out)
            }
            None if ends("expiresAt") > SystemTime::now() => token.ok_or_else(signed_out),
            None => Err(signed_out()),
        }
    }

    /// What the cache has to hold once its token was renewed; `None` where that cannot be done.
    async fn renewed(&self, cached: &Value, region: &str) -> Option<Value> {
        let text = |name: &str| cached[name].as_str();
        let region = text("region").unwrap_or(region);
        let place =
            environment("AWS_ENDPOINT_URL_SSO_OIDC").unwrap_or_else(|| format!("https://oidc.{region}.amazonaws.com"));
        let asked = json!({
            "clientId": text("clientId")?, "clientSecret": text("clientSecret")?,
            "grantType": "refresh_token", "refreshToken": text("refreshToken")?,
        });
        let request = self.client(PATIENCE).ok()?.post(format!("{}/token", place.trim_end_matches('/')));
        let request = request.header("content-type", "application/json").body(asked.to_string());
        let said: Value = serde_json::from_str(&body_of(request.send().await).await.ok()?).ok()?;
        let mut renewed = cached.clone();
        renewed["accessToken"] = json!(said["accessToken"].as_str()?);
        let valid = Duration::from_secs(said["expiresIn"].as_u64()?);
        renewed["expiresAt"] = json!(time::write(SystemTime::now() + valid));
        if let Some(next) = said["refreshToken"].as_str() {
            renewed["refreshToken"] = json!(next);
        }
        Some(renewed)
    }

    async fn of_sso(&self, token: &str, region: &str, account: &str, role: &str) -> Result<Found, String> {
        let place =
            environment("AWS_ENDPOINT_URL_SSO").unwrap_or_else(|| format!("https://portal.sso.{region}.amazonaws.com"));
        let place = format!(
            "{}/federation/credentials?role_name={}&account_id={}",
            place.trim_end_matches('/'),
            in_query(role),
            in_query(account)
        );
        let request = self.client(PATIENCE)?.get(place).header("x-amz-sso_bearer_token", token);
        let failed = |reason: &str| {
            format!("single sign-on gave no credentials for the role `{role}` of account {account}{reason}")
        };
        let text = body_of(request.send().await)
            .await
            .map_err(|reason| failed(&format!(": {reason}; run `aws sso login` and try again")))?;
        let said: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        let said = &said["roleCredentials"];
        let expires = said["expiration"].as_u64().map(|at| UNIX_EPOCH + Duration::from_millis(at));
        let keys = keys_of(said, ["accessKeyId", "secretAccessKey", "sessionToken"]);
        keys.map(|keys| Found { keys, expires }).ok_or_else(|| failed(""))
    }

    // --- roles ----------------------------------------------------------------------------------

    async fn assume(
        &self,
        own: Keys,
        arn: &str,
        session: &str,
        external_id: Option<&str>,
        region: &str,
    ) -> Result<Found, String> {
        let mut query = format!(
            "Action=AssumeRole&Version=2011-06-15&RoleArn={}&RoleSessionName={}",
            in_query(arn),
            in_query(session)
        );
        if let Some(id) = external_id {
            query.push_str(&format!("&ExternalId={}", in_query(id)));
        }
        let endpoint = sts(region);
        let failed = |reason: String| format!("the role `{arn}` cannot be assumed: {reason}");
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.uri_mut() =
            format!("{endpoint}/?{query}").parse().map_err(|_| failed(format!("`{endpoint}` is not an address")))?;
        let own = AwsCredential { key_id: own.id, secret_key: own.secret, token: own.token };
        let authorizer = AwsAuthorizer::new(&own, "sts", region);
        authorizer.try_authorize(&mut request, None).map_err(|error| failed(error.to_string()))?;
        let sent = self.client(PATIENCE)?.get(request.uri().to_string()).headers(request.headers().clone());
        of_sts(&body_of(sent.send().await).await.map_err(failed)?)
            .ok_or_else(|| failed("the answer has no credentials".to_owned()))
    }

    async fn of_web_identity(&self, arn: &str, session: &str, file: &str, region: &str) -> Result<Found, String> {
        let failed =
            |reason: String| format!("the role `{arn}` cannot be assumed with the token in `{file}`: {reason}");
        let token = std::fs::read_to_string(file).map_err(|error| failed(error.to_string()))?;
        let form = format!(
            "Action=AssumeRoleWithWebIdentity&Version=2011-06-15&RoleArn={}&RoleSessionName={}&WebIdentityToken={}",
            in_query(arn),
            in_query(session),
            in_query(token.trim())
        );
        let request = self.client(PATIENCE)?.post(format!("{}/", sts(region)));
        let request = request.header("content-type", "application/x-www-form-urlencoded").body(form);
        let text = body_of(request.send().await).await.map_err(failed)?;
        of_sts(&text).ok_or_else(|| failed("the answer has no credentials".to_owned()))
    }

    // --- containers and machines ----------------------------------------------------------------

    async fn of_container(&self, place: &str) -> Result<Found, String> {
        let mut request = self.client(Duration::from_secs(5))?.get(place);
        let token = match environment("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE") {
            Some(file) => Some(std::fs::read_to_string(&file).map_err(|error| format!("`{file}`: {error}"))?),
            None => environment("AWS_CONTAINER_AUTHORIZATION_TOKEN"),
        };
        if let Some(token) = token {
            request = request.header("Authorization", token.trim());
        }
        of_agent(&body_of(request.send().await).await?)
    }

    async fn of_instance(&self) -> Result<Found, String> {
        if environment("AWS_EC2_METADATA_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Err("AWS_EC2_METADATA_DISABLED is set".to_owned());
        }
        let base = environment("AWS_EC2_METADATA_SERVICE_ENDPOINT").unwrap_or_else(|| INSTANCE.to_owned());
        let base = base.trim_end_matches('/');
        let client = self.client(Duration::from_secs(2))?;
        let asked =
            client.put(format!("{base}/latest/api/token")).header("X-aws-ec2-metadata-token-ttl-seconds", "300");
        let token = asked.send().await.map_err(|error| error.without_url().to_string())?;
        // A machine that knows only the first version of this protocol wants no token.
        let token = if token.status().is_success() { token.text().await.unwrap_or_default() } else { String::new() };
        let get = async |path: &str| {
            let mut request = client.get(format!("{base}/latest/meta-data/iam/security-credentials/{path}"));
            if !token.is_empty() {
                request = request.header("X-aws-ec2-metadata-token", &token);
            }
            body_of(request.send().await).await
        };
        let role = get("").await?;
        of_agent(&get(role.lines().next().unwrap_or_default()).await?)
    }
}

/// Where a user sets credentials up, for the end of a sentence.
fn what_to_do() -> &'static str {
    match environment("METAFLOW_RUNTIME_ENVIRONMENT").as_deref() {
        Some("kubernetes") => {
            "give the pod some, by its service account (METAFLOW_KUBERNETES_SERVICE_ACCOUNT) or a Secret \
             (METAFLOW_KUBERNETES_SECRETS)"
        }
        Some("batch") => "give the job a role (METAFLOW_ECS_S3_ACCESS_IAM_ROLE)",
        _ => "set one of them up, for example with `aws configure`",
    }
}

fn sts(region: &str) -> String {
    let place = environment("AWS_ENDPOINT_URL_STS").or_else(|| environment("AWS_ENDPOINT_URL"));
    let place = place.unwrap_or_else(|| format!("https://sts.{region}.amazonaws.com"));
    place.trim_end_matches('/').to_owned()
}

fn of_sts(text: &str) -> Option<Found> {
    let part = |tag: &str| {
        let start = text.find(&format!("<{tag}>"))? + tag.len() + 2;
        let end = text[start..].find(&format!("</{tag}>"))? + start;
        Some(text[start..end].trim().to_owned())
    };
    let keys = Keys { id: part("AccessKeyId")?, secret: part("SecretAccessKey")?, token: part("SessionToken") };
    Some(Found { keys, expires: part("Expiration").and_then(|at| time::parse(&at)) })
}

/// The answer of a container's agent or of the machine.
fn of_agent(text: &str) -> Result<Found, String> {
    let said: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let expires = said["Expiration"].as_str().and_then(time::parse);
    let keys = keys_of(&said, ["AccessKeyId", "SecretAccessKey", "Token"]);
    keys.map(|keys| Found { keys, expires }).ok_or_else(|| "it has no credentials".to_owned())
}

fn of_process(command: &str) -> Result<Found, String> {
    let output = std::process::Command::new("/bin/sh").arg("-c").arg(command).output();
    let output = output.map_err(|error| format!("credential_process `{command}` cannot be started: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("credential_process `{command}` failed ({}): {}", output.status, said.trim()));
    }
    let said: Value = serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("credential_process `{command}` did not print JSON: {error}"))?;
    let expires = said["Expiration"].as_str().and_then(time::parse);
    keys_of(&said, ["AccessKeyId", "SecretAccessKey", "SessionToken"])
        .map(|keys| Found { keys, expires })
        .ok_or_else(|| format!("credential_process `{command}` printed no AccessKeyId and SecretAccessKey"))
}

fn keys_of(value: &Value, names: [&str; 3]) -> Option<Keys> {
    let text = |name: &str| value[name].as_str().map(str::to_owned);
    Some(Keys { id: text(names[0])?, secret: text(names[1])?, token: text(names[2]) })
}

/// Best effort: without the file, the next process renews the token again.
fn keep_private(path: &Path, text: &str) {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let aside = PathBuf::from(format!("{}.{}", path.display(), std::process::id()));
    let open = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside);
    let written = open.and_then(|mut file| file.write_all(text.as_bytes()));
    if written.and_then(|()| std::fs::rename(&aside, path)).is_err() {
        let _ = std::fs::remove_file(&aside);
    }
}

fn sha1(text: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn body_of(response: Result<reqwest::Response, reqwest::Error>) -> Result<String, String> {
    let response = response.map_err(|error| deepest(&error.without_url()))?;
    let status = response.status();
    let text = response.text().await.map_err(|error| deepest(&error.without_url()))?;
    if status.is_success() { Ok(text) } else { Err(format!("{status}: {}", one_line(&text))) }
}

fn deepest(error: &(dyn std::error::Error + 'static)) -> String {
    error.source().map_or_else(|| error.to_string(), deepest)
}

fn one_line(text: &str) -> String {
    let line: Vec<&str> = text.split_whitespace().collect();
    line.join(" ").chars().take(300).collect()
}

fn in_query(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_as_aws_writes_them() {
        assert_eq!(sha1("abc"), "a9993e364706816aba3e25717850c26c9cd0d89d");
        assert_eq!(in_query("arn:aws:iam::1:role/x y"), "arn%3Aaws%3Aiam%3A%3A1%3Arole%2Fx%20y");
    }

    #[test]
    fn a_process_gives_keys_or_says_why_not() {
        let found = of_process("echo '{\"AccessKeyId\": \"a\", \"SecretAccessKey\": \"b\"}'").expect("keys");
        assert_eq!((found.keys.id.as_str(), found.keys.secret.as_str(), found.keys.token), ("a", "b", None));
        let error = of_process("echo no >&2; exit 3").expect_err("it failed");
        assert_eq!(error, "credential_process `echo no >&2; exit 3` failed (exit status: 3): no");
    }
}
