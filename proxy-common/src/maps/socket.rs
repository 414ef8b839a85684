//! The entries of the socket hooks: the virtual address behind a translated socket.
//!
//! A connected TCP socket keeps it in its own storage, which the kernel frees with the socket. An unconnected
//! UDP socket may send to many services, so its entries are in an LRU table with the socket's cookie in the
//! key. There is one entry for each direction. Virtual address → backend keeps the datagrams of one exchange
//! at one backend. Backend → virtual address restores the sender of a reply.

use crate::{Ip, Port};

/// The direction in which a [`SocketKey`] translates.
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
    /// The address that replaces the peer's.
    pub address: Ip,
    /// The port that replaces the peer's.
    pub port: Port,
    /// Zero.
    pub reserved: [u8; 2],
    /// The backend.
    pub backend: u32,
    /// The backend's generation when it was chosen.
    pub generation: u32,
}

/// Value of `CONNECTED`: the peer that the process gave to `connect()`, and the backend that replaced it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Connected {
    /// The virtual address that the process gave.
    pub address: Ip,
    /// The backend's address.
    pub backend_address: Ip,
    /// The port that the process gave.
    pub port: Port,
    /// The backend's port.
    pub backend_port: Port,
}

const _: () = assert!(size_of::<SocketKey>() == 32);
const _: () = assert!(size_of::<SocketPeer>() == 28);
const _: () = assert!(size_of::<Connected>() == 36);
