//! Credentials, region and address as every AWS tool finds them. `object_store` knows the
//! environment, web identity and containers; what it lacks is here: profiles (keys, processes,
//! single sign-on, roles) and an answer at once when there is nothing.

mod provider;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use ferroflow_core::port::ObjectError;
use object_store::aws::{AmazonS3Builder, AwsCredential};
use object_store::client::StaticCredentialProvider;

use super::ini::{Sections, parse};

/// What a connection to S3 needs to know.
pub(super) struct Settings {
    pub region: Option<String>,
    pub endpoint: Option<String>,
    /// A file of certificates to trust in place of the system's.
    pub certificates: Option<String>,
    pub credentials: Credentials,
}

pub(super) enum Credentials {
    /// `object_store` finds them in the environment.
    Environment,
    Keys(AwsCredential),
    /// To be asked for when the first request is signed.
    Asked(provider::Source),
}

impl Credentials {
    pub fn give(self, builder: AmazonS3Builder) -> AmazonS3Builder {
        match self {
            Self::Environment => builder,
            Self::Keys(keys) => builder.with_credentials(Arc::new(StaticCredentialProvider::new(keys))),
            Self::Asked(source) => builder.with_credentials(Arc::new(provider::Provider::new(source))),
        }
    }
}

/// A variable that SDKs read too; an empty one counts as not set.
pub(super) fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

impl Settings {
    pub fn read(options: &BTreeMap<String, String>) -> Result<Self, ObjectError> {
        let files = Files::read();
        let profile = files.profile();
        let of_profile = |name: &str| profile.and_then(|profile| files.value(profile, name));
        let option = |name: &str| options.get(name).cloned();
        Ok(Self {
            region: option("region")
                .or_else(|| environment("AWS_REGION"))
                .or_else(|| environment("AWS_DEFAULT_REGION"))
                .or_else(|| of_profile("region")),
            endpoint: option("endpoint")
                .or_else(|| environment("AWS_ENDPOINT_URL_S3"))
                .or_else(|| environment("AWS_ENDPOINT_URL"))
                .or_else(|| profile.and_then(|profile| files.endpoint(profile))),
            certificates: environment("AWS_CA_BUNDLE").or_else(|| of_profile("ca_bundle")),
            credentials: credentials(&files)?,
        })
    }
}

/// Environment, web identity, profile, container, instance: the order of the AWS tools.
fn credentials(files: &Files) -> Result<Credentials, ObjectError> {
    if environment("AWS_ACCESS_KEY_ID").is_some() && environment("AWS_SECRET_ACCESS_KEY").is_some() {
        return Ok(Credentials::Environment);
    }
    let web_identity = environment("AWS_WEB_IDENTITY_TOKEN_FILE").is_some() && environment("AWS_ROLE_ARN").is_some();
    if web_identity {
        return Ok(Credentials::Environment);
    }
    if let Some(profile) = files.profile()
        && let Some(source) = provider::of_profile(files, profile, &mut Vec::new())?
    {
        return Ok(match source {
            provider::Source::Keys(keys) => Credentials::Keys(keys),
            source => Credentials::Asked(source),
        });
    }
    if environment("AWS_PROFILE").is_some() && files.profile().is_none() {
        return Err(ObjectError::Denied(format!(
            "there is no AWS profile `{}` (AWS_PROFILE) in `{}` or `{}`",
            environment("AWS_PROFILE").unwrap_or_default(),
            Files::config_path().display(),
            Files::credentials_path().display()
        )));
    }
    let container = ["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"];
    if container.iter().any(|name| environment(name).is_some()) {
        return Ok(Credentials::Environment);
    }
    Ok(Credentials::Asked(provider::Source::Instance))
}

/// The two files of profiles.
pub(super) struct Files {
    config: Sections,
    credentials: Sections,
}

impl Files {
    fn read() -> Self {
        let sections = |path: PathBuf| std::fs::read_to_string(path).map(|text| parse(&text)).unwrap_or_default();
        Self { config: sections(Self::config_path()), credentials: sections(Self::credentials_path()) }
    }

    fn config_path() -> PathBuf {
        environment("AWS_CONFIG_FILE").map_or_else(|| home().join(".aws/config"), PathBuf::from)
    }

    fn credentials_path() -> PathBuf {
        environment("AWS_SHARED_CREDENTIALS_FILE").map_or_else(|| home().join(".aws/credentials"), PathBuf::from)
    }

    /// The name of the profile in force, if it exists.
    fn profile(&self) -> Option<&str> {
        let name = environment("AWS_PROFILE").or_else(|| environment("AWS_DEFAULT_PROFILE"));
        let name = name.unwrap_or_else(|| "default".to_owned());
        self.named(&name)
    }

    /// The profile's name as it stands in the files.
    fn named(&self, name: &str) -> Option<&str> {
        let in_config = if name == "default" { self.config.get_key_value("default") } else { None }
            .or_else(|| self.config.get_key_value(&format!("profile {name}")));
        let in_config = in_config.map(|(key, _)| key.strip_prefix("profile ").unwrap_or(key));
        in_config.or_else(|| self.credentials.get_key_value(name).map(|(key, _)| key.as_str()))
    }

    pub fn value(&self, profile: &str, name: &str) -> Option<String> {
        let of = |sections: &Sections, section: &str| sections.get(section)?.get(name).cloned();
        of(&self.credentials, profile)
            .or_else(|| of(&self.config, &format!("profile {profile}")))
            .or_else(|| if profile == "default" { of(&self.config, "default") } else { None })
            .filter(|value| !value.is_empty())
    }

    /// A value of a section that is no profile, such as `sso-session x`.
    pub fn section_value(&self, section: &str, name: &str) -> Option<String> {
        self.config.get(section)?.get(name).cloned()
    }

    fn endpoint(&self, profile: &str) -> Option<String> {
        if environment("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return None;
        }
        let services = self.value(profile, "services");
        services
            .and_then(|services| self.section_value(&format!("services {services}"), "s3.endpoint_url"))
            .or_else(|| self.value(profile, "endpoint_url"))
    }
}

pub(super) fn home() -> PathBuf {
    PathBuf::from(environment("HOME").unwrap_or_else(|| "/".to_owned()))
}
