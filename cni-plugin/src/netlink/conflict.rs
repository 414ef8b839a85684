//! Finding the host that already uses an address that a pod shall have.
//!
//! The node's kernel gives its route to the address. If the route leads to the node itself or to a pod, the
//! address is in use. If it leads to a link, the kernel asks there by ARP or neighbour discovery, as it does
//! before it sends a packet. The plugin marks an entry of the neighbour table as used. It then reads the
//! entry until an owner has replied or the kernel has given up. Addresses behind a gateway cannot be checked.
//! All addresses are asked for at the same time.
//!
//! The plugin does not trust older entries of the table, since an owner may be gone or have moved. It starts
//! a new request by broadcast or multicast: an entry in state PROBE would ask only at the old Ethernet
//! address. Only entries that an operator or a program made on purpose count as they are.

use std::fmt;
use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::NeighbourState;
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use proxy_bpf::links::InterfaceRole;

use super::error::NetlinkError;
use super::ip::{alone, family, is_unreachable};
use super::link;
use super::neighbour::{Neighbour, Verdict, static_verdict, verdict};
use super::socket::{NetlinkSocket, Request, errno};
use crate::attachment::mac_text;

/// The kernel's default: three requests, a second apart, and failure a second after the last.
const PATIENCE: Duration = Duration::from_millis(3500);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// An address that is in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The address in use.
    pub address: IpAddr,
    /// The owner of the address.
    pub owner: AddressOwner,
}

/// The owner of an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddressOwner {
    /// The node itself.
    Node,
    /// A pod of this plugin, at this interface of the node.
    Pod(String),
    /// A host on a link.
    Neighbour {
        /// The node's interface on the link.
        interface: String,
        /// The Ethernet address of the host.
        mac: Vec<u8>,
    },
}

impl fmt::Display for AddressOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node => write!(f, "this node itself"),
            Self::Pod(interface) => write!(f, "another pod of this node, at interface {interface}"),
            Self::Neighbour { interface, mac } => {
                write!(f, "{} on the link of interface {interface}", mac_text(mac))
            }
        }
    }
}

/// The result of a look-up of the route to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NextHop {
    /// The node takes the packets in itself.
    Local,
    /// The address is on the link of this interface.
    OnLink(u32),
    /// The route leads to a gateway, or there is no route.
    OffLink,
}

/// An address that the kernel asks for on a link.
struct Probe {
    at: Neighbour,
    /// Whether the neighbour table had no entry before.
    is_new: bool,
}

/// Finds one of the addresses that is in use. Entries of the neighbour table that the requests made are
/// removed again.
pub fn find(node: &mut NetlinkSocket, addresses: &[IpAddr]) -> Result<Option<Conflict>, NetlinkError> {
    let mut probes = Vec::new();
    let found = search(node, addresses, &mut probes);
    let new = probes.iter().filter(|probe| probe.is_new);
    let requests: Vec<_> = new.map(|probe| probe.at.forget()).collect();
    let forgotten = if requests.is_empty() {
        Ok(())
    } else {
        node.batch(requests).map(drop)
    };
    let found = found?;
    forgotten?;
    Ok(found)
}

fn search(
    node: &mut NetlinkSocket,
    addresses: &[IpAddr],
    probes: &mut Vec<Probe>,
) -> Result<Option<Conflict>, NetlinkError> {
    // First the checks that need no packets.
    let mut on_links = Vec::new();
    for address in addresses {
        let owner = match next_hop(node, *address)? {
            NextHop::OffLink => continue,
            NextHop::Local => AddressOwner::Node,
            NextHop::OnLink(interface) => {
                let name = name(interface);
                if InterfaceRole::of_pod(&name) != InterfaceRole::OwnPod {
                    on_links.push(Neighbour {
                        address: *address,
                        interface,
                    });
                    continue;
                }
                AddressOwner::Pod(name)
            }
        };
        return Ok(Some(Conflict {
            address: *address,
            owner,
        }));
    }
    for neighbour in on_links {
        if let Some(conflict) = begin(node, neighbour, probes)? {
            return Ok(Some(conflict));
        }
    }
    await_reply(node, probes)
}

/// Makes the kernel ask for an address, unless an entry was made on purpose.
fn begin(
    node: &mut NetlinkSocket,
    at: Neighbour,
    probes: &mut Vec<Probe>,
) -> Result<Option<Conflict>, NetlinkError> {
    let replies = node.ask(at.look())?;
    let known = replies.iter().find_map(|reply| at.entry(reply));
    let requests = match known {
        None => vec![at.ask_new()],
        Some(entry) => match static_verdict(entry) {
            Some(Verdict::Owner(mac)) => return Ok(Some(conflict(at, mac))),
            Some(_) => return Ok(None),
            // The kernel holds packets for this entry, and a change to `NUD_FAILED` would drop them.
            None if entry.header.state == NeighbourState::Incomplete => vec![at.ask_again()],
            None => vec![at.invalidate(), at.ask_again()],
        },
    };
    let mut is_new = known.is_none();
    match node.batch(requests) {
        // Another process made the entry a moment ago.
        Err(error) if errno(&error) == Some(libc::EEXIST) => is_new = false,
        asked => drop(asked?),
    }
    probes.push(Probe { at, is_new });
    Ok(None)
}

