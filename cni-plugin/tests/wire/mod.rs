//! A link from the node to another host: a veth pair with its other end in a namespace of its own.

use std::fs;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::PathBuf;

use cni_plugin::netlink::link::{End, Pair};
use cni_plugin::netlink::sysctl::{self, Setting};
use cni_plugin::netlink::{NetlinkSocket, ip, link};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket};

use crate::support::World;

/// The node's interface on the link.
pub const WIRE: &str = "wire0";
/// The Ethernet address of the other end.
pub const MAC: [u8; 6] = [2, 0, 0, 0, 0xee, 2];
/// The same address as text.
pub const MAC_TEXT: &str = "02:00:00:00:ee:02";

/// With these settings the test's addresses are the only ones, and they work at once.
const QUIET: &[Setting] = &[
    ("ipv6", "disable_ipv6", "0"),
    ("ipv6", "accept_ra", "0"),
    ("ipv6", "accept_dad", "0"),
    ("ipv6", "addr_gen_mode", "1"),
];

/// A link with routes to the pods' ranges.
pub struct Wire {
    /// The namespace of the other end.
    pub neighbour: PathBuf,
    /// The index of the node's end.
    pub index: u32,
    frames: OwnedFd,
}

impl Wire {
    /// Connects the node with a neighbour that has no address of the ranges.
    pub fn connect(world: &World) -> Self {
        let neighbour = world.pod("neighbour");
        let file = fs::File::open(&neighbour).expect("a namespace");
        let mut node = NetlinkSocket::open().expect("netlink");
        let pair = Pair {
            host: End {
                name: WIRE,
                mac: [2, 0, 0, 0, 0xee, 1],
            },
            pod: End { name: WIRE, mac: MAC },
            mtu: 1500,
            namespace: Some(file.as_fd()),
        };
        pair.make(&mut node).expect("a pair");
        let index = bring_up(&["10.244.1.1/24", "fd00:1::1/64", "fe80::ee:1/64"]);
        let frames = World::inside(&neighbour, || {
            let mut netlink = NetlinkSocket::open().expect("netlink");
            netlink.ask(link::up(1)).expect("the loopback");
            bring_up(&["10.244.1.254/24", "fd00:1:0:0:ffff::1/64", "fe80::ee:2/64"]);
            let every = SockProtocol::EthAll;
            let flags = SockFlag::SOCK_NONBLOCK;
            socket(AddressFamily::Packet, SockType::Raw, flags, every).expect("a packet socket")
        });
        link::await_queue(&mut node, WIRE).expect("a carrier");
        Self {
            neighbour,
            index,
            frames,
        }
    }

    /// Sets the time after which the kernel repeats a request.
    pub fn hurry(milliseconds: u32) {
        for family in ["ipv4", "ipv6"] {
            let path = format!("/proc/sys/net/{family}/neigh/{WIRE}/retrans_time_ms");
            fs::write(path, milliseconds.to_string()).expect("a setting");
        }
    }

    /// Whether the node sent a request by ARP or neighbour discovery since the last call.
    pub fn is_asked(&self) -> bool {
        let (mut frame, mut found) = ([0; 2048], false);
        loop {
            match recv(self.frames.as_raw_fd(), &mut frame, MsgFlags::empty()) {
                // ARP, or a neighbour solicitation of ICMPv6.
                Ok(_) => {
                    found |= frame[12..14] == [8, 6]
                        || frame[12..14] == [0x86, 0xdd] && frame[20] == 58 && frame[54] == 135;
                }
                Err(errno) => {
                    assert_eq!(errno, Errno::EAGAIN, "reading frames");
                    return found;
                }
            }
        }
    }

    /// Gives the neighbour an address.
    pub fn give(&self, address: &str) {
        World::inside(&self.neighbour, || hold(&[address]));
    }
}

/// Sets this namespace's end up, gives it addresses and returns its index.
fn bring_up(addresses: &[&str]) -> u32 {
    sysctl::set(WIRE, QUIET).expect("settings");
    let mut netlink = NetlinkSocket::open().expect("netlink");
    let found = link::find(&mut netlink, WIRE).expect("links");
    let index = found.expect("an end").index;
    netlink.ask(link::up(index)).expect("switching it on");
    hold(addresses);
    index
}

fn hold(addresses: &[&str]) {
    let mut netlink = NetlinkSocket::open().expect("netlink");
    let found = link::find(&mut netlink, WIRE).expect("links");
    let index = found.expect("an end").index;
    for address in addresses {
        let net = address.parse().expect("an address with a prefix");
        netlink.ask(ip::address(index, net)).expect("giving an address");
        if let IpAddr::V6(ip) = net.addr() {
            await_local(&mut netlink, ip);
        }
    }
}

fn await_local(netlink: &mut NetlinkSocket, ip: Ipv6Addr) {
    ip::await_local(netlink, ip).expect("an address that can be used");
}

/// The state of a neighbour in the node's neighbour table.
pub fn known(address: &str) -> Option<NeighbourState> {
    let address: IpAddr = address.parse().expect("an address");
    let destination = NeighbourAttribute::Destination(NeighbourAddress::from(address));
    let everything = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
    let mut node = NetlinkSocket::open().expect("netlink");
    let request = cni_plugin::netlink::Request::list("listing neighbours", everything);
    let replies = node.ask(request).expect("neighbours");
    replies.iter().find_map(|reply| match reply {
        RouteNetlinkMessage::NewNeighbour(entry) if entry.attributes.contains(&destination) => {
            Some(entry.header.state)
        }
        _ => None,
    })
}

/// Makes an entry in the node's neighbour table, as if the kernel had learnt it long ago.
pub fn pretend(interface: u32, address: &str, mac: [u8; 6], state: NeighbourState) {
    let mut message = NeighbourMessage::default();
    let address: IpAddr = address.parse().expect("an address");
    message.header.family = if address.is_ipv4() {
        netlink_packet_route::AddressFamily::Inet
    } else {
        netlink_packet_route::AddressFamily::Inet6
    };
    message.header.ifindex = interface;
    message.header.state = state;
    message.attributes = vec![
        NeighbourAttribute::Destination(address.into()),
        NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
    ];
    let message = RouteNetlinkMessage::NewNeighbour(message);
    let mut node = NetlinkSocket::open().expect("netlink");
    let request = cni_plugin::netlink::Request::replace("telling of a neighbour", message);
    node.ask(request).expect("an entry");
}
