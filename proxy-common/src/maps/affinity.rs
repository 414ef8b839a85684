//! Session affinity: the backend of a client's last connection.
//!
//! The kernel evicts the entry that was used least recently. A reader ignores an entry that is too old, so no
//! code scans the table.

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
