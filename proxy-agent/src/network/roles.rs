//! Finds the interfaces that lead to pods and those that lead to other machines.
//!
//! The agent attaches programs to each interface by its role. Uplinks are the interfaces that the operator
//! names. Without names, an uplink is an interface that holds an address of the Node object, or that a
//! default route of any table leads to. An interface with an address by which other machines know the node is
//! an uplink as well. Packets of pods and services use all of these.
//!
//! The link below a VLAN that is an uplink is one as well, for its untagged frames, unless it is a bridge or
//! a port.
//!
//! A pod's interface is then the host side of any veth that leads to another namespace. So the program sees
//! the packets that a pod sends beside any CNI plugin, and on the ports of a bridge too. The operator may
//! name these interfaces instead.
//!
//! The order matters: the uplink of a virtual node is such a veth. A refused uplink has no role at all.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::error::Problem;
use super::is_own;
use super::link::Link;
use super::links::Links;
use crate::bpf::links::InterfaceRole;
use crate::config::NamePattern;
use crate::trouble::Trouble;
use proxy_common::maps::MAX_HEADERLESS;

/// The role of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// The interface leads to other machines.
    Uplink,
    /// The interface is the host side of a pod's veth.
    Pod,
}

/// An interface with a role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// The interface index.
    pub index: u32,
    /// The name of the interface.
    pub name: String,
    /// The role of the interface.
    pub role: Role,
}

/// The input of [`roles()`] beside the links.
#[derive(Debug, Clone, Default)]
pub struct RoleOptions {
    /// The uplinks that the operator named.
    pub uplinks: Vec<String>,
    /// The interfaces of pods that the operator named.
    pub pod_interfaces: Vec<NamePattern>,
    /// The addresses of the Node object.
    pub node_addresses: Vec<IpAddr>,
}

/// The interfaces with a role.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Roles {
    /// The interfaces, uplinks first, in the order in which the operator named them. Unnamed uplinks come in
    /// this order: those that hold an address of the Node object, those of default routes, and the rest, by
    /// index. The interfaces of pods follow, by index.
    pub interfaces: Vec<Interface>,
    /// How many of the uplinks, from the first on, lead to other nodes or out of the cluster. The rest lead
    /// to hosts on their links.
    pub main: usize,
    /// Uplinks whose packets have no Ethernet header, by index.
    pub headerless: Vec<u32>,
    /// Links below VLANs that are uplinks for untagged frames only: no route leads there. They keep their
    /// settings.
    pub trunks: BTreeSet<u32>,
    /// The problems: named uplinks that do not exist, uplinks that are down or refused, or no uplink at all.
    pub problems: Vec<Problem>,
}

impl Roles {
    /// The interfaces of one role.
    pub fn of(&self, role: Role) -> impl Iterator<Item = &Interface> {
        self.interfaces
            .iter()
            .filter(move |interface| interface.role == role)
    }

    /// Whether the programs read the packets of each interface by which other machines can send. The ends of
    /// a veth within this namespace do not count. Links with other link-layer headers are not read. The
    /// packets of a port of a bridge or a bond are read at that device.
    pub fn watch_all(&self, links: &Links) -> bool {
        let is_isolated = |link: &Link| link.kind == "veth" && !link.connects_to_another_namespace();
        links
            .iter()
            .filter(|link| link.is_up() && !link.is_loopback() && !is_own(&link.name) && !is_isolated(link))
            .all(|link| {
                let reading = links.receiver(link);
                let has_role = self
                    .interfaces
                    .iter()
                    .any(|interface| interface.index == reading.index);
                has_role && reading.is_readable()
            })
    }

    /// The smallest MTU among the main uplinks, in bytes.
    pub fn uplink_mtu(&self, links: &Links) -> Option<u32> {
        self.of(Role::Uplink)
            .take(self.main)
            .filter_map(|uplink| Some(links.get(uplink.index)?.mtu))
            .min()
    }
}

