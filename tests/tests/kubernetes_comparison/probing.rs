//! The questions: every place asks every frontend several times, and the results form an outcome that can be
//! compared. Most of the time passes in waiting for answers that never come, so many questions run at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use harness::{Place, Probe, Reply};
use nix::errno::Errno;

use crate::case::{Case, Frontend, Kind, Protocol};
use crate::topology::Topology;

/// The number of concurrent questions.
const AT_A_TIME: usize = 96;

/// The places that ask every service.
const ASKERS: [&str; 5] = ["client-1", "client-2", "n1", "n2", "outside"];

/// The results of the questions of one place to one frontend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// `replied`, `refused`, `not permitted`, `unreachable`, `silent`, or the text of another error.
    pub verdicts: BTreeSet<String>,
    /// The backends that answered; for a service with affinity, their number.
    pub backends: BTreeSet<String>,
    /// The client as the backends saw it: `itself`, another place's name, `the frontend`, or an address.
    pub sources: BTreeSet<String>,
}

impl Outcome {
    pub fn is(&self, verdict: &str) -> bool {
        self.verdicts.len() == 1 && self.verdicts.contains(verdict)
    }

    /// Whether all backends saw the client as this source.
    pub fn seen_as(&self, source: &str) -> bool {
        self.sources.len() == 1 && self.sources.contains(source)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let join = |set: &BTreeSet<String>| set.iter().map(String::as_str).collect::<Vec<_>>().join("+");
        write!(f, "{}", join(&self.verdicts))?;
        if !self.backends.is_empty() {
            write!(f, " by {} as {}", join(&self.backends), join(&self.sources))?;
        }
        Ok(())
    }
}

/// A place that asks, and a frontend that is asked.
#[derive(Clone, Copy)]
pub struct Question<'a> {
    pub case: &'a Case,
    pub asker: &'static str,
    pub frontend: &'a Frontend,
}

impl fmt::Display for Question<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Frontend {
            kind,
            defined,
            address,
            port,
            protocol,
        } = self.frontend;
        let undefined = if *defined { "" } else { " undefined" };
        let to = SocketAddr::new(*address, *port);
        write!(
            f,
            "{}: {} asks{undefined} {kind:?} {to} by {protocol:?}",
            self.case.name, self.asker
        )
    }
}

/// The patience and the number of tries of questions.
#[derive(Clone, Copy)]
pub struct Effort {
    pub wait: Duration,
    /// Tries for a frontend with this many endpoints.
    pub tries: fn(usize) -> usize,
    pub at_a_time: usize,
}

impl Effort {
    /// Finds most of the differences.
    pub const QUICK: Self = Self {
        wait: Duration::from_millis(400),
        tries: |endpoints| match endpoints {
            0 => 1,
            1 => 2,
            _ => 5 * endpoints,
        },
        at_a_time: AT_A_TIME,
    };
    /// For differences that the quick pass found. With three endpoints, it misses one of them in one of 10⁷
    /// cases. A lost SYN is sent again in time.
    pub const THOROUGH: Self = Self {
        wait: Duration::from_millis(1500),
        tries: |_| 40,
        at_a_time: 48,
    };
}

/// All questions, in groups of one case and one asker. A group is asked in order: if a service has affinity,
/// a client's earlier questions matter.
pub fn questions(cases: &[Case]) -> Vec<Vec<Question<'_>>> {
    let mut groups = Vec::new();
    for case in cases {
        for asker in ASKERS.into_iter().chain(case.askers.iter().copied()) {
            let asks = |frontend: &&Frontend| frontend.kind != Kind::Loopback || asker.starts_with('n');
            let group = case.frontends.iter().filter(asks).map(|frontend| Question {
                case,
                asker,
                frontend,
            });
            groups.push(group.collect());
        }
    }
    groups
}

