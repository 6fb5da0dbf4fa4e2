//! What the store shows of an attempt before the watch does: kubelets look at their containers once
//! a second and tell the server then.

use ferroflow_core::id::AttemptId;
use ferroflow_core::port::RemoteSign;
use ferroflow_core::task::{AttemptReport, ProcessExit};
use ferroflow_core::wire::TerminationMessage;

use super::super::attempt::Stage;
use super::{Message, Supervisor, is_ok};

impl Supervisor {
    pub(super) fn expect(&self, id: AttemptId) {
        let sender = self.sender.clone();
        let tell = move |sign| {
            let _over = sender.send(Message::Sign { id, sign });
        };
        self.remote.expect(id, Box::new(tell));
    }

    pub(super) fn sign(&mut self, id: AttemptId, sign: RemoteSign) {
        let Some(attempt) = self.attempts.get(&id) else { return };
        if attempt.stage == Stage::Ending || attempt.is_stopped() || attempt.taken.is_some() {
            return;
        }
        let pod = attempt.view.clone();
        match sign {
            RemoteSign::Running => self.start(id, &pod),
            RemoteSign::Ended(message) => self.said(id, *message),
        }
    }

    /// Success is what the supervisor says it is. Of a failure the pod's status knows more: a limit
    /// that was hit, a node that went.
    fn said(&mut self, id: AttemptId, message: TerminationMessage) {
        let TerminationMessage { outcome, exit, usage, cause, metadata, .. } = message;
        let report = AttemptReport { outcome, exit, usage, cause };
        if !is_ok(&report) || report.exit != ProcessExit::Code(0) || report.cause.is_some() {
            return;
        }
        for (name, value) in metadata {
            self.events.metadata(id, name, value);
        }
        self.drain(id, Box::new(report));
    }
}
