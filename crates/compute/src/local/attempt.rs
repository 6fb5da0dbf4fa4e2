//! Follows one task: its two streams, its control channel, and what its zygote says of it. One
//! asynchronous task each, no thread and no polling.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ferroflow_core::id::AttemptId;
use ferroflow_core::port::{EventSink, LayerEvent, Stream};
use ferroflow_core::task::{Cause, CauseKind, Millis, ProcessExit, TaskOutcome, Usage};
use ferroflow_core::wire::TaskMessage;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::supervisor::Message;
use crate::frontend::{FrameBuffer, FrameFault, parse, socket_pair};
use ferroflow_core::lines::LineSplitter;

const READ_SIZE: usize = 64 << 10;
/// As far as an ordinary user may widen a pipe.
const LARGEST_PIPE: usize = 1 << 20;
/// Reads of a control channel in one go, so that one task cannot keep all others waiting.
const CONTROL_READS: usize = 256;
/// Furthest deadline that is ever slept for, for tasks without one.
const NEVER: Duration = Duration::from_secs(86_400 * 365);

/// Our ends of a task's descriptors.
pub struct OurEnds {
    stdout: pipe::Receiver,
    stderr: pipe::Receiver,
    pub control: Arc<UnixStream>,
}

/// Opens a task's descriptors: ours, and its stdout, stderr and control to send away. All are
/// closed on exec; only ours do not block.
pub fn open_descriptors() -> io::Result<(OurEnds, Vec<OwnedFd>)> {
    let (stdout, their_stdout) = open_pipe()?;
    let (stderr, their_stderr) = open_pipe()?;
    let (control, their_control) = socket_pair()?;
    Ok((OurEnds { stdout, stderr, control: Arc::new(control) }, vec![their_stdout, their_stderr, their_control]))
}

fn open_pipe() -> io::Result<(pipe::Receiver, OwnedFd)> {
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((pipe::Receiver::from_owned_fd_unchecked(ours)?, theirs))
}

/// What the supervisor passes on about an attempt.
#[derive(Debug)]
pub enum Told {
    Started {
        pid: u32,
    },
    Exited {
        exit: ProcessExit,
        usage: Usage,
    },
    /// It does not run (any more), and nobody knows how it ended.
    Lost(Cause),
}

/// How following an attempt ended. Its streams are drained.
#[derive(Debug)]
pub enum Ending {
    Exited { exit: ProcessExit, usage: Usage, outcome: Option<TaskOutcome>, control_fault: Option<String> },
    Lost(Cause),
}

/// Everything that following an attempt takes.
pub struct Following {
    pub id: AttemptId,
    pub ends: OurEnds,
    pub told: UnboundedReceiver<Told>,
    pub supervisor: UnboundedSender<Message>,
    pub events: Arc<dyn EventSink>,
    /// When the task has had more than its time.
    pub deadline: Option<Duration>,
    /// How long streams are drained that a process left behind keeps open.
    pub drain: Duration,
}

/// Follows an attempt to its end, and what it left behind until that closes its streams.
pub async fn follow(following: Following) {
    let Following { id, ends, mut told, supervisor, events, deadline, drain } = following;
    let mut follower = Follower {
        id,
        stdout: Some(ends.stdout),
        stderr: Some(ends.stderr),
        splitters: Default::default(),
        control: Control { stream: Some(ends.control), ..Control::default() },
        buffer: Vec::new(),
        started: false,
        supervisor: supervisor.clone(),
        events,
    };
    let ending = match follower.until_started(&mut told).await {
        Ok(()) => follower.until_ended(&mut told, deadline).await,
        Err(cause) => Told::Lost(cause),
    };
    follower.read_what_is_there().await;
    // Late means that a process left behind holds a stream open.
    let _late = timeout_at(Instant::now() + drain, follower.drain_streams()).await;
    follower.finish_lines();
    let ending = follower.take_ending(ending);
    let _supervisor_gone = supervisor.send(Message::Ended { id, ending });
    follower.drain_streams().await;
    follower.finish_lines();
}

struct Follower {
    id: AttemptId,
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
    splitters: [LineSplitter; 2],
    control: Control,
    buffer: Vec<u8>,
    started: bool,
    supervisor: UnboundedSender<Message>,
    events: Arc<dyn EventSink>,
}

impl Follower {
    /// Output is not read before the start is told, so that no line comes ahead of it.
    async fn until_started(&mut self, told: &mut UnboundedReceiver<Told>) -> Result<(), Cause> {
        match told.recv().await {
            Some(Told::Started { pid }) => {
                self.tell_start(Some(pid));
                Ok(())
            }
            Some(Told::Lost(cause)) => Err(cause),
            Some(Told::Exited { .. }) => {
                Err(Cause::new(CauseKind::LayerError, "the step's process told of the task's end before its start"))
            }
            None => Err(forgotten()),
        }
    }

    fn tell_start(&mut self, pid: Option<u32>) {
        self.started = true;
        self.events.send(LayerEvent::Started { id: self.id, pid });
    }

    async fn until_ended(&mut self, told: &mut UnboundedReceiver<Told>, deadline: Option<Duration>) -> Told {
        let alarm = sleep_until(Instant::now() + deadline.unwrap_or(NEVER));
        tokio::pin!(alarm);
        let mut overran = deadline.is_none();
        loop {
            tokio::select! {
                news = told.recv() => match news {
                    Some(Told::Started { .. }) => {}
                    Some(ending) => return ending,
                    None => return Told::Lost(forgotten()),
                },
                stream = readable(&self.stdout, &self.stderr) => drop(self.read_stream(stream).await),
                () = self.control.readable() => self.read_control(),
                () = &mut alarm, if !overran => {
                    overran = true;
                    let _supervisor_gone = self.supervisor.send(Message::Overran(self.id));
                }
            }
        }
    }

