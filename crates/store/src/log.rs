//! Logs: one append-only file per attempt that printed anything, both streams in it.
//!
//! A line is `<milliseconds> <o or e> <length> <bytes>\n`: readable with any pager, and safe for
//! any bytes because of the length. A line that was cut off by a kill is read as far as it goes.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ferroflow_core::port::{LogLine, LogPlace, LogStore, MetadataError, Stream};
use ferroflow_core::task::Millis;

use crate::error::{StoreError, io_reason};
use crate::location::{Datastore, create_in_folder};

/// Files kept open between appends.
const MOST_OPEN: usize = 256;

/// Logs under a datastore root.
#[derive(Debug)]
pub struct FileLogStore {
    store: Datastore,
    open: Mutex<OpenFiles>,
}

#[derive(Debug, Default)]
struct OpenFiles {
    files: HashMap<LogPlace, OpenFile>,
    clock: u64,
}

#[derive(Debug)]
struct OpenFile {
    file: File,
    path: PathBuf,
    length: u64,
    last_used: u64,
}

impl FileLogStore {
    pub fn new(store: Datastore) -> Self {
        Self { store, open: Mutex::new(OpenFiles::default()) }
    }
}

impl LogStore for FileLogStore {
    fn append(&self, place: &LogPlace, stream: Stream, at: Millis, lines: &[Vec<u8>]) -> Result<(), MetadataError> {
        let data = encode(stream, at, lines);
        if data.is_empty() {
            return Ok(());
        }
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.clock += 1;
        let clock = open.clock;
        if !open.files.contains_key(place) {
            open.make_room();
            let file = open_for_append(self.store.log_path(place))?;
            open.files.insert(place.clone(), file);
        }
        let entry = open.files.get_mut(place).expect("just opened");
        entry.last_used = clock;
        entry.append(&data)
    }

    fn close(&self, place: &LogPlace) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).files.remove(place);
    }

    fn replace(&self, place: &LogPlace, lines: &[LogLine]) -> Result<(), MetadataError> {
        let path = self.store.log_path(place);
        let data = encode_all(lines);
        let temporary = path.with_extension(format!("log.{}", std::process::id()));
        fs::write(&temporary, data)
            .and_then(|()| fs::rename(&temporary, &path))
            .map_err(|error| unavailable("write", &path, &error))
    }

    fn read(&self, place: &LogPlace) -> Result<Vec<LogLine>, MetadataError> {
        let path = self.store.log_path(place);
        match fs::read(&path) {
            Ok(data) => Ok(decode(&data)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(unavailable("read", &path, &error)),
        }
    }
}

impl OpenFiles {
    fn make_room(&mut self) {
        if self.files.len() < MOST_OPEN {
            return;
        }
        let oldest = self.files.iter().min_by_key(|(_, entry)| entry.last_used).map(|(place, _)| place.clone());
        if let Some(place) = oldest {
            self.files.remove(&place);
        }
    }
}

fn open_for_append(path: PathBuf) -> Result<OpenFile, MetadataError> {
    let file = create_in_folder(&path, || OpenOptions::new().append(true).create(true).open(&path))
        .map_err(|error: StoreError| MetadataError::Unavailable(error.to_string()))?;
    let length = file.metadata().map_err(|error| unavailable("write", &path, &error))?.len();
    Ok(OpenFile { file, path, length, last_used: 0 })
}

impl OpenFile {
    fn append(&mut self, data: &[u8]) -> Result<(), MetadataError> {
        if let Err(error) = self.file.write_all(data) {
            // Half a line in the middle would spoil what is appended once there is room again.
            let _ = self.file.set_len(self.length);
            return Err(unavailable("write", &self.path, &error));
        }
        self.length += data.len() as u64;
        Ok(())
    }
}

fn unavailable(doing: &str, path: &Path, error: &std::io::Error) -> MetadataError {
    MetadataError::Unavailable(format!("cannot {doing} the log `{}`: {}", path.display(), io_reason(error)))
}

pub(crate) fn encode_all(lines: &[LogLine]) -> Vec<u8> {
    lines.iter().flat_map(|line| encode(line.stream, line.at, std::slice::from_ref(&line.bytes))).collect()
}

fn encode(stream: Stream, at: Millis, lines: &[Vec<u8>]) -> Vec<u8> {
    let letter = match stream {
        Stream::Stdout => 'o',
        Stream::Stderr => 'e',
    };
    let mut data = Vec::with_capacity(lines.iter().map(|line| line.len() + 24).sum());
    for line in lines {
        write!(data, "{at} {letter} {} ", line.len()).expect("writing to memory");
        data.extend_from_slice(line);
        data.push(b'\n');
    }
    data
}

pub(crate) fn decode(mut data: &[u8]) -> Vec<LogLine> {
    let mut lines: Vec<LogLine> = Vec::new();
    while !data.is_empty() {
        match decode_line(data) {
            Some((line, rest)) => {
                lines.push(line);
                data = rest;
            }
            None => {
                let (line, rest) = salvage(data, &lines);
                lines.extend(line);
                data = rest;
            }
        }
    }
    lines
}

