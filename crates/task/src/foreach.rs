//! Items of a foreach stored one by one: a split reads its own and verifies it by itself, however
//! many there are. After the items comes a table with one entry of [`ENTRY`] bytes for each:
//! offset (u64), length (u64), encoding (u8 in a u64), hash of the item (16), hash of the entry (8).

use std::ops::Range;

use ferroflow_store::blob::{StoredValue, ValueWriter, is_better_in_parts, read_part, read_remote_parts};
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
    /// Items of a foreach over `variable`.
    pub fn new(store: Datastore, variable: &str) -> Self {
        Self { writer: ValueWriter::new(store, variable), table: Vec::new(), count: 0 }
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

/// Where an item is, and what its bytes have to be.
struct Entry {
    offset: u64,
    length: u64,
    encoding: Encoding,
    hash: [u8; 16],
}

impl Entry {
    /// `None` when the bytes are not the entry of item `index`.
    fn parse(index: u64, bytes: &[u8]) -> Option<Self> {
        let own: &[u8; ENTRY as usize] = bytes.try_into().ok()?;
        if entry_hash(index, own) != own[40..] {
            return None;
        }
        let encoding = encoding_of(number_at(own, 16))?;
        Some(Self {
            offset: number_at(own, 0),
            length: number_at(own, 8),
            encoding,
            hash: own[24..40].try_into().ok()?,
        })
    }

    fn item(&self, bytes: Vec<u8>) -> Option<Item> {
        let whole = bytes.len() as u64 == self.length && blake3::hash(&bytes).as_bytes()[..16] == self.hash;
        whole.then_some(Item { encoding: self.encoding, bytes })
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
    let (ValuePlace::Inline(_, total) | ValuePlace::Blob(_, total)) = &items.at;
    let what = || format!("item {index} of {}", pack.describe(variable));
    let bad = || damaged(store, pack, &items.at, &what());
    let table = total.checked_sub(items.count.saturating_mul(ENTRY)).ok_or_else(bad)?;
    let place = table + index * ENTRY..table + (index + 1) * ENTRY;
    if let ValuePlace::Blob(hash, size) = &items.at
        && is_better_in_parts(store, hash, *size)
        && let Some(item) = item_from_afar(store, hash, index, place.clone())
    {
        return Ok(Some(item));
    }
    let read = |offset: u64, length: u64| match &items.at {
        ValuePlace::Inline(start, _) => pack.inline(start + offset, length).map(<[u8]>::to_vec),
        ValuePlace::Blob(hash, size) => {
            let length = length.min(*size) as usize;
            read_part(store, (hash, *size), offset, length, &what)
        }
    };
    let entry = Entry::parse(index, &read(place.start, ENTRY)?).ok_or_else(bad)?;
    let bytes = read(entry.offset, entry.length)?;
    entry.item(bytes).ok_or_else(bad).map(Some)
}

/// The entry and the item alone, from a blob that is not on this machine.
fn item_from_afar(store: &Datastore, hash: &str, index: u64, place: Range<u64>) -> Option<Item> {
    let mut found = None;
    let bytes = read_remote_parts(store, hash, place, |bytes| {
        let entry = found.insert(Entry::parse(index, bytes)?);
        Some(entry.offset..entry.offset.checked_add(entry.length)?)
    })?;
    found?.item(bytes)
}

fn damaged(store: &Datastore, pack: &Pack, at: &ValuePlace, what: &str) -> StoreError {
    let file = match at {
        ValuePlace::Inline(..) => pack.path().to_owned(),
        ValuePlace::Blob(hash, _) => store.blob_path(hash),
    };
    StoreError::Damaged(format!(
        "the data of {what} is damaged: the file `{}` does not match its checksum; run the step again to make it anew",
        file.display()
    ))
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
