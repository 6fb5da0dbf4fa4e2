//! Which datastore a command uses: options and configuration made into one location. Asking the
//! datastore anything is `store`'s.

use std::path::Path;

use ferroflow_core::id::AttemptId;
use ferroflow_core::metadata::RunRow;
use ferroflow_core::run::ResumePlan;
use ferroflow_core::task::StoreLocation;
use ferroflow_engine::resume;
use ferroflow_store::{Datastore, PackPlace, StoreError};

use crate::adoption::LOCAL;
use crate::arguments::TopOptions;
use crate::config::Config;
use crate::context::Context;
use crate::report::Failure;

/// The remote kinds: name, variable of the root, variable of the address where there is one.
const REMOTE: [(&str, &str, Option<&str>); 3] = [
    ("s3", "METAFLOW_DATASTORE_SYSROOT_S3", Some("METAFLOW_S3_ENDPOINT_URL")),
    ("azure", "METAFLOW_DATASTORE_SYSROOT_AZURE", Some("METAFLOW_AZURE_STORAGE_BLOB_SERVICE_ENDPOINT")),
    ("gs", "METAFLOW_DATASTORE_SYSROOT_GS", None),
];
/// Options that are this machine's alone and not recorded with a run.
const OF_THIS_MACHINE: [&str; 2] = ["cache", "metadata"];
/// File in the metadata's root with the name under which its runs are told apart in a bucket.
const SCOPE_FILE: &str = "store_scope";

/// Names of all kinds of datastores.
pub fn kinds() -> Vec<&'static str> {
    std::iter::once("local").chain(REMOTE.iter().map(|(name, ..)| *name)).collect()
}

/// The kind that was asked for, as typed or configured.
pub fn kind<'a>(config: &'a Config, top: &'a TopOptions) -> &'a str {
    top.datastore.as_deref().unwrap_or(&config.default_datastore)
}

pub fn local(root: &Path) -> StoreLocation {
    StoreLocation { kind: "local".to_owned(), root: root.to_string_lossy().into_owned(), options: Default::default() }
}

/// The location for new runs, whose metadata is in `metadata_root`. A remote one gets its scope
/// from there; the folder must exist.
pub fn for_new_runs(config: &Config, top: &TopOptions, metadata_root: &Path) -> Result<StoreLocation, Failure> {
    let kind = kind(config, top);
    let Some((_, variable, _)) = REMOTE.iter().find(|(name, ..)| *name == kind) else {
        return Ok(local(metadata_root));
    };
    let root = top.datastore_root.clone().or_else(|| config.lookup.value(variable));
    let root = root.ok_or_else(|| {
        Failure::new(
            "Data store error",
            format!("could not find the location of the datastore: set {variable}, or give --datastore-root"),
        )
    })?;
    let mut location = StoreLocation { kind: kind.to_owned(), root, options: Default::default() };
    if let Some(encryption) = config.lookup.value("METAFLOW_S3_SERVER_SIDE_ENCRYPTION").filter(|_| kind == "s3") {
        location.options.insert("encryption".to_owned(), encryption);
    }
    location.options.insert("scope".to_owned(), scope(metadata_root)?);
    Ok(reached_from_here(config, location, metadata_root))
}

/// Adds how this machine reaches a location and where it keeps copies.
fn reached_from_here(config: &Config, mut location: StoreLocation, metadata_root: &Path) -> StoreLocation {
    let endpoint = REMOTE.iter().find(|(name, ..)| *name == location.kind).and_then(|(_, _, variable)| *variable);
    if let Some(endpoint) = endpoint.and_then(|variable| config.lookup.value(variable)) {
        location.options.insert("endpoint".to_owned(), endpoint);
    }
    if let Some(folder) = config.lookup.value("METAFLOW_TEMPDIR") {
        let folder = std::path::absolute(Path::new(&folder).join("ferroflow")).unwrap_or_else(|_| folder.into());
        location.options.insert("cache".to_owned(), folder.to_string_lossy().into_owned());
    }
    location.options.insert("metadata".to_owned(), metadata_root.to_string_lossy().into_owned());
    location
}

/// What is recorded with a run; nothing for data beside the metadata.
pub fn recorded(location: &StoreLocation) -> Option<StoreLocation> {
    let mut location = location.clone();
    for option in OF_THIS_MACHINE {
        location.options.remove(option);
    }
    (location.kind != "local").then_some(location)
}

