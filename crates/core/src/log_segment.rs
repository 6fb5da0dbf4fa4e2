//! What a remote task printed, on its way through the artifact store: the keys and the format of
//! log segments. Pure; who writes, lists and reads them is elsewhere.
//!
//! The supervisor in the container puts what the task printed into segments
//! `<flow>/runs/[<scope>/]<run>/<step>/<task>.<attempt>.log/<number>`. A segment grows until it is full (each
//! flush writes it anew, longer), then the next begins, so a reader only needs what is beyond the
//! length it knows. A segment is a sequence of chunks `<milliseconds> <o, e or x> <length> <bytes>\n`;
//! the bytes are a stream's as they came, lines and parts of lines, so that the last words of a
//! killed task need no line end. `x` is the last chunk: how the task ended, as in the termination
//! message, for an engine that sees the store before it hears from the layer.

use crate::id::{AttemptId, RunId, TaskId};
use crate::lines::LineSplitter;
use crate::port::{LogLine, ObjectEntry, Stream};
use crate::task::{Millis, StoreLocation};

/// Names of a run's objects that only remote tasks have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunKeys {
    folder: String,
}

impl RunKeys {
    /// As in the datastore: its option `scope` keeps apart runs of several metadata stores in one
    /// bucket, which count run ids each by itself.
    pub fn new(flow: &str, run: &RunId, store: &StoreLocation) -> Self {
        let scope = store.options.get("scope").map(|scope| format!("{scope}/")).unwrap_or_default();
        Self { folder: format!("{flow}/runs/{scope}{run}") }
    }

    /// Prefix of everything a step's attempts keep in the store.
    pub fn step_prefix(&self, step: &str) -> String {
        format!("{}/{step}/", self.folder)
    }

    /// Prefix of an attempt's segments and of what its supervisor says at the end.
    pub fn log_prefix(&self, step: &str, id: AttemptId) -> String {
        format!("{}/{step}/{id}.log/", self.folder)
    }

    pub fn segment(&self, step: &str, id: AttemptId, number: u32) -> String {
        format!("{}{number:06}", self.log_prefix(step, id))
    }

    /// Somebody ended the attempt by hand; for layers that may not say so themselves.
    pub fn killed(&self, step: &str, id: AttemptId) -> String {
        format!("{}killed", self.log_prefix(step, id))
    }

    /// A task's spec that is too long for a variable.
    pub fn spec(&self, step: &str, id: AttemptId) -> String {
        format!("{}/{step}/{id}.spec", self.folder)
    }

    /// What the engine writes anew while it lives.
    pub fn lease(&self) -> String {
        format!("{}/lease", self.folder)
    }
}

/// The attempt and the number of a segment, if that is what the object is.
pub fn segment_of(entry: &ObjectEntry) -> Option<(AttemptId, u32)> {
    let (folder, number) = entry.key.rsplit_once('/')?;
    let name = folder.rsplit('/').next()?.strip_suffix(".log")?;
    let (task, attempt) = name.split_once('.')?;
    let id = AttemptId { task: TaskId(task.parse().ok()?), attempt: attempt.parse().ok()? };
    Some((id, number.parse().ok()?))
}

/// Where an object is that a task waits for, if the object is its question to the engine: a client
/// in a container asks in `<its log>/ask-<name>` and reads `<its log>/answer-<name>`.
pub fn answer_key(entry: &ObjectEntry) -> Option<String> {
    let (folder, name) = entry.key.rsplit_once('/')?;
    let name = name.strip_prefix("ask-").filter(|_| folder.ends_with(".log"))?;
    Some(format!("{folder}/answer-{name}"))
}

/// Puts the lines of one attempt together from its segments, fed in order.
#[derive(Debug, Default)]
pub struct SegmentReader {
    /// The beginning of a chunk whose rest has not been read.
    partial: Vec<u8>,
    splitters: [LineSplitter; 2],
    last: Millis,
    ending: Option<String>,
}

impl SegmentReader {
    /// Takes the next bytes of the segments and appends the lines they complete.
    pub fn feed(&mut self, bytes: &[u8], lines: &mut Vec<LogLine>) {
        self.partial.extend_from_slice(bytes);
        let mut used = 0;
        while let Some((chunk, length)) = next_chunk(&self.partial[used..]) {
            self.last = chunk.at;
            used += length;
            let Some(stream) = chunk.stream else {
                self.ending = Some(String::from_utf8_lossy(chunk.bytes).into_owned());
                continue;
            };
            let mut found = Vec::new();
            self.splitters[index(stream)].feed(chunk.bytes, chunk.at, &mut found);
            lines.extend(found.into_iter().map(|bytes| LogLine { stream, at: chunk.at, bytes }));
        }
        self.partial.drain(..used);
    }

