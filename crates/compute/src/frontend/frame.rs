//! Frames of the front-end protocol: a little-endian `u32` length, that many bytes of JSON, and
//! descriptors that travel with the first byte. Bytes only; who says what is `wire`'s matter.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

/// Longest frame either side accepts.
pub const LONGEST_FRAME: usize = 1 << 30;
const HEADER: usize = 4;
/// Descriptors a frame may carry: stdout, stderr, control.
const MOST_DESCRIPTORS: usize = 3;
/// Memory is taken for a frame as it arrives, not as its header claims.
const GROWTH: usize = 1 << 20;
const FIRST_READ: usize = 4 << 10;

/// What is wrong with a frame or its socket. A retry helps with none of these.
#[derive(Debug, thiserror::Error)]
pub enum FrameFault {
    #[error("a message of {length} bytes is longer than the {LONGEST_FRAME} bytes (1 GiB) that one message may have")]
    TooLong { length: usize },
    #[error("a message is not what the protocol calls for: {0}")]
    Garbled(String),
    #[error("a message was cut short: {have} of {want} bytes came before the other side closed the socket")]
    CutShort { have: usize, want: usize },
    #[error("the socket failed: {0}")]
    Socket(#[from] io::Error),
}

/// A frame on its way out. Its descriptors are closed here as soon as they are sent.
pub struct OutgoingFrame {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl OutgoingFrame {
    pub fn new(message: &impl Serialize, descriptors: Vec<OwnedFd>) -> Result<Self, FrameFault> {
        let mut bytes = Vec::with_capacity(1024);
        bytes.extend_from_slice(&[0; HEADER]);
        serde_json::to_writer(&mut bytes, message).map_err(|error| FrameFault::Garbled(error.to_string()))?;
        let length = bytes.len() - HEADER;
        if length > LONGEST_FRAME {
            return Err(FrameFault::TooLong { length });
        }
        bytes[..HEADER].copy_from_slice(&(length as u32).to_le_bytes());
        Ok(Self { bytes, descriptors })
    }

