//! Frames of the front-end protocol (docs/contributing/front-end-protocol.md): a little-endian u32
//! length and that many bytes of JSON over a Unix stream socket, descriptors with the first byte.
//! What the messages mean does not belong here.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::Value;

const READ_SIZE: usize = 1 << 15;
const MOST_DESCRIPTORS: usize = 16;

/// A received message and the descriptors that came with it.
pub struct Frame {
    pub message: Value,
    pub descriptors: Vec<OwnedFd>,
}

impl Frame {
    pub fn kind(&self) -> &str {
        self.message["type"].as_str().unwrap_or_default()
    }
}

/// One end of a protocol socket. Sending blocks.
pub struct Connection {
    socket: UnixStream,
    buffer: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
}

/// There is no further frame: the other side closed, or what came cannot be read.
#[derive(Debug)]
pub struct End;

impl Connection {
    pub fn new(descriptor: OwnedFd) -> Self {
        Self { socket: UnixStream::from(descriptor), buffer: Vec::new(), descriptors: VecDeque::new() }
    }

    pub fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    pub fn send(&mut self, message: &Value) -> io::Result<()> {
        let body = message.to_string();
        let length = u32::try_from(body.len()).map_err(|_| io::Error::other("a frame is below 4 GiB"))?;
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend_from_slice(body.as_bytes());
        self.socket.write_all(&bytes)
    }

    /// The next frame, waiting for it.
    pub fn receive(&mut self) -> Result<Frame, End> {
        loop {
            if let Some(frame) = self.next_frame()? {
                return Ok(frame);
            }
            self.read(RecvFlags::CMSG_CLOEXEC)?;
        }
    }

    /// The next frame if it has arrived in full.
    pub fn receive_available(&mut self) -> Result<Option<Frame>, End> {
        loop {
            if let Some(frame) = self.next_frame()? {
                return Ok(Some(frame));
            }
            if !self.read(RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT)? {
                return Ok(None);
            }
        }
    }

    /// Whether anything was there to read.
    fn read(&mut self, flags: RecvFlags) -> Result<bool, End> {
        let mut data = [0; READ_SIZE];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = match recvmsg(&self.socket, &mut [io::IoSliceMut::new(&mut data)], &mut ancillary, flags) {
            Ok(received) => received,
            Err(rustix::io::Errno::INTR) => return Ok(true),
            Err(rustix::io::Errno::AGAIN) => return Ok(false),
            Err(_) => return Err(End),
        };
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                self.descriptors.extend(rights);
            }
        }
        if received.bytes == 0 {
            return Err(End);
        }
        self.buffer.extend_from_slice(&data[..received.bytes]);
        Ok(true)
    }

    fn next_frame(&mut self) -> Result<Option<Frame>, End> {
        let Some((length, rest)) = self.buffer.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*length) as usize;
        let Some(body) = rest.get(..length) else { return Ok(None) };
        let message: Value = serde_json::from_slice(body).map_err(|_| End)?;
        self.buffer.drain(..4 + length);
        let wanted = match message["type"].as_str() {
            Some("open_zygote") => 1,
            Some("task") => 3,
            _ => 0,
        };
        let descriptors = self.descriptors.drain(..wanted.min(self.descriptors.len())).collect();
        Ok(Some(Frame { message, descriptors }))
    }
}

/// Takes a descriptor that this process was started with.
pub fn adopt(number: i32) -> OwnedFd {
    // SAFETY: whoever started this process passed the descriptor on for us alone to own.
    let owned = unsafe { OwnedFd::from_raw_fd(number) };
    crate::process::set_inheritable(number, false);
    owned
}
