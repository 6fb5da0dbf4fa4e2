//! Connecting to a bucket: address, credentials, TLS and patience for each kind of store.

use std::sync::{Arc, Once};
use std::time::Duration;

use ferroflow_core::port::ObjectError;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::client::Certificate;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::{BackoffConfig, ClientOptions, RetryConfig};

use super::requests::{self, Connector, Signing};
use super::{Client, Doing, Remote, aws, memory};

/// The kinds of remote stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    S3,
    Azure,
    Gs,
    /// In this process, for tests.
    Memory,
}

impl Kind {
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "s3" => Some(Self::S3),
            "azure" => Some(Self::Azure),
            "gs" => Some(Self::Gs),
            "memory" => Some(Self::Memory),
            _ => None,
        }
    }

    pub fn scheme(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Azure => "azure",
            Self::Gs => "gs",
            Self::Memory => "memory",
        }
    }

    pub(super) fn bucket_word(self) -> &'static str {
        if self == Self::Azure { "container" } else { "bucket" }
    }

    /// Bucket and prefix of a root; the reason if it is none.
    pub(super) fn split(self, root: &str) -> Result<(String, String), String> {
        let schemes: &[&str] = match self {
            Self::S3 => &["s3://", "s3a://", "s3n://"],
            // The peer's roots of Azure are `container/path`.
            Self::Azure => &["azure://", "az://", ""],
            Self::Gs => &["gs://"],
            Self::Memory => &["memory://"],
        };
        let example = format!("{}://{}/path", self.scheme(), self.bucket_word());
        let rest = schemes
            .iter()
            .find_map(|scheme| root.strip_prefix(scheme))
            .ok_or_else(|| format!("`{root}` is not the root of a datastore of this kind: write it as `{example}`"))?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() {
            return Err(format!("`{root}` names no {}: write it as `{example}`", self.bucket_word()));
        }
        let segments: Vec<&str> = prefix.split('/').filter(|segment| !segment.is_empty()).collect();
        Ok((bucket.to_owned(), segments.join("/")))
    }
}

/// How long to go on trying what may yet succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// A question asked while the user waits.
    Short,
    Long,
}

impl Patience {
    fn config(self) -> RetryConfig {
        let (max_retries, seconds, longest) = match self {
            Self::Short => (4, 15, 2),
            Self::Long => (12, 180, 15),
        };
        RetryConfig {
            backoff: BackoffConfig {
                init_backoff: Duration::from_millis(100),
                max_backoff: Duration::from_secs(longest),
                base: 2.,
            },
            max_retries,
            retry_timeout: Duration::from_secs(seconds),
        }
    }
}

pub(super) fn connect(remote: &Remote, patience: Patience) -> Result<Client, ObjectError> {
    use_ring();
    match remote.kind {
        Kind::S3 => connect_s3(remote, patience),
        Kind::Azure => connect_azure(remote, patience),
        Kind::Gs => connect_gs(remote, patience),
        Kind::Memory => Ok(memory::connect(&remote.bucket)),
    }
}

/// Both of rustls' providers may be linked in by other crates; without a choice the first
/// connection panics.
pub(super) fn use_ring() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Somebody else's choice is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

fn connect_s3(remote: &Remote, patience: Patience) -> Result<Client, ObjectError> {
    let settings = aws::Settings::read(&remote.options)?;
    let region = requests::region_of(&remote.bucket).or(settings.region);
    let signing = Signing {
        bucket: remote.bucket.clone(),
        region: region.clone().unwrap_or_else(|| "us-east-1".to_owned()),
        credentials: Arc::clone(&settings.credentials),
    };
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(&remote.bucket)
        .with_retry(patience.config())
        .with_http_connector(Connector { requests: Arc::clone(&remote.requests), signing: Some(signing) })
        .with_client_options(client_options(settings.certificates.as_deref(), settings.endpoint.as_deref())?);
    if let Some(region) = &region {
        builder = builder.with_region(region);
    }
    if let Some(endpoint) = &settings.endpoint {
        builder =
            builder.with_config(object_store::aws::AmazonS3ConfigKey::S3Endpoint, endpoint).with_endpoint(endpoint);
    }
    if let Some(encryption) = remote.options.get("encryption") {
        let key = "aws_server_side_encryption".parse().map_err(|error| remote.tell(Doing::Write, "", &error))?;
        builder = builder.with_config(key, encryption);
    }
    builder = builder.with_credentials(settings.credentials);
    finish(remote, builder.build())
}

