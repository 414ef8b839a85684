//! Who may hold a connection to a port, and who gives one up for a newcomer.
//!
//! A place is cheap to take and dear to keep, so the newest connection is let in and an older one is cut for it. Each address
//! has a share of a port, and so has each IPv6 network of 64 bits, since a host has all addresses of one. All ports together
//! have room for a number of connections that fits into a process's descriptors.
//!
//! Of the connections that compete, the address that holds most gives one up: the oldest that has not asked yet, else the
//! oldest that takes long over its answer. A connection has a moment to ask before a silent newcomer can take its place; a
//! newcomer whose request is there already takes it at once. If every place is that new, the newcomer is refused.
//!
//! Invariant: an address within its share is never cut for an address that holds more, and nothing here waits.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// Connections of one address to one port.
const OF_ADDRESS: usize = 16;
/// Connections of one IPv6 network to one port.
const OF_NETWORK: usize = 64;
/// Connections of all to all ports.
const OF_ALL: usize = 512;
/// A connection that asks at once has asked by then.
const TO_ASK: Duration = Duration::from_millis(10);
/// A client that reads has its answer by then.
const TO_READ: Duration = Duration::from_secs(1);
/// An address that stays at its share is told of again after this.
const QUIET: Duration = Duration::from_mins(1);
/// Addresses that were told of and are remembered.
const MOST_TOLD: usize = 64;
/// Messages about addresses that wait to be told; more are lost.
const WAITING: usize = 16;

/// Why a connection ended before its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cut {
    /// Its address, or its network, had more than its share.
    Share,
    /// All places were taken.
    Full,
    /// Its request did not come, or it did not read the answer.
    Slow,
}

impl Cut {
    /// The value of a metric's label.
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
    /// The address of the connection that was one too many.
    pub peer: IpAddr,
    /// What the port is for.
    pub port: &'static str,
}

/// How a kind of port is used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Use {
    /// Connections there are.
    pub open: u64,
    /// Addresses that hold their share.
    pub at_share: u64,
    /// Connections that were cut or refused, by why.
    pub cut: BTreeMap<Cut, u64>,
}

/// The places of all ports; clones share them.
#[derive(Clone, Debug)]
pub struct Seats(Arc<Mutex<Room>>);

/// Tells one port from another, and what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// What it is for.
    pub name: &'static str,
    /// Its number.
    pub number: u16,
}

#[derive(Debug)]
struct Room {
    held: BTreeMap<u64, Held>,
    next: u64,
    cut: BTreeMap<(&'static str, Cut), u64>,
    told: HashMap<IpAddr, Instant>,
    tell: mpsc::Sender<AtShare>,
}

#[derive(Debug)]
struct Held {
    port: Port,
    peer: IpAddr,
    since: Instant,
    asked: Arc<AtomicBool>,
    end: oneshot::Sender<Cut>,
}

/// A place; dropping it gives it back.
#[derive(Debug)]
pub struct Seat {
    seats: Seats,
    id: u64,
    port: Port,
    asked: Arc<AtomicBool>,
    end: oneshot::Receiver<Cut>,
}

/// A connection that wants a place.
#[derive(Clone, Copy)]
struct Newcomer {
    port: Port,
    peer: IpAddr,
    asks: bool,
}

/// Which connections compete with a newcomer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    Address,
    Network,
    All,
}

impl Seats {
    /// Room for connections, and where it is told which peers reach their share.
    pub fn new() -> (Self, mpsc::Receiver<AtShare>) {
        let (tell, told) = mpsc::channel(WAITING);
        let room = Room {
            held: BTreeMap::new(),
            next: 0,
            cut: BTreeMap::new(),
            told: HashMap::new(),
            tell,
        };
        (Self(Arc::new(Mutex::new(room))), told)
    }

