//! What the agent does by netlink: it knows the links of its network namespace, and owns two devices and the routes to
//! services and pods.
//!
//! [`Monitor`] follows the kernel and keeps [`Links`] true; from them [`roles()`] says which interfaces lead
//! to pods and which to other machines, and [`NodeAddresses`] which addresses the node holds. [`HostDevice`]
//! is a device whose routes take the node's own packets to virtual addresses past a program; [`mod@pods`] is
//! the way to pods of other nodes. [`PodNamespaces`] names the network namespaces of pods as the socket hooks
//! see them. [`mod@leftovers`] looks for another Service proxy, [`mod@firewall`] for chains that drop what
//! pods send or are sent, [`mod@queues`] for queues of other programs at our devices.
//!
//! Invariants: nothing that somebody else made is changed; what is already right is not written again, so
//! that a restarted agent writes nothing; what is wrong with the machine is returned as a [`Problem`] and not
//! only logged.

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
pub mod leftovers;
pub mod link;
pub mod links;
pub mod monitor;
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

/// Our own device: the routes to virtual addresses lead to it.
pub const HOST_DEVICE: &str = "millrace0";
/// The other end of [`HOST_DEVICE`], in the same namespace. Nothing is sent from or to it.
pub const HOST_DEVICE_PEER: &str = "millrace1";

/// What the loopback must let through for the node to reach itself by node ports and host ports: the way to a backend is
/// looked up from there, which takes leave to forward (`bpf_fib_lookup`), and answers come in there from an address of the
/// node's own, see `proxy_common::maps::Deliver`. Everything else on the loopback was let in before it was sent, so nothing
/// else changes.
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

/// Whether an interface is one of ours, pods' apart.
pub fn is_own(name: &str) -> bool {
    [HOST_DEVICE, HOST_DEVICE_PEER, pods::TUNNEL_DEVICE].contains(&name) || is_of_limiter(name)
}