/// Gives each interface its role.
pub fn roles(links: &Links, options: &RoleOptions) -> Roles {
    let mut problems = Vec::new();
    let (mut uplinks, main) = uplinks(links, options, &mut problems);
    let mut trunks = trunks(links, &uplinks, options);
    trunks.retain(|index| !uplinks.contains(index));
    if options.uplinks.is_empty() {
        uplinks.extend(
            trunks
                .iter()
                .filter(|index| !uplinks.contains(index))
                .collect::<Vec<_>>(),
        );
    }
    let is_in_vrf = |index: &u32| vrf_of(links, *index).is_some();
    let headerless: Vec<u32> = uplinks
        .iter()
        .copied()
        .filter(|index| !is_in_vrf(index))
        .filter(|index| links.get(*index).is_some_and(|link| link.is_headerless))
        .collect();
    let is_read = |index: &u32| {
        let is_one_too_many = headerless.iter().skip(MAX_HEADERLESS).any(|other| other == index);
        !is_one_too_many && links.get(*index).is_some_and(Link::is_readable)
    };
    let in_vrfs = uplinks.iter().filter_map(|index| vrf_of(links, *index));
    problems.extend(in_vrfs.map(|(link, vrf)| in_vrf(link, vrf)));
    for index in uplinks
        .iter()
        .filter(|index| !is_in_vrf(index) && !is_read(index))
    {
        let why = if headerless.contains(index) {
            format!("more than {MAX_HEADERLESS} uplinks have packets without Ethernet header")
        } else {
            "packets here have neither an Ethernet header nor none".to_owned()
        };
        problems.push(Problem {
            code: Trouble::LinkNotServed,
            object: format!("interface {}", links.name(*index)),
            message: format!("{why}, which the programs do not read: {NOT_READ}"),
        });
    }
    problems.extend(down(links, options, &uplinks));
    problems.extend(
        uplinks
            .iter()
            .filter_map(|index| port_with_addresses(links, *index)),
    );
    let is_served = |index: &u32| !is_in_vrf(index) && is_read(index);
    let main = uplinks.iter().take(main).filter(|index| is_served(index)).count();
    let named = &options.pod_interfaces;
    let with_own_ports = bridges_with_own_ports(links);
    // An uplink leads out of the machine by one of its ports; if all ports are veths, it is unknown which.
    let may_be_uplink_port = |link: &Link| {
        let is_uplink = |bridge: &u32| uplinks.contains(bridge) && !with_own_ports.contains(bridge);
        link.master.as_ref().is_some_and(is_uplink)
    };
    let is_pods = |link: &Link| {
        if named.is_empty() {
            link.connects_to_another_namespace() && !may_be_uplink_port(link)
        } else {
            !link.is_loopback() && named.iter().any(|pattern| pattern.matches(&link.name))
        }
    };
    let is_uplink = |link: &Link| uplinks.contains(&link.index) || trunks.contains(&link.index);
    let pods = links
        .iter()
        .filter(|link| is_pods(link) && !is_own(&link.name) && !is_uplink(link));
    let interface = |link: &Link, role| Interface {
        index: link.index,
        name: link.name.clone(),
        role,
    };
    let interfaces = uplinks
        .iter()
        .filter(|index| is_served(index))
        .filter_map(|index| links.get(*index))
        .map(|link| interface(link, Role::Uplink))
        .chain(pods.map(|link| interface(link, Role::Pod)))
        .collect();
    let headerless = headerless.into_iter().take(MAX_HEADERLESS).collect();
    Roles {
        interfaces,
        main,
        headerless,
        trunks,
        problems,
    }
}

/// A link, and the VRF whose table the kernel uses for it, if there is one. The VRF is the link itself, or
/// the link is a port of it (`l3mdev_master_ifindex_rcu` in `net/l3mdev/l3mdev.c`).
fn vrf_of(links: &Links, index: u32) -> Option<(&Link, &Link)> {
    let link = links.get(index)?;
    let master = link.master.and_then(|master| links.get(master));
    let mut places = [Some(link), master].into_iter().flatten();
    let vrf = places.find(|place| place.kind == "vrf")?;
    Some((link, vrf))
}

