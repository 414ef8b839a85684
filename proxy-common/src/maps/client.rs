//! Each client's use of the tables and source ports that all clients share.
//!
//! A client is the side that began a flow. An IPv6 client that is not a pod of this node counts with its /64,
//! since one host may have all addresses of it. The programs count flow by flow. The agent corrects the
//! counts when it walks the tables.

use super::Config;
use crate::{Ip, protocol};

/// Value of `SHARES`: the number of a client's flows in the tables that evict nothing. The highest bit of a
/// number says that a program refused a further flow since the agent's last pass. The agent clears it.
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
    /// The key of the sum over all clients, which is no client's address.
    pub const ALL: Ip = Ip::UNSPECIFIED;

    /// A flow was refused because the share was used up.
    pub const REFUSED: u32 = 1 << 31;

    /// The number of flows, without the bit [`Self::REFUSED`].
    #[inline(always)]
    pub const fn count(number: u32) -> u32 {
        number & !Self::REFUSED
    }

    /// The most flows of a protocol that one client may have.
    #[inline(always)]
    pub const fn limit(config: &Config, protocol: u8) -> u32 {
        match protocol {
            protocol::TCP | protocol::SCTP => config.connection_share,
            _ => config.stream_share,
        }
    }

    /// The counter for flows of a protocol.
    #[inline(always)]
    pub const fn part(&mut self, protocol: u8) -> &mut u32 {
        match protocol {
            protocol::TCP | protocol::SCTP => &mut self.connections,
            _ => &mut self.streams,
        }
    }
}

/// Value of `UNANSWERED` and `NEIGHBOURS`: the number of recent events. The count is halved with each tick.
///
/// `UNANSWERED` counts flows of a client that hold a source port of the node and are not proven yet:
/// connections without a reply, and datagrams. Such a flow gives its port up after two ticks. `NEIGHBOURS`
/// counts packets for which the node had to resolve a neighbour: packets of a pod, or packets from outside to
/// a service port. An entry of the kernel's neighbour table fails after three seconds and may be removed five
/// seconds later (`neigh_forced_gc` in `net/core/neighbour.c`).
///
/// The count does not show a share that was used up some ticks ago, so a refusal stores its tick.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RecentCount {
    /// The tick of the last change, see [`crate::Tables::now`].
    pub updated: u32,
    /// The count at that tick.
    pub count: u16,
    /// The lower half of the tick of the last refusal; 0 if there was none.
    pub refused: u16,
}

const _: () = assert!(size_of::<RecentCount>() == 8);

impl RecentCount {
    /// The count after the first event of a client.
    #[inline(always)]
    pub const fn first(now: u32) -> Self {
        Self {
            updated: now,
            count: 1,
            refused: 0,
        }
    }

    /// Counts one more event. If there are `most` already, it records the refusal and returns false.
    #[inline(always)]
    pub const fn another(&mut self, now: u32, most: u32) -> bool {
        let count = self.at(now);
        if count >= most || count >= u16::MAX as u32 {
            // 0 stands for no refusal, so a tick whose lower half is 0 is stored as the one before.
            self.refused = if now as u16 == 0 { u16::MAX } else { now as u16 };
            return false;
        }
        self.updated = now;
        self.count = count as u16 + 1;
        true
    }

    /// Whether an event was refused within the last `within` ticks. The lower half of a tick repeats after
    /// 65536 ticks (19 hours). The tick of the last change is no older than a refusal. So an old refusal is
    /// taken for a new one only if the client is active again at that moment.
    #[inline(always)]
    pub const fn was_refused(&self, now: u32, within: u16) -> bool {
        self.refused != 0
            && (now as u16).wrapping_sub(self.refused) <= within
            && now.wrapping_sub(self.updated) <= within as u32 + 1
    }

    /// The count that is left at this tick.
    #[inline(always)]
    pub const fn at(&self, now: u32) -> u32 {
        let count = self.count as u32;
        match now.wrapping_sub(self.updated) {
            0 => count,
            1 => count >> 1,
            2 => count >> 2,
            _ => 0,
        }
    }
}
