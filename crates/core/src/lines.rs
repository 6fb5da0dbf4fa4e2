//! Cuts a task's output into lines. Pure: bytes and the time come in, lines go out.

use crate::task::Millis;

/// A line without an end is cut here, so that output without newlines cannot fill our memory.
pub const LONGEST_LINE: usize = 1 << 20;
/// A progress bar rewrites its line with `\r`; while it has no `\n` it is shown this often.
const PROGRESS_EVERY: Millis = 5_000;

/// The unfinished line of one stream.
///
/// `\n` and `\r\n` end a line. Text before a lone `\r` was overwritten on a terminal, so of a line
/// that holds some only what was written last is kept: a finished progress bar is one line. While
/// a bar runs, its latest state becomes a line every five seconds.
#[derive(Debug, Default)]
pub struct LineSplitter {
    partial: Vec<u8>,
    last_progress: Option<Millis>,
}

impl LineSplitter {
    /// Takes the next bytes and appends the lines they complete.
    pub fn feed(&mut self, mut bytes: &[u8], now: Millis, lines: &mut Vec<Vec<u8>>) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.take_in(&bytes[..end], lines);
            let line = self.complete();
            lines.push(line);
            bytes = &bytes[end + 1..];
        }
        self.take_in(bytes, lines);
        self.show_progress(now, lines);
    }

    /// What stands there without a line end, when no more bytes come.
    pub fn finish(&mut self, lines: &mut Vec<Vec<u8>>) {
        if !self.partial.is_empty() {
            let line = self.complete();
            lines.push(line);
        }
    }

    fn take_in(&mut self, mut bytes: &[u8], lines: &mut Vec<Vec<u8>>) {
        while self.partial.len() + bytes.len() > LONGEST_LINE {
            let room = LONGEST_LINE - self.partial.len();
            self.partial.extend_from_slice(&bytes[..room]);
            bytes = &bytes[room..];
            let rest = self.partial.split_off(whole_letters(&self.partial));
            lines.push(std::mem::replace(&mut self.partial, rest));
        }
        self.partial.extend_from_slice(bytes);
    }

    fn complete(&mut self) -> Vec<u8> {
        self.last_progress = None;
        let mut line = std::mem::take(&mut self.partial);
        line.truncate(without_returns(&line));
        if let Some(overwritten) = line.iter().rposition(|byte| *byte == b'\r') {
            line.drain(..=overwritten);
        }
        line
    }

    fn show_progress(&mut self, now: Millis, lines: &mut Vec<Vec<u8>>) {
        // A `\r` at the very end may be half of `\r\n`; it counts once something follows it.
        let Some(last) = self.partial[..without_returns(&self.partial)].iter().rposition(|byte| *byte == b'\r') else {
            return;
        };
        let rest = self.partial.split_off(last + 1);
        let overwritten = std::mem::replace(&mut self.partial, rest);
        let due = self.last_progress.is_none_or(|shown| now - shown >= PROGRESS_EVERY);
        let end = without_returns(&overwritten);
        if due && end > 0 {
            let start = overwritten[..end].iter().rposition(|byte| *byte == b'\r').map_or(0, |at| at + 1);
            lines.push(overwritten[start..end].to_vec());
            self.last_progress = Some(now);
        }
    }
}

/// Length without the `\r`s at the end.
fn without_returns(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|byte| *byte != b'\r').map_or(0, |last| last + 1)
}

/// Length without a UTF-8 letter that is cut in two at the end.
fn whole_letters(bytes: &[u8]) -> usize {
    let tail = bytes.len().saturating_sub(3);
    for at in (tail..bytes.len()).rev() {
        let needed = match bytes[at] {
            0xC0..=0xDF => 2,
            0xE0..=0xEF => 3,
            0xF0..=0xF7 => 4,
            0x80..=0xBF => continue,
            _ => 1,
        };
        return if at + needed > bytes.len() { at } else { bytes.len() };
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_of(pieces: &[&[u8]]) -> Vec<String> {
        let (mut splitter, mut lines) = (LineSplitter::default(), Vec::new());
        for piece in pieces {
            splitter.feed(piece, 0, &mut lines);
        }
        splitter.finish(&mut lines);
        lines.into_iter().map(|line| String::from_utf8_lossy(&line).into_owned()).collect()
    }

    #[test]
    fn lines_do_not_depend_on_how_the_bytes_were_cut() {
        let text = b"one\n\n  two \r\nthree\r\r\n*four*\xff\nlast";
        let expected = ["one", "", "  two ", "three", "*four*\u{fffd}", "last"];
        for size in 1..=text.len() {
            let pieces: Vec<&[u8]> = text.chunks(size).collect();
            assert_eq!(lines_of(&pieces), expected, "pieces of {size}");
        }
    }

    #[test]
    fn nothing_is_no_line() {
        assert!(lines_of(&[]).is_empty());
        assert!(lines_of(&[b""]).is_empty());
        assert_eq!(lines_of(&[b"\n"]), [""]);
    }

    #[test]
    fn a_finished_progress_bar_in_one_piece_is_one_line() {
        assert_eq!(lines_of(&[b"\r 10%\r 50%\r100%\nafter\n"]), ["100%", "after"]);
    }

    #[test]
    fn a_running_progress_bar_shows_every_five_seconds_and_at_its_end() {
        let (mut splitter, mut lines) = (LineSplitter::default(), Vec::new());
        for second in 0..12 {
            splitter.feed(format!("\r{second} of 12").as_bytes(), second * 1_000, &mut lines);
        }
        splitter.feed(b"\r12 of 12\n", 12_000, &mut lines);
        let text: Vec<_> = lines.iter().map(|line| String::from_utf8_lossy(line)).collect();
        assert_eq!(text, ["0 of 12", "5 of 12", "10 of 12", "12 of 12"]);
        assert!(splitter.partial.is_empty());
    }

    #[test]
    fn an_endless_line_is_cut_and_memory_stays_bounded() {
        let (mut splitter, mut lines) = (LineSplitter::default(), Vec::new());
        let mut total = 0;
        for _ in 0..100 {
            splitter.feed(&[b'x'; 65_536], 0, &mut lines);
            assert!(splitter.partial.capacity() <= 2 * LONGEST_LINE);
            total += lines.drain(..).map(|line| line.len()).sum::<usize>();
        }
        assert_eq!(total + splitter.partial.len(), 100 * 65_536);
    }

    #[test]
    fn a_cut_does_not_split_a_letter() {
        let text = format!("x{}", "€".repeat(LONGEST_LINE));
        let lines = lines_of(&[text.as_bytes()]);
        assert!(lines.len() >= 3);
        assert!(lines.iter().all(|line| !line.contains('\u{fffd}')));
        assert_eq!(lines.concat(), text);
    }
}
