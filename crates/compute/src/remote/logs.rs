//! Follows the logs of all remote attempts of a run: one listing per step that has some, twice a
//! second, and reads of what is new. One asynchronous task for the run, no connection per attempt.
//! What is seen first tells the layer that an attempt runs, and what is read last how it ended.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use ferroflow_core::id::AttemptId;
use ferroflow_core::log_segment::{RunKeys, SegmentReader, segment_of};
use ferroflow_core::port::{
    EventSink, LayerEvent, LogLine, MetadataAnswers, ObjectAccess, ObjectEntry, ObjectError, RemoteSign, Stream,
    TellSign,
};
use ferroflow_core::task::Millis;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::ending::termination_message;
use super::questions::Desk;

/// Between two listings of a step.
const EVERY: Duration = Duration::from_millis(500);
/// The same while attempts are expected or have just begun, and few: many of them end soon.
const AT_FIRST: Duration = Duration::from_millis(150);
const FIRST_SECONDS: Duration = Duration::from_secs(5);
const FEW_OBJECTS: usize = 200;
/// While the store cannot be read.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Attempts read at once; with the lease, the uploads of finished logs and the layer's own
/// connections the engine stays below twenty for any number of attempts.
const MOST_READS: usize = 6;
/// How often an ended attempt's logs are asked for when the store cannot be read.
const LAST_TRIES: u32 = 4;

enum Message {
    Expect(AttemptId, String, TellSign),
    Follow(AttemptId, String),
    Drained(AttemptId, String, oneshot::Sender<()>),
}

/// The handle. The work ends when it is dropped.
pub struct Follower {
    sender: UnboundedSender<Message>,
}

impl Follower {
    pub fn start(
        keys: RunKeys,
        objects: Arc<dyn ObjectAccess>,
        answers: Arc<dyn MetadataAnswers>,
        events: Arc<dyn EventSink>,
    ) -> Self {
        let (sender, receiver) = unbounded_channel();
        let desk = Desk::new(objects.clone(), answers);
        let work = Work { keys, objects, events, desk, steps: BTreeMap::new(), listed: 0, trouble: None };
        tokio::spawn(work.run(receiver));
        Self { sender }
    }

    pub fn expect(&self, id: AttemptId, step: String, tell: TellSign) {
        let _over = self.sender.send(Message::Expect(id, step, tell));
    }

    pub fn follow(&self, id: AttemptId, step: String) {
        let _over = self.sender.send(Message::Follow(id, step));
    }

    /// Completes when everything the attempt had flushed before the call was sent on.
    pub async fn drained(&self, id: AttemptId, step: String) {
        let (done, wait) = oneshot::channel();
        if self.sender.send(Message::Drained(id, step, done)).is_ok() {
            let _over = wait.await;
        }
    }
}

struct Work {
    keys: RunKeys,
    objects: Arc<dyn ObjectAccess>,
    events: Arc<dyn EventSink>,
    desk: Desk,
    steps: BTreeMap<String, Attempts>,
    /// Objects in the last listings.
    listed: usize,
    /// What the store said when it could not be read; told once.
    trouble: Option<String>,
}

type Attempts = HashMap<AttemptId, Followed>;

struct Followed {
    since: Instant,
    /// Of an attempt that was expected.
    tell: Option<TellSign>,
    held: Held,
    /// Its ending was read: there is nothing more.
    complete: bool,
    reader: SegmentReader,
    /// Segment to read next, and how much of it was read.
    segment: u32,
    offset: u64,
    /// The attempt has ended: after the next complete listing these are told.
    waiting: Vec<oneshot::Sender<()>>,
    tries: u32,
}

/// Whether the lines of an attempt are held back until the layer follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    No,
    Unseen,
    /// It has printed, and the layer was told.
    Seen,
}

/// An attempt on its way through a read.
struct Reading {
    id: AttemptId,
    followed: Followed,
    fault: Option<ObjectError>,
}

impl Work {
    async fn run(mut self, mut messages: UnboundedReceiver<Message>) {
        let mut next = Instant::now();
        let mut pause = EVERY;
        loop {
            let idle = self.steps.is_empty();
            tokio::select! {
                message = messages.recv() => match message {
                    Some(message) => {
                        self.take(message, &mut next);
                        continue;
                    }
                    None => return,
                },
                () = sleep_until(next), if !idle => {}
            }
            while let Ok(message) = messages.try_recv() {
                self.take(message, &mut next);
            }
            let started = Instant::now();
            let fault = self.look().await;
            pause = if fault.is_some() { (pause * 2).min(LONGEST_PAUSE) } else { self.pause(started) };
            self.tell_trouble(fault);
            next = started + pause;
        }
    }