    /// Writes the frame; descriptors go with its first byte.
    pub async fn send(self, stream: &UnixStream) -> Result<(), FrameFault> {
        let mut sent = 0;
        while sent < self.bytes.len() {
            let borrowed: Vec<BorrowedFd<'_>> =
                if sent == 0 { self.descriptors.iter().map(AsFd::as_fd).collect() } else { Vec::new() };
            let attempt =
                stream.async_io(Interest::WRITABLE, || send_some(stream, &self.bytes[sent..], &borrowed)).await;
            match attempt {
                Ok(count) => sent += count,
                // Too many descriptors of this user are in flight: some receiver is behind.
                Err(error) if Errno::from_io_error(&error) == Some(Errno::TOOMANYREFS) => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

fn send_some(stream: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one message"));
    }
    Ok(sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
}

/// Bytes as they arrive, cut into frames.
#[derive(Default)]
pub struct FrameBuffer {
    data: Vec<u8>,
    start: usize,
}

impl FrameBuffer {
    /// The next complete frame's JSON.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, FrameFault> {
        let Some(length) = self.announced() else { return Ok(None) };
        if length > LONGEST_FRAME {
            return Err(FrameFault::TooLong { length });
        }
        let first = self.start + HEADER;
        if self.data.len() < first + length {
            return Ok(None);
        }
        self.start = first + length;
        Ok(Some(&self.data[first..first + length]))
    }

    fn announced(&self) -> Option<usize> {
        let header = self.data.get(self.start..self.start + HEADER)?;
        Some(u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize)
    }

    /// Room for the next read, behind what is there.
    pub fn room(&mut self) -> &mut Vec<u8> {
        if self.start > 0 {
            self.data.drain(..self.start);
            self.start = 0;
        }
        let missing = self.announced().map_or(0, |length| (HEADER + length).saturating_sub(self.data.len()));
        self.data.reserve(missing.clamp(FIRST_READ, GROWTH));
        &mut self.data
    }

    /// What the other side's EOF means here: nothing, or half a frame.
    pub fn end(&self) -> Result<(), FrameFault> {
        let have = self.data.len() - self.start;
        if have == 0 {
            return Ok(());
        }
        Err(FrameFault::CutShort { have, want: HEADER + self.announced().unwrap_or(0) })
    }

    /// One read. `Some(0)` is EOF, `None` means that nothing is there now.
    pub fn read_from(&mut self, stream: &UnixStream) -> io::Result<Option<usize>> {
        match stream.try_read_buf(self.room()) {
            Ok(count) => Ok(Some(count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            // The other side closed without having read all that we sent: as good as EOF.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(Some(0)),
            Err(error) => Err(error),
        }
    }
}

/// Parses one frame.
pub fn parse<T: DeserializeOwned>(frame: &[u8]) -> Result<T, FrameFault> {
    serde_json::from_slice(frame).map_err(|error| {
        let mut start = String::from_utf8_lossy(&frame[..frame.len().min(80)]).into_owned();
        start.retain(|letter| !letter.is_control());
        FrameFault::Garbled(format!("{error}; it starts with `{start}`"))
    })
}

/// The sending half of a connection; clones share its order.
#[derive(Clone)]
pub struct FrameSender {
    queue: mpsc::UnboundedSender<OutgoingFrame>,
    stream: Arc<UnixStream>,
}

impl FrameSender {
    /// Queues a frame. A connection whose other side is gone takes frames and drops them: the
    /// receiving half tells of the end.
    pub fn send(&self, frame: OutgoingFrame) {
        let _gone = self.queue.send(frame);
    }

    /// Ends the connection in both directions, also for clones.
    pub fn close(&self) {
        // Fails only when the other side has closed already.
        let _closed = rustix::net::shutdown(self.stream.as_ref(), rustix::net::Shutdown::Both);
    }
}

/// The receiving half of a connection.
pub struct FrameReceiver {
    stream: Arc<UnixStream>,
    buffer: FrameBuffer,
}

impl FrameReceiver {
    /// The next message; `None` when the other side closed. Safe to cancel.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameFault> {
        loop {
            if let Some(frame) = self.buffer.next_frame()? {
                return parse(frame).map(Some);
            }
            self.stream.readable().await?;
            if self.buffer.read_from(&self.stream)? == Some(0) {
                self.buffer.end()?;
                return Ok(None);
            }
        }
    }
}

/// Splits a socket; frames are written by a task of the current runtime.
pub fn split(stream: UnixStream) -> (FrameSender, FrameReceiver) {
    let stream = Arc::new(stream);
    let (queue, mut frames) = mpsc::unbounded_channel::<OutgoingFrame>();
    let writer = Arc::clone(&stream);
    tokio::spawn(async move {
        while let Some(frame) = frames.recv().await {
            if frame.send(&writer).await.is_err() {
                return;
            }
        }
    });
    let receiver = FrameReceiver { stream: Arc::clone(&stream), buffer: FrameBuffer::default() };
    (FrameSender { queue, stream }, receiver)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of(message: &serde_json::Value) -> Vec<u8> {
        OutgoingFrame::new(message, Vec::new()).expect("a small message").bytes
    }

    #[test]
    fn frames_come_out_as_they_went_in_however_they_are_cut() {
        let messages = [serde_json::json!({"a": 1}), serde_json::json!("ü"), serde_json::json!([])];
        let whole: Vec<u8> = messages.iter().flat_map(bytes_of).collect();
        for piece in 1..whole.len() {
            let mut buffer = FrameBuffer::default();
            let mut seen = Vec::new();
            for part in whole.chunks(piece) {
                buffer.room().extend_from_slice(part);
                while let Some(frame) = buffer.next_frame().expect("good frames") {
                    seen.push(parse::<serde_json::Value>(frame).expect("JSON"));
                }
            }
            assert_eq!(seen, messages, "cut into pieces of {piece}");
            assert!(buffer.end().is_ok());
        }
    }

    #[test]
    fn a_frame_over_the_limit_is_refused_before_memory_is_taken() {
        let mut buffer = FrameBuffer::default();
        buffer.room().extend_from_slice(&u32::MAX.to_le_bytes());
        assert!(buffer.room().capacity() <= 2 * GROWTH);
        let error = buffer.next_frame().expect_err("too long").to_string();
        assert_eq!(
            error,
            "a message of 4294967295 bytes is longer than the 1073741824 bytes (1 GiB) that one message may have"
        );
    }

    #[test]
    fn half_a_frame_at_the_end_is_told() {
        let mut buffer = FrameBuffer::default();
        buffer.room().extend_from_slice(&bytes_of(&serde_json::json!("abc"))[..6]);
        assert_eq!(
            buffer.end().expect_err("half a frame").to_string(),
            "a message was cut short: 6 of 9 bytes came before the other side closed the socket"
        );
    }

    #[test]
    fn garbage_is_quoted() {
        let error = parse::<serde_json::Value>(b"hello\x1b world").expect_err("not JSON").to_string();
        assert_eq!(
            error,
            "a message is not what the protocol calls for: expected value at line 1 column 1; it starts with `hello world`"
        );
    }

    #[tokio::test]
    async fn descriptors_are_closed_on_our_side_once_sent() {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        let (reading, writing) = rustix::pipe::pipe().expect("a pipe");
        let frame = OutgoingFrame::new(&"take this", vec![writing]).expect("a small message");
        frame.send(&ours).await.expect("a peer that listens");
        // The descriptor is in flight; when the peer goes, so does the last writer.
        drop(theirs);
        let mut byte = [0; 1];
        assert_eq!(rustix::io::read(&reading, &mut byte).expect("a readable pipe"), 0);
    }

    #[tokio::test]
    async fn a_large_frame_passes_while_both_sides_run() {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        let (sender, _receiver) = split(ours);
        let (_, mut receiver) = split(theirs);
        let text = "x".repeat(5 << 20);
        sender.send(OutgoingFrame::new(&text, Vec::new()).expect("5 MiB"));
        assert_eq!(receiver.next::<String>().await.expect("a good frame"), Some(text));
        sender.close();
        assert_eq!(receiver.next::<String>().await.expect("a clean end"), None);
    }
}
