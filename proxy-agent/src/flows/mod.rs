//! The flows that the programs remember: what has expired is collected, and what each client uses is counted.
//!
//! `FLOWS` and `STREAMS` evict nothing, so that new flows cost established ones nothing. Their expired entries take up room
//! until this removes them. A *pass* walks both tables by batches of 4096 entries on the blocking pool, every ten seconds:
//! 0.4 µs for each entry on Linux 6.18, about 0.1 s of a processor for full tables of the default size, and next to nothing
//! for empty ones. Without an agent nothing is lost: full tables leave new flows where the kernel may evict them.
//!
//! The programs count the flows of each client in `SHARES` as they come and go, without atomic operations. A pass sets the
//! counts right.
//!
//! A client that reaches a share may be through before the next pass. So the programs leave a note where they refuse, and
//! between two passes there is a look at counts and notes alone.

mod collect;

use std::io;
use std::net::IpAddr;

use proxy_common::Ip;
use proxy_common::maps::{Config, Flow, FlowKey, HostPort, HostPortKey, Pod, RecentCount, Share};

use crate::bpf::hash::HashTable;

/// What a pass works on.
pub struct Tables {
    /// `FLOWS`.
    pub flows: HashTable<FlowKey, Flow>,
    /// `STREAMS`.
    pub streams: HashTable<FlowKey, Flow>,
    /// `SHARES`.
    pub shares: HashTable<Ip, Share>,
    /// `UNANSWERED`.
    pub unanswered: HashTable<Ip, RecentCount>,
    /// `NEIGHBOURS`.
    pub neighbours: HashTable<u32, RecentCount>,
    /// `HOST_PORTS`.
    pub host_ports: HashTable<HostPortKey, HostPort>,
    /// `PODS`.
    pub pods: HashTable<Ip, Pod>,
    /// What the programs go by.
    pub config: Config,
}

/// What a pass found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Entries that were removed since they had expired.
    pub expired: u64,
    /// Clients that use all of a share.
    pub at_share: Vec<AtShare>,
}

/// A client that uses all of a share.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AtShare {
    /// Its address; of an IPv6 client that is no pod of this node, its /64.
    pub client: IpAddr,
    /// What it uses up.
    pub kind: ShareKind,
    /// How many it may have.
    pub share: u32,
}

/// What clients share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ShareKind {
    /// Connections in `FLOWS`.
    Connections,
    /// Exchanges of datagrams in `STREAMS`.
    Streams,
    /// Flows that hold a source port of the node's and wait for a reply.
    SourcePorts,
    /// Neighbours that the node looks for.
    Neighbours,
    /// Host ports.
    HostPorts,
}

impl ShareKind {
    /// All kinds.
    pub const ALL: [Self; 5] = [
        Self::Connections,
        Self::Streams,
        Self::SourcePorts,
        Self::Neighbours,
        Self::HostPorts,
    ];

    /// Its name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Streams => "streams",
            Self::SourcePorts => "source_ports",
            Self::Neighbours => "neighbours",
            Self::HostPorts => "host_ports",
        }
    }

    /// What becomes of a client's further flows.
    pub const fn consequence(self) -> &'static str {
        match self {
            Self::Connections => {
                "its further connections are evicted first where there is no room: raise maps.flows in the configuration if it \
                 needs them"
            }
            Self::Streams => {
                "its further exchanges of datagrams are evicted first where there is no room: raise maps.flows in the \
                 configuration if it needs them"
            }
            Self::SourcePorts => {
                "its further flows that need a source port are dropped until replies come: look at what it sends, or raise \
                 masqueradePorts in the configuration"
            }
            Self::Neighbours => {
                "its packets to further hosts on links of the node are dropped for a second: look at what it scans"
            }
            Self::HostPorts => "a pod that asks for more is refused",
        }
    }
}

/// Looks which clients use all of a share, and walks no flows.
///
/// # Errors
/// A map that cannot be read.
pub fn look(tables: &Tables) -> io::Result<Collected> {
    collect::look(tables, collect::now())
}

/// Walks the tables once.
///
/// # Errors
/// A map that cannot be read or written; what was done until then stays done.
pub fn pass(tables: &Tables) -> io::Result<Collected> {
    collect::pass(tables, collect::now())
}
