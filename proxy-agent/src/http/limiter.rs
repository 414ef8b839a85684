//! Which peers may hold a connection to a port, and which connection is cut for a newcomer.
//!
//! A place costs little to take and much to keep, so the newest connection gets one and an older one is cut
//! for it. Each address has a share of a port. Each IPv6 network of 64 bits has one too, since a host has all
//! addresses of one. All ports together have a limit that fits into a process's descriptors.
//!
//! Of the connections that compete, the address with the most connections loses one: the oldest without a
//! request, else the oldest whose response takes long. A connection has a short time to send its request
//! before a silent newcomer can take its place. A newcomer whose request is already there takes it at once.
//! If every place is that new, the newcomer is refused.
//!
//! Invariant: a connection of an address within its share is never cut for an address that holds more, and no
//! function here waits.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// The limit of connections of one address to one port.
const OF_ADDRESS: usize = 16;
/// The limit of connections of one IPv6 network to one port.
const OF_NETWORK: usize = 64;
/// The limit of all connections to all ports.
const OF_ALL: usize = 512;
/// The age from which a connection without a request can be cut. A client that writes at once has sent its
/// request by then.
const TO_ASK: Duration = Duration::from_millis(10);
/// The age from which a connection with a request can be cut. A client that reads has its response by then.
const TO_READ: Duration = Duration::from_secs(1);
/// The time after which an address that stays at its share is reported again.
const QUIET: Duration = Duration::from_mins(1);
/// The limit of reported addresses that are remembered.
const MAX_NOTIFIED: usize = 64;
/// The limit of queued reports about addresses; further ones are lost.
const WAITING: usize = 16;

/// Why a connection ended before its response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cut {
    /// The connection's address, or its network, had more than its share.
    Share,
    /// All places of all ports were taken.
    Full,
    /// The client did not send its request in time, or did not read the response.
    Slow,
}

impl Cut {
    /// The value of the metric's label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Share => "share",
            Self::Full => "full",
            Self::Slow => "slow",
        }
    }
}

/// A peer that reached its share of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AtShare {
    /// The address of the connection that exceeded the share.
    pub peer: IpAddr,
    /// The purpose of the port.
    pub port: &'static str,
}

/// The usage of one kind of port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Use {
    /// The number of open connections.
    pub open: u64,
    /// The number of addresses that hold their share.
    pub at_share: u64,
    /// The number of connections that were cut or refused, by reason.
    pub cut: BTreeMap<Cut, u64>,
}

/// The places of all ports; clones share them.
#[derive(Clone, Debug)]
pub struct ConnectionLimiter(Arc<Mutex<Room>>);

/// A port: its number and its purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// The purpose of the port.
    pub name: &'static str,
    /// The port number.
    pub number: u16,
}

#[derive(Debug)]
struct Room {
    held: BTreeMap<u64, Held>,
    next: u64,
    cut: BTreeMap<(&'static str, Cut), u64>,
    notified: HashMap<IpAddr, Instant>,
    notify: mpsc::Sender<AtShare>,
}

#[derive(Debug)]
struct Held {
    port: Port,
    peer: IpAddr,
    since: Instant,
    asked: Arc<AtomicBool>,
    end: oneshot::Sender<Cut>,
}

/// A place for one connection; dropping it frees the place.
#[derive(Debug)]
pub struct Permit {
    limiter: ConnectionLimiter,
    id: u64,
    port: Port,
    asked: Arc<AtomicBool>,
    end: oneshot::Receiver<Cut>,
}

/// A connection that needs a place.
#[derive(Clone, Copy)]
struct NewConnection {
    port: Port,
    peer: IpAddr,
    asks: bool,
}

/// The set of connections that compete with a newcomer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    Address,
    Network,
    All,
}

impl ConnectionLimiter {
    /// Makes the places, and a channel that reports the peers that reach their share.
    pub fn new() -> (Self, mpsc::Receiver<AtShare>) {
        let (notify, notified) = mpsc::channel(WAITING);
        let room = Room {
            held: BTreeMap::new(),
            next: 0,
            cut: BTreeMap::new(),
            notified: HashMap::new(),
            notify,
        };
        (Self(Arc::new(Mutex::new(room))), notified)
    }

    /// Takes a place at `port` for a connection of `peer`, and cuts another connection if necessary. Returns
    /// `None` if the newcomer is refused. `asks` says that its request is already there.
    pub fn take(&self, port: Port, peer: IpAddr, asks: bool) -> Option<Permit> {
        let (peer, now) = (peer.to_canonical(), Instant::now());
        let mut room = self.lock();
        for scope in [Scope::Address, Scope::Network, Scope::All] {
            let new_connection = NewConnection { port, peer, asks };
            if !room.make_room(scope, new_connection, now) {
                return None;
            }
        }
        let (end, ended) = oneshot::channel();
        let id = room.next;
        room.next += 1;
        let asked = Arc::new(AtomicBool::new(asks));
        let held = Held {
            port,
            peer,
            since: now,
            asked: Arc::clone(&asked),
            end,
        };
        room.held.insert(id, held);
        Some(Permit {
            limiter: self.clone(),
            id,
            port,
            asked,
            end: ended,
        })
    }

