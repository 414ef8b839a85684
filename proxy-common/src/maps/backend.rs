//! Backends: one element of a mmapped array per endpoint of a service port.
//!
//! One pod behind two services is two backends, because each service removes the pod on its own. A backend id
//! that is freed and used again gets a new *generation*. Conntrack and socket entries store `(id,
//! generation)`. So the programs notice a removed backend at the next packet of its flow, and no code scans a
//! table.

use crate::{Ip, Port};

/// The flows that a backend takes.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BackendState {
    /// None: the endpoint was removed, or the id was never used.
    Gone = 0,
    /// New and established flows.
    Active = 1,
    /// Established flows only.
    Terminating = 2,
    /// New and established flows, although the endpoint terminates: its service has no better endpoint.
    LastResort = 3,
}

/// The value of `BACKENDS`: half a cache line.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Backend {
    /// The address of the endpoint.
    pub address: Ip,
    /// The port of the endpoint.
    pub port: Port,
    /// [`BackendState`] as a number.
    pub state: u8,
    /// Zero.
    pub reserved: u8,
    /// Incremented whenever the id gets a new owner.
    pub generation: u32,
    /// The service port that owns the id.
    pub service: u32,
    /// Zero.
    pub reserved2: u32,
}

const _: () = assert!(size_of::<Backend>() == 32);

impl Backend {
    /// Whether established flows may go on.
    #[inline(always)]
    pub const fn is_alive(&self) -> bool {
        self.state != BackendState::Gone as u8
    }

    /// Whether the backend takes new flows.
    #[inline(always)]
    pub const fn is_active(&self) -> bool {
        self.state == BackendState::Active as u8 || self.state == BackendState::LastResort as u8
    }
}