/// The problem of an uplink in a VRF. The kernel routes packets that enter there by the VRF's table, and the
/// pods' replies by the main one. With programs here, a packet for a node port could leave by the VRF's
/// default route with a pod's address.
fn in_vrf(link: &Link, vrf: &Link) -> Problem {
    let (what, remedy) = if link.index == vrf.index {
        (
            "is a VRF".to_owned(),
            "Route packets of pods by an interface outside of it".to_owned(),
        )
    } else {
        (
            format!("is a port of the VRF {}", vrf.name),
            format!(
                "Take it out with `ip link set {} nomaster`, and give it its IPv6 addresses and its routes again",
                link.name
            ),
        )
    };
    Problem {
        code: Trouble::UplinkInVrf,
        object: format!("interface {}", link.name),
        message: format!(
            "{what}, where the kernel routes by another table than for pods: no service is served here, and \
             packets of pods that a route leads here leave with the pod's address. {remedy}; or name the \
             uplinks in use with --uplink"
        ),
    }
}

/// The problem of an uplink that holds addresses and is a port. The kernel hands its packets to the device
/// above (`rx_handler` in `net/core/dev.c`). So its own sockets receive nothing, and ARP requests for its
/// addresses get no reply.
fn port_with_addresses(links: &Links, index: u32) -> Option<Problem> {
    const TAKE_ALL: [&str; 4] = ["bridge", "bond", "team", "openvswitch"];
    let link = links.get(index)?;
    let master = links.get(link.master?)?;
    let mut held = links.addresses(index).iter();
    let address = held.find(|address| address.is_public())?.ip;
    TAKE_ALL.contains(&master.kind.as_str()).then(|| Problem {
        code: Trouble::UplinkIsPort,
        object: format!("interface {}", link.name),
        message: format!(
            "has {address} and is a port of the {} {above}, which takes each packet that comes in here: other \
             machines do not reach {address}. Move the addresses and routes of {name} to {above}, or run `ip link \
             set {name} nomaster`",
            master.kind,
            above = master.name,
            name = link.name,
        ),
    })
}

/// The problems of uplinks that cannot send, if the operator names them or they lead to other nodes or out of
/// the cluster. The kernel keeps IPv4 addresses of a link that is down, and often its routes, so that nothing
/// else shows it.
fn down(links: &Links, options: &RoleOptions, uplinks: &[u32]) -> Vec<Problem> {
    let defaults = links.default_interfaces();
    let is_main = |link: &&Link| {
        let mut held = links.addresses(link.index).iter();
        !options.uplinks.is_empty()
            || defaults.contains(&link.index)
            || held.any(|address| options.node_addresses.contains(&address.ip))
    };
    let problem = |link: &Link| {
        let why = match (link.is_up(), link.has_carrier()) {
            (true, true) => return None,
            (true, false) => {
                "it has no carrier: see to its cable, and to the device at the other end".to_owned()
            }
            (false, _) => format!(
                "it is switched off: `ip link set {} up` switches it on",
                link.name
            ),
        };
        Some(Problem {
            code: Trouble::UplinkDown,
            object: format!("interface {}", link.name),
            message: format!("is down: {why}. Other machines, and pods there, are not reached by it"),
        })
    };
    let found = uplinks.iter().filter_map(|index| links.get(*index));
    found.filter(is_main).filter_map(problem).collect()
}

/// The consequence for a link whose packets the programs do not read, such as an IP tunnel.
const NOT_READ: &str = "no service is served here, and packets of pods leave here with the pod's address. Route them by \
                        another interface, or translate them by a rule of yours";

