//! ICMP echo by raw sockets, as ping does it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{SockaddrStorage, recvfrom};
use socket2::{Domain, Protocol, Socket, Type};

use crate::place::Place;

/// Echo request and reply types, RFC 792 and RFC 4443.
const TYPES_V4: (u8, u8) = (8, 0);
const TYPES_V6: (u8, u8) = (128, 129);

/// Separates the echo requests of one test process.
static IDENTIFIER: AtomicU16 = AtomicU16::new(1);

impl Place {
    /// Sends one echo request; returns the time until its reply, or `TimedOut`. Only a reply from the address
    /// asked counts.
    pub fn ping(&self, to: IpAddr, within: Duration) -> io::Result<Duration> {
        let (domain, protocol, (request, reply)) = match to {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, TYPES_V4),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, TYPES_V6),
        };
        let socket = self.socket(domain, Type::RAW, Some(protocol))?;
        let id = IDENTIFIER.fetch_add(1, Ordering::Relaxed);
        let started = Instant::now();
        socket.send_to(&echo(request, id), &SocketAddr::new(to, 0).into())?;
        loop {
            let left = within.saturating_sub(started.elapsed());
            if left.is_zero() {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("no echo reply from {to}"),
                ));
            }
            socket.set_read_timeout(Some(left))?;
            match receive(&socket) {
                Ok((from, message)) if from == to && is_echo(&message, reply, id) => {
                    return Ok(started.elapsed());
                }
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                // Another socket's message, or the time is over, which the next round notices.
                _ => {}
            }
        }
    }
}

/// An echo message of 16 bytes; for IPv6 the kernel fills the checksum in (RFC 3542).
fn echo(kind: u8, id: u16) -> [u8; 16] {
    let mut message = [0; 16];
    message[0] = kind;
    message[4..6].copy_from_slice(&id.to_be_bytes());
    let sum: u32 = message
        .as_chunks::<2>()
        .0
        .iter()
        .map(|pair| u32::from(u16::from_be_bytes(*pair)))
        .sum();
    // 16-bit one's complement; a message this short carries at most once.
    let checksum = !((sum >> 16) as u16 + (sum & 0xffff) as u16);
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    message
}

fn is_echo(message: &[u8], kind: u8, id: u16) -> bool {
    message.first() == Some(&kind) && message.get(4..6) == Some(&id.to_be_bytes()[..])
}

/// One ICMP message and its sender. IPv4 raw sockets deliver the IP header too (raw(7)).
fn receive(socket: &Socket) -> io::Result<(IpAddr, Vec<u8>)> {
    let mut buffer = [0; 512];
    let (length, from) = recvfrom::<SockaddrStorage>(socket.as_raw_fd(), &mut buffer)?;
    let v4 = from.and_then(|address| Some(address.as_sockaddr_in()?.ip().into()));
    let v6 = || from.and_then(|address| Some(address.as_sockaddr_in6()?.ip().into()));
    let from: IpAddr = v4
        .or_else(v6)
        .ok_or_else(|| io::Error::other("an ICMP message without a sender"))?;
    let header = if from.is_ipv4() {
        usize::from(buffer[0] & 0x0f) * 4
    } else {
        0
    };
    Ok((from, buffer.get(header..length).unwrap_or_default().to_vec()))
}
