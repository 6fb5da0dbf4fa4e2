//! Questions of clients in containers about runs, tasks and tags: the listing that finds the logs
//! finds them, this machine's metadata answers, and the answer goes where the task waits for it.
//! What may be asked is `store::questions`'.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ferroflow_core::log_segment::answer_key;
use ferroflow_core::port::{MetadataAnswers, ObjectAccess, ObjectEntry, ObjectError};
use tokio::sync::Semaphore;

/// Answered at once, so that many tasks that ask do not open many connections.
const AT_ONCE: usize = 3;
/// Who has asked will soon ask again.
const ATTENTIVE: Duration = Duration::from_secs(5);

/// Answers each question once.
pub struct Desk {
    objects: Arc<dyn ObjectAccess>,
    answers: Arc<dyn MetadataAnswers>,
    /// Keys of questions that are being answered, or were.
    taken: Arc<Mutex<HashSet<String>>>,
    room: Arc<Semaphore>,
    asked: Option<Instant>,
}

impl Desk {
    pub fn new(objects: Arc<dyn ObjectAccess>, answers: Arc<dyn MetadataAnswers>) -> Self {
        Self { objects, answers, taken: Arc::default(), room: Arc::new(Semaphore::new(AT_ONCE)), asked: None }
    }

    /// Whether somebody has just asked, and waits.
    pub fn is_busy(&self) -> bool {
        self.asked.is_some_and(|at| at.elapsed() < ATTENTIVE)
    }

    /// Begins to answer what is new in a listing.
    pub fn look(&mut self, entries: &[ObjectEntry]) {
        for entry in entries {
            let Some(answer) = answer_key(entry) else { continue };
            if !lock(&self.taken).insert(entry.key.clone()) {
                continue;
            }
            self.asked = Some(Instant::now());
            let (objects, answers) = (self.objects.clone(), self.answers.clone());
            let (taken, room, question) = (self.taken.clone(), self.room.clone(), entry.key.clone());
            tokio::spawn(async move {
                let _permit = room.acquire().await;
                if reply(&*objects, answers, &question, &answer).await.is_err() {
                    // It is still in the store, and the next listing finds it.
                    lock(&taken).remove(&question);
                }
            });
        }
    }
}

fn lock(taken: &Mutex<HashSet<String>>) -> std::sync::MutexGuard<'_, HashSet<String>> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn reply(
    objects: &dyn ObjectAccess,
    answers: Arc<dyn MetadataAnswers>,
    question: &str,
    answer: &str,
) -> Result<(), ObjectError> {
    let Some(asked) = objects.get_from(question, 0).await? else { return Ok(()) };
    let told = tokio::task::spawn_blocking(move || answers.answer(&asked)).await;
    let told = told.map_err(|error| ObjectError::Unavailable(error.to_string()))?;
    objects.put(answer, told, false).await?;
    // Tidiness: who may not delete leaves some small objects behind.
    let _stays = objects.delete(question).await;
    Ok(())
}
