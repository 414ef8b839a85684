//! Which events are worth a request.
//!
//! A fault that comes and goes every second is one event every ten minutes, and whatever happens, the API server sees no more
//! than a burst of twenty-five and then one each ten seconds: a thousand nodes may have the same trouble at the same time.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::Event;

/// The same event is not told again within this time.
const AGAIN: Duration = Duration::from_mins(10);
/// Events that may be told at once.
const BURST: u32 = 25;
/// How long it takes until one more may be told.
const REFILL: Duration = Duration::from_secs(10);

/// What was told, and how much more may be.
#[derive(Debug)]
pub struct Limit {
    told: HashMap<Event, Instant>,
    left: u32,
    refilled: Instant,
}

impl Limit {
    /// Nothing was told yet.
    pub fn new(now: Instant) -> Self {
        Self {
            told: HashMap::new(),
            left: BURST,
            refilled: now,
        }
    }

    /// Whether to tell this event; if so it counts as told.
    pub fn admit(&mut self, event: &Event, now: Instant) -> bool {
        let fresh = |told: &Instant| now.saturating_duration_since(*told) < AGAIN;
        self.told.retain(|_, told| fresh(told));
        while self.left < BURST && now.saturating_duration_since(self.refilled) >= REFILL {
            self.left += 1;
            self.refilled += REFILL;
        }
        if self.left == 0 || self.told.contains_key(event) {
            return false;
        }
        if self.left == BURST {
            self.refilled = now;
        }
        self.left -= 1;
        self.told.insert(event.clone(), now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(number: u32) -> Event {
        Event::warning_of_service("a", "b", "Reason", "Action", number.to_string())
    }

    #[test]
    fn the_same_event_is_told_every_ten_minutes() {
        let start = Instant::now();
        let mut limit = Limit::new(start);
        assert!(limit.admit(&event(1), start));
        assert!(!limit.admit(&event(1), start + AGAIN / 2));
        assert!(limit.admit(&event(2), start + AGAIN / 2));
        assert!(limit.admit(&event(1), start + AGAIN));
    }

    #[test]
    fn a_flood_is_cut_to_a_burst_and_a_trickle() {
        let start = Instant::now();
        let mut limit = Limit::new(start);
        let mut admitted = |from: u32, at: Instant| {
            (from..from + 100)
                .filter(|number| limit.admit(&event(*number), at))
                .count()
        };
        assert_eq!(admitted(0, start), 25);
        assert_eq!(admitted(100, start + 3 * REFILL), 3);
        assert_eq!(admitted(200, start + 3 * REFILL), 0);
        assert_eq!(admitted(300, start + 100 * REFILL), 25);
    }
}
