//! The folder of this machine in which a remote datastore's packs and blobs are kept: what is
//! written is put there before it is uploaded, what is read is fetched to there once. Both never
//! change under their name, so nothing in it goes stale; losing it costs another download.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ferroflow_core::task::StoreLocation;

use crate::blob::UNFINISHED;
use crate::error::StoreError;
use crate::location::Datastore;

/// A file that is being written changes more often than this.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);
/// What was not used for this long is removed when a run starts.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// The folder for a location, made for this user alone: packs carry pickles, so nobody else may
/// be able to put any there.
pub fn folder_of(location: &StoreLocation) -> Result<PathBuf, StoreError> {
    let parent = match location.options.get("cache") {
        Some(folder) => PathBuf::from(folder),
        None => std::env::temp_dir().join(format!("ferroflow-{}", own_uid())),
    };
    let mut identity = blake3::Hasher::new();
    identity.update(location.kind.as_bytes());
    let kept = ["endpoint", "scope"];
    let parts = std::iter::once(location.root.as_str())
        .chain(kept.iter().map(|name| location.options.get(*name).map_or("", String::as_str)));
    for part in parts {
        identity.update(&[0]).update(part.as_bytes());
    }
    let name = &identity.finalize().to_hex()[..24];
    own_folder(&parent)?;
    let folder = parent.join(name);
    own_folder(&folder)?;
    Ok(folder)
}

fn own_uid() -> u32 {
    // SAFETY: the call has no preconditions and cannot fail.
    unsafe { libc::geteuid() }
}

fn own_folder(path: &Path) -> Result<(), StoreError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|error| StoreError::io("create the folder", path, error))?;
    let found = fs::symlink_metadata(path).map_err(|error| StoreError::io("use the folder", path, error))?;
    if !found.is_dir() || found.uid() != own_uid() || found.mode() & 0o022 != 0 {
        return Err(StoreError::io(
            "use the folder",
            path,
            std::io::Error::other("others may write to it; remove it, or set METAFLOW_TEMPDIR to a folder of your own"),
        ));
    }
    Ok(())
}

/// Removes what writers left that were killed: files that nobody has written to for a day.
pub fn sweep(store: &Datastore) {
    let Some(limit) = SystemTime::now().checked_sub(ABANDONED) else { return };
    let Ok(entries) = fs::read_dir(store.blob_folder()) else { return };
    for entry in entries.flatten() {
        let unfinished = entry.file_name().to_string_lossy().starts_with(UNFINISHED);
        let old = |found: fs::Metadata| found.modified().is_ok_and(|at| at < limit);
        if unfinished && entry.metadata().is_ok_and(old) {
            // Best effort: it is only about space.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Removes what was not used for a week. Best effort: it is only about space.
pub fn prune(folder: &Path) {
    let Some(limit) = SystemTime::now().checked_sub(KEPT) else { return };
    prune_below(folder, limit);
}

fn prune_below(folder: &Path, limit: SystemTime) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            prune_below(&entry.path(), limit);
            // Goes only if it is empty.
            let _ = fs::remove_dir(entry.path());
        } else if entry.metadata().is_ok_and(|found| is_older(&found, limit)) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn is_older(found: &fs::Metadata, limit: SystemTime) -> bool {
    let used = found.accessed().ok().max(found.modified().ok());
    used.is_some_and(|used| used < limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_abandoned_is_swept() {
        let root = tempfile::tempdir().expect("folder");
        let store = Datastore::new(root.path());
        let data = store.blob_folder();
        fs::create_dir_all(data.join("ab")).expect("folder");
        let long_ago = SystemTime::now() - ABANDONED - Duration::from_secs(60);
        for (name, old) in [(".new-1-0-5", true), (".new-2-0-5", false), ("ab/abcd", true)] {
            let file = fs::File::create(data.join(name)).expect("file");
            if old {
                file.set_modified(long_ago).expect("time");
            }
        }
        sweep(&store);
        assert!(!data.join(".new-1-0-5").exists());
        assert!(data.join(".new-2-0-5").exists() && data.join("ab/abcd").exists());
        sweep(&Datastore::new(root.path().join("nothing")));
    }
}
