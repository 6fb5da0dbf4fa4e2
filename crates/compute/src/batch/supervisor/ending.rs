//! How attempts end: what the container said of itself and its lines first, then the one event that
//! says how.

use std::time::Duration;

use ferroflow_core::id::AttemptId;
use ferroflow_core::port::{LayerEvent, ObjectError, StopSignal};
use ferroflow_core::task::{AttemptReport, Cause, CauseKind, ProcessExit, Usage};
use ferroflow_core::wire::TerminationMessage;
use tokio::time::Instant;

use super::super::attempt::{MOST_ROUNDS, Stage};
use super::super::view::{Asked, Ending, JobView, Status};
use super::{Message, Supervisor, cancelled};
use crate::remote::ending::{EXIT_STORE_AWAY, message_of_exit_code, store_away, told};

/// How long the last lines of an ended task may take.
const LAST_LINES: Duration = Duration::from_secs(15);
/// How long a store that does not answer may keep to itself how a task ended.
const LAST_WORDS: Duration = Duration::from_secs(300);

/// What is known of an end.
pub struct Read {
    ending: Ending,
    spoken: Result<Option<TerminationMessage>, ObjectError>,
}

impl Read {
    /// It looks like something that was stopped from outside, and by nobody's hand.
    fn was_stopped(&self) -> bool {
        let by_signal = |exit: ProcessExit| matches!(exit, ProcessExit::Signal(9 | 15));
        match (&self.ending, &self.spoken) {
            (Ending::Taken(cause), _) if cause.kind == CauseKind::Killed => false,
            (_, Ok(Some(said))) => killed(said).is_none() && by_signal(said.exit),
            (Ending::Taken(_), _) => true,
            (Ending::Ran { exit, .. }, _) => by_signal(*exit) || *exit == ProcessExit::Code(0),
        }
    }
}

impl Supervisor {
    /// Its job has ended.
    pub(super) fn is_over(&mut self, id: AttemptId, job: &JobView) {
        let Some(attempt) = self.attempts.get(&id) else { return };
        let options = &attempt.plan.options;
        let image = self.submitter.image(options);
        let interpreter = options.executable.as_deref().unwrap_or("python3");
        let Some(ending) = job.ending(&Asked { image: &image, interpreter, memory: options.memory }) else { return };
        let ran = attempt.told_started || matches!(ending, Ending::Ran { .. });
        match ending {
            Ending::Taken(_) if !ran && attempt.stop.is_some() => self.lose(id, cancelled()),
            Ending::Taken(_) if !ran => {
                let round = attempt.round;
                self.has_read(id, round, Read { ending, spoken: Ok(None) });
            }
            ending => {
                if job.status == Status::Succeeded || matches!(ending, Ending::Ran { .. }) {
                    self.start(id, job);
                }
                self.read(id, ending);
            }
        }
    }

