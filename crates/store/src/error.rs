//! What can go wrong with stored artifacts, sorted by what a caller can do about it.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use ferroflow_core::port::ObjectError;

/// Why an artifact could not be stored or read.
#[derive(Debug)]
pub enum StoreError {
    /// The pack, blob or artifact does not exist. A retry helps only if a writer is still at it.
    Missing(String),
    /// The bytes are not those that were written. No retry helps.
    Damaged(String),
    /// The file system refused. A retry helps once its reason is gone (a full disk).
    Io { doing: Cow<'static, str>, path: PathBuf, source: io::Error },
    /// A remote store refused or cannot be reached; what a retry can mend was retried.
    Remote(ObjectError),
}

impl StoreError {
    pub fn io(doing: impl Into<Cow<'static, str>>, path: &Path, source: io::Error) -> Self {
        Self::Io { doing: doing.into(), path: path.to_owned(), source }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(text) | Self::Damaged(text) => f.write_str(text),
            Self::Remote(error) => error.fmt(f),
            Self::Io { doing, path, source } => {
                write!(f, "cannot {doing} `{}`: {}", path.display(), io_reason(source))
            }
        }
    }
}

impl std::error::Error for StoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// The operating system's reason, with what to do about the common ones.
pub(crate) fn io_reason(source: &io::Error) -> String {
    match source.kind() {
        io::ErrorKind::StorageFull => "the disk is full; free some space and try again".to_owned(),
        io::ErrorKind::QuotaExceeded => "your disk quota is used up; free some space and try again".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied; check who owns the folder".to_owned(),
        io::ErrorKind::ReadOnlyFilesystem => "the file system is read-only".to_owned(),
        _ => source.to_string(),
    }
}
