//! Addresses, neighbours and routes of both ends.
//!
//! A pod has its address alone, without a subnet. Its only next hop is a link-local gateway, which is the
//! same on every node. The pod gets a permanent neighbour entry for the gateway, and the node one for the
//! pod. So no ARP or neighbour discovery precedes the first packet.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use proxy_common::decide::gateway;

use super::error::NetlinkError;
use super::socket::{NetlinkSocket, Request, errno};
use crate::spec::result::Route;

/// The gateway of every pod, in IPv4.
pub const GATEWAY_V4: Ipv4Addr = {
    let [a, b, c, d] = gateway::ADDRESS;
    Ipv4Addr::new(a, b, c, d)
};
/// The gateway of every pod, in IPv6.
pub const GATEWAY_V6: Ipv6Addr = {
    let [a, b, c, d, e, f, g, h] = gateway::ADDRESS_V6;
    Ipv6Addr::new(a, b, c, d, e, f, g, h)
};

/// The gateway of the family of an address.
pub fn gateway(of: IpAddr) -> IpAddr {
    match of {
        IpAddr::V4(_) => GATEWAY_V4.into(),
        IpAddr::V6(_) => GATEWAY_V6.into(),
    }
}

/// The prefix that holds one address alone.
pub fn alone(ip: IpAddr) -> IpNet {
    IpNet::from(ip)
}

pub(super) fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}

/// Gives an interface an address that is usable at once, without duplicate address detection.
pub fn address(interface: u32, net: IpNet) -> Request {
    let ip = net.addr();
    let mut message = AddressMessage::default();
    message.header.family = family(ip);
    message.header.prefix_len = net.prefix_len();
    message.header.index = interface;
    let link_local = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    message.header.scope = if link_local {
        AddressScope::Link
    } else {
        AddressScope::Universe
    };
    message.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
    if ip.is_ipv6() {
        message.header.flags = AddressHeaderFlags::Nodad;
        message
            .attributes
            .push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    Request::make(
        format!("giving interface {interface} the address {net}"),
        RouteNetlinkMessage::NewAddress(message),
    )
}

/// Waits until this namespace takes in packets for an IPv6 address.
///
/// The kernel adds an address at once and its local route in a task of its own, `addrconf_dad_work()` of
/// `net/ipv6/addrconf.c`, even without duplicate address detection. Until then it drops packets for the
/// address.
pub fn await_local(socket: &mut NetlinkSocket, ip: Ipv6Addr) -> Result<(), NetlinkError> {
    let deadline = Instant::now() + Duration::from_secs(2);
    while !is_local(socket, ip.into())? {
        if Instant::now() > deadline {
            let late = io::Error::from_raw_os_error(libc::ETIMEDOUT);
            return Err(NetlinkError::refused(format!(
                "waiting for address {ip} to be usable"
            ))(late));
        }
        thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}

/// Whether this namespace takes in packets for an address. Either an interface has the address, or a route
/// makes it local.
pub fn is_local(socket: &mut NetlinkSocket, ip: IpAddr) -> Result<bool, NetlinkError> {
    let mut message = RouteMessage::default();
    message.header.address_family = family(ip);
    message.header.destination_prefix_length = alone(ip).prefix_len();
    message.attributes.push(RouteAttribute::Destination(ip.into()));
    let what = format!("looking for the route to {ip}");
    let replies = match socket.ask(Request::plain(what, RouteNetlinkMessage::GetRoute(message))) {
        Err(error) if errno(&error).is_some_and(is_unreachable) => return Ok(false),
        replies => replies?,
    };
    let local = |reply: &RouteNetlinkMessage| matches!(reply, RouteNetlinkMessage::NewRoute(route) if route.header.kind == RouteType::Local);
    Ok(replies.iter().any(local))
}

/// Whether an error of a route look-up means that there is no route, or one of type unreachable, prohibit or
/// blackhole.
pub(super) fn is_unreachable(errno: i32) -> bool {
    matches!(
        errno,
        libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL
    )
}

/// Makes a permanent neighbour entry with the Ethernet address of an address.
pub fn neighbour(interface: u32, ip: IpAddr, mac: [u8; 6]) -> Request {
    let mut message = NeighbourMessage::default();
    message.header.family = family(ip);
    message.header.ifindex = interface;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unicast;
    let destination = match ip {
        IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
        IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
    };
    message.attributes = vec![
        NeighbourAttribute::Destination(destination),
        NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
    ];
    Request::replace(
        format!("telling interface {interface} the Ethernet address of {ip}"),
        RouteNetlinkMessage::NewNeighbour(message),
    )
}

/// A route to an address at the other end of the veth pair.
pub fn link_route(interface: u32, to: IpAddr) -> Request {
    let mut message = route_message(interface, alone(to));
    if to.is_ipv4() {
        message.header.scope = RouteScope::Link;
    }
    Request::make(
        format!("making the route to {to} by interface {interface}"),
        RouteNetlinkMessage::NewRoute(message),
    )
}

/// An address with a host route in the main table that leads to another interface than `own`, and that
/// interface.
pub fn conflicting_route(
    socket: &mut NetlinkSocket,
    own: u32,
    addresses: &[IpAddr],
) -> Result<Option<(IpAddr, Option<u32>)>, NetlinkError> {
    let request = RouteNetlinkMessage::GetRoute(RouteMessage::default());
    let replies = socket.ask(Request::list("listing routes", request))?;
    let mut routes = replies.iter().filter_map(route_to_one);
    Ok(routes.find(|(to, interface)| addresses.contains(to) && *interface != Some(own)))
}

/// The destination and interface of a host route of the main table.
fn route_to_one(reply: &RouteNetlinkMessage) -> Option<(IpAddr, Option<u32>)> {
    let RouteNetlinkMessage::NewRoute(route) = reply else {
        return None;
    };
    let (mut to, mut interface) = (None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => to = Some(IpAddr::V4(*ip)),
            RouteAttribute::Destination(RouteAddress::Inet6(ip)) => to = Some(IpAddr::V6(*ip)),
            RouteAttribute::Oif(index) => interface = Some(*index),
            _ => {}
        }
    }
    let to = to?;
    let is_one = route.header.destination_prefix_length == alone(to).prefix_len();
    (is_one && route.header.table == RouteHeader::RT_TABLE_MAIN).then_some((to, interface))
}

/// A route by the gateway.
pub fn gateway_route(interface: u32, route: &Route) -> Request {
    let mut message = route_message(interface, route.dst);
    let gateway = gateway(route.dst.addr());
    message.attributes.push(RouteAttribute::Gateway(gateway.into()));
    if let Some(scope) = route.scope {
        message.header.scope = scope.into();
    }
    if let Some(table) = route.table {
        // The field of the header holds only the tables below 256.
        message.header.table = u8::try_from(table).unwrap_or_default();
        message.attributes.push(RouteAttribute::Table(table));
    }
    if let Some(priority) = route.priority {
        message.attributes.push(RouteAttribute::Priority(priority));
    }
    let mtu = route.mtu.map(RouteMetric::Mtu);
    let metrics: Vec<_> = mtu
        .into_iter()
        .chain(route.advmss.map(RouteMetric::Advmss))
        .collect();
    if !metrics.is_empty() {
        message.attributes.push(RouteAttribute::Metrics(metrics));
    }
    Request::make(
        format!("making the pod's route to {}", route.dst),
        RouteNetlinkMessage::NewRoute(message),
    )
}

fn route_message(interface: u32, to: IpNet) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: family(to.addr()),
        destination_prefix_length: to.prefix_len(),
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::Static,
        scope: RouteScope::Universe,
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    message.attributes.push(RouteAttribute::Oif(interface));
    if to.prefix_len() > 0 {
        message
            .attributes
            .push(RouteAttribute::Destination(to.network().into()));
    }
    message
}

