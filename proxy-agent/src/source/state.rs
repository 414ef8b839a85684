//! The state of the source, for `millrace status`.
//!
//! A source that cannot reach its objects continues to try and passes nothing to the next stage, since the
//! served state must stay. The agent's state must show it all the same: the kinds that it cannot read, the
//! reason, and the time since when.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use tokio::sync::Notify;

use super::Kind;

/// The state of a running source; clones share it.
#[derive(Clone, Debug)]
pub struct StateHandle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Signals that an API server was found at another address.
    moved: Notify,
}

#[derive(Debug)]
struct State {
    origin: String,
    servers: BTreeSet<SocketAddr>,
    requests: BTreeMap<(&'static str, Option<u16>), u64>,
    connections: [Connection; Kind::ALL.len()],
}

/// Whether the objects of a kind can be read.
#[derive(Clone, Debug, Default)]
enum Connection {
    #[default]
    Starting,
    Following,
    Failing {
        error: String,
        since: Timestamp,
    },
}

impl StateHandle {
    /// The state of a source that starts to read from `origin`, a directory or the address of an API server.
    pub(crate) fn new(origin: String) -> Self {
        let state = State {
            origin,
            servers: BTreeSet::new(),
            requests: BTreeMap::new(),
            connections: Default::default(),
        };
        Self(Arc::new(Shared {
            state: Mutex::new(state),
            moved: Notify::new(),
        }))
    }

    /// Notes that the source follows objects of this kind.
    pub(super) fn set_following(&self, kind: Kind) {
        self.lock().connections[kind as usize] = Connection::Following;
    }

    /// Notes that objects of this kind cannot be read. Returns true if they could be read before, or if that
    /// was unknown.
    pub(super) fn set_failing(&self, kind: Kind, error: &dyn fmt::Display) -> bool {
        let connection = &mut self.lock().connections[kind as usize];
        let earlier = match connection {
            Connection::Failing { since, .. } => Some(*since),
            Connection::Starting | Connection::Following => None,
        };
        let since = earlier.unwrap_or_else(now);
        *connection = Connection::Failing {
            error: error.to_string(),
            since,
        };
        earlier.is_none()
    }

    /// The reasons why the first lists of these kinds are missing, in words.
    pub fn waiting_for(&self, kinds: &[Kind]) -> Vec<String> {
        let state = self.lock();
        let describe = |kind: &Kind| {
            let list = format!("list of {} from {}", kind.plural(), state.origin);
            match &state.connections[*kind as usize] {
                Connection::Failing { error, .. } => format!("{list}: {error}"),
                Connection::Starting | Connection::Following => list,
            }
        };
        kinds.iter().map(describe).collect()
    }

    /// The kinds that cannot be followed at present, as pairs of the subject and the reason.
    pub fn errors(&self) -> Vec<(String, String)> {
        let state = self.lock();
        let failing = Kind::ALL
            .iter()
            .filter_map(|kind| match &state.connections[*kind as usize] {
                Connection::Failing { error, since } => {
                    let what = format!("{} from {}", kind.plural(), state.origin);
                    Some((what, format!("{error} (since {since}; what is programmed stays)")))
                }
                Connection::Starting | Connection::Following => None,
            });
        failing.collect()
    }

    /// The origin of objects: a directory or the address of an API server.
    pub fn origin(&self) -> String {
        self.lock().origin.clone()
    }

    /// Sets the address of the API server in use.
    pub(super) fn set_origin(&self, origin: String) {
        self.lock().origin = origin;
    }

    /// Adds addresses of API servers. The earlier ones stay, since connections may still use them.
    pub(super) fn add_servers(&self, found: impl IntoIterator<Item = SocketAddr>) {
        let mut state = self.lock();
        let before = state.servers.len();
        state.servers.extend(found);
        if state.servers.len() != before {
            self.0.moved.notify_one();
        }
    }

    /// The addresses and ports of API servers; empty if objects come from a directory.
    pub fn servers(&self) -> BTreeSet<SocketAddr> {
        self.lock().servers.clone()
    }

    /// Waits until an API server is found at another address.
    pub async fn moved(&self) {
        self.0.moved.notified().await;
    }

    /// Counts a request to the API server by the status of its response, if there was one.
    pub fn count_request(&self, method: &'static str, code: Option<u16>) {
        *self.lock().requests.entry((method, code)).or_default() += 1;
    }

    /// The number of requests, by method and status.
    pub fn requests(&self) -> Vec<(&'static str, Option<u16>, u64)> {
        let state = self.lock();
        let counts = state.requests.iter();
        counts
            .map(|((method, code), count)| (*method, *code, *count))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every write is one assignment or one call, so a panic elsewhere leaves no half-written state.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The time in whole seconds, for people to read.
fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_kind_says_why_until_it_is_followed_again() {
        let state = StateHandle::new("https://api.example:6443".to_owned());
        assert_eq!(
            state.waiting_for(&[Kind::Node]),
            ["list of nodes from https://api.example:6443"]
        );
        assert!(state.set_failing(Kind::Node, &"connection refused"));
        assert!(
            !state.set_failing(Kind::Node, &"connection reset"),
            "news only once"
        );
        assert_eq!(
            state.waiting_for(&[Kind::Node]),
            ["list of nodes from https://api.example:6443: connection reset"]
        );
        assert_eq!(state.errors().len(), 1);
        state.set_following(Kind::Node);
        assert!(state.errors().is_empty());
    }
}