    fn take(&mut self, message: Message, next: &mut Instant) {
        match message {
            Message::Expect(id, step, tell) => {
                let attempts = self.steps.entry(step).or_default();
                attempts.entry(id).or_insert_with(|| Followed::expected(tell));
                *next = (*next).min(Instant::now() + AT_FIRST);
            }
            Message::Follow(id, step) => {
                let followed = self.steps.entry(step).or_default().entry(id).or_default();
                if followed.let_go() == Held::Seen {
                    *next = Instant::now();
                }
            }
            Message::Drained(id, step, done) => {
                let attempts = self.steps.entry(step).or_default();
                let followed = attempts.entry(id).or_default();
                if followed.complete {
                    attempts.remove(&id);
                    let _nobody_waits = done.send(());
                    return;
                }
                followed.let_go();
                followed.waiting.push(done);
                // The run waits for it, and those that end together share a listing.
                *next = (*next).min(Instant::now() + Duration::from_millis(20));
            }
        }
    }

    fn pause(&self, started: Instant) -> Duration {
        let mut attempts = self.steps.values().flat_map(HashMap::values);
        let first = self.listed <= FEW_OBJECTS && attempts.any(|a| !a.complete && a.since.elapsed() < FIRST_SECONDS);
        let least = if first || self.desk.is_busy() { AT_FIRST } else { EVERY };
        least.max(started.elapsed() * 2)
    }

    /// One listing of every step, and everything that is new in it.
    async fn look(&mut self) -> Option<ObjectError> {
        self.events.ready().await;
        let mut trouble = None;
        self.listed = 0;
        for step in self.steps.keys().cloned().collect::<Vec<_>>() {
            if self.steps[&step].values().all(|followed| followed.complete) {
                continue;
            }
            let prefix = self.keys.step_prefix(&step);
            let listed = self.objects.list(&prefix).await;
            let attempts = self.steps.remove(&step).unwrap_or_default();
            let left = match listed {
                Ok(entries) => {
                    self.listed += entries.len();
                    self.desk.look(&entries);
                    self.read_step(&step, attempts, &entries, &mut trouble).await
                }
                Err(error) => {
                    let left = self.give_up_some(attempts);
                    trouble = Some(error);
                    left
                }
            };
            if !left.is_empty() {
                self.steps.insert(step, left);
            }
        }
        trouble
    }

    async fn read_step(
        &self,
        step: &str,
        mut attempts: Attempts,
        entries: &[ObjectEntry],
        trouble: &mut Option<ObjectError>,
    ) -> Attempts {
        let sizes = sizes_of(entries);
        let mut left = Attempts::new();
        let mut reads = JoinSet::new();
        let mut pending: Vec<(AttemptId, Followed)> = attempts.drain().collect();
        while !pending.is_empty() || !reads.is_empty() {
            while reads.len() < MOST_READS
                && let Some((id, mut followed)) = pending.pop()
            {
                match sizes.get(&id).filter(|sizes| followed.is_behind(sizes)) {
                    Some(_) if followed.held != Held::No => {
                        followed.tell_running();
                        left.insert(id, followed);
                    }
                    Some(sizes) => {
                        reads.spawn(self.reading(step, id, followed, sizes.clone()));
                    }
                    None => self.keep_or_end(id, followed, &mut left),
                }
            }
            let Some(read) = reads.join_next().await else { continue };
            let Ok(Reading { id, followed, fault }) = read else { continue };
            match fault {
                None => self.keep_or_end(id, followed, &mut left),
                Some(error) => {
                    *trouble = Some(error);
                    left.extend(self.give_up_some(Attempts::from([(id, followed)])));
                }
            }
        }
        left
    }

