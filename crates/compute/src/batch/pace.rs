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
        let now = Instant::now();
        Self(Mutex::new(State { next_submission: now, quiet_until: now, pause: Duration::ZERO }))
    }
}

impl Pace {
    /// Waits until a call may go out.
    pub async fn turn(&self, submission: bool) {
        let at = {
            let mut state = self.state();
            let mut at = state.quiet_until;
            if submission {
                at = at.max(state.next_submission).max(Instant::now());
                // The slower the service, the further apart.
                state.next_submission = at + BETWEEN_SUBMISSIONS.max(state.pause / 4);
            }
            at
        };
        tokio::time::sleep_until(at).await;
    }

    /// The service was busy.
    pub fn slow_down(&self) {
        let mut state = self.state();
        let now = Instant::now();
        // Calls that were under way together count once.
        if now >= state.quiet_until {
            state.pause = (state.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
            state.quiet_until = now + state.pause;
        }
    }

    /// The service took a call.
    pub fn answered(&self) {
        let mut state = self.state();
        state.pause = if state.pause <= FIRST_PAUSE / 2 { Duration::ZERO } else { state.pause.mul_f64(0.8) };
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn submissions_keep_their_distance() {
        let pace = Pace::default();
        let begun = Instant::now();
        for _ in 0..41 {
            pace.turn(true).await;
        }
        assert_eq!(begun.elapsed(), Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_was_refused_holds_all_back_for_longer_and_longer() {
        let pace = Pace::default();
        let begun = Instant::now();
        pace.slow_down();
        pace.slow_down(); // at the same time: once
        pace.turn(false).await;
        assert_eq!(begun.elapsed(), Duration::from_millis(250));
        pace.slow_down();
        pace.turn(true).await;
        assert_eq!(begun.elapsed(), Duration::from_millis(750));
        for _ in 0..30 {
            pace.answered();
        }
        pace.turn(false).await;
        assert_eq!(begun.elapsed(), Duration::from_millis(750));
    }
}
