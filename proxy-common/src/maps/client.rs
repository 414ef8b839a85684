//! What each client uses of the tables and source ports that all clients share.
//!
//! A client is the side that began a flow. An IPv6 client that is no pod of this node counts with its /64, since one host
//! may have all addresses of that. The programs count as they go; the agent sets the counts right when it walks the tables.

use super::Config;
use crate::{Ip, protocol};

/// Value of `SHARES`: flows of a client in the tables that evict nothing. The highest bit of a number says that a further
/// flow was refused since the agent's last pass, which clears it.
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

    /// A flow was refused for want of a share.
    pub const REFUSED: u32 = 1 << 31;

    /// How many flows one of the numbers counts.
    #[inline(always)]
    pub const fn count(number: u32) -> u32 {
        number & !Self::REFUSED
    }

    /// How many flows of a protocol one client may have.
    #[inline(always)]
    pub const fn limit(config: &Config, protocol: u8) -> u32 {
        match protocol {
            protocol::TCP | protocol::SCTP => config.connection_share,
            _ => config.stream_share,
        }
    }

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
/// counts packets for which the node had to look for a neighbour, of a pod or, from outside, to a service
/// port. An entry of the kernel's neighbour
/// table fails after three seconds and may be removed five seconds later (`neigh_forced_gc` in
/// `net/core/neighbour.c`).
///
/// A count says nothing of a share that was reached some ticks ago, so a refusal leaves its tick.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RecentCount {
    /// The tick of the last change, see [`crate::Tables::now`].
    pub tick: u32,
    /// How many.
    pub count: u16,
    /// The lower half of the tick of the last refusal; 0 if there was none.
    pub refused: u16,
}

const _: () = assert!(size_of::<RecentCount>() == 8);

impl RecentCount {
    /// The first of its client.
    #[inline(always)]
    pub const fn first(now: u32) -> Self {
        Self {
            tick: now,
            count: 1,
            refused: 0,
        }
    }

    /// Counts one more; false, and the refusal is noted, if there are `most` already.
    #[inline(always)]
    pub const fn another(&mut self, now: u32, most: u32) -> bool {
        let count = self.at(now);
        if count >= most || count >= u16::MAX as u32 {
            // 0 stands for none, so a tick whose half is 0 counts as the one before.
            self.refused = if now as u16 == 0 { u16::MAX } else { now as u16 };
            return false;
        }
        self.tick = now;
        self.count = count as u16 + 1;
        true
    }

    /// Whether one was refused within so many ticks. The tick of the last change is no older than a refusal, so only who
    /// is active again 19 hours after one is taken for refused.
    #[inline(always)]
    pub const fn was_refused(&self, now: u32, within: u16) -> bool {
        self.refused != 0
            && (now as u16).wrapping_sub(self.refused) <= within
            && now.wrapping_sub(self.tick) <= within as u32 + 1
    }

    /// How many are left at this tick.
    #[inline(always)]
    pub const fn at(&self, now: u32) -> u32 {
        let count = self.count as u32;
        match now.wrapping_sub(self.tick) {
            0 => count,
            1 => count >> 1,
            2 => count >> 2,
            _ => 0,
        }
    }
}