/// The uplinks, and the number of main ones, which come first.
fn uplinks(links: &Links, options: &RoleOptions, problems: &mut Vec<Problem>) -> (Vec<u32>, usize) {
    let mut problem = |object, message: &str| {
        problems.push(Problem {
            code: Trouble::UplinkNotFound,
            object,
            message: message.into(),
        });
    };
    if !options.uplinks.is_empty() {
        let mut named = Vec::new();
        for name in &options.uplinks {
            match links.by_name(name) {
                Some(link) if is_own(name) || link.is_loopback() => {
                    problem(
                        format!("interface {name}"),
                        "named by --uplink, but it leads to no other machine: name another",
                    );
                }
                Some(link) if named.contains(&link.index) => {}
                Some(link) => named.push(link.index),
                None => problem(
                    format!("interface {name}"),
                    "named by --uplink, but there is none of this name in the agent's network namespace: it is \
                     used as soon as it appears",
                ),
            }
        }
        let main = named.len();
        return (named, main);
    }
    let candidates = || {
        let is_candidate = |link: &&Link| !link.is_loopback() && !is_own(&link.name);
        links.iter().filter(is_candidate)
    };
    let holds_node_address = |link: &Link| {
        let held = links.addresses(link.index).iter();
        held.clone()
            .any(|address| options.node_addresses.contains(&address.ip))
    };
    let defaults = links.default_interfaces();
    let bridges = bridges_with_own_ports(links);
    // A bridge that has no ports but those of pods leads to no other machine.
    let is_isolated = |link: &Link| link.kind == "bridge" && !bridges.contains(&link.index);
    // The reason why a link is an uplink, the strongest first.
    let evidence = |link: &Link| {
        if holds_node_address(link) {
            Some(0)
        } else if defaults.contains(&link.index) {
            Some(1)
        } else if !is_isolated(link) && may_be_uplink(links, link) {
            Some(2)
        } else {
            None
        }
    };
    let mut found: Vec<(u8, u32)> = candidates()
        .filter_map(|link| Some((evidence(link)?, link.index)))
        .collect();
    found.sort_unstable();
    if found.is_empty() {
        problem(
            "uplink".into(),
            "no interface holds an address of this node, leads to a default route or has a global address: \
             name the uplinks with --uplink",
        );
    }
    let is_main = |(evidence, _): &&(u8, u32)| *evidence < 2;
    let main = match found.iter().filter(is_main).count() {
        0 => found.len(),
        some => some,
    };
    (found.into_iter().map(|(_, index)| index).collect(), main)
}

/// The bridges and bonds with a port that is no veth of a pod: a card, a VLAN, a tunnel.
fn bridges_with_own_ports(links: &Links) -> BTreeSet<u32> {
    links
        .iter()
        .filter(|port| !port.is_loopback() && !is_own(&port.name) && !port.connects_to_another_namespace())
        .filter_map(|port| port.master)
        .collect()
}

/// The links below VLANs that are uplinks. Untagged packets that enter there may be for this node as well. A
/// bridge or the port of a device is none, since the device above receives. A pod's interface is none either.
fn trunks(links: &Links, uplinks: &[u32], options: &RoleOptions) -> BTreeSet<u32> {
    let is_pods = |name: &str| {
        let mut named = options.pod_interfaces.iter();
        InterfaceRole::of_pod(name) == InterfaceRole::OwnPod || named.any(|pattern| pattern.matches(name))
    };
    let below = |index: u32| {
        let vlan = links.get(index).filter(|link| link.kind == "vlan")?;
        let lower = vlan.peer.filter(|_| vlan.peer_namespace.is_none());
        let lower = links.get(lower?)?;
        let is_other = lower.kind == "bridge" || lower.master.is_some() || is_own(&lower.name);
        (!is_other && !is_pods(&lower.name)).then_some(lower.index)
    };
    // A VLAN may be on top of another VLAN.
    uplinks
        .iter()
        .flat_map(|index| std::iter::successors(below(*index), |lower| below(*lower)))
        .collect()
}

/// Whether a link may be an uplink because of its addresses alone. Devices that only hold addresses are none.
/// A veth is none if it leads to no other namespace, or if its plugin gave it a lone gateway address.
fn may_be_uplink(links: &Links, link: &Link) -> bool {
    const NEVER: [&str; 4] = ["dummy", "ifb", "nlmon", "vrf"];
    let held = links.addresses(link.index).iter();
    let mut public = held.filter(|address| address.is_public());
    match link.kind.as_str() {
        "veth" => link.connects_to_another_namespace() && public.any(super::link::Address::has_network),
        kind => !NEVER.contains(&kind) && public.next().is_some(),
    }
}

/// The changes of attachments.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RoleChanges {
    /// Interfaces that lose the role that they are attached for, also those of removed links.
    pub detach: Vec<(u32, Role)>,
    /// Interfaces to attach. An interface that changes its role is in both lists: detach it first.
    pub attach: Vec<Interface>,
}

impl RoleChanges {
    /// The changes that lead from `attached` to `wanted`.
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

#[cfg(test)]
#[path = "roles_tests.rs"]
mod tests;
