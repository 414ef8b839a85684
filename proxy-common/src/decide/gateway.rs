//! The gateway of every pod replies to ARP requests for its address, independent of the node's own addresses
//! and routes.
//!
//! The plugin tells a pod the gateway's Ethernet address when it sets up the pod. The pod may lose it: a
//! process deletes the entry, or a virtual machine copies only addresses and routes. No interface of the node
//! has the gateway's IPv4 address. Otherwise the node would reply for it on every link. `proxy_arp` needs a
//! route to that address and replies for all other addresses too. So the program at the pod's interface
//! replies, for this one address. The node learns no neighbour from the request. (In IPv6 each pod's
//! interface has the gateway's address, which is link-local, and the stack replies.)

use super::Tables;
use crate::Ip;
use crate::packet::{ETHERNET_LEN, Packet, ether_type};

/// The gateway of every pod, in IPv4.
pub const ADDRESS: [u8; 4] = [169, 254, 1, 1];
/// The gateway of every pod, in IPv6: `fe80::1`.
pub const ADDRESS_V6: [u16; 8] = [0xfe80, 0, 0, 0, 0, 0, 0, 1];

/// Whether an address is [`ADDRESS_V6`].
#[inline(always)]
pub const fn is_address_v6(address: &Ip) -> bool {
    let words = address.v6_words();
    words[0] == 0xfe80_0000_u32.to_be() && words[1] | words[2] == 0 && words[3] == 1_u32.to_be()
}

/// An ARP packet for IPv4 addresses on Ethernet (RFC 826).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Arp {
    /// The fields before the addresses: types, lengths and operation.
    pub kind: [u8; 8],
    /// Hardware address of the sender.
    pub sender_mac: [u8; 6],
    /// IPv4 address of the sender.
    pub sender: [u8; 4],
    /// Hardware address that the request asks for.
    pub target_mac: [u8; 6],
    /// IPv4 address that the request asks for.
    pub target: [u8; 4],
}

const _: () = assert!(size_of::<Arp>() == 28);

/// An ARP reply with its Ethernet header.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ArpReply {
    destination: [u8; 6],
    source: [u8; 6],
    ether_type: [u8; 2],
    arp: Arp,
}

const _: () = assert!(size_of::<ArpReply>() == 42);

/// Hardware type, protocol type, both lengths, operation.
const REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];
const REPLY: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 2];

/// Returns the ARP request for the gateway's address, if the packet is one and enters by the interface of a
/// pod of ours.
#[inline(always)]
pub fn request<T: Tables, P: Packet + ?Sized>(
    tables: &T,
    packet: &P,
    ether_type: u16,
    interface: u32,
) -> Option<Arp> {
    if ether_type != ether_type::ARP {
        return None;
    }
    let arp: Arp = packet.load(ETHERNET_LEN)?;
    let is_request = u64::from_ne_bytes(arp.kind) == u64::from_ne_bytes(REQUEST);
    let is_gateways = u32::from_ne_bytes(arp.target) == u32::from_ne_bytes(ADDRESS);
    (is_request && is_gateways && tables.pod_link(interface).is_some()).then_some(arp)
}

impl Arp {
    /// The reply: the gateway has this hardware address.
    #[inline(always)]
    pub const fn reply(&self, mac: [u8; 6]) -> ArpReply {
        ArpReply {
            destination: self.sender_mac,
            source: mac,
            ether_type: ether_type::ARP.to_be_bytes(),
            arp: Self {
                kind: REPLY,
                sender_mac: mac,
                sender: ADDRESS,
                target_mac: self.sender_mac,
                target: self.sender,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Plain as _;
    use crate::decide::testing::Fake;
    use crate::maps::PodLink;

    const POD: u32 = 4;

    fn frame(arp: &Arp) -> Vec<u8> {
        let mut frame = vec![0xff; 6];
        frame.extend([2, 0, 0, 0, 0, 9, 8, 6]);
        frame.extend(arp.as_bytes());
        frame
    }

    #[test]
    fn a_pod_that_asks_for_its_gateway_gets_a_reply() {
        let mut tables = Fake::default();
        tables.pod_links.insert(POD, PodLink::default());
        let asked = Arp {
            kind: REQUEST,
            sender_mac: [2, 0, 0, 0, 0, 9],
            sender: [10, 244, 1, 2],
            target_mac: [0; 6],
            target: ADDRESS,
        };
        let of = |arp: &Arp, kind, interface| request(&tables, frame(arp).as_slice(), kind, interface);
        assert_eq!(of(&asked, ether_type::ARP, POD), Some(asked));
        let reply = asked.reply([2, 0, 0, 0, 0, 1]);
        let bytes: Vec<u8> = [
            &[2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 2][..],
            &[2, 0, 0, 0, 0, 1, 169, 254, 1, 1, 2, 0, 0, 0, 0, 9, 10, 244, 1, 2],
        ]
        .concat();
        assert_eq!(reply.as_bytes(), bytes);
        assert_eq!(of(&asked, ether_type::IPV4, POD), None);
        assert_eq!(of(&asked, ether_type::ARP, POD + 1), None, "another plugin's pod");
        for other in [
            Arp {
                target: [169, 254, 1, 2],
                ..asked
            },
            Arp {
                target: [10, 244, 1, 3],
                ..asked
            },
            Arp { kind: REPLY, ..asked },
            Arp {
                kind: [0, 6, 8, 0, 6, 4, 0, 1],
                ..asked
            },
        ] {
            assert_eq!(of(&other, ether_type::ARP, POD), None, "{other:?}");
        }
        let cut = &frame(&asked)[..41];
        assert_eq!(request(&tables, cut, ether_type::ARP, POD), None);
    }
}