fn await_reply(node: &mut NetlinkSocket, probes: &[Probe]) -> Result<Option<Conflict>, NetlinkError> {
    let deadline = Instant::now() + PATIENCE;
    let mut pause = Duration::from_millis(1);
    let mut open: Vec<Neighbour> = probes.iter().map(|probe| probe.at).collect();
    while !open.is_empty() && Instant::now() < deadline {
        thread::sleep(pause);
        pause = LONGEST_PAUSE.min(pause * 2);
        let looks = open.iter().map(Neighbour::look).collect();
        for reply in node.batch(looks)? {
            let about = |at: &Neighbour| Some((*at, verdict(at.entry(&reply)?)));
            match open.iter().find_map(about) {
                Some((at, Verdict::Owner(mac))) => return Ok(Some(conflict(at, mac))),
                Some((at, Verdict::NoOwner)) => open.retain(|other| *other != at),
                Some((_, Verdict::Pending)) | None => {}
            }
        }
    }
    Ok(None)
}

fn conflict(at: Neighbour, mac: Vec<u8>) -> Conflict {
    Conflict {
        address: at.address,
        owner: AddressOwner::Neighbour {
            interface: name(at.interface),
            mac,
        },
    }
}

/// The interface's name, or its number if it has gone.
fn name(interface: u32) -> String {
    link::name_of(interface).unwrap_or_else(|| interface.to_string())
}

fn next_hop(node: &mut NetlinkSocket, to: IpAddr) -> Result<NextHop, NetlinkError> {
    let mut message = RouteMessage::default();
    message.header.address_family = family(to);
    message.header.destination_prefix_length = alone(to).prefix_len();
    message.attributes.push(RouteAttribute::Destination(to.into()));
    let what = format!("looking for the route to {to}");
    match node.ask(Request::plain(what, RouteNetlinkMessage::GetRoute(message))) {
        Ok(replies) => Ok(replies.iter().find_map(next_hop_of).unwrap_or(NextHop::OffLink)),
        Err(error) if errno(&error).is_some_and(is_unreachable) => Ok(NextHop::OffLink),
        Err(error) => Err(error),
    }
}

fn next_hop_of(reply: &RouteNetlinkMessage) -> Option<NextHop> {
    let RouteNetlinkMessage::NewRoute(route) = reply else {
        return None;
    };
    match route.header.kind {
        // The node takes in packets to a network's broadcast address and to a router's anycast address as
        // well.
        RouteType::Local | RouteType::Broadcast | RouteType::Anycast => return Some(NextHop::Local),
        RouteType::Unicast => {}
        _ => return Some(NextHop::OffLink),
    }
    let mut interface = None;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => return Some(NextHop::OffLink),
            RouteAttribute::Oif(index) => interface = Some(*index),
            _ => {}
        }
    }
    interface.map(NextHop::OnLink)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use netlink_packet_route::route::{RouteAddress, RouteVia};

    use super::*;

    fn route(kind: RouteType, attributes: &[RouteAttribute]) -> RouteNetlinkMessage {
        let mut message = RouteMessage::default();
        message.header.kind = kind;
        message.attributes = attributes.to_vec();
        RouteNetlinkMessage::NewRoute(message)
    }

    #[test]
    fn only_on_link_addresses_are_probed() {
        let by = RouteAttribute::Oif(7);
        let gateway = RouteAttribute::Gateway(RouteAddress::Inet(Ipv4Addr::new(10, 0, 0, 1)));
        let via = RouteAttribute::Via(RouteVia::Inet6("fe80::1".parse().unwrap()));
        let next_hop = |kind, attributes: &[RouteAttribute]| next_hop_of(&route(kind, attributes)).unwrap();
        assert_eq!(
            next_hop(RouteType::Unicast, std::slice::from_ref(&by)),
            NextHop::OnLink(7)
        );
        assert_eq!(
            next_hop(RouteType::Unicast, &[by.clone(), gateway.clone()]),
            NextHop::OffLink
        );
        assert_eq!(next_hop(RouteType::Unicast, &[via, by.clone()]), NextHop::OffLink);
        for kind in [RouteType::Local, RouteType::Broadcast, RouteType::Anycast] {
            assert_eq!(
                next_hop(kind, std::slice::from_ref(&by)),
                NextHop::Local,
                "{kind:?}"
            );
        }
        for kind in [
            RouteType::Unreachable,
            RouteType::BlackHole,
            RouteType::Prohibit,
            RouteType::Multicast,
        ] {
            assert_eq!(
                next_hop(kind, std::slice::from_ref(&by)),
                NextHop::OffLink,
                "{kind:?}"
            );
        }
        let other = RouteNetlinkMessage::GetRoute(RouteMessage::default());
        assert_eq!(next_hop_of(&other), None);
    }

    #[test]
    fn the_owner_has_a_description() {
        assert_eq!(AddressOwner::Node.to_string(), "this node itself");
        assert_eq!(
            AddressOwner::Pod("mrf874111cf6a8".into()).to_string(),
            "another pod of this node, at interface mrf874111cf6a8"
        );
        let neighbour = AddressOwner::Neighbour {
            interface: "eth0".into(),
            mac: vec![2, 0, 0, 0, 0, 9],
        };
        assert_eq!(
            neighbour.to_string(),
            "02:00:00:00:00:09 on the link of interface eth0"
        );
    }
}
