//! A clock that only moves when told.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use ferroflow_core::task::Millis;

/// Clones share the time.
#[derive(Clone, Debug)]
pub struct FakeClock(Arc<AtomicI64>);

impl FakeClock {
    pub fn at(now: Millis) -> Self {
        Self(Arc::new(AtomicI64::new(now)))
    }

    pub fn now(&self) -> Millis {
        self.0.load(Ordering::SeqCst)
    }

    /// Moves on, and returns the new time.
    pub fn advance(&self, by: Millis) -> Millis {
        self.0.fetch_add(by, Ordering::SeqCst) + by
    }

    /// Moves to `at`, unless it is later already.
    pub fn advance_to(&self, at: Millis) -> Millis {
        self.0.fetch_max(at, Ordering::SeqCst).max(at)
    }
}

impl Default for FakeClock {
    /// In November 2026.
    fn default() -> Self {
        Self::at(1_795_000_000_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_moves_only_when_told_and_never_back() {
        let clock = FakeClock::at(100);
        let same = clock.clone();
        assert_eq!(clock.advance(5), 105);
        assert_eq!(same.now(), 105);
        assert_eq!(same.advance_to(50), 105);
        assert_eq!(clock.advance_to(200), 200);
    }
}
