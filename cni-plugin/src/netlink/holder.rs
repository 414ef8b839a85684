//! Who holds an address that a pod shall have.
//!
//! The node's kernel says how it would reach the address. If that is the node itself or a pod, somebody has it. If it is a
//! link, the kernel asks there, by ARP or neighbour discovery, as it does before it sends anything: an entry of its table
//! of neighbours is used, and looked at until an owner has answered or the kernel has given up. By a gateway nobody can
//! be asked. All addresses are asked for at the same time.
//!
//! What the table knew before is not believed, since an owner may be gone or have moved: it is asked for anew, and not only
//! at the old Ethernet address, which is what an entry in state PROBE would do. Only entries that somebody made on purpose
//! count as they are.

use std::fmt;
use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::NeighbourState;
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use proxy_bpf::links::InterfaceRole;

use super::conversation::{Conversation, Request, errno};
use super::error::NetlinkError;
use super::ip::{alone, family, is_no_way};
use super::link;
use super::neighbour::{Neighbour, Verdict, told, verdict};
use crate::attachment::mac_text;

/// The kernel asks three times, a second apart, and gives up a second later, unless its settings say otherwise.
const PATIENCE: Duration = Duration::from_millis(3500);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// An address that is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The address.
    pub address: IpAddr,
    /// By whom.
    pub by: Holder,
}

/// Who holds an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// The node itself.
    Node,
    /// A pod of ours at an interface of the node.
    Pod(String),
    /// Somebody on a link.
    Neighbour {
        /// The node's interface there.
        interface: String,
        /// His Ethernet address.
        mac: Vec<u8>,
    },
}

impl fmt::Display for Holder {
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

/// How the node would reach an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// It need not go anywhere.
    Here,
    /// On the link of an interface.
    Link(u32),
    /// By a gateway, or not at all.
    Elsewhere,
}

/// An address that is asked for on a link.
struct Question {
    at: Neighbour,
    /// The table knew nothing of it before.
    is_new: bool,
}

/// Finds one of the addresses that somebody holds. What the table of neighbours got by asking is removed again.
pub fn find(node: &mut Conversation, addresses: &[IpAddr]) -> Result<Option<Held>, NetlinkError> {
    let mut questions = Vec::new();
    let found = search(node, addresses, &mut questions);
    let new = questions.iter().filter(|question| question.is_new);
    let requests: Vec<_> = new.map(|question| question.at.forget()).collect();
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
    node: &mut Conversation,
    addresses: &[IpAddr],
    questions: &mut Vec<Question>,
) -> Result<Option<Held>, NetlinkError> {
    // First what is known without asking anybody.
    let mut on_links = Vec::new();
    for address in addresses {
        let by = match way(node, *address)? {
            Way::Elsewhere => continue,
            Way::Here => Holder::Node,
            Way::Link(interface) => {
                let name = name(interface);
                if InterfaceRole::of_pod(&name) != InterfaceRole::OwnPod {
                    on_links.push(Neighbour {
                        address: *address,
                        interface,
                    });
                    continue;
                }
                Holder::Pod(name)
            }
        };
        return Ok(Some(Held {
            address: *address,
            by,
        }));
    }
    for neighbour in on_links {
        if let Some(held) = begin(node, neighbour, questions)? {
            return Ok(Some(held));
        }
    }
    await_answer(node, questions)
}

/// Has the kernel ask for an address, unless what it was told is enough.
fn begin(
    node: &mut Conversation,
    at: Neighbour,
    questions: &mut Vec<Question>,
) -> Result<Option<Held>, NetlinkError> {
    let answers = node.ask(at.look())?;
    let known = answers.iter().find_map(|answer| at.entry(answer));
    let requests = match known {
        None => vec![at.ask_new()],
        Some(entry) => match told(entry) {
            Some(Verdict::Held(mac)) => return Ok(Some(held(at, mac))),
            Some(_) => return Ok(None),
            // Packets wait for this answer, and would be lost.
            None if entry.header.state == NeighbourState::Incomplete => vec![at.ask_again()],
            None => vec![at.doubt(), at.ask_again()],
        },
    };
    let mut is_new = known.is_none();
    match node.batch(requests) {
        // Somebody else began to ask a moment ago.
        Err(error) if errno(&error) == Some(libc::EEXIST) => is_new = false,
        asked => drop(asked?),
    }
    questions.push(Question { at, is_new });
    Ok(None)
}

