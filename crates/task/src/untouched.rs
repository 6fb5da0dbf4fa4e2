//! Whether private mapped memory was written to since it was mapped, asked of the kernel: a page
//! that was written to is no longer backed by its file.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// Bits of an entry of `/proc/self/pagemap`.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const FILE_BACKED: u64 = 1 << 61;
const PAGES_AT_ONCE: usize = 8192;

/// `true` only if it is certain that no page of `[start, start + length)` was written to.
pub fn is_untouched(start: usize, length: usize) -> bool {
    if !cfg!(target_os = "linux") {
        return false;
    }
    File::open("/proc/self/pagemap").is_ok_and(|map| pages_are_clean(&map, start, length))
}

fn pages_are_clean(map: &File, start: usize, length: usize) -> bool {
    let page = rustix::param::page_size();
    let mut next = start / page;
    let end = (start + length).div_ceil(page);
    let mut buffer = vec![0; PAGES_AT_ONCE.min(end - next) * 8];
    while next < end {
        let count = PAGES_AT_ONCE.min(end - next);
        let part = &mut buffer[..count * 8];
        if map.read_exact_at(part, next as u64 * 8).is_err() {
            return false;
        }
        if !part.as_chunks::<8>().0.iter().all(|entry| is_clean(u64::from_ne_bytes(*entry))) {
            return false;
        }
        next += count;
    }
    true
}

fn is_clean(entry: u64) -> bool {
    if entry & SWAPPED != 0 {
        return false;
    }
    entry & PRESENT == 0 || entry & FILE_BACKED != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn tells_read_from_written() {
        let mut file = tempfile::tempfile().expect("temporary file");
        file.write_all(&vec![7; 1 << 20]).expect("write");
        // SAFETY: nobody else has the file.
        let mut map = unsafe { memmap2::MmapOptions::new().map_copy(&file) }.expect("map");
        let start = map.as_ptr() as usize;
        assert!(is_untouched(start, map.len()));
        assert_eq!(map.iter().map(|&byte| u64::from(byte)).sum::<u64>(), 7 << 20);
        assert!(is_untouched(start, map.len()), "reading does not count");
        map[70_000] = 7;
        assert!(!is_untouched(start, map.len()), "writing counts, even of the same value");
        assert!(is_untouched(start, 65_536), "other pages stay untouched");
    }
}
