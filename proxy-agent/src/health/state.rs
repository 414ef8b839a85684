//! The state of the proxy.
//!
//! The proxy is healthy while no update waits for long. An update counts from the moment its event arrived to
//! the moment all of its writes are carried out. Until the first full list no update waits. So an agent that
//! starts is healthy, as kube-proxy is: the pinned programs serve meanwhile.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

/// How long an update may wait before the proxy is unhealthy. kube-proxy waits for twice its `syncPeriod`, 60
/// s by default.
pub const TIMEOUT: Duration = Duration::from_mins(1);

/// The proxy's health; clones share one state.
#[derive(Clone, Debug)]
pub struct Health(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    waiting_since: Option<Instant>,
    last_updated: Timestamp,
    node_leaving: bool,
}

/// The proxy's health at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Whether updates are carried out in time.
    pub healthy: bool,
    /// Whether the node may be sent new traffic.
    pub node_eligible: bool,
    /// The last time at which no update waited.
    pub last_updated: Timestamp,
    /// The time of the report.
    pub current_time: Timestamp,
}

impl Default for Health {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State {
            waiting_since: None,
            last_updated: Timestamp::now(),
            node_leaving: false,
        })))
    }
}

impl Health {
    /// Notes that an update, which arrived at `since`, waits to be applied. An earlier update that still
    /// waits keeps its time.
    pub fn waits(&self, since: Instant) {
        let mut state = self.lock();
        state.waiting_since = Some(state.waiting_since.map_or(since, |earlier| earlier.min(since)));
    }

    /// Notes that no update waits any more.
    pub fn settled(&self) {
        let mut state = self.lock();
        if state.waiting_since.take().is_some() {
            state.last_updated = Timestamp::now();
        }
    }

    /// Sets whether the node is being taken out of the cluster.
    pub fn set_node_leaving(&self, leaving: bool) {
        self.lock().node_leaving = leaving;
    }

    /// Reports the health at this moment.
    pub fn report(&self) -> Report {
        self.report_at(Instant::now())
    }

    fn report_at(&self, now: Instant) -> Report {
        let state = self.lock();
        let waited = state
            .waiting_since
            .map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let healthy = waited < TIMEOUT;
        let current_time = Timestamp::now();
        Report {
            healthy,
            node_eligible: !state.node_leaving,
            // While the proxy is healthy it is up to date now; kube-proxy reports the same.
            last_updated: if healthy { current_time } else { state.last_updated },
            current_time,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every write is one assignment, so a panic elsewhere leaves no half-written state.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_for_too_long_is_unhealthy_until_it_is_done() {
        let health = Health::default();
        let start = Instant::now();
        let healthy = |seconds| health.report_at(start + Duration::from_secs(seconds)).healthy;
        assert!(healthy(1000), "nothing waits");
        health.waits(start);
        health.waits(start + Duration::from_secs(50));
        assert!(healthy(59));
        assert!(!healthy(60), "the first of them counts");
        let report = health.report_at(start + TIMEOUT);
        assert!(report.last_updated < report.current_time);
        health.settled();
        assert!(healthy(1000));
    }

    #[test]
    fn a_node_that_leaves_is_not_eligible_and_the_proxy_healthy() {
        let health = Health::default();
        health.set_node_leaving(true);
        let report = health.report();
        assert!(report.healthy && !report.node_eligible);
        health.set_node_leaving(false);
        assert!(health.report().node_eligible);
    }
}
