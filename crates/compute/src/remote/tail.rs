//! The last lines of a container that died before it could send them: the node's own log has them.
//! What the store lacks of them is shown, and kept in the store with the rest.

use std::collections::HashMap;

use ferroflow_core::id::AttemptId;
use ferroflow_core::log_segment::{RunKeys, SegmentReader, segment_of};
use ferroflow_core::port::{EventSink, LayerEvent, LogLine, NodeLine, ObjectAccess, ObjectError, Stream};
use ferroflow_core::task::Millis;

/// Lines are compared that are at most so much older than the last one in the store, milliseconds.
/// The node writes a line down a little later than the container does.
const OVERLAP: Millis = 2_000;

/// Adds what the store lacks of the lines that the node has.
pub async fn complete(
    keys: &RunKeys,
    objects: &dyn ObjectAccess,
    events: &dyn EventSink,
    (step, id): (&str, AttemptId),
    of_node: &[NodeLine],
) -> Result<(), ObjectError> {
    let listed = objects.list(&keys.log_prefix(step, id)).await?;
    let numbers: Vec<u32> = listed.iter().filter_map(segment_of).map(|(_, number)| number).collect();
    let mut reader = SegmentReader::default();
    let (mut stored, mut partial) = (Vec::new(), Vec::new());
    // A segment is much longer than what a task prints in the time that is compared.
    for number in numbers.iter().rev().take(2).rev() {
        let data = objects.get_from(&keys.segment(step, id, *number), 0).await?;
        reader.feed(&data.unwrap_or_default(), &mut stored);
    }
    reader.finish(&mut partial);
    let missing = missing(&stored, &partial, of_node);
    if missing.is_empty() {
        return Ok(());
    }
    let mut segment = Vec::new();
    for line in &missing {
        let length = line.rest.len() + 1;
        segment.extend(format!("{} {} {length} ", line.at, letter(line.stream)).into_bytes());
        segment.extend_from_slice(&line.rest);
        segment.extend_from_slice(b"\n\n");
        let lines = vec![line.whole.clone()];
        events.send(LayerEvent::Log { id, stream: line.stream, at: line.at, lines });
    }
    let next = numbers.last().map_or(0, |last| last + 1);
    objects.put(&keys.segment(step, id, next), segment, false).await.map(drop)
}

fn letter(stream: Stream) -> char {
    match stream {
        Stream::Stdout => 'o',
        Stream::Stderr => 'e',
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Missing {
    at: Millis,
    stream: Stream,
    whole: Vec<u8>,
    /// What the store lacks of it.
    rest: Vec<u8>,
}

/// Lines of the node that are not in the store, in their order. The node does not say of which
/// stream they are: stdout, unless the store has the beginning of one.
fn missing(stored: &[LogLine], partial: &[LogLine], of_node: &[NodeLine]) -> Vec<Missing> {
    let last = stored.iter().chain(partial).map(|line| line.at).max();
    let since = last.map_or(Millis::MIN, |last| last - OVERLAP);
    let mut known: HashMap<&[u8], usize> = HashMap::new();
    for line in stored.iter().filter(|line| line.at >= since - OVERLAP) {
        *known.entry(&line.bytes).or_default() += 1;
    }
    let mut begun: Vec<&LogLine> = partial.iter().filter(|line| !line.bytes.is_empty()).collect();
    let mut found = Vec::new();
    for line in of_node.iter().filter(|line| line.at >= since) {
        if let Some(count) = known.get_mut(line.bytes.as_slice()).filter(|count| **count > 0) {
            *count -= 1;
            continue;
        }
        let start = begun.iter().position(|part| line.bytes.starts_with(&part.bytes)).map(|place| begun.remove(place));
        let (stream, had) = start.map_or((Stream::Stdout, 0), |part| (part.stream, part.bytes.len()));
        if had == line.bytes.len() && had > 0 {
            continue; // it is there, only without an end
        }
        found.push(Missing { at: line.at, stream, whole: line.bytes.clone(), rest: line.bytes[had..].to_vec() });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(at: Millis, stream: Stream, text: &str) -> LogLine {
        LogLine { stream, at, bytes: text.as_bytes().to_vec() }
    }

    fn of_node(lines: &[(Millis, &str)]) -> Vec<NodeLine> {
        lines.iter().map(|(at, text)| NodeLine { at: *at, bytes: text.as_bytes().to_vec() }).collect()
    }

    fn texts(found: &[Missing]) -> Vec<(&str, &str)> {
        let text = |bytes| std::str::from_utf8(bytes).expect("text");
        found.iter().map(|line| (text(&line.whole), text(&line.rest))).collect()
    }

    #[test]
    fn only_what_the_store_lacks_is_added() {
        let known = [stored(10_000, Stream::Stdout, "a"), stored(10_000, Stream::Stdout, "tick")];
        let node = of_node(&[(10_001, "a"), (10_001, "tick"), (10_500, "tick"), (10_600, "b")]);
        assert_eq!(texts(&missing(&known, &[], &node)), [("tick", "tick"), ("b", "b")]);
        assert_eq!(texts(&missing(&[], &[], &node)).len(), 4);
    }

    #[test]
    fn old_lines_of_a_long_log_are_not_looked_at() {
        let known = [stored(100_000, Stream::Stdout, "new")];
        let node = of_node(&[(5_000, "old"), (100_001, "new"), (100_300, "last")]);
        assert_eq!(texts(&missing(&known, &[], &node)), [("last", "last")]);
    }

    #[test]
    fn a_line_of_which_the_store_has_the_beginning_is_completed() {
        let partial = [stored(10_000, Stream::Stderr, "half a ")];
        let found = missing(&[], &partial, &of_node(&[(10_001, "half a line")]));
        assert_eq!(texts(&found), [("half a line", "line")]);
        assert_eq!(found[0].stream, Stream::Stderr);
        assert_eq!(texts(&missing(&[], &partial, &of_node(&[(10_001, "half a ")]))), []);
    }
}