/// Where a recorded run's data is.
pub fn of_run(config: &Config, run: &RunRow, metadata_root: &Path) -> StoreLocation {
    match &run.store {
        None => local(metadata_root),
        Some(location) => reached_from_here(config, location.clone(), metadata_root),
    }
}

/// Clones name their origin's packs: a run that keeps its data elsewhere than its origin gets a copy of
/// what was done. Tasks that still run write where the origin's data is, so those forbid it.
pub fn bring(context: &Context, ours: &StoreLocation, origin: &RunRow, plan: &ResumePlan) -> Result<(), Failure> {
    let place = |location: &Option<StoreLocation>| match location {
        None => ("local".to_owned(), String::new()),
        Some(location) => (location.kind.clone(), location.root.clone()),
    };
    if place(&recorded(ours)) == place(&origin.store) {
        return Ok(());
    }
    let theirs = of_run(&context.config, origin, &context.root);
    if !resume::left_behind(plan, LOCAL).is_empty() {
        return Err(Failure::invalid_command(format!(
            "tasks of run {} still run and write to its own datastore: resume it with --datastore {} --datastore-root {} \
             (before `resume`)",
            origin.run, theirs.kind, theirs.root
        )));
    }
    let places = plan.stored().map(|(step, data)| PackPlace {
        flow: context.flow.name.as_str().into(),
        run: data.run,
        step: step.as_str().into(),
        id: AttemptId { task: data.task, attempt: data.attempt },
    });
    let places: Vec<PackPlace> = places.collect();
    context.say(&format!(
        "Run {} keeps its data in `{}`: what its {} finished tasks stored is copied to `{}`.",
        origin.run,
        theirs.root,
        places.len(),
        ours.root
    ));
    ferroflow_store::copy::tasks(&Datastore::open(&theirs)?, &Datastore::open(ours)?, &places)
        .map_err(|error| Failure::new("Data store error", error.to_string()))
}

/// Says what is wrong with a remote datastore before anything starts, and tidies what is on this
/// machine.
pub fn check(location: &StoreLocation, flow: &str) -> Result<(), Failure> {
    let store = Datastore::open(location)?;
    ferroflow_store::remote::cache::sweep(&store);
    if let Some(remote) = store.remote() {
        remote.check(flow, "Runs of this flow whose metadata is in one place.\n")?;
        ferroflow_store::remote::cache::prune(store.root());
    }
    Ok(())
}

/// A name for the metadata in this root that no other has.
pub fn scope(root: &Path) -> Result<String, Failure> {
    let path = root.join(SCOPE_FILE);
    let problem =
        |error: std::io::Error| Failure::new("Data store error", format!("cannot use `{}`: {error}", path.display()));
    loop {
        match std::fs::read_to_string(&path) {
            Ok(text) if !text.trim().is_empty() => return Ok(text.trim().to_owned()),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(problem(error)),
        }
        // Whole or not at all, and the first of two processes wins.
        let aside = path.with_extension(std::process::id().to_string());
        std::fs::write(&aside, new_scope().map_err(problem)?).map_err(problem)?;
        let linked = std::fs::hard_link(&aside, &path);
        std::fs::remove_file(&aside).map_err(problem)?;
        match linked {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(problem(error)),
            _ => {}
        }
    }
}

fn new_scope() -> std::io::Result<String> {
    use std::io::Read;
    let mut random = [0; 8];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::new("Data store error", error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_keeps_its_scope() {
        let root = tempfile::tempdir().expect("folder");
        let first = scope(root.path()).expect("scope");
        assert_eq!(first.len(), 16);
        assert_eq!(scope(root.path()).expect("scope"), first);
        let other = tempfile::tempdir().expect("folder");
        assert_ne!(scope(other.path()).expect("scope"), first);
    }

    #[test]
    fn what_is_recorded_holds_nothing_of_this_machine() {
        let mut location = StoreLocation { kind: "s3".into(), root: "s3://b".into(), options: Default::default() };
        location.options.insert("scope".into(), "x".into());
        let kept = recorded(&location);
        location.options.insert("cache".into(), "/tmp/c".into());
        location.options.insert("metadata".into(), "/home/m".into());
        assert_eq!(recorded(&location), kept);
        assert_eq!(recorded(&local(Path::new("/x"))), None);
    }
}
