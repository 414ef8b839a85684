//! What each client uses of the tables and source ports that all clients share.
//!
//! A client is the side that began a flow. An IPv6 client that is no pod of this node counts with its /64, since one host
//! may have all addresses of that. The programs count as they go; the agent sets the counts right when it walks the tables.

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

/// Value of `UNANSWERED`: flows of a client that hold a source port of the node's and are not proven yet: connections
/// without a reply, and datagrams.
///
/// The count is halved with each tick, since such a flow gives its port up after two of them.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Unanswered {
    /// The tick of the last change, see [`crate::Tables::now`].
    pub tick: u32,
    /// How many.
    pub count: u32,
}

const _: () = assert!(size_of::<Unanswered>() == 8);

impl Unanswered {
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
