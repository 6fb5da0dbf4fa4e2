//! Everything the user sees and every log line that is kept goes through one thread, in order, so
//! that a slow terminal or disk never holds up scheduling.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;

use ferroflow_core::id::AttemptId;
use ferroflow_core::port::{LogPlace, LogStore, MetadataError, Stream};
use ferroflow_core::task::Millis;
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;

use crate::console::{Console, Progress, TaskLabel, Tone};

/// Stored in place of what goes beyond the cap (behaviour.md O-4).
const TRUNCATED: &[u8] = b"[TRUNCATED - MAXIMUM LOG FILE SIZE REACHED]";
/// Log bytes on their way to screen and disk before tasks have to wait.
const MOST_BACKLOG: usize = 8 << 20;

/// One thing to show or keep.
pub(crate) enum Item {
    System {
        at: Millis,
        task: Option<TaskLabel>,
        text: String,
        tone: Tone,
    },
    Log {
        /// Where it is kept; some are kept elsewhere already.
        place: Option<LogPlace>,
        task: TaskLabel,
        stream: Stream,
        at: Millis,
        lines: Vec<Vec<u8>>,
    },
    /// A line of ours for both streams of a task's kept logs; it is shown by another item.
    Mark {
        place: LogPlace,
        at: Millis,
        text: String,
    },
    CloseLog(LogPlace),
    Notice(String),
    Progress(Progress),
}

/// Bytes of task output that are not yet on screen and disk.
#[derive(Default)]
pub(crate) struct Backlog {
    bytes: AtomicUsize,
    fell: Notify,
}

impl Backlog {
    pub(crate) fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    fn remove(&self, bytes: usize) {
        if bytes > 0 {
            self.bytes.fetch_sub(bytes, Ordering::AcqRel);
            self.fell.notify_waiters();
        }
    }

    /// Completes when there is room for more.
    pub(crate) async fn room(&self) {
        loop {
            let fell = self.fell.notified();
            if self.bytes.load(Ordering::Acquire) < MOST_BACKLOG {
                return;
            }
            fell.await;
        }
    }
}

/// Size that counts for the backlog.
pub(crate) fn size_of(lines: &[Vec<u8>]) -> usize {
    lines.iter().map(|line| line.len() + 32).sum()
}

/// The sending half; the thread ends when it is dropped.
pub(crate) struct Output {
    sender: Sender<Item>,
    thread: JoinHandle<()>,
}

impl Output {
    pub(crate) fn start(
        console: Box<dyn Console>,
        logs: Arc<dyn LogStore>,
        max_log_size: u64,
        backlog: Arc<Backlog>,
        failures: UnboundedSender<MetadataError>,
    ) -> Self {
        let (sender, receiver) = mpsc::channel();
        let writer = Writer { console, logs, max_log_size, backlog, failures, kept: HashMap::new(), broken: false };
        let thread = std::thread::Builder::new()
            .name("output".to_owned())
            .spawn(move || writer.work(&receiver))
            .expect("the system has a thread left");
        Self { sender, thread }
    }

    pub(crate) fn send(&self, item: Item) {
        // The receiver lives as long as this sender; a panic there is reported by `finish`.
        let _ = self.sender.send(item);
    }

    /// Waits until everything sent is shown and kept.
    pub(crate) fn finish(self) {
        drop(self.sender);
        self.thread.join().expect("the output thread does not panic");
    }
}

struct Writer {
    console: Box<dyn Console>,
    logs: Arc<dyn LogStore>,
    max_log_size: u64,
    backlog: Arc<Backlog>,
    failures: UnboundedSender<MetadataError>,
    /// Bytes kept so far of each stream that printed.
    kept: HashMap<(AttemptId, Stream), u64>,
    /// The log store refused a write; said once, output goes on to the screen.
    broken: bool,
}

impl Writer {
    fn work(mut self, receiver: &Receiver<Item>) {
        while let Ok(item) = receiver.recv() {
            self.handle(item);
        }
        self.console.close();
    }

    fn handle(&mut self, item: Item) {
        match item {
            Item::System { at, task, text, tone } => self.console.system(at, task.as_ref(), &text, tone),
            Item::Notice(text) => self.console.notice(&text),
            Item::Progress(progress) => self.console.progress(&progress),
            Item::CloseLog(place) => {
                self.logs.close(&place);
                self.kept.retain(|(id, _), _| *id != place.id);
            }
            Item::Mark { place, at, text } => {
                let lines = [text.into_bytes()];
                self.keep(&place, Stream::Stdout, at, &lines);
                self.keep(&place, Stream::Stderr, at, &lines);
            }
            Item::Log { place, task, stream, at, lines } => {
                if let Some(place) = &place {
                    self.keep(place, stream, at, &lines);
                }
                for line in &lines {
                    self.console.log(at, &task, stream, line);
                }
                self.backlog.remove(size_of(&lines));
            }
        }
    }

    fn keep(&mut self, place: &LogPlace, stream: Stream, at: Millis, lines: &[Vec<u8>]) {
        let kept = self.kept.entry((place.id, stream)).or_insert(0);
        if *kept > self.max_log_size {
            return;
        }
        let mut fitting = lines.len();
        for (index, line) in lines.iter().enumerate() {
            *kept += line.len() as u64 + 1;
            if *kept > self.max_log_size {
                fitting = index;
                break;
            }
        }
        let result = if fitting == lines.len() {
            self.logs.append(place, stream, at, lines)
        } else {
            let mut shortened = lines[..fitting].to_vec();
            shortened.push(TRUNCATED.to_vec());
            self.logs.append(place, stream, at, &shortened)
        };
        if let Err(error) = result
            && !std::mem::replace(&mut self.broken, true)
        {
            // The engine has gone when nobody listens any more; the run is over then.
            let _ = self.failures.send(error);
        }
    }
}
