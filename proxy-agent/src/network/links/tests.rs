//! Tests of `links`.

use rtnetlink::packet_route::AddressFamily;

use super::*;
use crate::network::fixture::{address, default_route, link};

fn taken(links: &mut Links, message: &RouteNetlinkMessage) -> Change {
    let mut change = Change::default();
    links.take(message, &mut change);
    change
}

#[test]
fn what_a_dump_has_shown_already_is_no_change() {
    let mut links = Links::default();
    let mut change = Change::default();
    links.set_link(link(2, "eth0", ""), &mut change);
    links.set_address(2, address("192.0.2.1/24"), &mut change);
    assert_eq!(change.links, BTreeSet::from([2]));
    assert!(change.addresses);
    change = Change::default();
    links.set_link(link(2, "eth0", ""), &mut change);
    links.set_address(2, address("192.0.2.1/24"), &mut change);
    let same = links.clone();
    links.replace(same, &mut change);
    assert!(change.is_empty());
}

#[test]
fn a_link_local_address_is_no_relevant_change() {
    let mut links = Links::default();
    let mut change = Change::default();
    links.set_address(2, address("fe80::1/64"), &mut change);
    assert!(change.is_empty());
    assert_eq!(links.addresses(2).len(), 1);
}

#[test]
fn a_default_route_goes_with_its_link() {
    let mut links = Links::default();
    links.set_link(link(2, "eth0", ""), &mut Change::default());
    assert!(taken(&mut links, &default_route(2)).default_routes);
    assert!(taken(&mut links, &default_route(2)).is_empty());
    assert_eq!(links.default_interfaces(), BTreeSet::from([2]));
    let mut message = rtnetlink::packet_route::link::LinkMessage::default();
    message.header.index = 2;
    assert!(taken(&mut links, &RouteNetlinkMessage::DelLink(message)).default_routes);
    assert!(links.default_interfaces().is_empty());
}

#[test]
fn what_may_stand_in_the_place_of_an_entry_of_the_tunnel_is_noted() {
    let mut links = Links::default();
    links.set_link(link(2, "eth0", ""), &mut Change::default());
    links.set_link(link(3, TUNNEL_DEVICE, "vxlan"), &mut Change::default());
    let mut touched = |index, family, address| {
        let mut message = NeighbourMessage::default();
        message.header.family = family;
        message.header.ifindex = index;
        message.attributes = vec![NeighbourAttribute::Destination(address)];
        let change = taken(&mut links, &RouteNetlinkMessage::NewNeighbour(message));
        change.touched.contains(&index)
    };
    let end = NeighbourAddress::Inet([10, 244, 2, 0].into());
    let node = NeighbourAddress::Other(vec![192, 0, 2, 9]);
    let link_local = NeighbourAddress::Inet6("fe80::2".parse().expect("an address"));
    assert!(touched(3, AddressFamily::Inet, end.clone()));
    assert!(touched(3, AddressFamily::Bridge, node));
    assert!(!touched(3, AddressFamily::Inet6, link_local));
    assert!(!touched(2, AddressFamily::Inet, end));
}

#[test]
fn each_message_about_the_tunnel_is_noted() {
    use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};

    let mut links = Links::default();
    for (index, name) in [(2, "eth0"), (3, TUNNEL_DEVICE)] {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = vec![LinkAttribute::IfName(name.into())];
        let message = RouteNetlinkMessage::NewLink(message);
        assert!(!taken(&mut links, &message).is_empty());
        let again = taken(&mut links, &message);
        assert!(again.links.is_empty());
        assert_eq!(again.touched.contains(&index), name == TUNNEL_DEVICE);
    }
}

#[test]
fn a_dump_after_lost_messages_reports_the_difference() {
    let mut links = Links::default();
    links.set_link(link(2, "eth0", ""), &mut Change::default());
    links.set_link(link(3, "veth3", "veth"), &mut Change::default());
    let mut dumped = Links::default();
    dumped.set_link(link(2, "eth0", ""), &mut Change::default());
    dumped.set_link(link(4, "veth4", "veth"), &mut Change::default());
    let mut change = Change::default();
    links.replace(dumped, &mut change);
    assert_eq!(change.links, BTreeSet::from([3, 4]));
    assert!(!change.addresses);
}