    fn reading(
        &self,
        step: &str,
        id: AttemptId,
        mut followed: Followed,
        sizes: BTreeMap<u32, u64>,
    ) -> impl Future<Output = Reading> + Send + 'static {
        let (keys, step) = (self.keys.clone(), step.to_owned());
        let (objects, events) = (self.objects.clone(), self.events.clone());
        async move {
            let mut fault = None;
            while followed.is_behind(&sizes) {
                followed.skip_read(&sizes);
                let key = keys.segment(&step, id, followed.segment);
                match objects.get_from(&key, followed.offset).await {
                    Ok(Some(bytes)) if !bytes.is_empty() => {
                        followed.offset += bytes.len() as u64;
                        let mut lines = Vec::new();
                        followed.reader.feed(&bytes, &mut lines);
                        send(&*events, id, lines);
                        followed.look_for_ending(&*events, id);
                    }
                    // Listed, and gone: somebody cleans the store up.
                    Ok(_) => break,
                    Err(error) => {
                        fault = Some(error);
                        break;
                    }
                }
            }
            Reading { id, followed, fault }
        }
    }

    fn keep_or_end(&self, id: AttemptId, mut followed: Followed, left: &mut Attempts) {
        if followed.waiting.is_empty() {
            followed.tries = 0;
            left.insert(id, followed);
        } else {
            self.end(id, followed);
        }
    }

    fn end(&self, id: AttemptId, mut followed: Followed) {
        let mut lines = Vec::new();
        followed.reader.finish(&mut lines);
        send(&*self.events, id, lines);
        for done in followed.waiting {
            let _nobody_waits = done.send(());
        }
    }

    /// Of attempts that could not be read: those that have ended and were asked for often enough
    /// hold the run up no longer.
    fn give_up_some(&self, attempts: Attempts) -> Attempts {
        let mut left = Attempts::new();
        for (id, mut followed) in attempts {
            followed.tries += u32::from(!followed.waiting.is_empty());
            if followed.tries < LAST_TRIES {
                left.insert(id, followed);
            } else {
                let text = format!("the last lines of task {} could not be read from the store", id.task);
                self.events.send(LayerEvent::Notice { text });
                self.end(id, followed);
            }
        }
        left
    }

    fn tell_trouble(&mut self, fault: Option<ObjectError>) {
        let text = fault.map(|error| error.to_string());
        if let Some(text) = &text
            && self.trouble.is_none()
        {
            let text = format!("logs of remote tasks cannot be read at the moment: {text}");
            self.events.send(LayerEvent::Notice { text });
        }
        self.trouble = text;
    }
}

impl Default for Followed {
    fn default() -> Self {
        Self {
            since: Instant::now(),
            tell: None,
            held: Held::No,
            complete: false,
            reader: SegmentReader::default(),
            segment: 0,
            offset: 0,
            waiting: Vec::new(),
            tries: 0,
        }
    }
}

impl Followed {
    fn expected(tell: TellSign) -> Self {
        Self { tell: Some(tell), held: Held::Unseen, ..Self::default() }
    }

    /// How it was held until now.
    fn let_go(&mut self) -> Held {
        std::mem::replace(&mut self.held, Held::No)
    }

    fn tell_running(&mut self) {
        if self.held == Held::Unseen {
            self.held = Held::Seen;
            self.tell(RemoteSign::Running);
        }
    }

    fn tell(&self, sign: RemoteSign) {
        if let Some(tell) = &self.tell {
            tell(sign);
        }
    }

    fn look_for_ending(&mut self, events: &dyn EventSink, id: AttemptId) {
        let Some(message) = self.reader.take_ending().and_then(|text| termination_message(&text)) else { return };
        let mut lines = Vec::new();
        self.reader.finish(&mut lines);
        send(events, id, lines);
        self.complete = true;
        self.tell(RemoteSign::Ended(Box::new(message)));
    }

    fn is_behind(&self, sizes: &BTreeMap<u32, u64>) -> bool {
        sizes.range(self.segment..).any(|(number, size)| *number > self.segment || *size > self.offset)
    }

    /// On to the next segment when this one is read.
    fn skip_read(&mut self, sizes: &BTreeMap<u32, u64>) {
        while sizes.get(&self.segment).is_none_or(|size| *size <= self.offset) {
            let Some((next, _)) = sizes.range(self.segment + 1..).next() else { return };
            (self.segment, self.offset) = (*next, 0);
        }
    }
}

fn sizes_of(entries: &[ObjectEntry]) -> HashMap<AttemptId, BTreeMap<u32, u64>> {
    let mut sizes: HashMap<AttemptId, BTreeMap<u32, u64>> = HashMap::new();
    for entry in entries {
        if let Some((id, number)) = segment_of(entry) {
            sizes.entry(id).or_default().insert(number, entry.size);
        }
    }
    sizes
}

/// Lines of one stream and one moment go together.
fn send(events: &dyn EventSink, id: AttemptId, lines: Vec<LogLine>) {
    let mut group: Option<(Stream, Millis, Vec<Vec<u8>>)> = None;
    for line in lines {
        match &mut group {
            Some((stream, at, lines)) if *stream == line.stream && *at == line.at => lines.push(line.bytes),
            _ => {
                let next = (line.stream, line.at, vec![line.bytes]);
                if let Some((stream, at, lines)) = group.replace(next) {
                    events.send(LayerEvent::Log { id, stream, at, lines });
                }
            }
        }
    }
    if let Some((stream, at, lines)) = group {
        events.send(LayerEvent::Log { id, stream, at, lines });
    }
}