fn decode_line(data: &[u8]) -> Option<(LogLine, &[u8])> {
    let mut fields = data.splitn(4, |&byte| byte == b' ');
    let at = number(fields.next()?)?;
    let stream = match fields.next()? {
        b"o" => Stream::Stdout,
        b"e" => Stream::Stderr,
        _ => return None,
    };
    let length = usize::try_from(number(fields.next()?)?).ok()?;
    let rest = fields.next()?;
    if rest.len() <= length {
        // Cut off: what there is of the last line.
        return Some((LogLine { stream, at, bytes: rest.to_vec() }, &[]));
    }
    let (bytes, end) = rest.split_at(length);
    let end = end.strip_prefix(b"\n")?;
    Some((LogLine { stream, at, bytes: bytes.to_vec() }, end))
}

fn number(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Bytes that are no line of ours, up to the next line end: shown as they are. A header cut off
/// at the end of the file carries nothing.
fn salvage<'a>(data: &'a [u8], before: &[LogLine]) -> (Option<LogLine>, &'a [u8]) {
    let Some(end) = data.iter().position(|&byte| byte == b'\n') else { return (None, &[]) };
    let at = before.last().map_or(0, |line| line.at);
    (Some(LogLine { stream: Stream::Stderr, at, bytes: data[..end].to_vec() }), &data[end + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferroflow_core::id::{AttemptId, RunId, TaskId};

    fn place(task: u64) -> LogPlace {
        let id = AttemptId { task: TaskId(task), attempt: 0 };
        LogPlace { flow: "F".into(), run: RunId::from("1"), step: "s".into(), id }
    }

    fn line(stream: Stream, at: Millis, bytes: &[u8]) -> LogLine {
        LogLine { stream, at, bytes: bytes.to_vec() }
    }

    #[test]
    fn lines_come_back_in_order_whatever_their_bytes() {
        let root = tempfile::tempdir().expect("folder");
        let logs = FileLogStore::new(Datastore::new(root.path()));
        let odd = vec![b"".to_vec(), b"1 o 5 x".to_vec(), vec![0, 255, 13], b"new\nline".to_vec()];
        logs.append(&place(1), Stream::Stdout, 10, &odd).expect("append");
        logs.append(&place(1), Stream::Stderr, 11, &[b"last".to_vec()]).expect("append");
        let mut expected: Vec<LogLine> = odd.iter().map(|bytes| line(Stream::Stdout, 10, bytes)).collect();
        expected.push(line(Stream::Stderr, 11, b"last"));
        assert_eq!(logs.read(&place(1)).expect("read"), expected);
        assert_eq!(logs.read(&place(2)).expect("read"), [], "a silent task has an empty log");
        assert_eq!(fs::read_dir(root.path().join("F/runs/1/s")).expect("list").count(), 1);
    }

    #[test]
    fn a_log_cut_off_anywhere_keeps_every_whole_line() {
        let data = encode(Stream::Stdout, 5, &[b"one".to_vec(), b"two".to_vec(), b"three".to_vec()]);
        let ends = [data.len() - 10 - 8, data.len() - 11, data.len()];
        for cut in 0..=data.len() {
            let whole = ends.iter().filter(|end| **end <= cut).count();
            let lines = decode(&data[..cut]);
            let expected: Vec<&[u8]> = [&b"one"[..], b"two", b"three"][..whole.min(3)].to_vec();
            let found: Vec<&[u8]> = lines.iter().take(expected.len()).map(|line| line.bytes.as_slice()).collect();
            assert_eq!(found, expected, "cut at {cut}");
            assert!(lines.len() <= expected.len() + 1, "cut at {cut}");
        }
    }

    #[test]
    fn garbage_is_shown_and_the_lines_after_it_survive() {
        let mut data = b"what is this\n".to_vec();
        data.extend(encode(Stream::Stdout, 7, &[b"fine".to_vec()]));
        assert_eq!(decode(&data), [line(Stream::Stderr, 0, b"what is this"), line(Stream::Stdout, 7, b"fine")]);
    }

    #[test]
    fn more_logs_than_open_files() {
        let root = tempfile::tempdir().expect("folder");
        let logs = FileLogStore::new(Datastore::new(root.path()));
        for round in 0..2 {
            for task in 0..MOST_OPEN as u64 + 40 {
                logs.append(&place(task), Stream::Stdout, round, &[b"x".to_vec()]).expect("append");
            }
        }
        assert!(logs.open.lock().expect("lock").files.len() <= MOST_OPEN);
        for task in 0..MOST_OPEN as u64 + 40 {
            assert_eq!(logs.read(&place(task)).expect("read").len(), 2);
        }
        logs.close(&place(0));
        assert_eq!(logs.read(&place(0)).expect("read").len(), 2);
    }
}
