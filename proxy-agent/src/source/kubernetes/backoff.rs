//! The wait before the next request to a server that failed.
//!
//! The wait doubles from half a second to five seconds. Each wait is shortened at random by up to half. The
//! agents of a thousand nodes lose their server at the same moment, and must not return at the same moment.
//! The longest wait bounds the age of the state after the server has come back.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

const SHORTEST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(5);

/// The waits between attempts.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
    random: RandomState,
    drawn: u64,
}

impl Backoff {
    pub(super) fn new() -> Self {
        Self {
            next: SHORTEST,
            random: RandomState::new(),
            drawn: 0,
        }
    }

    /// Notes a response of the server: the next wait is short again.
    pub(super) fn reset(&mut self) {
        self.next = SHORTEST;
    }

    /// Returns the next wait, and doubles the one after it.
    pub(super) fn wait(&mut self) -> Duration {
        let longest = self.next;
        self.next = (longest * 2).min(LONGEST);
        self.jitter(longest)
    }

    /// A random time between half of `longest` and all of it.
    pub(super) fn jitter(&mut self, longest: Duration) -> Duration {
        self.drawn += 1;
        let share = (self.random.hash_one(self.drawn) % 512) as u32;
        longest / 1024 * (512 + share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_limit_and_never_agree() {
        let mut backoff = Backoff::new();
        let mut bound = SHORTEST;
        for _ in 0..20 {
            let wait = backoff.wait();
            assert!(
                wait <= bound && wait >= bound / 1024 * 512,
                "{wait:?} for {bound:?}"
            );
            bound = (bound * 2).min(LONGEST);
        }
        assert_eq!(bound, LONGEST);
        let waits: std::collections::BTreeSet<_> = (0..20).map(|_| backoff.wait()).collect();
        assert!(waits.len() > 10, "{waits:?}");
        backoff.reset();
        assert!(backoff.wait() <= SHORTEST);
    }
}