fn await_answer(node: &mut Conversation, questions: &[Question]) -> Result<Option<Held>, NetlinkError> {
    let deadline = Instant::now() + PATIENCE;
    let mut pause = Duration::from_millis(1);
    let mut open: Vec<Neighbour> = questions.iter().map(|question| question.at).collect();
    while !open.is_empty() && Instant::now() < deadline {
        thread::sleep(pause);
        pause = LONGEST_PAUSE.min(pause * 2);
        let looks = open.iter().map(Neighbour::look).collect();
        for answer in node.batch(looks)? {
            let about = |at: &Neighbour| Some((*at, verdict(at.entry(&answer)?)));
            match open.iter().find_map(about) {
                Some((at, Verdict::Held(mac))) => return Ok(Some(held(at, mac))),
                Some((at, Verdict::Nobody)) => open.retain(|other| *other != at),
                Some((_, Verdict::Open)) | None => {}
            }
        }
    }
    Ok(None)
}

fn held(at: Neighbour, mac: Vec<u8>) -> Held {
    Held {
        address: at.address,
        by: Holder::Neighbour {
            interface: name(at.interface),
            mac,
        },
    }
}

/// An interface's name, or its number if it has just gone.
fn name(interface: u32) -> String {
    link::name_of(interface).unwrap_or_else(|| interface.to_string())
}

fn way(node: &mut Conversation, to: IpAddr) -> Result<Way, NetlinkError> {
    let mut message = RouteMessage::default();
    message.header.address_family = family(to);
    message.header.destination_prefix_length = alone(to).prefix_len();
    message.attributes.push(RouteAttribute::Destination(to.into()));
    let what = format!("looking for the route to {to}");
    match node.ask(Request::plain(what, RouteNetlinkMessage::GetRoute(message))) {
        Ok(answers) => Ok(answers.iter().find_map(way_of).unwrap_or(Way::Elsewhere)),
        Err(error) if errno(&error).is_some_and(is_no_way) => Ok(Way::Elsewhere),
        Err(error) => Err(error),
    }
}

fn way_of(answer: &RouteNetlinkMessage) -> Option<Way> {
    let RouteNetlinkMessage::NewRoute(route) = answer else {
        return None;
    };
    match route.header.kind {
        // A network's broadcast address, and a router's anycast address, are taken in by the node as well.
        RouteType::Local | RouteType::Broadcast | RouteType::Anycast => return Some(Way::Here),
        RouteType::Unicast => {}
        _ => return Some(Way::Elsewhere),
    }
    let mut interface = None;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => return Some(Way::Elsewhere),
            RouteAttribute::Oif(index) => interface = Some(*index),
            _ => {}
        }
    }
    interface.map(Way::Link)
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
    fn only_an_address_on_a_link_is_asked_for() {
        let by = RouteAttribute::Oif(7);
        let gateway = RouteAttribute::Gateway(RouteAddress::Inet(Ipv4Addr::new(10, 0, 0, 1)));
        let via = RouteAttribute::Via(RouteVia::Inet6("fe80::1".parse().unwrap()));
        let way = |kind, attributes: &[RouteAttribute]| way_of(&route(kind, attributes)).unwrap();
        assert_eq!(way(RouteType::Unicast, std::slice::from_ref(&by)), Way::Link(7));
        assert_eq!(
            way(RouteType::Unicast, &[by.clone(), gateway.clone()]),
            Way::Elsewhere
        );
        assert_eq!(way(RouteType::Unicast, &[via, by.clone()]), Way::Elsewhere);
        for kind in [RouteType::Local, RouteType::Broadcast, RouteType::Anycast] {
            assert_eq!(way(kind, std::slice::from_ref(&by)), Way::Here, "{kind:?}");
        }
        for kind in [
            RouteType::Unreachable,
            RouteType::BlackHole,
            RouteType::Prohibit,
            RouteType::Multicast,
        ] {
            assert_eq!(way(kind, std::slice::from_ref(&by)), Way::Elsewhere, "{kind:?}");
        }
        let other = RouteNetlinkMessage::GetRoute(RouteMessage::default());
        assert_eq!(way_of(&other), None);
    }

    #[test]
    fn a_holder_is_named() {
        assert_eq!(Holder::Node.to_string(), "this node itself");
        assert_eq!(
            Holder::Pod("mrf874111cf6a8".into()).to_string(),
            "another pod of this node, at interface mrf874111cf6a8"
        );
        let neighbour = Holder::Neighbour {
            interface: "eth0".into(),
            mac: vec![2, 0, 0, 0, 0, 9],
        };
        assert_eq!(
            neighbour.to_string(),
            "02:00:00:00:00:09 on the link of interface eth0"
        );
    }
}
