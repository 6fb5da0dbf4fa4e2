//! What a remote task prints, on its way to the artifact store, and the run's lease. One thread does
//! all that waits for the store, so that the task never waits for the store to print. The format is
//! `core::log_segment`'s.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ferroflow_core::port::ObjectError;
use ferroflow_core::wire::TerminationMessage;
use ferroflow_store::remote::blocking::BlockingObjects;

/// A segment is written anew, longer, with each flush until it has this size.
const SEGMENT_SIZE: usize = 128 << 10;
/// At most one write of a segment in so much time; after `MANY_WRITES` of them, in twice as much. So
/// a task costs at most 400 writes and then 2,400 an hour, however much it prints.
const BETWEEN_WRITES: Duration = Duration::from_millis(750);
const MANY_WRITES: u32 = 400;
const RETRIES: [Duration; 4] =
    [Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(5)];
/// Kept while the store cannot be reached; what is beyond is in the container's own log only.
const MOST_PENDING: usize = 8 << 20;
const LAST_FLUSH: Duration = Duration::from_secs(30);

/// The artifact store as plain objects.
pub trait Objects: Send {
    fn put(&self, key: &str, data: Vec<u8>) -> Result<(), ObjectError>;
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, ObjectError>;
}

impl Objects for BlockingObjects {
    fn put(&self, key: &str, data: Vec<u8>) -> Result<(), ObjectError> {
        BlockingObjects::put(self, key, data)
    }

    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, ObjectError> {
        BlockingObjects::get(self, key)
    }
}

/// Whether an engine still renews the run's lease. Judged by how long its contents have not changed,
/// so that no two clocks are compared.
struct Lease {
    key: String,
    length: Duration,
    contents: Option<Vec<u8>>,
    seen: Instant,
    next: Instant,
}

impl Lease {
    fn new(key: String, length: Duration) -> Self {
        let now = Instant::now();
        Self { key, length, contents: None, seen: now, next: now + Self::between(length) }
    }

    fn between(length: Duration) -> Duration {
        (length / 4).min(Duration::from_secs(60))
    }

    /// Whether it has expired. A store that cannot be reached says nothing about the engine, until it
    /// has for long.
    fn look(&mut self, objects: &dyn Objects) -> bool {
        let now = Instant::now();
        self.next = now + Self::between(self.length);
        if let Ok(contents) = objects.get(&self.key)
            && contents != self.contents
        {
            (self.contents, self.seen) = (contents, now);
        }
        now.duration_since(self.seen) > self.length
    }
}

/// Which attempt's log, and whose lease.
pub struct Assignment {
    pub log_prefix: String,
    pub lease_key: String,
    pub lease: Duration,
}

#[derive(Default)]
struct State {
    pending: Vec<u8>,
    dropped: usize,
    closing: bool,
    give_up: Option<Instant>,
    expired: bool,
    last_error: String,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes what is added to the store, soon but not too often.
pub struct Shipper {
    shared: Arc<Shared>,
    thread: JoinHandle<Box<dyn Objects>>,
    prefix: String,
}

impl Shipper {
    /// `wake` is called, on the shipper's thread, when the lease has expired.
    pub fn start(
        objects: Box<dyn Objects>,
        assignment: Assignment,
        wake: impl Fn() + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let prefix = assignment.log_prefix.clone();
        let lease = Lease::new(assignment.lease_key, assignment.lease);
        let writer = Writer::new(objects, shared.clone(), assignment.log_prefix, lease);
        let thread = std::thread::Builder::new().name("log".to_owned()).spawn(move || writer.work(&wake))?;
        Ok(Self { shared, thread, prefix })
    }

    pub fn add(&self, letter: char, data: &[u8]) {
        let mut state = self.shared.lock();
        if state.pending.len() > MOST_PENDING {
            state.dropped += data.len();
            return;
        }
        let was_empty = state.pending.is_empty();
        add_chunk(&mut state.pending, letter, data);
        if was_empty {
            self.shared.changed.notify_one();
        }
    }

    pub fn lease_expired(&self) -> bool {
        self.shared.lock().expired
    }