fn connect_azure(remote: &Remote, patience: Patience) -> Result<Client, ObjectError> {
    let given = remote.options.get("endpoint").cloned();
    let endpoint = given.or_else(|| aws::environment("AZURE_STORAGE_ENDPOINT"));
    let mut builder = MicrosoftAzureBuilder::from_env()
        .with_container_name(&remote.bucket)
        .with_retry(patience.config())
        .with_http_connector(counting(remote))
        .with_client_options(client_options(None, endpoint.as_deref())?);
    if let Some(endpoint) = endpoint {
        if let Some(account) = azure_account(&endpoint) {
            builder = builder.with_account(account);
        }
        builder = builder.with_endpoint(endpoint);
    }
    finish(remote, builder.build())
}

/// The account in `https://ACCOUNT.blob.core.windows.net` or, of emulators, `http://host:port/ACCOUNT`.
fn azure_account(endpoint: &str) -> Option<&str> {
    let rest = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let in_path = path.trim_matches('/');
    if !in_path.is_empty() {
        return in_path.split('/').next();
    }
    host.split_once(".blob.").map(|(account, _)| account)
}

fn connect_gs(remote: &Remote, patience: Patience) -> Result<Client, ObjectError> {
    for variable in ["GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH", "GOOGLE_APPLICATION_CREDENTIALS"] {
        if let Some(file) = aws::environment(variable)
            && let Err(error) = std::fs::metadata(&file)
        {
            return Err(ObjectError::Denied(format!(
                "the file of credentials for Google Cloud cannot be read: {variable} names `{file}`: {error}"
            )));
        }
    }
    let given = remote.options.get("endpoint").cloned();
    let endpoint = given.or_else(|| aws::environment("STORAGE_EMULATOR_HOST"));
    let mut builder = GoogleCloudStorageBuilder::from_env()
        .with_bucket_name(&remote.bucket)
        .with_retry(patience.config())
        .with_http_connector(counting(remote))
        .with_client_options(client_options(None, endpoint.as_deref())?);
    if let Some(endpoint) = endpoint {
        builder = builder.with_base_url(&endpoint);
    }
    finish(remote, builder.build())
}

fn counting(remote: &Remote) -> Connector {
    Connector { requests: Arc::clone(&remote.requests), signing: None }
}

fn finish<S>(remote: &Remote, built: object_store::Result<S>) -> Result<Client, ObjectError>
where
    S: object_store::ObjectStore + object_store::signer::Signer,
{
    let store = Arc::new(built.map_err(|error| remote.tell(Doing::Read, "", &error))?);
    Ok(Client { store: store.clone(), signer: store })
}

/// No limit on a whole transfer, which may be long; one on silence. `certificates` is a file of those
/// to trust in place of the system's.
fn client_options(certificates: Option<&str>, endpoint: Option<&str>) -> Result<ClientOptions, ObjectError> {
    let mut options = ClientOptions::new()
        .with_timeout_disabled()
        .with_read_timeout(Duration::from_secs(60))
        .with_connect_timeout(Duration::from_secs(10))
        .with_pool_max_idle_per_host(64);
    if endpoint.is_some_and(|endpoint| endpoint.starts_with("http://")) {
        // Reading the system's certificates takes longer than a small request.
        return Ok(options.with_allow_http(true).with_no_system_certificates(true));
    }
    let Some(file) = certificates else { return Ok(options) };
    let bad = |reason: String| {
        ObjectError::Denied(format!("cannot use the certificates in `{file}` (AWS_CA_BUNDLE): {reason}"))
    };
    let text = std::fs::read(file).map_err(|error| bad(error.to_string()))?;
    for certificate in Certificate::from_pem_bundle(&text).map_err(|error| bad(error.to_string()))? {
        options = options.with_root_certificate(certificate);
    }
    Ok(options.with_no_system_certificates(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_are_split_or_refused_with_an_example() {
        assert_eq!(Kind::S3.split("s3://b/a//c/"), Ok(("b".into(), "a/c".into())));
        assert_eq!(Kind::Azure.split("box/a"), Ok(("box".into(), "a".into())));
        assert_eq!(Kind::Gs.split("gs://b"), Ok(("b".into(), String::new())));
        assert_eq!(
            Kind::S3.split("/tmp/x"),
            Err("`/tmp/x` is not the root of a datastore of this kind: write it as `s3://bucket/path`".into())
        );
        assert_eq!(Kind::Gs.split("gs://"), Err("`gs://` names no bucket: write it as `gs://bucket/path`".into()));
    }

    #[test]
    fn the_account_is_in_the_address() {
        assert_eq!(azure_account("https://acme.blob.core.windows.net/"), Some("acme"));
        assert_eq!(azure_account("http://127.0.0.1:10000/devstoreaccount1"), Some("devstoreaccount1"));
        assert_eq!(azure_account("https://example.org"), None);
    }
}
