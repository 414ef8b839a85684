//! What each client uses of the tables and source ports that all clients share.
//!
//! A client is the side that began a flow. An IPv6 client that is no pod of this node counts with its /64, since one host
//! may have all addresses of that. The programs count as they go; the agent sets the counts right when it walks the tables.

use crate::{Ip, protocol};

/// Value of `SHARES`: flows of a client in the tables that evict nothing.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Share {
    /// Connections in `FLOWS`.
    pub connections: u32,
    /// Exchanges of datagrams in `STREAMS`.
    pub streams: u32,
}

const _: () = assert!(size_of::<Share>() == 8);

impl Share {
    /// The key of what all clients use together, which is no client.
    pub const ALL: Ip = Ip::UNSPECIFIED;

    /// What counts flows of a protocol.
    #[inline(always)]
    pub const fn part(&mut self, protocol: u8) -> &mut u32 {
        match protocol {
            protocol::TCP | protocol::SCTP => &mut self.connections,
            _ => &mut self.streams,
        }
    }
}

/// Value of `UNANSWERED` and `NEIGHBOURS`: how many there have been lately. The count is halved with each
/// tick.
///
/// `UNANSWERED` counts flows of a client that hold a source port of the node and are not proven yet:
/// connections without a reply, and datagrams. Such a flow gives its port up after two ticks. `NEIGHBOURS`
/// counts packets of a pod for which the node had to look for a neighbour. An entry of the kernel's neighbour
/// table fails after three seconds and may be removed five seconds later (`neigh_forced_gc` in
/// `net/core/neighbour.c`).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RecentCount {
    /// The tick of the last change, see [`crate::Tables::now`].
    pub tick: u32,
    /// How many.
    pub count: u32,
}

const _: () = assert!(size_of::<RecentCount>() == 8);

impl RecentCount {
    /// How many are left at this tick.
    #[inline(always)]
    pub const fn at(&self, now: u32) -> u32 {
        match now.wrapping_sub(self.tick) {
            0 => self.count,
            1 => self.count >> 1,
            2 => self.count >> 2,
            _ => 0,
        }
    }
}