    /// Writes what is left, and behind it how the task ended; a sentence when not all of it could be
    /// written. With `apart` the ending becomes an object of its own, too, for layers whose
    /// containers have no termination message.
    pub fn finish(self, message: &TerminationMessage, apart: bool) -> Option<String> {
        let ending = serde_json::to_vec(message).expect("a message is plain data");
        {
            let mut state = self.shared.lock();
            if state.dropped == 0 {
                add_chunk(&mut state.pending, 'x', &ending);
            }
            state.closing = true;
            state.give_up = Some(Instant::now() + LAST_FLUSH);
            self.shared.changed.notify_one();
        }
        let Ok(objects) = self.thread.join() else {
            return Some("the log is not in the store: writing it failed".to_owned());
        };
        if apart {
            say_apart(&*objects, &format!("{}end", self.prefix), &ending);
        }
        let state = self.shared.lock();
        let lost = state.dropped + state.pending.len();
        (lost > 0).then(|| format!("the last {lost} bytes of the log are not in the store: {}", state.last_error))
    }
}

/// Best effort: the exit code says what is most important.
fn say_apart(objects: &dyn Objects, key: &str, data: &[u8]) {
    for pause in RETRIES {
        if objects.put(key, data.to_vec()).is_ok() {
            return;
        }
        std::thread::sleep(pause);
    }
}

fn add_chunk(to: &mut Vec<u8>, letter: char, data: &[u8]) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    to.extend_from_slice(format!("{now} {letter} {} ", data.len()).as_bytes());
    to.extend_from_slice(data);
    to.push(b'\n');
}

/// The thread's own.
struct Writer {
    objects: Box<dyn Objects>,
    shared: Arc<Shared>,
    prefix: String,
    lease: Lease,
    segment: Vec<u8>,
    number: u32,
    writes: u32,
    failures: usize,
    next_write: Instant,
}

impl Writer {
    fn new(objects: Box<dyn Objects>, shared: Arc<Shared>, prefix: String, lease: Lease) -> Self {
        let next_write = Instant::now();
        Self { objects, shared, prefix, lease, segment: Vec::new(), number: 0, writes: 0, failures: 0, next_write }
    }

    fn work(mut self, wake: &impl Fn()) -> Box<dyn Objects> {
        while let Some(taken) = self.wait() {
            let written = taken.is_empty() || self.write(&taken);
            let (closing, give_up) = {
                let state = self.shared.lock();
                (state.closing, state.give_up)
            };
            if !written && give_up.is_some_and(|at| Instant::now() > at) {
                break;
            }
            if !closing && Instant::now() >= self.lease.next && self.lease.look(&*self.objects) {
                self.shared.lock().expired = true;
                wake();
            }
        }
        self.objects
    }

