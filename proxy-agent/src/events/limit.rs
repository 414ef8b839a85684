//! The rate limit of events.
//!
//! A fault that comes and goes every second is one event every ten minutes. The API server gets a burst of at
//! most twenty-five events and then one each ten seconds: a thousand nodes may have trouble at once.
//!
//! The last ten are for events about the Node. The owner of a Service writes the text of its problem, and can
//! change it without end.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::Event;

/// The limit does not admit the same event again within this time.
const AGAIN: Duration = Duration::from_mins(10);
/// Events that the limit admits at once.
const BURST: u32 = 25;
/// The part of the burst that is for events about the Node alone.
const OF_THE_NODE: u32 = 10;
/// How long it takes until the limit admits one more event.
const REFILL: Duration = Duration::from_secs(10);

/// The events that were admitted, and the number that may follow.
#[derive(Debug)]
pub struct Limit {
    sent: HashMap<Event, Instant>,
    left: u32,
    refilled: Instant,
}

impl Limit {
    /// A limit that has admitted no event yet.
    pub fn new(now: Instant) -> Self {
        Self {
            sent: HashMap::new(),
            left: BURST,
            refilled: now,
        }
    }

    /// Whether to post this event; if so it counts as posted.
    pub fn admit(&mut self, event: &Event, now: Instant) -> bool {
        let fresh = |sent: &Instant| now.saturating_duration_since(*sent) < AGAIN;
        self.sent.retain(|_, sent| fresh(sent));
        while self.left < BURST && now.saturating_duration_since(self.refilled) >= REFILL {
            self.left += 1;
            self.refilled += REFILL;
        }
        let reserved = if event.is_of_node() { 0 } else { OF_THE_NODE };
        if self.left <= reserved || self.sent.contains_key(event) {
            return false;
        }
        if self.left == BURST {
            self.refilled = now;
        }
        self.left -= 1;
        self.sent.insert(event.clone(), now);
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
    fn the_same_event_is_sent_every_ten_minutes() {
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
        assert_eq!(admitted(0, start), 15);
        assert_eq!(admitted(100, start + 3 * REFILL), 3);
        assert_eq!(admitted(200, start + 3 * REFILL), 0);
        assert_eq!(admitted(300, start + 100 * REFILL), 15);
    }

    #[test]
    fn events_about_services_leave_room_for_those_about_the_node() {
        let start = Instant::now();
        let mut limit = Limit::new(start);
        for number in 0..100 {
            limit.admit(&event(number), start);
        }
        let of_node =
            |number: u32| Event::warning_of_node("n1", "DataPlaneIncomplete", "Restore", number.to_string());
        let admitted = (0..100)
            .filter(|number| limit.admit(&of_node(*number), start))
            .count();
        assert_eq!(admitted, 10);
        // The first event that comes back is reserved for the Node.
        assert!(!limit.admit(&event(100), start + REFILL));
        assert!(limit.admit(&of_node(100), start + REFILL));
    }
}
