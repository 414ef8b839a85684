//! The common parts of all routes that the agent sets.

use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteType};

use super::error::{NetworkError, Problem};
use super::netlink::{self, Netlink};

/// The metric of a route without an explicit one (`IP6_RT_PRIO_USER` for IPv6).
pub fn default_metric(prefix: IpNet) -> u32 {
    if prefix.addr().is_ipv6() { 1024 } else { 0 }
}

/// Whether a route is one of ours or can conflict with one.
pub fn decides(message: &RouteMessage) -> bool {
    let is_unicast = message.header.kind == RouteType::Unicast;
    (is_unicast || has_no_next_hop(message)) && netlink::is_main_table(message)
}

/// Whether a route makes the kernel drop or refuse packets.
pub fn has_no_next_hop(message: &RouteMessage) -> bool {
    matches!(
        message.header.kind,
        RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit | RouteType::Throw
    )
}

/// The start of a message that adds or removes one of our routes.
pub fn builder(prefix: IpNet, protocol: u8) -> Result<RouteMessageBuilder<IpAddr>, NetworkError> {
    let route = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(prefix.addr(), prefix.prefix_len())
        .map_err(refused(prefix))?;
    Ok(route.protocol(RouteProtocol::Other(protocol)))
}

/// The error for `map_err` if the rest of a message is refused.
pub fn refused<E: std::fmt::Debug>(prefix: IpNet) -> impl FnOnce(E) -> NetworkError {
    move |error| NetworkError::Request {
        what: format!("describing the route {prefix}"),
        error: std::io::Error::other(format!("{error:?}")),
    }
}

/// Removes a route, which may no longer exist. The kernel itself removes routes when their device goes down
/// or their source is removed.
pub async fn remove(netlink: &Netlink, mut route: RouteMessage, metric: u32) -> Result<(), rtnetlink::Error> {
    route.attributes.push(RouteAttribute::Priority(metric));
    let removed = netlink.writing().route().del(route).execute().await;
    removed.or_else(|error| match &error {
        rtnetlink::Error::NetlinkError(message) if message.raw_code() == -libc::ESRCH => Ok(()),
        _ => Err(error),
    })
}

/// Notes a problem if a request failed.
pub fn note(problems: &mut Vec<Problem>, prefix: IpNet, done: Result<(), rtnetlink::Error>, what: &str) {
    if let Err(error) = done.map_err(NetworkError::request(what)) {
        problems.push(Problem {
            code: error.trouble(),
            object: format!("route {prefix}"),
            message: error.to_string(),
        });
    }
}

/// The text for an interface in a sentence about a route.
pub fn through(interface: u32) -> String {
    match nix::net::if_::if_indextoname(interface) {
        Ok(name) => format!("through {}", name.to_string_lossy()),
        Err(_) => format!("through interface {interface}"),
    }
}
