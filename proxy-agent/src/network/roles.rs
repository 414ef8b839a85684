//! Which interfaces lead to pods and which to other machines.
//!
//! A program hangs on each interface by its role. The uplinks are found first, by the strongest evidence there is: named by the
//! operator; holding an address of the Node object; leading to a default route; holding an address at all. A pod's
//! interface is then the host side of any veth that leads to another namespace, so that beside any CNI plugin, and on the ports of a
//! bridge too, the program sees what a pod sends. The order matters: the uplink of a virtual node is such a veth.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::error::Problem;
use super::is_own;
use super::link::Link;
use super::links::Links;

/// What an interface is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Leads to other machines.
    Uplink,
    /// The host side of a pod.
    Pod,
}

/// An interface with a role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// The interface index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What it is to us.
    pub role: Role,
}

/// What is known beside the links.
#[derive(Debug, Clone, Default)]
pub struct RoleOptions {
    /// The uplinks the operator named.
    pub uplinks: Vec<String>,
    /// The addresses of the Node object.
    pub node_addresses: Vec<IpAddr>,
}

/// The interfaces with a role.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Roles {
    /// Uplinks first, in the order the operator named them or by index; then those of pods, by index.
    pub interfaces: Vec<Interface>,
    /// Uplinks that are named and not there, or no uplink at all.
    pub problems: Vec<Problem>,
}

impl Roles {
    /// The interfaces of one role.
    pub fn of(&self, role: Role) -> impl Iterator<Item = &Interface> {
        self.interfaces
            .iter()
            .filter(move |interface| interface.role == role)
    }

    /// The smallest MTU among the uplinks.
    pub fn uplink_mtu(&self, links: &Links) -> Option<u32> {
        self.of(Role::Uplink)
            .filter_map(|uplink| Some(links.get(uplink.index)?.mtu))
            .min()
    }
}

/// Gives each interface its role.
pub fn roles(links: &Links, options: &RoleOptions) -> Roles {
    let mut problems = Vec::new();
    let uplinks = uplinks(links, options, &mut problems);
    let pods = links.iter().filter(|link| {
        link.leads_to_another_namespace() && !is_own(&link.name) && !uplinks.contains(&link.index)
    });
    let interface = |link: &Link, role| Interface {
        index: link.index,
        name: link.name.clone(),
        role,
    };
    let interfaces = uplinks
        .iter()
        .filter_map(|index| links.get(*index))
        .map(|link| interface(link, Role::Uplink))
        .chain(pods.map(|link| interface(link, Role::Pod)))
        .collect();
    Roles { interfaces, problems }
}

fn uplinks(links: &Links, options: &RoleOptions, problems: &mut Vec<Problem>) -> Vec<u32> {
    let mut problem = |object, message: &str| {
        problems.push(Problem {
            object,
            message: message.into(),
        })
    };
    if !options.uplinks.is_empty() {
        let mut named = Vec::new();
        for name in &options.uplinks {
            match links.by_name(name) {
                Some(link) if is_own(name) || link.loopback => {
                    problem(
                        format!("interface {name}"),
                        "named by --uplink, but it leads to no other machine: name another",
                    );
                }
                Some(link) if named.contains(&link.index) => {}
                Some(link) => named.push(link.index),
                None => problem(
                    format!("interface {name}"),
                    "named by --uplink, but there is none of this name in the agent's network namespace: it is used as soon as it appears",
                ),
            }
        }
        return named;
    }
    let candidates = || links.iter().filter(|link| !link.loopback && !is_own(&link.name));
    let holds_node_address = |link: &&Link| {
        links
            .addresses(link.index)
            .iter()
            .any(|address| options.node_addresses.contains(&address.ip))
    };
    let defaults = links.default_interfaces();
    let mut found: Vec<u32> = candidates()
        .filter(holds_node_address)
        .map(|link| link.index)
        .collect();
    if found.is_empty() {
        found = candidates()
            .map(|link| link.index)
            .filter(|index| defaults.contains(index))
            .collect();
    }
    if found.is_empty() {
        let bridges_of_pods: BTreeSet<u32> = candidates()
            .filter(|link| link.leads_to_another_namespace())
            .filter_map(|link| link.master)
            .collect();
        let looks_like_one =
            |link: &&Link| !bridges_of_pods.contains(&link.index) && may_be_uplink(links, link);
        found = candidates()
            .filter(looks_like_one)
            .map(|link| link.index)
            .collect();
    }
    if found.is_empty() {
        problem(
            "uplink".into(),
            "no interface holds an address of this node, leads to a default route or has a global address: name the uplinks with --uplink",
        );
    }
    found
}

/// Where nothing but its addresses speaks for a link. Tunnels and devices that only hold addresses are none, nor
/// the veths of plugins that give each a lone gateway address.
fn may_be_uplink(links: &Links, link: &Link) -> bool {
    const NEVER: [&str; 10] = [
        "dummy",
        "vxlan",
        "geneve",
        "ipip",
        "sit",
        "ip6tnl",
        "gre",
        "ip6gre",
        "gretap",
        "ip6gretap",
    ];
    let mut public = links
        .addresses(link.index)
        .iter()
        .filter(|address| address.is_public());
    match link.leads_to_another_namespace() {
        true => public.any(super::link::Address::has_network),
        false => !NEVER.contains(&link.kind.as_str()) && public.next().is_some(),
    }
}

/// How attachments must change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RoleChanges {
    /// Interfaces that lose the role they were attached in. Those of links that are gone are among them.
    pub detach: Vec<(u32, Role)>,
    /// Interfaces to attach. One that changes its role is in both lists: detach first.
    pub attach: Vec<Interface>,
}

impl RoleChanges {
    /// What leads from `attached` to `wanted`.
    pub fn between(attached: &BTreeMap<u32, Role>, wanted: &[Interface]) -> Self {
        let roles: BTreeMap<u32, Role> = wanted
            .iter()
            .map(|interface| (interface.index, interface.role))
            .collect();
        let lost = attached
            .iter()
            .filter(|(index, role)| roles.get(index) != Some(role));
        let gained = wanted
            .iter()
            .filter(|interface| attached.get(&interface.index) != Some(&interface.role));
        Self {
            detach: lost.map(|(index, role)| (*index, *role)).collect(),
            attach: gained.cloned().collect(),
        }
    }
}
