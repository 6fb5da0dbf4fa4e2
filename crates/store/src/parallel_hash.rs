//! BLAKE3 of memory that is already there, by a few threads that end before the call returns.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use blake3::Hasher;
use blake3::hazmat::{ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};

/// Below this, threads cost more than they bring.
const PIECE: usize = 8 << 20;
const MOST_THREADS: usize = 8;

/// The same value as `blake3::hash`.
pub fn hash(data: &[u8]) -> blake3::Hash {
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get().min(MOST_THREADS));
    if data.len() < 2 * PIECE || threads == 1 {
        return blake3::hash(data);
    }
    let mut pieces = Vec::new();
    split(data, 0, &mut pieces);
    let values = hash_pieces(data, &pieces, threads);
    let mut next = values.into_iter();
    let left = left_subtree_len(data.len() as u64) as usize;
    let left_value = merge(left, &mut next);
    let right_value = merge(data.len() - left, &mut next);
    merge_subtrees_root(&left_value, &right_value, Mode::Hash)
}

/// Subtrees in order: offset and length.
fn split(data: &[u8], offset: usize, pieces: &mut Vec<(usize, usize)>) {
    if is_leaf(data.len()) && offset + data.len() > 0 {
        pieces.push((offset, data.len()));
        return;
    }
    let left = left_subtree_len(data.len() as u64) as usize;
    split(&data[..left], offset, pieces);
    split(&data[left..], offset + left, pieces);
}

fn is_leaf(length: usize) -> bool {
    length <= PIECE
}

fn hash_pieces(data: &[u8], pieces: &[(usize, usize)], threads: usize) -> Vec<ChainingValue> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(vec![ChainingValue::default(); pieces.len()]);
    std::thread::scope(|scope| {
        let work = || {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(&(offset, length)) = pieces.get(index) else { return };
                let value = Hasher::new()
                    .set_input_offset(offset as u64)
                    .update(&data[offset..offset + length])
                    .finalize_non_root();
                done.lock().unwrap_or_else(PoisonError::into_inner)[index] = value;
            }
        };
        for _ in 1..threads {
            // Without a second thread (a process limit) the caller does all pieces.
            let _ = std::thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
    done.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn merge(length: usize, next: &mut impl Iterator<Item = ChainingValue>) -> ChainingValue {
    if is_leaf(length) {
        return next.next().expect("one value per piece");
    }
    let left = left_subtree_len(length as u64) as usize;
    let left_value = merge(left, next);
    let right_value = merge(length - left, next);
    merge_subtrees_non_root(&left_value, &right_value, Mode::Hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_plain_hash() {
        let data: Vec<u8> = (0..40_000_123_u64).map(|i| (i * i >> 3) as u8).collect();
        for length in [0, 1, PIECE, 2 * PIECE - 1, 2 * PIECE, 2 * PIECE + 1, 3 * PIECE + 5, data.len()] {
            assert_eq!(hash(&data[..length]), blake3::hash(&data[..length]), "{length} bytes");
        }
    }
}