    /// A place at `port` for a connection of `peer`, if need be that of another one; nothing if the newcomer is refused.
    /// `asks` says that its request is there.
    pub fn take(&self, port: Port, peer: IpAddr, asks: bool) -> Option<Seat> {
        let (peer, now) = (peer.to_canonical(), Instant::now());
        let mut room = self.lock();
        for scope in [Scope::Address, Scope::Network, Scope::All] {
            let newcomer = Newcomer { port, peer, asks };
            if !room.make_room(scope, newcomer, now) {
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
        Some(Seat {
            seats: self.clone(),
            id,
            port,
            asked,
            end: ended,
        })
    }

    /// How each kind of port is used.
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
        // Every change is one call, so a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Room {
    /// Whether there is a place among those that compete in `scope`, perhaps by cutting a connection.
    fn make_room(&mut self, scope: Scope, newcomer: Newcomer, now: Instant) -> bool {
        let Newcomer { port, peer, asks } = newcomer;
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
            self.tell(port, peer, now);
        }
        if let Some(held) = victim.and_then(|id| self.held.remove(&id)) {
            // A connection that ends at this moment does not hear it.
            let _ = held.end.send(why);
        }
        victim.is_some()
    }

    fn count(&mut self, port: &'static str, why: Cut) {
        *self.cut.entry((port, why)).or_default() += 1;
    }

    fn tell(&mut self, port: Port, peer: IpAddr, now: Instant) {
        self.told.retain(|_, told| now.duration_since(*told) < QUIET);
        if self.told.len() < MOST_TOLD && !self.told.contains_key(&peer) {
            let told = AtShare {
                peer,
                port: port.name,
            };
            if self.tell.try_send(told).is_ok() {
                self.told.insert(peer, now);
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

/// What one host may have to itself: an IPv4 address, or a network of IPv6 addresses.
fn network(peer: IpAddr) -> IpAddr {
    match peer {
        IpAddr::V4(_) => peer,
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64)).into(),
    }
}

impl Seat {
    /// To be set when the request is there.
    pub fn asked(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.asked)
    }

    /// The connection is ended since it takes too long.
    pub fn is_slow(&self) {
        self.seats.lock().count(self.port.name, Cut::Slow);
    }

    /// Returns when the place is given to another.
    pub async fn lost(&mut self) -> Option<Cut> {
        (&mut self.end).await.ok()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.lock().held.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEALTH: Port = Port {
        name: "health",
        number: 1,
    };

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn open(seats: &Seats) -> u64 {
        seats.usage().values().map(|usage| usage.open).sum()
    }

    #[tokio::test(start_paused = true)]
    async fn the_newest_of_an_address_is_let_in_and_its_oldest_silent_one_is_cut() {
        let (seats, mut told) = Seats::new();
        let mut held: Vec<_> = (0..OF_ADDRESS)
            .map(|_| seats.take(HEALTH, ip("10.0.0.1"), false).expect("room"))
            .collect();
        assert!(
            seats.take(HEALTH, ip("10.0.0.1"), false).is_none(),
            "all have just come"
        );
        let asking = seats.take(HEALTH, ip("10.0.0.1"), true);
        assert!(asking.is_some(), "a request is there");
        assert_eq!(held.remove(0).lost().await, Some(Cut::Share));
        drop(asking);
        held.extend(seats.take(HEALTH, ip("10.0.0.1"), false));
        let other = Port { number: 2, ..HEALTH };
        assert!(
            seats.take(other, ip("10.0.0.1"), false).is_some(),
            "another port has its own shares"
        );
        assert!(seats.take(HEALTH, ip("10.0.0.2"), false).is_some());
        tokio::time::advance(TO_ASK).await;
        held[0].asked().store(true, Ordering::Relaxed);
        let newest = seats.take(HEALTH, ip("::ffff:10.0.0.1"), false);
        assert!(newest.is_some(), "the same address in another form");
        assert_eq!(
            held[1].lost().await,
            Some(Cut::Share),
            "the first one has asked already"
        );
        let expected = AtShare {
            peer: ip("10.0.0.1"),
            port: "health",
        };
        assert_eq!(told.try_recv(), Ok(expected));
        assert!(told.try_recv().is_err(), "once");
        let usage = &seats.usage()["health"];
        assert_eq!((usage.open, usage.at_share), (OF_ADDRESS as u64, 1));
        assert_eq!(usage.cut[&Cut::Share], 3);
        drop((held, newest));
        assert_eq!(open(&seats), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn clients_that_do_not_read_give_way_after_a_second() {
        let (seats, _told) = Seats::new();
        let mut held = Vec::new();
        for _ in 0..OF_ADDRESS {
            let seat = seats.take(HEALTH, ip("10.0.0.1"), false).expect("room");
            seat.asked().store(true, Ordering::Relaxed);
            held.push(seat);
        }
        tokio::time::advance(TO_ASK).await;
        assert!(
            seats.take(HEALTH, ip("10.0.0.1"), false).is_none(),
            "they are being answered"
        );
        tokio::time::advance(TO_READ).await;
        assert!(seats.take(HEALTH, ip("10.0.0.1"), false).is_some());
        assert_eq!(held[0].lost().await, Some(Cut::Share));
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_of_one_network_compete_and_the_one_with_most_gives_way() {
        let (seats, _told) = Seats::new();
        let quiet = seats.take(HEALTH, ip("fd00::1:1"), false).expect("room");
        tokio::time::advance(TO_ASK).await;
        let mut greedy = Vec::new();
        for number in 0.. {
            let peer = ip(&format!("fd00::2:{:x}", number / OF_ADDRESS));
            greedy.extend(seats.take(HEALTH, peer, false));
            if greedy.len() + 1 == OF_NETWORK {
                break;
            }
        }
        assert!(
            seats.take(HEALTH, ip("fd00::9"), false).is_some(),
            "a silent one that came before the others"
        );
        drop(quiet);
        tokio::time::advance(TO_ASK).await;
        let back = seats.take(HEALTH, ip("fd00::1:1"), false).expect("room");
        let again = seats.take(HEALTH, ip("fd00::1:2"), false).expect("room");
        assert_eq!(greedy[0].lost().await, Some(Cut::Share));
        assert!(
            seats.take(HEALTH, ip("fd00:0:0:1::1"), false).is_some(),
            "another network"
        );
        drop((back, again));
    }

    #[tokio::test(start_paused = true)]
    async fn the_room_of_all_has_an_end_and_who_holds_most_pays() {
        let (seats, _told) = Seats::new();
        let one = seats.take(HEALTH, ip("192.0.2.1"), false).expect("room");
        let mut many = Vec::new();
        for number in 0.. {
            let peer = Ipv6Addr::from_bits(0xfd_u128 << 120 | (number / 16) << 64).into();
            let Some(seat) = seats.take(HEALTH, peer, false) else {
                break;
            };
            many.push(seat);
        }
        assert_eq!(many.len() + 1, OF_ALL);
        tokio::time::advance(TO_ASK).await;
        let newcomer = seats.take(HEALTH, ip("192.0.2.2"), false);
        assert!(newcomer.is_some());
        assert_eq!(many[0].lost().await, Some(Cut::Full));
        assert_eq!(open(&seats), OF_ALL as u64);
        drop(one);
    }
}