/// The addresses of a namespace, with the index of each interface.
pub fn addresses(socket: &mut NetlinkSocket) -> Result<Vec<(u32, IpNet)>, NetlinkError> {
    let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let replies = socket.ask(Request::list("listing the container's addresses", request))?;
    Ok(replies
        .iter()
        .filter_map(|reply| {
            let RouteNetlinkMessage::NewAddress(message) = reply else {
                return None;
            };
            let ip = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(ip) => Some(*ip),
                _ => None,
            })?;
            let net = IpNet::new(ip, message.header.prefix_len).ok()?;
            Some((message.header.index, net))
        })
        .collect())
}

/// The routes of a namespace by any gateway: destination, gateway and interface.
pub fn gateway_routes(socket: &mut NetlinkSocket) -> Result<Vec<(IpNet, IpAddr, u32)>, NetlinkError> {
    let request = RouteNetlinkMessage::GetRoute(RouteMessage::default());
    let replies = socket.ask(Request::list("listing the container's routes", request))?;
    Ok(replies.iter().filter_map(read_gateway_route).collect())
}

fn read_gateway_route(reply: &RouteNetlinkMessage) -> Option<(IpNet, IpAddr, u32)> {
    let RouteNetlinkMessage::NewRoute(message) = reply else {
        return None;
    };
    let ip = |address: &RouteAddress| match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    };
    let (mut to, mut by, mut interface) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => to = ip(address),
            RouteAttribute::Gateway(address) => by = ip(address),
            RouteAttribute::Oif(index) => interface = Some(*index),
            _ => {}
        }
    }
    let by = by?;
    let everywhere: IpAddr = if by.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let to = IpNet::new(to.unwrap_or(everywhere), message.header.destination_prefix_length).ok()?;
    Some((to, by, interface?))
}
