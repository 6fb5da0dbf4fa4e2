//! What the end of a container says: its termination message, or, where it never ran anything of
//! ours, what the runtime's own words mean. Texts are for users.

use ferroflow_core::id::AttemptId;
use ferroflow_core::port::LayerEvent;
use ferroflow_core::task::{AttemptReport, Cause, CauseKind, ProcessExit, Usage};
use ferroflow_core::wire::TerminationMessage;

use super::language::needed_for;

/// Exit code of a container whose image cannot run our code, or that could not fetch it. The
/// termination message says which; where there is none (AWS Batch), the log does.
pub const EXIT_UNUSABLE: i32 = 121;
/// Exit code of a container whose addresses had expired: sign again and resubmit.
pub const EXIT_SIGN_AGAIN: i32 = 122;
/// Exit code of a container that nobody answered whom it asked for the code, where its log cannot be read.
pub const EXIT_STORE_AWAY: i32 = 123;

/// The cause that `EXIT_STORE_AWAY` stands for: another container may have more luck.
pub fn store_away() -> Cause {
    let text = "its container could not fetch the flow's code: nobody answers at the datastore's address, which its log \
                names. A network without a way to S3, or METAFLOW_BATCH_S3_ENDPOINT_URL, may be why";
    Cause::new(CauseKind::LayerError, text)
}

/// What an ended attempt is for the run. One that lost its machine is no failure of the user's, so
/// it starts again whatever @retry says.
pub fn told(id: AttemptId, report: AttemptReport) -> LayerEvent {
    let failed = report.outcome.as_ref().is_none_or(|outcome| !outcome.ok);
    match report.cause {
        Some(cause) if failed && cause.kind == CauseKind::SpotReclaimed => LayerEvent::Lost { id, cause },
        _ => LayerEvent::Finished { id, report },
    }
}

/// The message of a container of ours; `None` for any other text (the last lines of a log, which
/// `FallbackToLogsOnError` puts there).
pub fn termination_message(text: &str) -> Option<TerminationMessage> {
    serde_json::from_str(text.trim()).ok()
}

/// What an exit code alone says, where no message came.
pub fn message_of_exit_code(code: i32, image: &str) -> Option<TerminationMessage> {
    let text = match code {
        EXIT_UNUSABLE => format!(
            "the image `{image}` cannot run the flow's code, or the code could not be fetched; the last line of the \
             container's log says why"
        ),
        EXIT_SIGN_AGAIN => "the address of the code had expired before the container started".to_owned(),
        _ => return None,
    };
    let kind = if code == EXIT_UNUSABLE { CauseKind::Image } else { CauseKind::LayerError };
    Some(TerminationMessage {
        outcome: None,
        exit: ProcessExit::Code(code),
        usage: Usage::default(),
        cause: Some(Cause::new(kind, text)),
        sign_again: code == EXIT_SIGN_AGAIN,
        log_is_short: true,
        metadata: Vec::new(),
    })
}

/// What stands for the message of a container that somebody ended by hand before it said anything.
pub fn killed_by_hand(reason: &str) -> TerminationMessage {
    TerminationMessage {
        outcome: None,
        exit: ProcessExit::Signal(9),
        usage: Usage::default(),
        cause: Some(Cause::new(CauseKind::Killed, format!("somebody ended the job: {reason}"))),
        sign_again: false,
        log_is_short: true,
        metadata: Vec::new(),
    }
}

/// The cause when a container could not even be started because its image has no Python; `error`
/// is the runtime's message (containerd, CRI-O, Docker), `None` when it says something else.
pub fn no_interpreter(error: &str, image: &str, interpreter: &str) -> Option<Cause> {
    let not_found = ["executable file not found", "no such file or directory", "executable file `"];
    let about_it = error.contains(&format!("\"{interpreter}\"")) || error.contains(&format!("`{interpreter}`"));
    let exec = error.contains("exec: ") || error.contains("executable file");
    if not_found.iter().any(|words| error.contains(words)) && (about_it || exec) {
        return Some(Cause::new(
            CauseKind::Image,
            lacks_interpreter(
                image,
                program_of(error).filter(|named| !named.ends_with(interpreter)).unwrap_or(interpreter),
            ),
        ));
    }
    if error.contains("exec format error") {
        return Some(Cause::new(
            CauseKind::Image,
            format!("the image `{image}` is for another processor architecture than the node: choose one for its own"),
        ));
    }
    None
}

