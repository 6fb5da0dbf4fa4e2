//! Credentials, region and address as every AWS tool finds them: environment, web identity, profile,
//! container, machine, in that order.

mod ask;
mod provider;
mod time;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use ferroflow_core::port::ObjectError;
use object_store::aws::AwsCredentialProvider;

use super::ini::{Sections, parse};
use provider::{Keys, Provider, Source};

/// What a connection to S3 needs to know.
pub(super) struct Settings {
    pub region: Option<String>,
    pub endpoint: Option<String>,
    /// A file of certificates to trust in place of the system's.
    pub certificates: Option<String>,
    pub credentials: AwsCredentialProvider,
}

/// A variable that SDKs read too; an empty one counts as not set.
pub(super) fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

impl Settings {
    /// Options are those of a datastore's location; those of an `S3` client are `profile`, `role`,
    /// `certificates` and keys, too.
    pub fn read(options: &BTreeMap<String, String>) -> Result<Self, ObjectError> {
        let files = Files::read(options.get("profile").cloned());
        let profile = files.profile();
        let of_profile = |name: &str| profile.and_then(|profile| files.value(profile, name));
        let option = |name: &str| options.get(name).cloned();
        let region = option("region")
            .or_else(|| environment("AWS_REGION"))
            .or_else(|| environment("AWS_DEFAULT_REGION"))
            .or_else(|| of_profile("region"));
        let certificates =
            option("certificates").or_else(|| environment("AWS_CA_BUNDLE")).or_else(|| of_profile("ca_bundle"));
        let source = source(options, &files, region.as_deref())?;
        Ok(Self {
            endpoint: option("endpoint")
                .or_else(|| environment("AWS_ENDPOINT_URL_S3"))
                .or_else(|| environment("AWS_ENDPOINT_URL"))
                .or_else(|| profile.and_then(|profile| files.endpoint(profile))),
            credentials: Arc::new(Provider::new(source, certificates.clone())),
            region,
            certificates,
        })
    }
}

fn source(options: &BTreeMap<String, String>, files: &Files, region: Option<&str>) -> Result<Source, ObjectError> {
    let option = |name: &str| options.get(name).cloned();
    let own = match option("access_key_id").zip(option("secret_access_key")) {
        Some((id, secret)) => Source::Keys(Keys { id, secret, token: option("session_token") }),
        None => found(files, region)?,
    };
    Ok(match option("role") {
        None => own,
        Some(arn) => Source::Role {
            arn,
            session: provider::default_session(),
            external_id: None,
            region: region.unwrap_or("us-east-1").to_owned(),
            inner: Box::new(own),
        },
    })
}

fn found(files: &Files, region: Option<&str>) -> Result<Source, ObjectError> {
    // A profile that is named in code goes before the environment.
    if files.named_in_code.is_none()
        && let Some(source) = provider::of_environment(region)
    {
        return Ok(source);
    }
    if let Some(profile) = files.profile()
        && let Some(source) = provider::of_profile(files, profile, &mut Vec::new())?
    {
        return Ok(source);
    }
    if let Some((name, variable)) = files.asked_for()
        && files.profile().is_none()
    {
        return Err(ObjectError::Denied(format!(
            "there is no AWS profile `{name}`{variable} in `{}` or `{}`",
            Files::config_path().display(),
            Files::credentials_path().display()
        )));
    }
    Ok(provider::of_container().unwrap_or(Source::Instance))
}

/// The two files of profiles.
pub(super) struct Files {
    config: Sections,
    credentials: Sections,
    named_in_code: Option<String>,
}

impl Files {
    fn read(named_in_code: Option<String>) -> Self {
        let sections = |path: PathBuf| std::fs::read_to_string(path).map(|text| parse(&text)).unwrap_or_default();
        Self { config: sections(Self::config_path()), credentials: sections(Self::credentials_path()), named_in_code }
    }

    fn config_path() -> PathBuf {
        environment("AWS_CONFIG_FILE").map_or_else(|| home().join(".aws/config"), PathBuf::from)
    }

    fn credentials_path() -> PathBuf {
        environment("AWS_SHARED_CREDENTIALS_FILE").map_or_else(|| home().join(".aws/credentials"), PathBuf::from)
    }

    /// The profile somebody named, and the variable that did.
    fn asked_for(&self) -> Option<(String, &'static str)> {
        let in_code = self.named_in_code.clone().map(|name| (name, ""));
        in_code
            .or_else(|| environment("AWS_PROFILE").map(|name| (name, " (AWS_PROFILE)")))
            .or_else(|| environment("AWS_DEFAULT_PROFILE").map(|name| (name, " (AWS_DEFAULT_PROFILE)")))
    }

    /// The name of the profile in force, if it exists.
    fn profile(&self) -> Option<&str> {
        let name = self.asked_for().map_or_else(|| "default".to_owned(), |(name, _)| name);
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
