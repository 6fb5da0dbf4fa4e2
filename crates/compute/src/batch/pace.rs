//! The pace of all calls of a run: AWS Batch lets an account make so many in a second, and one that
//! was told to slow down slows all others down with it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// AWS takes 50 submissions a second from one account; others submit too.
const BETWEEN_SUBMISSIONS: Duration = Duration::from_millis(25);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// Shared by everything that calls.
#[derive(Debug)]
pub struct Pace(Mutex<State>);

#[derive(Debug)]
struct State {
    next_submission: Instant,
    /// No call before this.
    quiet_until: Instant,
    pause: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self(Mutex::new(State::at(Instant::now())))
    }
}

impl State {
    fn at(now: Instant) -> Self {
        Self { next_submission: now, quiet_until: now, pause: Duration::ZERO }
    }

    /// When a call may go out.
    fn turn(&mut self, submission: bool, now: Instant) -> Instant {
        let mut at = self.quiet_until.max(now);
        if submission {
            at = at.max(self.next_submission);
            // The slower the service, the further apart.
            self.next_submission = at + BETWEEN_SUBMISSIONS.max(self.pause / 4);
        }
        at
    }

    fn slow_down(&mut self, now: Instant) {
        // Calls that were under way together count once.
        if now >= self.quiet_until {
            self.pause = (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
            self.quiet_until = now + self.pause;
        }
    }

    fn answered(&mut self) {
        self.pause = if self.pause <= FIRST_PAUSE / 2 { Duration::ZERO } else { self.pause.mul_f64(0.8) };
    }
}

impl Pace {
    /// Waits until a call may go out.
    pub async fn turn(&self, submission: bool) {
        let at = self.state().turn(submission, Instant::now());
        tokio::time::sleep_until(at).await;
    }

    /// The service was busy.
    pub fn slow_down(&self) {
        self.state().slow_down(Instant::now());
    }

    /// The service took a call.
    pub fn answered(&self) {
        self.state().answered();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn submissions_keep_their_distance() {
        let begun = Instant::now();
        let mut state = State::at(begun);
        let last = (0..41).map(|_| state.turn(true, begun)).last().expect("some");
        assert_eq!(last - begun, Duration::from_secs(1));
        assert_eq!(state.turn(false, begun), begun);
    }

    #[test]
    fn one_that_was_refused_holds_all_back_for_longer_and_longer() {
        let begun = Instant::now();
        let mut state = State::at(begun);
        state.slow_down(begun);
        state.slow_down(begun); // at the same time: once
        let later = state.turn(false, begun);
        assert_eq!(later - begun, Duration::from_millis(250));
        state.slow_down(later);
        assert_eq!(state.turn(true, later) - begun, Duration::from_millis(750));
        // Taken calls bring the pace back.
        for _ in 0..30 {
            state.answered();
        }
        assert_eq!(state.pause, Duration::ZERO);
    }
}