    /// What is to be written now, nothing when it is the lease's turn; `None` at the end.
    fn wait(&self) -> Option<Vec<u8>> {
        let mut state = self.shared.lock();
        loop {
            let patience = self.patience(&state);
            if patience.is_zero() {
                break;
            }
            let waited = self.shared.changed.wait_timeout(state, patience);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        if state.closing && state.pending.is_empty() {
            return None;
        }
        if state.pending.is_empty() || (!state.closing && Instant::now() < self.next_write) {
            return Some(Vec::new());
        }
        let room = SEGMENT_SIZE.saturating_sub(self.segment.len()).max(1);
        Some(state.pending[..room.min(state.pending.len())].to_vec())
    }

    /// Until there is something to do.
    fn patience(&self, state: &State) -> Duration {
        let now = Instant::now();
        let write = self.next_write.saturating_duration_since(now);
        let lease = self.lease.next.saturating_duration_since(now);
        match (state.closing, state.pending.is_empty()) {
            // The last words do not wait, unless the store has just refused some.
            (true, false) if self.failures > 0 => write,
            (true, _) => Duration::ZERO,
            (false, false) => write.min(lease),
            (false, true) => lease,
        }
    }

    /// Writes the current segment with `taken` behind what it has. Chunks may be cut anywhere:
    /// readers put segments together.
    fn write(&mut self, taken: &[u8]) -> bool {
        let mut longer = self.segment.clone();
        longer.extend_from_slice(taken);
        let key = format!("{}{:06}", self.prefix, self.number);
        if let Err(error) = self.objects.put(&key, longer.clone()) {
            self.shared.lock().last_error = error.to_string();
            self.next_write = Instant::now() + RETRIES[self.failures.min(RETRIES.len() - 1)];
            self.failures += 1;
            return false;
        }
        self.failures = 0;
        self.writes += 1;
        self.segment = longer;
        if self.segment.len() >= SEGMENT_SIZE {
            self.segment.clear();
            self.number += 1;
        }
        let mut state = self.shared.lock();
        state.pending.drain(..taken.len());
        let between = if self.writes < MANY_WRITES { BETWEEN_WRITES } else { BETWEEN_WRITES * 2 };
        let behind = state.pending.len() >= SEGMENT_SIZE;
        self.next_write = Instant::now() + if behind { Duration::ZERO } else { between };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferroflow_core::log_segment::SegmentReader;
    use ferroflow_core::port::LogLine;
    use ferroflow_core::task::{ProcessExit, Usage};
    use std::collections::BTreeMap;
    use std::sync::mpsc;

    /// A store in memory that refuses so many writes first.
    #[derive(Clone, Default)]
    struct Fake(Arc<Mutex<Inner>>);

    #[derive(Default)]
    struct Inner {
        kept: BTreeMap<String, Vec<u8>>,
        refusals: u32,
    }

    impl Objects for Fake {
        fn put(&self, key: &str, data: Vec<u8>) -> Result<(), ObjectError> {
            let mut inner = self.0.lock().expect("lock");
            if inner.refusals > 0 {
                inner.refusals -= 1;
                return Err(ObjectError::Unavailable("away".to_owned()));
            }
            inner.kept.insert(key.to_owned(), data);
            Ok(())
        }

        fn get(&self, key: &str) -> Result<Option<Vec<u8>>, ObjectError> {
            Ok(self.0.lock().expect("lock").kept.get(key).cloned())
        }
    }

    impl Fake {
        fn lines(&self) -> (Vec<String>, bool) {
            let mut reader = SegmentReader::default();
            let mut lines = Vec::new();
            for (key, data) in &self.0.lock().expect("lock").kept {
                if key.starts_with("log/0") {
                    reader.feed(data, &mut lines);
                }
            }
            let text = |line: LogLine| String::from_utf8(line.bytes).expect("text");
            (lines.into_iter().map(text).collect(), reader.take_ending().is_some())
        }
    }

    fn assignment(lease: Duration) -> Assignment {
        Assignment { log_prefix: "log/".to_owned(), lease_key: "lease".to_owned(), lease }
    }

    fn done() -> TerminationMessage {
        TerminationMessage {
            outcome: None,
            exit: ProcessExit::Code(0),
            usage: Usage::default(),
            cause: None,
            sign_again: false,
            log_is_short: false,
            metadata: Vec::new(),
        }
    }

    #[test]
    fn everything_arrives_in_order_over_several_segments() {
        let fake = Fake::default();
        let shipper = Shipper::start(Box::new(fake.clone()), assignment(Duration::from_secs(60)), || ());
        let shipper = shipper.expect("thread");
        let expected: Vec<String> = (0..5000).map(|n| format!("line {n} {}", "x".repeat(80))).collect();
        for line in &expected {
            shipper.add('o', format!("{line}\n").as_bytes());
        }
        assert_eq!(shipper.finish(&done(), true), None);
        assert_eq!(fake.lines(), (expected, true));
        let kept = fake.0.lock().expect("lock").kept.keys().cloned().collect::<Vec<_>>();
        assert!(kept.len() > 3 && kept.contains(&"log/end".to_owned()), "{kept:?}");
    }

    #[test]
    fn a_store_that_was_away_has_it_all_in_the_end() {
        let fake = Fake::default();
        fake.0.lock().expect("lock").refusals = 2;
        let shipper = Shipper::start(Box::new(fake.clone()), assignment(Duration::from_secs(60)), || ());
        let shipper = shipper.expect("thread");
        shipper.add('e', b"one\n");
        assert_eq!(shipper.finish(&done(), false), None);
        assert_eq!(fake.lines(), (vec!["one".to_owned()], true));
    }

    #[test]
    fn a_lease_that_nobody_renews_expires() {
        let (woken, was_woken) = mpsc::channel();
        let wake = move || woken.send(()).expect("the test waits");
        let shipper = Shipper::start(Box::new(Fake::default()), assignment(Duration::from_millis(200)), wake);
        let shipper = shipper.expect("thread");
        was_woken.recv_timeout(Duration::from_secs(60)).expect("expired");
        assert!(shipper.lease_expired());
        shipper.finish(&done(), false);
    }
}
