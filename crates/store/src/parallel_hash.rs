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
    hash_parts(&[data])
}

/// `blake3::hash` of the parts one after the other.
pub fn hash_parts(parts: &[&[u8]]) -> blake3::Hash {
    let length = parts.iter().map(|part| part.len()).sum();
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get().min(MOST_THREADS));
    if length < 2 * PIECE || threads == 1 {
        let mut hasher = Hasher::new();
        for part in parts {
            hasher.update(part);
        }
        return hasher.finalize();
    }
    let mut pieces = Vec::new();
    split(0, length, &mut pieces);
    let mut values = hash_pieces(parts, &pieces, threads).into_iter();
    let left = left_subtree_len(length as u64) as usize;
    let left_value = merge(left, &mut values);
    let right_value = merge(length - left, &mut values);
    merge_subtrees_root(&left_value, &right_value, Mode::Hash)
}

/// Subtrees in order: offset and length.
fn split(offset: usize, length: usize, pieces: &mut Vec<(usize, usize)>) {
    if length <= PIECE {
        pieces.push((offset, length));
        return;
    }
    let left = left_subtree_len(length as u64) as usize;
    split(offset, left, pieces);
    split(offset + left, length - left, pieces);
}

fn hash_pieces(parts: &[&[u8]], pieces: &[(usize, usize)], threads: usize) -> Vec<ChainingValue> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(vec![ChainingValue::default(); pieces.len()]);
    std::thread::scope(|scope| {
        let work = || {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(&(offset, length)) = pieces.get(index) else { return };
                let value = hash_piece(parts, offset, length);
                done.lock().unwrap_or_else(PoisonError::into_inner)[index] = value;
            }
        };
        for _ in 1..threads.min(pieces.len()) {
            // Without a second thread (a process limit) the caller does all pieces.
            let _ = std::thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
    done.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn hash_piece(parts: &[&[u8]], offset: usize, length: usize) -> ChainingValue {
    let mut hasher = Hasher::new();
    hasher.set_input_offset(offset as u64);
    let mut start = 0;
    for part in parts {
        let from = offset.clamp(start, start + part.len());
        let to = (offset + length).clamp(start, start + part.len());
        hasher.update(&part[from - start..to - start]);
        start += part.len();
    }
    hasher.finalize_non_root()
}

fn merge(length: usize, next: &mut impl Iterator<Item = ChainingValue>) -> ChainingValue {
    if length <= PIECE {
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
        let data: Vec<u8> = (0..40_000_123_u64).map(|i| ((i * i) >> 3) as u8).collect();
        for length in [0, 1, PIECE, 2 * PIECE - 1, 2 * PIECE, 2 * PIECE + 1, 3 * PIECE + 5, data.len()] {
            let whole = &data[..length];
            let expected = blake3::hash(whole);
            assert_eq!(hash(whole), expected, "{length} bytes");
            let (first, rest) = whole.split_at(length / 3);
            let (second, third) = rest.split_at(rest.len() / 5);
            assert_eq!(hash_parts(&[first, &[], second, third]), expected, "{length} bytes in parts");
        }
    }
}
