//! What clients ask of a metadata store, as plain data: the extension asks in its own process, a
//! client in a container by way of the run's engine. Rows are answered as JSON of `core::metadata`.

use ferroflow_core::id::{RunId, TaskId};
use ferroflow_core::port::{MetadataAnswers, MetadataError, MetadataStore};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::read::Reader;
use crate::sqlite::SqliteMetadata;

/// One look at the metadata, or a change of tags.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Question {
    /// Names of flows.
    Flows,
    /// Runs of a flow, newest first.
    Runs { flow: String },
    /// A run, or null.
    Run { flow: String, run: RunId },
    /// Steps of a run that have tasks, newest first: `step` and `created_at`.
    Steps { flow: String, run: RunId },
    /// Latest attempts of a run's tasks, or of one step's, in order of task id.
    Tasks { flow: String, run: RunId, step: Option<String> },
    /// All attempts of a task, in order.
    Attempts { flow: String, run: RunId, task: TaskId },
    /// Metadata entries of a task, of all its attempts.
    Metadata { flow: String, run: RunId, task: TaskId },
    /// Removes, then adds tags; the user tags after it.
    MutateTags { flow: String, run: RunId, add: Vec<String>, remove: Vec<String> },
}

impl Question {
    /// What a root without any runs answers.
    fn without_runs(&self) -> Result<Value, MetadataError> {
        match self {
            Self::Run { .. } => Ok(Value::Null),
            Self::MutateTags { flow, run, .. } => {
                Err(MetadataError::NotFound(format!("there is no run `{flow}/{run}`")))
            }
            _ => Ok(json!([])),
        }
    }
}

/// The answer as JSON.
pub fn answer(reader: &Reader, question: &Question) -> Result<Vec<u8>, MetadataError> {
    let Some(metadata) = reader.metadata()? else { return Ok(encoded(&question.without_runs()?)) };
    look(reader, metadata, question)
}

fn look(reader: &Reader, metadata: &SqliteMetadata, question: &Question) -> Result<Vec<u8>, MetadataError> {
    Ok(match question {
        Question::Flows => encoded(&metadata.flows()?),
        Question::Runs { flow } => encoded(&metadata.runs(flow)?),
        Question::Run { flow, run } => encoded(&metadata.find_run(flow, run)?),
        Question::Steps { flow, run } => encoded(&or_empty(metadata.steps(flow, run))?),
        Question::Tasks { flow, run, step } => encoded(&or_empty(metadata.tasks_of(flow, run, step.as_deref()))?),
        Question::Attempts { flow, run, task } => encoded(&or_empty(metadata.attempts(flow, run, *task))?),
        Question::Metadata { flow, run, task } => encoded(&reader.task_metadata(flow, run, *task)?),
        Question::MutateTags { flow, run, add, remove } => encoded(&metadata.mutate_tags(flow, run, add, remove)?),
    })
}

fn encoded(answer: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(answer).expect("rows are plain data")
}

/// A run that does not exist has no tasks, for a reader.
fn or_empty<T>(rows: Result<Vec<T>, MetadataError>) -> Result<Vec<T>, MetadataError> {
    match rows {
        Err(MetadataError::NotFound(_)) => Ok(Vec::new()),
        other => other,
    }
}

impl MetadataAnswers for Reader {
    fn answer(&self, question: &[u8]) -> Vec<u8> {
        let asked = serde_json::from_slice(question)
            .map_err(|error| MetadataError::Unavailable(format!("the engine does not know this question: {error}")));
        match asked.and_then(|question| answer(self, &question)) {
            Ok(mut found) => {
                let mut whole = br#"{"found":"#.to_vec();
                whole.append(&mut found);
                whole.push(b'}');
                whole
            }
            Err(error) => encoded(&json!({"fault": kind(&error), "text": error.to_string()})),
        }
    }
}

/// As `python/metaflow/_client_questions.py` knows them.
fn kind(error: &MetadataError) -> &'static str {
    match error {
        MetadataError::NotFound(_) => "not_found",
        MetadataError::Refused(_) => "refused",
        MetadataError::TakenOver(_) | MetadataError::Unavailable(_) => "unavailable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(reader: &Reader, question: &str) -> Value {
        serde_json::from_slice(&MetadataAnswers::answer(reader, question.as_bytes())).expect("JSON")
    }

    #[test]
    fn a_root_without_runs_answers_as_an_empty_one() {
        let folder = tempfile::tempdir().expect("folder");
        let reader = Reader::new(folder.path());
        assert_eq!(told(&reader, r#"{"ask":"flows"}"#), json!({"found": []}));
        assert_eq!(told(&reader, r#"{"ask":"run","flow":"F","run":"1"}"#), json!({"found": null}));
        let tags = r#"{"ask":"mutate_tags","flow":"F","run":"1","add":["x"],"remove":[]}"#;
        assert_eq!(told(&reader, tags), json!({"fault": "not_found", "text": "there is no run `F/1`"}));
        assert!(std::fs::read_dir(folder.path()).expect("folder").next().is_none(), "looking creates nothing");
    }

    #[test]
    fn a_question_of_another_version_is_answered_with_a_sentence() {
        let folder = tempfile::tempdir().expect("folder");
        let answer = told(&Reader::new(folder.path()), r#"{"ask":"weather"}"#);
        assert_eq!(answer["fault"], "unavailable");
        let text = answer["text"].as_str().expect("text");
        assert!(text.starts_with("the engine does not know this question: unknown variant `weather`"), "{text}");
    }
}
