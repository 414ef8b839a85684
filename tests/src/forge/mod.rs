//! Frames as an attacker sends them: any header, any source, from any place of a world.
//!
//! A [`Forge`] is a packet socket that only sends. It puts an Ethernet header before the output of [`packet`]
//! and [`link`], with the addresses, tags and `EtherType` that the test sets. Checksums are right, so that
//! only the header under test can be a reason to drop a frame.

pub mod link;
pub mod packet;

use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::libc;
use nix::sys::socket::sockopt::SetBool;
use nix::sys::socket::{LinkAddr, MsgFlags, bind, send, setsockopt};
use socket2::{Domain, Protocol, Socket, Type};

use crate::failure::OrPanic;
use crate::netlink::Mac;
use crate::node::{Node, UPLINK};
use crate::place::Place;
use crate::pod::Pod;

/// `EtherType` of a VLAN tag (IEEE 802.1Q).
pub const VLAN: u16 = 0x8100;
/// `EtherType` of a service tag (IEEE 802.1ad).
pub const SERVICE_VLAN: u16 = 0x88a8;

/// How long a sender waits for space in the receiver's backlog.
const PATIENCE: Duration = Duration::from_secs(5);

/// A VLAN tag: its `EtherType`, then priority and VLAN in one number.
pub type Tag = (u16, u16);

/// The headers before a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ethernet {
    /// The receiver's hardware address.
    pub to: Mac,
    /// The sender's hardware address.
    pub from: Mac,
    /// The VLAN tags, the outermost first.
    pub tags: Vec<Tag>,
}

impl Ethernet {
    /// The frame of an IP packet.
    #[must_use]
    pub fn of_packet(&self, packet: &[u8]) -> Vec<u8> {
        let is_v4 = packet.first().is_some_and(|first| first >> 4 == 4);
        self.of(if is_v4 { packet::IPV4 } else { packet::IPV6 }, packet)
    }

    /// The frame of any content.
    #[must_use]
    pub fn of(&self, ether_type: u16, content: &[u8]) -> Vec<u8> {
        let mut frame = [self.to, self.from].concat();
        for (kind, tag) in &self.tags {
            frame.extend(kind.to_be_bytes());
            frame.extend(tag.to_be_bytes());
        }
        frame.extend(ether_type.to_be_bytes());
        frame.extend(content);
        frame
    }
}

/// Frames begin with a `virtio_net_hdr`, which says which checksum is left to the NIC (packet(7)).
#[derive(Clone, Copy)]
struct WithOffload;

nix::setsockopt_impl!(
    WithOffload,
    libc::SOL_PACKET,
    libc::PACKET_VNET_HDR,
    bool,
    SetBool
);

/// A sender of frames on one link.
pub struct Forge {
    socket: Socket,
    ethernet: Ethernet,
}

impl Place {
    /// The hardware address of a link.
    #[track_caller]
    pub fn mac(&self, link: &str) -> Mac {
        let found = self.enter(|| link_address(link));
        let found = found
            .with_context(|| format!("looking at {link} of {}", self.name()))
            .or_panic();
        found.addr().unwrap_or_default()
    }

    /// A sender of frames out of a link, to this hardware address unless a frame sets another one.
    #[track_caller]
    pub fn forge(&self, link: &str, to: Mac) -> Forge {
        let open = || -> io::Result<Forge> {
            let address = self.enter(|| link_address(link))?;
            // A socket of protocol 0 receives nothing.
            let socket = self.socket(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
            bind(socket.as_raw_fd(), &address)?;
            let from = address.addr().unwrap_or_default();
            let tags = Vec::new();
            Ok(Forge {
                socket,
                ethernet: Ethernet { to, from, tags },
            })
        };
        open()
            .with_context(|| format!("opening a sender on {link} of {}", self.name()))
            .or_panic()
    }

    /// A sender of frames to a node on the same link.
    #[track_caller]
    pub fn forge_to(&self, node: &Node) -> Forge {
        self.forge(UPLINK, node.mac(UPLINK))
    }
}

impl Pod {
    /// A sender of frames of the pod to its node.
    #[track_caller]
    pub fn forge_out(&self) -> Forge {
        self.forge(crate::cni::INTERFACE, self.node().mac(self.host_interface()))
    }
}

impl Forge {
    /// The default header of packets. [`Forge::send_frame`] sends a frame with another one.
    pub fn ethernet(&self) -> Ethernet {
        self.ethernet.clone()
    }

    /// Sends an IP packet.
    #[track_caller]
    pub fn send(&self, packet: &[u8]) {
        self.send_frame(&self.ethernet.of_packet(packet));
    }

    /// Sends an IP packet with VLAN tags, the outermost first.
    #[track_caller]
    pub fn send_tagged(&self, tags: &[Tag], packet: &[u8]) {
        let ethernet = Ethernet {
            tags: tags.to_vec(),
            ..self.ethernet()
        };
        self.send_frame(&ethernet.of_packet(packet));
    }

    /// Sends an IP packet whose checksum is left to the NIC. The sum over all bytes from `start` on goes to
    /// `place`; both count from the start of the frame.
    #[track_caller]
    pub fn send_offloaded(&self, packet: &[u8], start: u16, place: u16) {
        /// `VIRTIO_NET_HDR_F_NEEDS_CSUM` of `linux/virtio_net.h`.
        const NEEDS_CHECKSUM: u8 = 1;
        setsockopt(&self.socket, WithOffload, &true)
            .context("asking for a header of offloads")
            .or_panic();
        let mut frame = vec![NEEDS_CHECKSUM, 0, 0, 0, 0, 0];
        frame.extend(start.to_ne_bytes());
        frame.extend((place - start).to_ne_bytes());
        frame.extend(self.ethernet.of_packet(packet));
        self.send_frame(&frame);
        setsockopt(&self.socket, WithOffload, &false)
            .context("going back to plain frames")
            .or_panic();
    }

    /// Sends a frame as it is.
    ///
    /// A packet socket does not wait for space: the kernel returns `ENOBUFS` when the receiving CPU's backlog
    /// is full. Then this function sends the frame again, for at most [`PATIENCE`].
    #[track_caller]
    pub fn send_frame(&self, frame: &[u8]) {
        let end = Instant::now() + PATIENCE;
        loop {
            match send(self.socket.as_raw_fd(), frame, MsgFlags::empty()) {
                Err(Errno::ENOBUFS) if Instant::now() < end => std::thread::sleep(Duration::from_millis(1)),
                sent => return sent.map(drop).context("sending a frame").or_panic(),
            }
        }
    }
}

/// The packet-socket address of a link in this thread's namespace.
pub(crate) fn link_address(link: &str) -> io::Result<LinkAddr> {
    let mut links = getifaddrs()?.filter(|entry| entry.interface_name == link);
    let found = links.find_map(|entry| entry.address.and_then(|address| address.as_link_addr().copied()));
    found.ok_or_else(|| io::Error::other(format!("there is no link {link} here")))
}
