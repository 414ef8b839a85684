//! The netlink side of the agent: it knows the links of its network namespace, and owns two devices and the
//! routes to services and pods.
//!
//! [`Monitor`] follows the kernel and keeps [`Links`] up to date. From them [`roles()`] derives the
//! interfaces that lead to pods and to other machines, and [`NodeAddresses`] the addresses that the node
//! holds. [`HostDevice`] is a device whose routes take the node's own packets to virtual addresses past a
//! program. [`mod@pods`] sets the routes to pods of other nodes. [`PodNamespaces`] identifies the network
//! namespaces of pods by the cookies that the socket hooks see.
//!
//! Three modules look for other programs: [`mod@stale_rules`] for another Service proxy, [`mod@firewall`] for
//! chains that drop packets from or to pods, [`mod@queues`] for queues at our devices.
//!
//! Invariants:
//! - The agent changes nothing that another program made.
//! - It does not write a value that is already right, so that a restarted agent writes nothing.
//! - It returns each fault of the machine as a [`Problem`], and does not only log it.

pub mod addresses;
pub mod cookie;
mod default_route;
pub mod error;
pub mod firewall;
#[cfg(test)]
mod fixture;
pub mod host_device;
pub mod host_routes;
pub mod inside;
pub mod link;
pub mod links;
pub mod monitor;
mod multipath;
pub mod namespaces;
pub mod netlink;
pub mod nfnetlink;
pub mod on_link;
pub mod others;
pub mod pods;
pub mod port_rules;
pub mod queues;
pub mod roles;
mod route;
pub mod stale_rules;
mod sys;
pub mod sysctl;

use cni_plugin::attachment::is_of_limiter;

pub use addresses::{NodeAddresses, UplinkAddresses};
pub use cookie::own_netns_cookie;
pub use error::{NetworkError, Problem};
pub use host_device::HostDevice;
pub use host_routes::HostRoutes;
pub use link::{Address, Link};
pub use links::{Change, Links};
pub use monitor::Monitor;
pub use namespaces::PodNamespaces;
pub use netlink::Netlink;
pub use roles::{Interface, Role, RoleChanges, RoleOptions, Roles, roles};

/// Our own device, which the routes to virtual addresses lead to.
pub const HOST_DEVICE: &str = "millrace0";
/// The other end of [`HOST_DEVICE`], in the same namespace. It sends and receives no packets.
pub const HOST_DEVICE_PEER: &str = "millrace1";

/// Sets the loopback so that the node can reach itself by node ports and host ports. The kernel looks up the
/// route to a backend from the loopback, which requires forwarding there (`bpf_fib_lookup`).
///
/// Replies enter by the loopback with one of the node's own addresses as their source, see
/// `proxy_common::maps::Deliver`. The kernel accepted every other packet on the loopback before it was sent,
/// so nothing else changes.
pub fn open_loopback() -> Result<(), NetworkError> {
    for setting in loopback_settings() {
        if setting.ensure()? {
            tracing::info!("set {setting} to 1, for node ports and the node itself");
        }
    }
    Ok(())
}

/// The settings of the loopback that [`open_loopback`] makes.
pub fn loopback_settings() -> impl Iterator<Item = sysctl::Setting<'static>> {
    let all = [
        ("ipv4", "accept_local"),
        ("ipv4", "forwarding"),
        ("ipv6", "forwarding"),
    ];
    let known = all
        .into_iter()
        .filter(|(family, _)| *family == "ipv4" || sysctl::has_ipv6());
    known.map(|(family, name)| sysctl::Setting {
        family,
        device: "lo",
        name,
        value: "1",
    })
}

/// Whether an interface is one of ours, except those of pods.
pub fn is_own(name: &str) -> bool {
    [HOST_DEVICE, HOST_DEVICE_PEER, pods::TUNNEL_DEVICE].contains(&name) || is_of_limiter(name)
}
