//! The engine's end of the front-end socket (design D1): `Hello`, requests and their replies, new
//! zygotes, and the news that the flow's process is gone. What a request means is the caller's
//! business.

mod frame;

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ferroflow_core::id::StepName;
use ferroflow_core::wire::{Hello, PROTOCOL_VERSION, Reply, Request, ZygoteSettings};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, Signal, WaitStatus, kill_process};
use serde::Deserialize;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::sync::{OnceCell, oneshot, watch};

use crate::processes::{look_at, wait_for_end};

pub use frame::{FrameBuffer, FrameFault, FrameReceiver, FrameSender, LONGEST_FRAME, OutgoingFrame, parse, split};

/// How long a flow's process may take to describe its flow. It has imported the flow before the
/// engine starts, so this is only ever used up by a process that hangs.
const HELLO_DEADLINE: Duration = Duration::from_secs(60);
/// How long it may take to kill what is left of a run and exit.
const EXIT_DEADLINE: Duration = Duration::from_secs(3);

/// Why the front end cannot be talked to. A retry helps with none of these.
#[derive(Debug, thiserror::Error)]
pub enum FrontEndFault {
    #[error(
        "descriptor {descriptor} (`--socket-fd`) is not a connected socket: {source}; `metaflow flow` is started by a flow's own process (`python flow.py run`), not by hand"
    )]
    NotASocket { descriptor: RawFd, source: io::Error },
    #[error("the flow's process did not describe its flow within {} s; it may hang in an import", .0.as_secs())]
    NoHello(Duration),
    #[error("the flow's process ended before it described its flow")]
    EndedBeforeHello,
    #[error(
        "the flow's process speaks version {theirs} of the front-end protocol, this engine speaks version {PROTOCOL_VERSION}: the language's package and the `metaflow` command come from different releases; install the same release of both"
    )]
    Version { theirs: u64 },
    #[error("the flow's process sent what the engine cannot use: {0}")]
    Frame(#[from] FrameFault),
    #[error("{0}")]
    Gone(String),
    #[error("a socket for a step's processes could not be made: {0}")]
    Socket(io::Error),
}

/// A connected front end. Clones are handles to the same one.
#[derive(Clone)]
pub struct FrontEnd {
    shared: Arc<Shared>,
}

struct Shared {
    pid: u32,
    sender: FrameSender,
    next_id: AtomicU64,
    /// `None` once the front end is gone.
    replies: Mutex<Option<HashMap<u64, oneshot::Sender<Reply>>>>,
    gone: watch::Receiver<Option<String>>,
    /// Filled once its process was waited for; its number may be another's after that.
    ending: OnceCell<Option<WaitStatus>>,
}

impl FrontEnd {
    /// Takes the inherited socket and reads `Hello`. Must be called within a tokio runtime.
    pub async fn connect(socket: OwnedFd) -> Result<(Self, Hello), FrontEndFault> {
        Self::connect_within(socket, HELLO_DEADLINE).await
    }

    async fn connect_within(socket: OwnedFd, deadline: Duration) -> Result<(Self, Hello), FrontEndFault> {
        let stream = adopt(socket)?;
        stream.set_nonblocking(true).map_err(FrontEndFault::Socket)?;
        let stream = UnixStream::from_std(stream).map_err(FrontEndFault::Socket)?;
        let (sender, mut receiver) = split(stream);
        let hello = tokio::time::timeout(deadline, read_hello(&mut receiver))
            .await
            .map_err(|_elapsed| FrontEndFault::NoHello(deadline))??;
        let (announce, gone) = watch::channel(None);
        let shared = Arc::new(Shared {
            pid: hello.pid,
            sender,
            next_id: AtomicU64::new(1),
            replies: Mutex::new(Some(HashMap::new())),
            gone,
            ending: OnceCell::new(),
        });
        tokio::spawn(route_replies(receiver, Arc::clone(&shared), announce));
        Ok((Self { shared }, hello))
    }

    /// Process id of the front end (the fork server).
    pub fn pid(&self) -> u32 {
        self.shared.pid
    }

    /// Sends a request and waits for its reply; the request's `id` is set here. Requests may
    /// overlap.
    pub async fn request(&self, mut request: Request) -> Result<Reply, FrontEndFault> {
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        match &mut request {
            Request::Convert { id: slot, .. }
            | Request::WriteParameters { id: slot, .. }
            | Request::Dump { id: slot, .. } => *slot = id,
            Request::OpenZygote { step, .. } => {
                return Err(FrontEndFault::Frame(FrameFault::Garbled(format!(
                    "a zygote for `{step}` is opened with its socket, by `open_zygote`, and has no reply"
                ))));
            }
        }
        let frame = OutgoingFrame::new(&request, Vec::new())?;
        let (slot, reply) = oneshot::channel();
        match self.shared.replies().as_mut() {
            Some(replies) => replies.insert(id, slot),
            None => return Err(self.gone_fault()),
        };
        self.shared.sender.send(frame);
        reply.await.map_err(|_dropped| self.gone_fault())
    }

