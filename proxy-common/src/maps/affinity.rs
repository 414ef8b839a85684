//! Session affinity: which backend a client had last.
//!
//! The table evicts what was used least recently; an entry that is too old is not believed, so nothing ever scans it.

use crate::Ip;

/// Key of `AFFINITY`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct AffinityKey {
    /// The client's address.
    pub client: Ip,
    /// The service port.
    pub service: u32,
    /// Zero.
    pub reserved: u32,
}

impl AffinityKey {
    /// The key of a client of a service port.
    #[inline(always)]
    pub const fn new(client: Ip, service: u32) -> Self {
        Self {
            client,
            service,
            reserved: 0,
        }
    }
}

/// Value of `AFFINITY`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Affinity {
    /// The backend.
    pub backend: u32,
    /// The backend's generation when it was chosen.
    pub generation: u32,
    /// When the client last made a connection, in nanoseconds since boot.
    pub seen: u64,
}

const _: () = assert!(size_of::<AffinityKey>() == 24);
const _: () = assert!(size_of::<Affinity>() == 16);
