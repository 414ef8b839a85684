//! An entry of the kernel's neighbour table: the requests for it, and its verdict about an owner.

use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};

use super::ip::family;
use super::socket::Request;

/// An address on the link of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// The address of the neighbour.
    pub address: IpAddr,
    /// The index of the interface.
    pub interface: u32,
}

/// The verdict of an entry of the neighbour table about an owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The owner is at this Ethernet address.
    Owner(Vec<u8>),
    /// There is no owner, or the link has no neighbour requests.
    NoOwner,
    /// An owner may still reply.
    Pending,
}

impl Neighbour {
    fn message(&self) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = family(self.address);
        message.header.ifindex = self.interface;
        message.attributes = vec![NeighbourAttribute::Destination(self.address.into())];
        message
    }

    /// Looks at the entry; a missing entry gives no reply.
    pub fn look(&self) -> Request {
        let what = format!("looking for the neighbour {}", self.address);
        Request::plain(what, RouteNetlinkMessage::GetNeighbour(self.message())).if_known()
    }

    /// The entry, if a reply contains it.
    pub fn entry<'a>(&self, reply: &'a RouteNetlinkMessage) -> Option<&'a NeighbourMessage> {
        let RouteNetlinkMessage::NewNeighbour(entry) = reply else {
            return None;
        };
        let destination = NeighbourAttribute::Destination(NeighbourAddress::from(self.address));
        let is_ours = entry.header.ifindex == self.interface && entry.attributes.contains(&destination);
        is_ours.then_some(entry)
    }

    fn used(&self) -> (String, RouteNetlinkMessage) {
        let mut message = self.message();
        message.header.flags = NeighbourFlags::Use;
        let what = format!("asking for {} by interface {}", self.address, self.interface);
        (what, RouteNetlinkMessage::NewNeighbour(message))
    }

    /// Makes the kernel ask for an owner; fails with `EEXIST` if the table has an entry.
    pub fn ask_new(&self) -> Request {
        let (what, message) = self.used();
        Request::make(what, message)
    }

    /// Makes the kernel ask for an owner, also if the table has an entry.
    pub fn ask_again(&self) -> Request {
        let (what, message) = self.used();
        Request::replace(what, message)
    }

    /// Makes the kernel forget the owner's Ethernet address, so that it asks by broadcast or multicast.
    pub fn invalidate(&self) -> Request {
        let mut message = self.message();
        message.header.state = NeighbourState::Failed;
        let what = format!("doubting the neighbour {}", self.address);
        Request::plain(what, RouteNetlinkMessage::NewNeighbour(message)).if_known()
    }

    /// Removes the entry from the table.
    pub fn forget(&self) -> Request {
        let what = format!("removing the neighbour {}", self.address);
        Request::plain(what, RouteNetlinkMessage::DelNeighbour(self.message())).if_known()
    }
}

/// The verdict of an entry that holds without a request: a program or operator made the entry, or the link
/// has no neighbour requests.
pub fn static_verdict(entry: &NeighbourMessage) -> Option<Verdict> {
    let verdict = verdict(entry);
    let is_static = match entry.header.state {
        NeighbourState::Permanent | NeighbourState::Noarp => true,
        _ => entry.header.flags.contains(NeighbourFlags::ExtLearned) && matches!(verdict, Verdict::Owner(_)),
    };
    is_static.then_some(verdict)
}

/// The verdict of an entry after a request.
pub fn verdict(entry: &NeighbourMessage) -> Verdict {
    match entry.header.state {
        NeighbourState::Reachable
        | NeighbourState::Stale
        | NeighbourState::Delay
        | NeighbourState::Permanent => {
            let mac = entry.attributes.iter().find_map(|attribute| match attribute {
                NeighbourAttribute::LinkLayerAddress(mac) if !mac.is_empty() => Some(mac.clone()),
                _ => None,
            });
            mac.map_or(Verdict::NoOwner, Verdict::Owner)
        }
        NeighbourState::Failed | NeighbourState::Noarp => Verdict::NoOwner,
        _ => Verdict::Pending,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(state: NeighbourState, mac: &[u8]) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.state = state;
        message.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.to_vec())];
        message
    }

    #[test]
    fn a_probed_entry_has_the_owner_of_its_address() {
        use NeighbourState as State;
        let mac = [2, 0, 0, 0, 0, 9];
        for state in [State::Reachable, State::Stale, State::Delay, State::Permanent] {
            assert_eq!(
                verdict(&entry(state, &mac)),
                Verdict::Owner(mac.into()),
                "{state}"
            );
            assert_eq!(verdict(&entry(state, &[])), Verdict::NoOwner, "{state}");
        }
        for state in [State::Failed, State::Noarp] {
            assert_eq!(verdict(&entry(state, &mac)), Verdict::NoOwner, "{state}");
        }
        for state in [State::None, State::Incomplete, State::Probe] {
            assert_eq!(verdict(&entry(state, &mac)), Verdict::Pending, "{state}");
        }
    }

    #[test]
    fn an_entry_without_a_probe_counts_only_if_it_is_static() {
        use NeighbourState as State;
        let mac = [2, 0, 0, 0, 0, 9];
        let held = Some(Verdict::Owner(mac.into()));
        assert_eq!(static_verdict(&entry(State::Permanent, &mac)), held);
        assert_eq!(static_verdict(&entry(State::Noarp, &mac)), Some(Verdict::NoOwner));
        for state in [State::Reachable, State::Stale, State::Probe, State::Failed] {
            assert_eq!(static_verdict(&entry(state, &mac)), None, "{state}");
        }
        let mut learned = entry(State::Stale, &mac);
        learned.header.flags = NeighbourFlags::ExtLearned;
        assert_eq!(static_verdict(&learned), held);
        learned.header.state = State::Failed;
        assert_eq!(static_verdict(&learned), None);
    }

    #[test]
    fn an_entry_of_another_address_or_interface_is_no_reply() {
        let at = |address: &str, interface| Neighbour {
            address: address.parse().unwrap(),
            interface,
        };
        let ours = at("10.0.0.9", 7);
        let of = |other: Neighbour| RouteNetlinkMessage::NewNeighbour(other.message());
        assert!(ours.entry(&of(ours)).is_some());
        assert!(ours.entry(&of(at("10.0.0.9", 8))).is_none());
        assert!(ours.entry(&of(at("10.0.0.8", 7))).is_none());
    }
}