/// The program that a runtime could not start, by its words.
fn program_of(error: &str) -> Option<&str> {
    let (_, rest) = error.split_once("exec: \"")?;
    let (program, _) = rest.split_once('"')?;
    Some(program).filter(|program| !program.is_empty())
}

/// The sentence about an image without the language.
pub fn lacks_interpreter(image: &str, interpreter: &str) -> String {
    format!("the image `{image}` has no `{interpreter}`: {}", needed_for(interpreter))
}

#[cfg(test)]
mod tests {
    use ferroflow_core::id::TaskId;

    use super::*;

    #[test]
    fn a_task_that_lost_its_instance_is_no_failure_unless_it_was_done() {
        let id = AttemptId { task: TaskId(1), attempt: 0 };
        let cause = Cause::new(CauseKind::SpotReclaimed, "taken back");
        let report = |outcome: Option<&str>| AttemptReport {
            outcome: outcome.map(|text| serde_json::from_str(text).expect("outcome")),
            exit: ProcessExit::Signal(15),
            usage: Usage::default(),
            cause: Some(cause.clone()),
        };
        assert_eq!(told(id, report(None)), LayerEvent::Lost { id, cause: cause.clone() });
        let done = report(Some(r#"{"ok": true, "success": true}"#));
        assert_eq!(told(id, done.clone()), LayerEvent::Finished { id, report: done });
        let failed = AttemptReport { cause: None, ..report(None) };
        assert_eq!(told(id, failed.clone()), LayerEvent::Finished { id, report: failed });
    }

    #[test]
    fn an_image_without_python_is_recognised_in_every_runtimes_words() {
        let said = [
            "failed to create containerd task: failed to create shim task: OCI runtime create failed: runc create \
             failed: unable to start container process: exec: \"python3\": executable file not found in $PATH: unknown",
            "container create failed: executable file `python3` not found in $PATH: No such file or directory",
            "OCI runtime create failed: container_linux.go:380: starting container process caused: exec: \
             \"/opt/bin/python3\": stat /opt/bin/python3: no such file or directory: unknown",
            "CannotStartContainerError: Error response from daemon: failed to create task for container: exec: \
             \"python3\": executable file not found in $PATH",
        ];
        for error in said {
            let cause = no_interpreter(error, "alpine", "python3").expect(error);
            assert_eq!(
                cause.text,
                "the image `alpine` has no `python3`: a task needs an image with Python 3.11 or newer, such as \
                 `python:3.11`"
            );
        }
        let of_r = "exec: \"Rscript\": executable file not found in $PATH";
        assert_eq!(
            no_interpreter(of_r, "alpine", "python3").expect("a cause").text,
            "the image `alpine` has no `Rscript`: a task of a flow in R needs an image with R, such as `rocker/r-ver` or \
             `r-base`"
        );
        assert_eq!(no_interpreter("open /etc/x: no such file or directory", "alpine", "python3"), None);
        assert_eq!(no_interpreter("context deadline exceeded", "alpine", "python3"), None);
    }

    #[test]
    fn only_our_messages_are_messages() {
        let ours = r#"{"outcome":null,"exit":{"code":1},"usage":{"cpu_seconds":0.5,"peak_memory":7}}"#;
        let message = termination_message(ours).expect("message");
        assert_eq!((message.exit, message.sign_again), (ProcessExit::Code(1), false));
        assert!(termination_message("Traceback (most recent call last):").is_none());
        assert!(message_of_exit_code(122, "x").expect("known").sign_again);
        assert!(message_of_exit_code(1, "x").is_none());
    }
}