/// Asks all questions in every topology. The outcomes are indexed by group, question and topology.
pub fn ask_all(
    topologies: &[Topology],
    groups: &[Vec<Question<'_>>],
    effort: Effort,
) -> Vec<Vec<Vec<Outcome>>> {
    let jobs: Vec<(usize, usize)> = (0..groups.len())
        .flat_map(|group| (0..topologies.len()).map(move |topology| (group, topology)))
        .collect();
    let next = AtomicUsize::new(0);
    let done: Mutex<BTreeMap<(usize, usize), Vec<Outcome>>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..effort.at_a_time {
            scope.spawn(|| {
                while let Some(&(group, topology)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let asked = groups[group].iter();
                    let outcomes = asked
                        .map(|question| ask(&topologies[topology], question, effort))
                        .collect();
                    done.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .insert((group, topology), outcomes);
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    let by_topology = |group: usize| -> Vec<Vec<Outcome>> {
        let topologies = 0..topologies.len();
        topologies
            .map(|topology| done.remove(&(group, topology)).unwrap_or_default())
            .collect()
    };
    (0..groups.len()).map(by_topology).collect()
}

fn ask(topology: &Topology, question: &Question<'_>, effort: Effort) -> Outcome {
    let Question {
        case,
        asker,
        frontend,
    } = *question;
    let place = topology.place(asker);
    let mut outcome = Outcome::default();
    for number in 0..(effort.tries)(case.breadth()) {
        match once(topology, asker, frontend, effort.wait) {
            Ok(reply) => {
                outcome.verdicts.insert("replied".to_owned());
                if let Some(reply) = reply {
                    outcome.sources.insert(source(topology, place, frontend, &reply));
                    outcome.backends.insert(reply.backend);
                }
            }
            Err(error) => {
                outcome.verdicts.insert(verdict(&error));
                // A refusal or a drop repeats each time. A silent frontend gets one try, a refusal a second
                // one.
                if number > 0 || outcome.is("silent") {
                    break;
                }
            }
        }
        if frontend.protocol == Protocol::Ping {
            break;
        }
    }
    if case.stays() && !outcome.backends.is_empty() {
        outcome.backends = BTreeSet::from([format!("{} of them", outcome.backends.len())]);
    }
    outcome
}

fn once(topology: &Topology, asker: &str, frontend: &Frontend, wait: Duration) -> io::Result<Option<Reply>> {
    let place = topology.place(asker);
    let to = SocketAddr::new(frontend.address, frontend.port);
    match frontend.protocol {
        Protocol::Tcp => place.ask_within(Probe::Tcp, to, wait).map(Some),
        // Only a connected socket receives a refusal. No port is used twice: a proxy keeps a datagram's flow
        // for minutes after the end of its socket.
        Protocol::Udp => {
            let from = SocketAddr::new(anywhere(to.ip()), topology.fresh_port(asker));
            place.ask_from(Probe::UdpConnected, from, to, wait).map(Some)
        }
        Protocol::Ping => place.ping(frontend.address, wait).map(|_| None),
    }
}

fn anywhere(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn verdict(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::ConnectionRefused => "refused".to_owned(),
        ErrorKind::TimedOut | ErrorKind::WouldBlock => "silent".to_owned(),
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => "unreachable".to_owned(),
        // If netfilter drops a packet that leaves a node, the call of the sender fails.
        ErrorKind::PermissionDenied => "not permitted".to_owned(),
        // A raw socket gets an error for packets that tc drops; other sockets do not.
        _ if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => "silent".to_owned(),
        _ => error.to_string(),
    }
}

fn source(topology: &Topology, asker: &Place, frontend: &Frontend, reply: &Reply) -> String {
    let peer = reply.peer.ip().to_canonical();
    if asker.addresses().contains(&peer) {
        return "itself".to_owned();
    }
    let owner = topology.places().find(|place| place.addresses().contains(&peer));
    match owner {
        Some(place) => place.name().to_owned(),
        None if peer == frontend.address => "the frontend".to_owned(),
        None => peer.to_string(),
    }
}
