//! What the socket hooks remember: the virtual address behind a translated socket.
//!
//! A connected TCP socket keeps it in its own storage, which lives and dies with the socket. An unconnected UDP
//! socket may talk to many services, so its pairs lie in an LRU table keyed by the socket's cookie, in both
//! directions: virtual address → backend makes datagrams of one conversation stay together, backend → virtual
//! address restores the sender of an answer.

use crate::{Ip, Port};

/// Which way a [`SocketKey`] looks.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// Keyed by the virtual address; the value is the backend.
    ToBackend = 0,
    /// Keyed by the backend's address; the value is the virtual address.
    FromBackend = 1,
}

/// Key of `SOCKET_PEERS`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SocketKey {
    /// The socket's cookie (`SO_COOKIE`).
    pub cookie: u64,
    /// The peer's address.
    pub address: Ip,
    /// The peer's port.
    pub port: Port,
    /// [`Direction`] as a number.
    pub direction: u8,
    /// Zero.
    pub reserved: [u8; 5],
}

impl SocketKey {
    /// The key for `peer` of the socket `cookie`.
    #[inline(always)]
    pub const fn new(cookie: u64, address: Ip, port: Port, direction: Direction) -> Self {
        Self {
            cookie,
            address,
            port,
            direction: direction as u8,
            reserved: [0; 5],
        }
    }
}

/// Value of `SOCKET_PEERS`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SocketPeer {
    /// What the peer's address is exchanged for.
    pub address: Ip,
    /// What the peer's port is exchanged for.
    pub port: Port,
    /// Zero.
    pub reserved: [u8; 2],
    /// The backend.
    pub backend: u32,
    /// The backend's generation when it was chosen.
    pub generation: u32,
}

/// Value of `CONNECTED`: what `connect()` was asked for, and what it was given.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Connected {
    /// The virtual address the program asked for.
    pub address: Ip,
    /// The backend's address.
    pub backend_address: Ip,
    /// The port the program asked for.
    pub port: Port,
    /// The backend's port.
    pub backend_port: Port,
}

const _: () = assert!(size_of::<SocketKey>() == 32);
const _: () = assert!(size_of::<SocketPeer>() == 28);
const _: () = assert!(size_of::<Connected>() == 36);
