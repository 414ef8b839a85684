//! Backends: one element of a mmapped array per endpoint of a service port.
//!
//! The same pod behind two services is two backends, because each service ends its relation to the pod on its own.
//! A backend id that is freed and used again gets a new *generation*. Conntrack and socket entries remember
//! `(id, generation)`, so a flow to a removed backend is noticed on its next packet and nothing ever scans a table.

use crate::{Ip, Port};

/// What may be sent to a backend.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BackendState {
    /// Nothing: the endpoint was removed, or the id was never used.
    Gone = 0,
    /// New and established flows.
    Active = 1,
    /// Established flows only.
    Terminating = 2,
    /// New flows too, though it terminates: its service has nothing better.
    LastResort = 3,
}

/// The value of `BACKENDS`: half a cache line.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Backend {
    /// Where the endpoint listens.
    pub address: Ip,
    /// The port it listens on.
    pub port: Port,
    /// [`BackendState`] as a number.
    pub state: u8,
    /// Zero.
    pub reserved: u8,
    /// Raised whenever the id gets a new owner.
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

    /// Whether new flows are wanted here.
    #[inline(always)]
    pub const fn is_active(&self) -> bool {
        self.state == BackendState::Active as u8 || self.state == BackendState::LastResort as u8
    }
}