    /// What an ended task wrote itself, however long it takes the reader of our events to take it.
    async fn read_what_is_there(&mut self) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            for _ in 0..LARGEST_PIPE / READ_SIZE {
                if !self.read_stream(stream).await {
                    break;
                }
            }
        }
    }

    async fn drain_streams(&mut self) {
        while self.stdout.is_some() || self.stderr.is_some() {
            let stream = readable(&self.stdout, &self.stderr).await;
            self.read_stream(stream).await;
        }
    }

    /// One read, and a wait until its lines were taken up: a flood fills the pipe, not us.
    /// `false` when nothing was there.
    async fn read_stream(&mut self, stream: Stream) -> bool {
        let pipe = if stream == Stream::Stdout { &mut self.stdout } else { &mut self.stderr };
        let Some(open) = pipe else { return false };
        self.buffer.reserve(READ_SIZE);
        let mut lines = Vec::new();
        let splitter = &mut self.splitters[stream as usize];
        match open.try_read_buf(&mut self.buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            // A pipe of ours that cannot be read has nothing more to give.
            Ok(0) | Err(_) => {
                *pipe = None;
                splitter.finish(&mut lines);
            }
            Ok(_count) => splitter.feed(&self.buffer, now(), &mut lines),
        }
        self.buffer.clear();
        if !lines.is_empty() {
            self.send_lines(stream, lines);
            self.events.ready().await;
        }
        true
    }

    fn send_lines(&mut self, stream: Stream, lines: Vec<Vec<u8>>) {
        if !self.started {
            // Its zygote died before it could tell; that it printed tells as much.
            self.tell_start(None);
        }
        self.events.send(LayerEvent::Log { id: self.id, stream, at: now(), lines });
    }

    fn finish_lines(&mut self) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let mut lines = Vec::new();
            self.splitters[stream as usize].finish(&mut lines);
            if !lines.is_empty() {
                self.send_lines(stream, lines);
            }
        }
    }

    fn read_control(&mut self) {
        for message in self.control.read() {
            match message {
                TaskMessage::Imported { packages } => {
                    let _supervisor_gone = self.supervisor.send(Message::Imported { id: self.id, packages });
                }
                TaskMessage::Metadata { name, value } => self.events.metadata(self.id, name, value),
                TaskMessage::Outcome { outcome } => self.control.outcome = Some(outcome),
            }
        }
    }

    /// What the task said before it ended is in the socket by now, if it is not read already.
    fn take_ending(&mut self, ending: Told) -> Ending {
        self.read_control();
        let control = std::mem::take(&mut self.control);
        match ending {
            Told::Exited { exit, usage } => {
                Ending::Exited { exit, usage, outcome: control.outcome, control_fault: control.fault }
            }
            Told::Lost(cause) => Ending::Lost(cause),
            Told::Started { .. } => Ending::Lost(forgotten()),
        }
    }
}

fn forgotten() -> Cause {
    Cause::new(CauseKind::LayerError, "the local layer ended while the task ran")
}

/// Which open stream can be read; never, when none is open. Safe to cancel.
async fn readable(stdout: &Option<pipe::Receiver>, stderr: &Option<pipe::Receiver>) -> Stream {
    tokio::select! {
        () = pipe_readable(stdout.as_ref()) => Stream::Stdout,
        () = pipe_readable(stderr.as_ref()) => Stream::Stderr,
    }
}

async fn pipe_readable(pipe: Option<&pipe::Receiver>) {
    match pipe {
        // An error shows again in the read that follows.
        Some(pipe) => drop(pipe.readable().await),
        None => std::future::pending().await,
    }
}

/// The control channel and what came on it.
#[derive(Default)]
struct Control {
    stream: Option<Arc<UnixStream>>,
    frames: FrameBuffer,
    outcome: Option<TaskOutcome>,
    /// What was wrong with the first message that made no sense. After it nothing is understood,
    /// but all is read, so that the task does not block.
    fault: Option<String>,
}

impl Control {
    async fn readable(&self) {
        match &self.stream {
            Some(stream) => drop(stream.readable().await),
            None => std::future::pending().await,
        }
    }

    /// Reads all that is there.
    fn read(&mut self) -> Vec<TaskMessage> {
        let mut messages = Vec::new();
        for _ in 0..CONTROL_READS {
            let Some(stream) = &self.stream else { break };
            match self.frames.read_from(stream) {
                Ok(None) => break,
                Ok(Some(0)) | Err(_) => self.stream = None,
                Ok(Some(_count)) => self.parse_into(&mut messages),
            }
        }
        messages
    }

    fn parse_into(&mut self, messages: &mut Vec<TaskMessage>) {
        while self.fault.is_none() {
            match self.frames.next_frame().and_then(|frame| frame.map(parse).transpose()) {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => return,
                Err(fault) => self.note_fault(&fault),
            }
        }
        self.frames = FrameBuffer::default();
    }

    fn note_fault(&mut self, fault: &FrameFault) {
        self.fault = Some(fault.to_string());
    }
}

pub fn now() -> Millis {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as Millis)
}
