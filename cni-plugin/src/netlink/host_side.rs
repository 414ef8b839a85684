//! What belongs to the node's side of a pod's interface: the plugin makes it, and the agent looks whether it is still
//! there.

use ipnet::{IpNet, Ipv6Net};

use super::ip::GATEWAY_V6;
use super::sysctl::Setting;

/// Settings, if the pod has IPv6. A pod must not change the node's routes, and the node's own link-local address there is the
/// gateway's.
pub const HOST_V6: &[Setting] = &[
    ("ipv6", "disable_ipv6", "0"),
    ("ipv6", "accept_ra", "0"),
    ("ipv6", "accept_dad", "0"),
    ("ipv6", "addr_gen_mode", "1"),
    ("ipv6", "forwarding", "1"),
];
/// Settings, if the pod has IPv4.
pub const HOST_V4: &[Setting] = &[("ipv4", "forwarding", "1")];

/// The gateway's address, so that the kernel answers who asks for it.
pub fn gateway_v6() -> IpNet {
    Ipv6Net::new_assert(GATEWAY_V6, 64).into()
}