    /// Has a step zygote forked. `Ready`, or EOF if that failed, comes on its own connection.
    pub fn open_zygote(
        &self,
        step: &StepName,
        settings: ZygoteSettings,
    ) -> Result<(FrameSender, FrameReceiver), FrontEndFault> {
        let (ours, theirs) = socket_pair().map_err(FrontEndFault::Socket)?;
        let request = Request::OpenZygote { step: step.clone(), settings };
        self.shared.sender.send(OutgoingFrame::new(&request, vec![theirs])?);
        Ok(split(ours))
    }

    /// Completes when the front end's socket is at its end, with the sentence that says so.
    pub fn closed(&self) -> impl Future<Output = String> + Send + 'static {
        let mut gone = self.shared.gone.clone();
        let pid = self.shared.pid;
        async move {
            match gone.wait_for(Option::is_some).await {
                Ok(text) => text.clone().unwrap_or_else(|| gone_text(pid)),
                // The reading task was dropped with its runtime.
                Err(_dropped) => gone_text(pid),
            }
        }
    }

    /// Whether the socket is known to be at its end.
    pub fn is_closed(&self) -> bool {
        self.shared.gone.borrow().is_some()
    }

    /// Closes the socket, for every clone, and waits for the process to end: it kills what is left
    /// of the run first. May be called again.
    pub async fn close(&self) {
        self.hang_up();
        self.wait_for_process().await;
    }

    /// Closes the socket without waiting for what that brings about.
    pub(crate) fn hang_up(&self) {
        self.shared.sender.close();
    }

    /// Waits for the process, whose socket is closed, and kills it if it takes too long. `None`
    /// when it was not our child, so that nobody told how it ended.
    pub(crate) async fn wait_for_process(&self) -> Option<WaitStatus> {
        *self.shared.ending.get_or_init(|| end_process(self.shared.pid)).await
    }

    fn gone_fault(&self) -> FrontEndFault {
        let text = self.shared.gone.borrow().clone();
        FrontEndFault::Gone(text.unwrap_or_else(|| gone_text(self.shared.pid)))
    }
}

impl Shared {
    fn replies(&self) -> MutexGuard<'_, Option<HashMap<u64, oneshot::Sender<Reply>>>> {
        self.replies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn gone_text(pid: u32) -> String {
    format!("the flow's process (pid {pid}) is gone")
}

/// Only the version is read before the versions are known to agree.
#[derive(Deserialize)]
struct Version {
    protocol: u64,
}

async fn read_hello(receiver: &mut FrameReceiver) -> Result<Hello, FrontEndFault> {
    let value: Value = receiver.next().await?.ok_or(FrontEndFault::EndedBeforeHello)?;
    let garbled = |error: serde_json::Error| FrameFault::Garbled(format!("its `Hello` does not read: {error}"));
    let version = Version::deserialize(&value).map_err(garbled)?;
    if version.protocol != u64::from(PROTOCOL_VERSION) {
        return Err(FrontEndFault::Version { theirs: version.protocol });
    }
    Ok(serde_json::from_value(value).map_err(garbled)?)
}

async fn route_replies(mut receiver: FrameReceiver, shared: Arc<Shared>, announce: watch::Sender<Option<String>>) {
    let text = loop {
        match receiver.next::<Reply>().await {
            Ok(Some(reply)) => {
                let slot = shared.replies().as_mut().and_then(|replies| replies.remove(&reply.id));
                if let Some(slot) = slot {
                    // Whoever asked may have given up waiting.
                    let _unwanted = slot.send(reply);
                }
            }
            Ok(None) => break gone_text(shared.pid),
            Err(fault) => break format!("the flow's process (pid {}) cannot be understood: {fault}", shared.pid),
        }
    };
    shared.sender.close();
    announce.send_replace(Some(text));
    // Dropping the slots wakes every request that still waits.
    drop(shared.replies().take());
}

/// A connected pair: ours without blocking, theirs as an ordinary descriptor to send away.
pub(crate) fn socket_pair() -> io::Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((UnixStream::from_std(StdUnixStream::from(ours))?, theirs))
}

/// Checks that it is a socket, and keeps processes we start from inheriting it.
fn adopt(socket: OwnedFd) -> Result<StdUnixStream, FrontEndFault> {
    rustix::net::getpeername(socket.as_fd())
        .and_then(|_peer| rustix::io::ioctl_fioclex(socket.as_fd()))
        .map_err(|error| FrontEndFault::NotASocket { descriptor: socket.as_raw_fd(), source: error.into() })?;
    Ok(StdUnixStream::from(socket))
}

async fn end_process(pid: u32) -> Option<WaitStatus> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
    look_at(pid)?;
    if let Some(ending) = wait_for_end(pid, EXIT_DEADLINE).await {
        return ending;
    }
    // It may have ended at this very moment; the wait tells.
    let _gone = kill_process(pid, Signal::KILL);
    wait_for_end(pid, EXIT_DEADLINE).await.flatten()
}

#[cfg(test)]
mod tests;