    /// How the task ended, once the last chunk was fed; given once.
    pub fn take_ending(&mut self) -> Option<String> {
        self.ending.take()
    }

    /// No more comes: what stands there without a line end is a line.
    pub fn finish(&mut self, lines: &mut Vec<LogLine>) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let mut found = Vec::new();
            self.splitters[index(stream)].finish(&mut found);
            lines.extend(found.into_iter().map(|bytes| LogLine { stream, at: self.last, bytes }));
        }
    }
}

fn index(stream: Stream) -> usize {
    match stream {
        Stream::Stdout => 0,
        Stream::Stderr => 1,
    }
}

struct Chunk<'a> {
    /// `None` for the ending.
    stream: Option<Stream>,
    at: Millis,
    bytes: &'a [u8],
}

/// Longest `<milliseconds> <letter> <length> ` there is.
const LONGEST_HEADER: usize = 48;

/// The first chunk and its length with header and end; `None` when it is not there in full.
fn next_chunk(data: &[u8]) -> Option<(Chunk<'_>, usize)> {
    let head = &data[..data.len().min(LONGEST_HEADER)];
    let mut fields = head.splitn(4, |&byte| byte == b' ');
    let (at, letter, length) = (fields.next()?, fields.next()?, fields.next()?);
    fields.next()?;
    let header = at.len() + letter.len() + length.len() + 3;
    let stream = match letter {
        b"x" => None,
        b"e" => Some(Stream::Stderr),
        _ => Some(Stream::Stdout),
    };
    let end = header.checked_add(usize::try_from(number(length)?).ok()?)?;
    let bytes = data.get(header..end)?;
    data.get(end)?;
    Some((Chunk { stream, at: number(at)?, bytes }, end + 1))
}

fn number(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pieces: &[&[u8]]) -> Vec<(Stream, Millis, String)> {
        let (mut reader, mut lines) = (SegmentReader::default(), Vec::new());
        for piece in pieces {
            reader.feed(piece, &mut lines);
        }
        reader.finish(&mut lines);
        lines
            .into_iter()
            .map(|line| (line.stream, line.at, String::from_utf8_lossy(&line.bytes).into_owned()))
            .collect()
    }

    #[test]
    fn lines_do_not_depend_on_where_segments_and_reads_end() {
        let data = b"5 o 8 one\ntwo \n7 e 4 bad\n\n9 o 6 three\n\n11 o 3 end\n";
        let expected = [
            (Stream::Stdout, 5, "one".to_owned()),
            (Stream::Stderr, 7, "bad".to_owned()),
            (Stream::Stdout, 9, "two three".to_owned()),
            (Stream::Stdout, 11, "end".to_owned()),
        ];
        for size in 1..=data.len() {
            let pieces: Vec<&[u8]> = data.chunks(size).collect();
            assert_eq!(read(&pieces), expected, "pieces of {size}");
        }
    }

    #[test]
    fn the_ending_is_no_line() {
        let (mut reader, mut lines) = (SegmentReader::default(), Vec::new());
        reader.feed(b"5 o 4 one\n\n6 x 9 {\"a\":\n1}\n", &mut lines);
        assert_eq!(reader.take_ending(), None, "it is not there in full");
        reader.feed(b"\n", &mut lines);
        assert_eq!(reader.take_ending().as_deref(), Some("{\"a\":\n1}\n"));
        assert_eq!((lines.len(), reader.take_ending()), (1, None));
    }

    #[test]
    fn keys_come_back() {
        let id = AttemptId { task: TaskId(12), attempt: 3 };
        let mut store = StoreLocation { kind: "s3".into(), root: "s3://b".into(), options: Default::default() };
        let key = RunKeys::new("F", &RunId::from("7"), &store).segment("train", id, 2);
        assert_eq!(key, "F/runs/7/train/12.3.log/000002");
        assert_eq!(segment_of(&ObjectEntry { key, size: 1 }), Some((id, 2)));
        for other in ["F/runs/7/train/12.3.pack", "F/runs/7/train/12.3.log", "F/runs/7/train/12.3.log/end"] {
            assert_eq!(segment_of(&ObjectEntry { key: other.to_owned(), size: 1 }), None, "{other}");
        }
        store.options.insert("scope".into(), "laptop".into());
        let scoped = RunKeys::new("F", &RunId::from("7"), &store).segment("train", id, 2);
        assert_eq!(scoped, "F/runs/laptop/7/train/12.3.log/000002");
    }
}