    /// The usage of each kind of port.
    pub fn usage(&self) -> BTreeMap<&'static str, Use> {
        let room = self.lock();
        let mut usage = BTreeMap::<&'static str, Use>::new();
        let mut counts = HashMap::<_, usize>::new();
        for held in room.held.values() {
            usage.entry(held.port.name).or_default().open += 1;
            let count = counts.entry((held.port.number, held.peer)).or_default();
            *count += 1;
            if *count == OF_ADDRESS {
                usage.entry(held.port.name).or_default().at_share += 1;
            }
        }
        for ((port, cut), count) in &room.cut {
            usage.entry(port).or_default().cut.insert(*cut, *count);
        }
        usage
    }

    fn lock(&self) -> MutexGuard<'_, Room> {
        // Every change is one call, so a panic elsewhere leaves no half-written state.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Room {
    /// Whether there is a place among the connections that compete in `scope`; it may cut one of them.
    fn make_room(&mut self, scope: Scope, new_connection: NewConnection, now: Instant) -> bool {
        let NewConnection { port, peer, asks } = new_connection;
        let rivals = || {
            self.held
                .iter()
                .filter(|(_, held)| scope.competes(held, port, peer))
        };
        if rivals().count() < scope.limit() {
            return true;
        }
        let mut counts = HashMap::<IpAddr, usize>::new();
        for (_, held) in rivals() {
            *counts.entry(held.peer).or_default() += 1;
        }
        let own = counts.get(&peer).copied().unwrap_or(0);
        let victim = rivals()
            .filter(|(_, held)| held.can_be_cut(now, asks) && counts[&held.peer] >= own)
            .min_by_key(|(id, held)| (std::cmp::Reverse(counts[&held.peer]), held.has_asked(), **id))
            .map(|(id, _)| *id);
        let why = if scope == Scope::All {
            Cut::Full
        } else {
            Cut::Share
        };
        self.count(port.name, why);
        if scope != Scope::All {
            self.notify(port, peer, now);
        }
        if let Some(held) = victim.and_then(|id| self.held.remove(&id)) {
            // A connection that ends at this moment has closed its receiver.
            let _ = held.end.send(why);
        }
        victim.is_some()
    }

    fn count(&mut self, port: &'static str, why: Cut) {
        *self.cut.entry((port, why)).or_default() += 1;
    }

    fn notify(&mut self, port: Port, peer: IpAddr, now: Instant) {
        self.notified
            .retain(|_, notified| now.duration_since(*notified) < QUIET);
        if self.notified.len() < MAX_NOTIFIED && !self.notified.contains_key(&peer) {
            let notified = AtShare {
                peer,
                port: port.name,
            };
            if self.notify.try_send(notified).is_ok() {
                self.notified.insert(peer, now);
            }
        }
    }
}

impl Held {
    fn has_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    fn can_be_cut(&self, now: Instant, for_request: bool) -> bool {
        let age = now.duration_since(self.since);
        if self.has_asked() {
            age >= TO_READ
        } else {
            for_request || age >= TO_ASK
        }
    }
}

impl Scope {
    const fn limit(self) -> usize {
        match self {
            Self::Address => OF_ADDRESS,
            Self::Network => OF_NETWORK,
            Self::All => OF_ALL,
        }
    }

    fn competes(self, held: &Held, port: Port, peer: IpAddr) -> bool {
        let near = match self {
            Self::Address => held.peer == peer,
            Self::Network => network(held.peer) == network(peer),
            Self::All => return true,
        };
        near && held.port.number == port.number
    }
}

/// The addresses that one host may have to itself: an IPv4 address, or an IPv6 network of 64 bits.
fn network(peer: IpAddr) -> IpAddr {
    match peer {
        IpAddr::V4(_) => peer,
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64)).into(),
    }
}

impl Permit {
    /// The flag that the server sets when the request is there.
    pub fn asked(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.asked)
    }

    /// Counts a connection that the server ends since it takes too long.
    pub fn is_slow(&self) {
        self.limiter.lock().count(self.port.name, Cut::Slow);
    }

    /// Returns when the place goes to another connection.
    pub async fn lost(&mut self) -> Option<Cut> {
        (&mut self.end).await.ok()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.limiter.lock().held.remove(&self.id);
    }
}

#[cfg(test)]
mod tests;
