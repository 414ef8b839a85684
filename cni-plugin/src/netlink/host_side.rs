//! The settings and addresses of the node's side of a pod's interface. The plugin makes them, and the agent
//! checks them.

use ipnet::{IpNet, Ipv6Net};

use super::ip::GATEWAY_V6;
use super::sysctl::Setting;

/// The settings for a pod with IPv6. A pod must not change the node's routes, and the gateway's address is
/// the only link-local address of the interface.
pub const HOST_V6: &[Setting] = &[
    ("ipv6", "disable_ipv6", "0"),
    ("ipv6", "accept_ra", "0"),
    ("ipv6", "accept_dad", "0"),
    ("ipv6", "addr_gen_mode", "1"),
    ("ipv6", "forwarding", "1"),
];
/// The settings for a pod with IPv4.
pub const HOST_V4: &[Setting] = &[("ipv4", "forwarding", "1")];

/// The gateway's address with its prefix; with it the kernel replies to neighbour solicitations.
pub fn gateway_v6() -> IpNet {
    Ipv6Net::new_assert(GATEWAY_V6, 64).into()
}