    /// Asks the store how the attempt ended, and waits for its last lines.
    fn read(&mut self, id: AttemptId, ending: Ending) {
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        attempt.stage = Stage::Ending;
        let killed = attempt.stop == Some(StopSignal::Kill);
        let patience = if killed { Duration::from_secs(1) } else { LAST_WORDS };
        let round = attempt.round;
        let (remote, sender) = (self.remote.clone(), self.sender.clone());
        tokio::spawn(async move {
            let begun = Instant::now();
            let spoken = loop {
                match remote.ending(id).await {
                    Err(ObjectError::Unavailable(_)) if begun.elapsed() < patience => {
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                    spoken => break spoken,
                }
            };
            let _late = tokio::time::timeout(LAST_LINES, remote.drained(id)).await;
            let _over = sender.send(Message::Read { id, round, read: Box::new(Read { ending, spoken }) });
        });
    }

    /// How the job of a round ended is known.
    pub(super) fn has_read(&mut self, id: AttemptId, round: u32, read: Read) {
        let Some(attempt) = self.attempts.get(&id).filter(|attempt| attempt.round == round) else { return };
        if read.was_stopped() && self.ended_with_main(attempt) {
            self.hold(id, read);
        } else {
            self.was_read(id, read);
        }
    }

    pub(super) fn was_read(&mut self, id: AttemptId, read: Read) {
        let Some(attempt) = self.attempts.get(&id) else { return };
        let stop = attempt.stop;
        let spoken = match read.spoken {
            Ok(None) => match &read.ending {
                Ending::Ran { exit: ProcessExit::Code(EXIT_STORE_AWAY), .. } if stop.is_none() => {
                    self.lose(id, store_away());
                    return;
                }
                Ending::Ran { exit: ProcessExit::Code(code), .. } => {
                    message_of_exit_code(*code, &self.submitter.image(&attempt.plan.options))
                }
                _ => None,
            },
            Ok(spoken) => spoken,
            Err(error) if stop.is_none() => {
                let text = format!("its job has ended, and how cannot be read from the datastore: {error}");
                self.lose(id, Cause::new(CauseKind::LayerError, text));
                return;
            }
            Err(_) => None,
        };
        let sign_again = spoken.as_ref().is_some_and(|said| said.sign_again);
        if sign_again && stop.is_none() && self.submit_again(id) {
            return;
        }
        if let Some(said) = &spoken {
            for (name, value) in &said.metadata {
                self.events.metadata(id, name.clone(), value.clone());
            }
        }
        match report(read.ending, spoken, stop) {
            Ok(report) => {
                self.attempts.remove(&id);
                self.events.send(told(id, report));
            }
            Err(cause) => self.lose(id, cause),
        }
    }

    /// Ends an attempt of which nothing more is known; its job goes too.
    pub(super) fn lose(&mut self, id: AttemptId, cause: Cause) {
        let Some(attempt) = self.attempts.get(&id) else { return };
        if attempt.is_followed() && !attempt.status.is_over() {
            self.end(vec![id]);
        }
        if let Some(attempt) = self.attempts.remove(&id) {
            let _ended_when_it_arrives = attempt.cancel_order();
        }
        self.events.send(LayerEvent::Lost { id, cause });
    }

    /// Another job for an attempt whose addresses had expired while it waited; `false` when that
    /// was tried often enough.
    fn submit_again(&mut self, id: AttemptId) -> bool {
        let Some(attempt) = self.attempts.get_mut(&id).filter(|a| a.round < MOST_ROUNDS && !a.adopted) else {
            return false;
        };
        if let Some(main) = attempt.main_rank() {
            return self.submit_gang_again(main);
        }
        attempt.begin_round();
        self.send_order(id);
        true
    }
}

/// The cause of an end by somebody's hand.
fn killed(said: &TerminationMessage) -> Option<Cause> {
    said.cause.clone().filter(|cause| cause.kind == CauseKind::Killed)
}

/// What the service and the container say together; the service alone knows of memory, time and
/// lost instances.
fn report(
    ending: Ending,
    spoken: Option<TerminationMessage>,
    stop: Option<StopSignal>,
) -> Result<AttemptReport, Cause> {
    let nothing = |exit, cause| AttemptReport { outcome: None, exit, usage: Usage::default(), cause };
    if let Some(cause) = spoken.as_ref().and_then(killed).filter(|_| stop.is_none()) {
        return Err(cause);
    }
    match (ending, spoken) {
        (_, None) if stop.is_some() => {
            let signal = if stop == Some(StopSignal::Kill) { 9 } else { 15 };
            Ok(nothing(ProcessExit::Signal(signal), None))
        }
        (Ending::Ran { exit, cause }, None) => Ok(nothing(exit, cause)),
        (Ending::Taken(cause), None) => Err(cause),
        (Ending::Taken(cause), Some(said)) if !said.outcome.as_ref().is_some_and(|outcome| outcome.ok) => Err(cause),
        (ending, Some(said)) => {
            let (exit, cause) = match ending {
                Ending::Ran { exit, cause } => (exit, cause),
                Ending::Taken(_) => (said.exit, None),
            };
            let certain = cause.filter(|cause| matches!(cause.kind, CauseKind::OutOfMemory | CauseKind::TimedOut));
            Ok(AttemptReport { outcome: said.outcome, exit, usage: said.usage, cause: certain.or(said.cause) })
        }
    }
}
