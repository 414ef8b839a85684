//! The flows that the programs remember. This module removes the expired ones, and counts the usage of each
//! client.
//!
//! `FLOWS` and `STREAMS` evict nothing, so that new flows cost established ones nothing. Their expired
//! entries occupy memory until this module removes them. A *pass* walks both tables by batches of 4096
//! entries on the blocking pool, every ten seconds. It takes 0.4 µs for each entry on Linux 6.18. That is
//! about 0.1 s of a processor for full tables of the default size.
//!
//! Without an agent nothing is lost: if the tables are full, new flows go to tables where the kernel may
//! evict them.
//!
//! The programs count the flows of each client in `SHARES` as they come and go, without atomic operations. A
//! pass corrects the counts.
//!
//! A client may reach a share and fall below it before the next pass. So the programs note each refusal, and
//! between two passes a look reads the counts and the notes alone.

mod collect;

use std::io;
use std::net::IpAddr;

use proxy_common::Ip;
use proxy_common::maps::{Config, Flow, FlowKey, HostPort, HostPortKey, Pod, RecentCount, Share};

use crate::bpf::hash::HashTable;

/// The tables that a pass works on.
pub struct Tables {
    /// The map `FLOWS`.
    pub flows: HashTable<FlowKey, Flow>,
    /// The map `STREAMS`.
    pub streams: HashTable<FlowKey, Flow>,
    /// The map `SHARES`.
    pub shares: HashTable<Ip, Share>,
    /// The map `UNANSWERED`.
    pub unanswered: HashTable<Ip, RecentCount>,
    /// The map `NEIGHBOURS`, by interface index.
    pub neighbours: HashTable<u32, RecentCount>,
    /// The map `HOST_PORTS`.
    pub host_ports: HashTable<HostPortKey, HostPort>,
    /// The map `PODS`.
    pub pods: HashTable<Ip, Pod>,
    /// The configuration that the programs use.
    pub config: Config,
}

/// The result of a pass or a look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// The number of expired entries that the pass removed.
    pub expired: u64,
    /// Clients that use all of a share.
    pub at_share: Vec<AtShare>,
}

/// A client that uses all of a share.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AtShare {
    /// Its address. For an IPv6 client that is no pod of this node, this is its /64.
    pub client: IpAddr,
    /// The kind of the share.
    pub kind: ShareKind,
    /// The size of the share.
    pub share: u32,
}

/// The resources that clients share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ShareKind {
    /// Connections in `FLOWS`.
    Connections,
    /// Exchanges of datagrams in `STREAMS`.
    Streams,
    /// Flows that hold a source port of the node and wait for a reply.
    SourcePorts,
    /// Neighbours that the node tries to resolve.
    Neighbours,
    /// Host ports of a pod.
    HostPorts,
}

impl ShareKind {
    /// Every kind of share.
    pub const ALL: [Self; 5] = [
        Self::Connections,
        Self::Streams,
        Self::SourcePorts,
        Self::Neighbours,
        Self::HostPorts,
    ];

    /// The name of the kind in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Streams => "streams",
            Self::SourcePorts => "source_ports",
            Self::Neighbours => "neighbours",
            Self::HostPorts => "host_ports",
        }
    }

    /// The consequence for a client's further flows, in words.
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

/// Finds the clients that use all of a share, without a walk over the flows.
///
/// # Errors
/// Fails if a map cannot be read.
pub fn look(tables: &Tables) -> io::Result<Collected> {
    collect::look(tables, collect::now())
}

/// Walks the tables once.
///
/// # Errors
/// Fails if a map cannot be read or written; the changes until then remain.
pub fn pass(tables: &Tables) -> io::Result<Collected> {
    collect::pass(tables, collect::now())
}
