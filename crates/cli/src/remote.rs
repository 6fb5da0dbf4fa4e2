//! What remote tasks need to know, read from configuration: the code package's sources, by which
//! address containers reach the datastore, how long an abandoned run lives.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ferroflow_compute::remote::{INIT_SCRIPT, Language, PackageSources, RemoteSettings};
use ferroflow_core::id::RunId;
use ferroflow_core::port::MetadataAnswers;
use ferroflow_core::task::StoreLocation;
use ferroflow_store::Reader;
use serde_json::{Map, Value, json};

use crate::arguments::suffixes;
use crate::config::Lookup;
use crate::context::Context;
use crate::report::Failure;

const LEASE_VARIABLE: &str = "FERROFLOW_LEASE_SECONDS";
const LEASE_SECONDS: f64 = 3600.0;
/// Layers whose containers may reach the datastore by another address than this machine:
/// `METAFLOW_<LAYER>_S3_ENDPOINT_URL`, and the same for Azure.
const LAYERS: [&str; 2] = ["kubernetes", "batch"];
const ENDPOINTS: [(&str, &str); 2] = [("s3", "S3_ENDPOINT_URL"), ("azure", "AZURE_STORAGE_BLOB_SERVICE_ENDPOINT")];
/// Passed on to containers as they are here. Nothing that may hold a secret.
const PASSED_ON: [&str; 9] = [
    INIT_SCRIPT,
    "METAFLOW_KUBERNETES_FETCH_EC2_METADATA",
    "METAFLOW_DEFAULT_SECRETS_BACKEND_TYPE",
    "METAFLOW_DEFAULT_AWS_CLIENT_PROVIDER",
    "METAFLOW_DEFAULT_GCP_CLIENT_PROVIDER",
    "METAFLOW_SERVICE_URL",
    "METAFLOW_DATATOOLS_S3ROOT",
    "METAFLOW_DATATOOLS_SYSROOT_S3",
    "METAFLOW_S3_SERVER_SIDE_ENCRYPTION",
];

/// What the code package is made from.
pub fn package_sources(context: &Context) -> Result<PackageSources, Failure> {
    let hello = &context.hello;
    if hello.module_folder.is_empty() {
        return Err(Failure::new(
            "Incorrect installation",
            "the flow's process did not say where its module `metaflow` is: reinstall ferroflow, so that the module \
             and the command are of one version",
        ));
    }
    Ok(PackageSources {
        script: script(context),
        module: hello.module.clone(),
        suffixes: package_suffixes(context),
        language: Language::of(&hello.language),
        saved_flow: hello.saved_flow.as_ref().map(PathBuf::from),
        module_folder: PathBuf::from(&hello.module_folder),
        info: info(context),
    })
}

/// Python finds neighbours of a flow file that is a link where the link leads.
fn script(context: &Context) -> PathBuf {
    let typed = context.cwd.join(&context.hello.script);
    match Language::of(&context.hello.language) {
        Language::Python => typed.canonicalize().unwrap_or(typed),
        Language::R => typed,
    }
}

fn package_suffixes(context: &Context) -> Vec<String> {
    match context.config.lookup.value("METAFLOW_DEFAULT_PACKAGE_SUFFIXES") {
        Some(list) if context.top.package_suffixes.is_empty() => suffixes(&list),
        _ => context.top.package_suffixes.clone(),
    }
}

fn info(context: &Context) -> Map<String, Value> {
    let hello = &context.hello;
    let info = json!({
        "username": context.config.user,
        "runtime": context.config.runtime_name,
        "script": PathBuf::from(&hello.script).file_name().map(|name| name.to_string_lossy()),
        "platform": std::env::consts::OS,
        "language": hello.language,
        "language_version": hello.language_version,
        "metaflow_version": env!("CARGO_PKG_VERSION"),
    });
    match info {
        Value::Object(info) => info,
        _ => unreachable!("it is written as an object"),
    }
}

/// For `compute::remote::Remote`. `store` is the run's datastore as this machine reaches it.
pub fn settings(context: &Context, run: &RunId, store: &StoreLocation) -> Result<RemoteSettings, Failure> {
    Ok(RemoteSettings {
        flow: context.flow.name.clone(),
        run: run.clone(),
        store: store.clone(),
        endpoints: endpoints(context, store),
        code: package_sources(context)?,
        lease: lease(context)?,
        environment: environment(context),
    })
}

/// Where clients in containers get their answers: the metadata of this machine.
pub fn answers(context: &Context) -> Arc<dyn MetadataAnswers> {
    Arc::new(Reader::new(&context.root))
}

/// By layer, where containers reach the store by an address that its location does not say.
fn endpoints(context: &Context, store: &StoreLocation) -> BTreeMap<String, String> {
    let Some((_, variable)) = ENDPOINTS.iter().find(|(of, _)| *of == store.kind) else { return BTreeMap::new() };
    let from_aws = match store.options.contains_key("endpoint") {
        true => None,
        false => aws_endpoint(&context.config.lookup, &store.kind),
    };
    let configured = |layer: &str| {
        let name = format!("METAFLOW_{}_{variable}", layer.to_ascii_uppercase());
        let own = context.config.lookup.value(&name);
        Some((layer.to_owned(), own.or_else(|| from_aws.clone())?))
    };
    LAYERS.iter().filter_map(|layer| configured(layer)).collect()
}

/// Says so when containers would look for the store in themselves.
pub fn warn_of_loopback(context: &Context, store: &StoreLocation, layer: &str) {
    let Some((_, variable)) = ENDPOINTS.iter().find(|(of, _)| *of == store.kind) else { return };
    let own = endpoints(context, store).remove(layer);
    let Some(address) = own.or_else(|| store.options.get("endpoint").cloned()) else { return };
    let host = address.split("://").last().unwrap_or_default();
    if ["127.", "localhost", "[::1]"].iter().any(|here| host.starts_with(here)) {
        context.say(&format!(
            "The datastore's address is {address}, which in a container is the container itself. If its tasks cannot \
             fetch their code, set METAFLOW_{}_{variable} to an address that they reach.",
            layer.to_ascii_uppercase()
        ));
    }
}

/// The address that AWS' own variables give; containers do not have this machine's environment.
fn aws_endpoint(lookup: &Lookup, kind: &str) -> Option<String> {
    let names = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"];
    names.iter().filter(|_| kind == "s3").find_map(|name| lookup.environment(name)).map(str::to_owned)
}

fn lease(context: &Context) -> Result<Duration, Failure> {
    let Some(text) = context.config.lookup.value(LEASE_VARIABLE) else {
        return Ok(Duration::from_secs_f64(LEASE_SECONDS));
    };
    let seconds = text.trim().parse().ok().filter(|seconds: &f64| seconds.is_finite() && *seconds >= 1.0);
    let lease = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    lease.ok_or_else(|| {
        Failure::new(
            "Incorrect configuration",
            format!("`{LEASE_VARIABLE}` is `{text}`; it is a number of seconds, at least 1"),
        )
    })
}

fn environment(context: &Context) -> BTreeMap<String, String> {
    let lookup = &context.config.lookup;
    let mut found: BTreeMap<String, String> =
        PASSED_ON.iter().filter_map(|name| Some(((*name).to_owned(), lookup.value(name)?))).collect();
    let region = lookup.environment("AWS_REGION").or_else(|| lookup.environment("AWS_DEFAULT_REGION"));
    found.extend(region.map(|region| ("AWS_DEFAULT_REGION".to_owned(), region.to_owned())));
    found.insert("METAFLOW_DEFAULT_METADATA".to_owned(), context.config.default_metadata.clone());
    found
}
