//! Whole frames of one link: what really was on the wire, and sending what no
//! socket would. Frames that never left this machine may carry a checksum that
//! was left to the NIC, and be larger than the MTU (GSO).

use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::sockopt::RcvBufForce;
use nix::sys::socket::{LinkAddr, MsgFlags, bind, recvfrom, send, setsockopt};
use socket2::{Domain, Protocol, Socket, Type};

use crate::place::Place;

/// `ETH_P_ALL` of `linux/if_ether.h`.
const EVERY_PROTOCOL: u16 = 3;

/// `PACKET_OUTGOING` of `linux/if_packet.h`.
const OUTGOING: u8 = 4;

/// A frame with its Ethernet header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// All of it.
    pub bytes: Vec<u8>,
    /// Did this namespace send it, rather than receive it?
    pub outgoing: bool,
}

/// A packet socket (packet(7)) on one link.
pub struct PacketSocket {
    socket: Socket,
}

impl Place {
    /// Opens a packet socket on a link; it has every frame from now on.
    pub fn packet_socket(&self, link: &str) -> io::Result<PacketSocket> {
        let address = self.enter(|| link_address(link))?;
        let protocol = Protocol::from(i32::from(EVERY_PROTOCOL.to_be()));
        let socket = self.socket(Domain::PACKET, Type::RAW, Some(protocol))?;
        // A few large transfers fit.
        setsockopt(&socket, RcvBufForce, &(16 << 20))?;
        // A protocol of 0 in the address keeps the socket's.
        bind(socket.as_raw_fd(), &address)?;
        let capture = PacketSocket { socket };
        // From its creation until now it was on every link.
        while capture.receive(Duration::ZERO)?.is_some() {}
        Ok(capture)
    }
}

impl PacketSocket {
    /// The next frame, or none within this time.
    pub fn receive(&self, within: Duration) -> io::Result<Option<Frame>> {
        // A timeout of zero would mean to wait for ever.
        self.socket
            .set_read_timeout(Some(within.max(Duration::from_micros(1))))?;
        let mut buffer = vec![0; usize::from(u16::MAX)];
        match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut buffer) {
            Ok((length, from)) => {
                buffer.truncate(length);
                let outgoing = from.is_some_and(|address| address.pkttype() == OUTGOING);
                Ok(Some(Frame {
                    bytes: buffer,
                    outgoing,
                }))
            }
            Err(nix::errno::Errno::EAGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The next frame that `wanted` accepts, or none within this time.
    pub fn find(&self, within: Duration, wanted: impl Fn(&Frame) -> bool) -> io::Result<Option<Frame>> {
        let deadline = Instant::now() + within;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.receive(left)? {
                Some(frame) if wanted(&frame) => return Ok(Some(frame)),
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    /// Sends a frame out of the link.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        send(self.socket.as_raw_fd(), frame, MsgFlags::empty())?;
        Ok(())
    }
}

/// The packet-socket address of a link in this thread's namespace.
fn link_address(link: &str) -> io::Result<LinkAddr> {
    let mut links = getifaddrs()?.filter(|entry| entry.interface_name == link);
    let found = links.find_map(|entry| entry.address.and_then(|address| address.as_link_addr().copied()));
    found.ok_or_else(|| io::Error::other(format!("there is no link {link} here")))
}
