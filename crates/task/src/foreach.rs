//! Items of a foreach stored one by one: a split reads its own and verifies it by itself, however
//! many there are. After the items comes a table with one entry of [`ENTRY`] bytes for each:
//! offset (u64), length (u64), encoding (u8 in a u64), hash of the item (16), hash of the entry (8).

use ferroflow_store::blob::{StoredValue, ValueWriter, read_part};
use ferroflow_store::pack::{Encoding, Pack, ValuePlace};
use ferroflow_store::{Datastore, StoreError};

const ENTRY: u64 = 48;

/// Writes items and, at the end, their table.
pub struct ItemsWriter {
    writer: ValueWriter,
    table: Vec<u8>,
    count: u64,
}

/// One item as it was stored.
#[derive(Debug, PartialEq, Eq)]
pub struct Item {
    pub encoding: Encoding,
    pub bytes: Vec<u8>,
}

impl ItemsWriter {
    pub fn new(store: Datastore) -> Self {
        Self { writer: ValueWriter::new(store), table: Vec::new(), count: 0 }
    }

    pub fn push(&mut self, encoding: Encoding, bytes: &[u8]) -> Result<(), StoreError> {
        let mut entry = [0; ENTRY as usize];
        entry[..8].copy_from_slice(&self.writer.length().to_le_bytes());
        entry[8..16].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
        entry[16..24].copy_from_slice(&encoding_number(encoding).to_le_bytes());
        entry[24..40].copy_from_slice(&blake3::hash(bytes).as_bytes()[..16]);
        let check = entry_hash(self.count, &entry);
        entry[40..].copy_from_slice(&check);
        self.writer.write(bytes)?;
        self.table.extend_from_slice(&entry);
        self.count += 1;
        Ok(())
    }

    /// Number of items and where they are.
    pub fn finish(mut self) -> Result<(u64, StoredValue), StoreError> {
        self.writer.write(&self.table)?;
        Ok((self.count, self.writer.finish()?))
    }
}

/// Item `index` of a pack's foreach; `None` when its items were not stored one by one.
pub fn read_item(store: &Datastore, pack: &Pack, variable: &str, index: u64) -> Result<Option<Item>, StoreError> {
    let Some(items) = pack.header.items.as_ref().filter(|items| items.variable == variable) else {
        return Ok(None);
    };
    if index >= items.count {
        return Err(StoreError::Missing(format!(
            "{} has {} items, there is no item {index}",
            pack.describe(variable),
            items.count
        )));
    }
    let what = || format!("item {index} of {}", pack.describe(variable));
    let read = |offset: u64, length: u64| match &items.at {
        ValuePlace::Inline(start, _) => pack.inline(start + offset, length).map(<[u8]>::to_vec),
        ValuePlace::Blob(hash, size) => {
            let length = length.min(*size) as usize;
            read_part(store, (hash, *size), offset, length, &what)
        }
    };
    let total = match &items.at {
        ValuePlace::Inline(_, length) | ValuePlace::Blob(_, length) => *length,
    };
    let bad = || {
        let file = match &items.at {
            ValuePlace::Inline(..) => pack.path().to_owned(),
            ValuePlace::Blob(hash, _) => store.blob_path(hash),
        };
        StoreError::Damaged(format!(
            "the data of {} is damaged: the file `{}` does not match its checksum; run the step again to make it anew",
            what(),
            file.display()
        ))
    };
    let table = total.checked_sub(items.count.saturating_mul(ENTRY)).ok_or_else(bad)?;
    let entry = read(table + index * ENTRY, ENTRY)?;
    if entry_hash(index, &entry) != entry[40..] {
        return Err(bad());
    }
    let encoding = encoding_of(number_at(&entry, 16)).ok_or_else(bad)?;
    let bytes = read(number_at(&entry, 0), number_at(&entry, 8))?;
    if blake3::hash(&bytes).as_bytes()[..16] != entry[24..40] {
        return Err(bad());
    }
    Ok(Some(Item { encoding, bytes }))
}

fn entry_hash(index: u64, entry: &[u8]) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&index.to_le_bytes()).update(&entry[..40]);
    let mut check = [0; 8];
    hasher.finalize_xof().fill(&mut check);
    check
}

fn number_at(bytes: &[u8], offset: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[offset..offset + 8]);
    u64::from_le_bytes(number)
}

fn encoding_number(encoding: Encoding) -> u64 {
    match encoding {
        Encoding::Json => 0,
        Encoding::Raw => 1,
        Encoding::Pickle => 2,
    }
}

fn encoding_of(number: u64) -> Option<Encoding> {
    match number {
        0 => Some(Encoding::Json),
        1 => Some(Encoding::Raw),
        2 => Some(Encoding::Pickle),
        _ => None,
    }
}
