//! Remembers which blobs were verified on this machine: one small file per root, a table of
//! fingerprints of (machine, device, inode, size, mtime, ctime, hash). Losing an entry costs one
//! more verification, so nothing here is an error and nothing is locked.

use std::fs::{File, Metadata, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::identity::this_host;

const SLOTS: u64 = 1 << 16;
const SLOT: usize = 16;
/// Time stamps of files are coarse: what changed this recently might change again unseen.
const SETTLED: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub struct VerifiedFiles {
    table: Option<File>,
    host: String,
}

impl VerifiedFiles {
    pub fn open(root: &Path) -> Self {
        let host = this_host();
        // Without a boot id two machines could not be told apart.
        if host.starts_with(':') {
            return Self { table: None, host };
        }
        let table =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(root.join("verified")).ok();
        Self { table, host }
    }

    pub fn knows(&self, file: &Metadata, hash: &str) -> bool {
        let Some(table) = &self.table else { return false };
        let print = self.fingerprint(file, hash);
        let mut slot = [0; SLOT];
        table.read_exact_at(&mut slot, slot_of(&print)).is_ok() && slot == print
    }

    pub fn remember(&self, file: &Metadata, hash: &str) {
        if !is_settled(file) {
            return;
        }
        if let Some(table) = &self.table {
            let print = self.fingerprint(file, hash);
            // A full disk only means verifying again.
            let _ = table.write_all_at(&print, slot_of(&print));
        }
    }

    fn fingerprint(&self, file: &Metadata, hash: &str) -> [u8; SLOT] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.host.as_bytes());
        hasher.update(hash.as_bytes());
        let numbers = [
            file.dev() as i64,
            file.ino() as i64,
            file.size() as i64,
            file.mtime(),
            file.mtime_nsec(),
            file.ctime(),
            file.ctime_nsec(),
        ];
        for number in numbers {
            hasher.update(&number.to_le_bytes());
        }
        let mut print = [0; SLOT];
        hasher.finalize_xof().fill(&mut print);
        print
    }
}

fn is_settled(file: &Metadata) -> bool {
    let changed =
        UNIX_EPOCH + Duration::new(file.ctime().try_into().unwrap_or(0), file.ctime_nsec().try_into().unwrap_or(0));
    SystemTime::now().duration_since(changed).is_ok_and(|age| age > SETTLED)
}

fn slot_of(print: &[u8; SLOT]) -> u64 {
    let start = u64::from_le_bytes([print[0], print[1], print[2], print[3], print[4], print[5], print[6], print[7]]);
    (start % SLOTS) * SLOT as u64
}
