//! Which interfaces lead to pods and which to other machines.
//!
//! A program hangs on each interface by its role. Uplinks are those that the operator names; else each
//! interface that holds an address of the Node object, that a default route of any table leads to, or that
//! holds an address with which other machines know the node: packets of pods and services take all of these.
//! A link below a VLAN that is found so is one as well, for its frames without a tag, unless it is a bridge
//! or a port. A pod's interface is then the host side of any veth that leads to another namespace, so that
//! beside any CNI plugin, and on the ports of a bridge too, the program sees what a pod sends; the operator
//! may name them instead. The order matters: the uplink of a virtual node is such a veth. An uplink that is
//! refused, since the programs cannot read it or it is in a VRF, has no role at all.

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
    /// The interfaces of pods that the operator named.
    pub pod_interfaces: Vec<NamePattern>,
    /// The addresses of the Node object.
    pub node_addresses: Vec<IpAddr>,
}

/// The interfaces with a role.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Roles {
    /// Uplinks first: in the order the operator named them; else those that hold an address of the Node
    /// object, those of default routes, and the rest, by index. Then those of pods, by index.
    pub interfaces: Vec<Interface>,
    /// How many of the uplinks, from the first on, lead to other nodes or to the world outside. The rest lead
    /// to hosts on their links.
    pub main: usize,
    /// Uplinks whose packets have no Ethernet header, by index.
    pub headerless: Vec<u32>,
    /// Links below VLANs that are uplinks for nothing but untagged frames: no route leads there. They keep
    /// the settings that they have.
    pub trunks: BTreeSet<u32>,
    /// Uplinks that are named and not there, those that are down or refused, or no uplink at all.
    pub problems: Vec<Problem>,
}

impl Roles {
    /// The interfaces of one role.
    pub fn of(&self, role: Role) -> impl Iterator<Item = &Interface> {
        self.interfaces
            .iter()
            .filter(move |interface| interface.role == role)
    }

    /// Whether programs read what comes by each interface that others can send by. Both ends of a veth in
    /// this namespace lead to no other; links with some other link-layer header are not read. What comes by a
    /// port of a bridge or a bond is read there.
    pub fn watch_all(&self, links: &Links) -> bool {
        let leads_nowhere = |link: &Link| link.kind == "veth" && !link.leads_to_another_namespace();
        links
            .iter()
            .filter(|link| link.is_up() && !link.is_loopback() && !is_own(&link.name) && !leads_nowhere(link))
            .all(|link| {
                let reading = links.receiver(link);
                let has_role = self
                    .interfaces
                    .iter()
                    .any(|interface| interface.index == reading.index);
                has_role && reading.is_readable()
            })
    }

    /// The smallest MTU among the main uplinks.
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
    // By one of its ports an uplink leads out of the machine, and which one is not known where all are veths.
    let may_lead_out = |link: &Link| {
        let leads_out = |bridge: &u32| uplinks.contains(bridge) && !with_own_ports.contains(bridge);
        link.master.as_ref().is_some_and(leads_out)
    };
    let is_pods = |link: &Link| {
        if named.is_empty() {
            link.leads_to_another_namespace() && !may_lead_out(link)
        } else {
            !link.is_loopback() && named.iter().any(|pattern| pattern.matches(&link.name))
        }
    };
    let leads_out = |link: &Link| uplinks.contains(&link.index) || trunks.contains(&link.index);
    let pods = links
        .iter()
        .filter(|link| is_pods(link) && !is_own(&link.name) && !leads_out(link));
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

/// A link, and the VRF whose table the kernel takes for it, if there is one: the link itself, or what it is a
/// port of (`l3mdev_master_ifindex_rcu` in `net/l3mdev/l3mdev.c`).
fn vrf_of(links: &Links, index: u32) -> Option<(&Link, &Link)> {
    let link = links.get(index)?;
    let master = link.master.and_then(|master| links.get(master));
    let mut places = [Some(link), master].into_iter().flatten();
    let vrf = places.find(|place| place.kind == "vrf")?;
    Some((link, vrf))
}

/// Of an uplink in a VRF. The kernel routes what comes in there by the VRF's table, and what pods reply by
/// the
/// main one. With programs here, a packet for a node port could leave by the VRF's default route with a pod's
/// address.
fn in_vrf(link: &Link, vrf: &Link) -> Problem {
    let (what, remedy) = if link.index == vrf.index {
        (
            "is a VRF".to_owned(),
            "Lead packets of pods by an interface outside of it".to_owned(),
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

/// Of an uplink that holds addresses and is a port. The kernel hands what comes in there to the device above
/// (`rx_handler` in `net/core/dev.c`), so its own sockets and its neighbours' questions get no reply.
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

/// Uplinks by which nothing can be sent, of those that the operator names or that lead to other nodes or the
/// world outside. The kernel keeps IPv4 addresses of a link that is down, and often its routes, so that
/// nothing else shows it.
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

/// Of a link whose packets the programs do not read, such as an IP tunnel.
const NOT_READ: &str = "no service is served here, and packets of pods leave here with the pod's address. Lead them by \
                        another interface, or translate them by a rule of yours";

/// The uplinks, and how many of them, from the first on, are main ones.
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
    // One whose ports are pods' at the most leads to no other machine.
    let leads_nowhere = |link: &Link| link.kind == "bridge" && !bridges.contains(&link.index);
    // What speaks for a link, the strongest first.
    let evidence = |link: &Link| {
        if holds_node_address(link) {
            Some(0)
        } else if defaults.contains(&link.index) {
            Some(1)
        } else if !leads_nowhere(link) && may_be_uplink(links, link) {
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
        .filter(|port| !port.is_loopback() && !is_own(&port.name) && !port.leads_to_another_namespace())
        .filter_map(|port| port.master)
        .collect()
}

/// The links below VLANs that are uplinks. What comes in there without a tag may be for this node as well. A
/// bridge or the port of a device is none, since the device above receives, nor is a pod's interface.
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
    // A VLAN may lie on another one.
    uplinks
        .iter()
        .flat_map(|index| std::iter::successors(below(*index), |lower| below(*lower)))
        .collect()
}

/// Where nothing but its addresses speaks for a link. Devices that only hold addresses are none, nor the veths
/// of plugins that give each a lone gateway address, nor those that lead nowhere else.
fn may_be_uplink(links: &Links, link: &Link) -> bool {
    const NEVER: [&str; 4] = ["dummy", "ifb", "nlmon", "vrf"];
    let held = links.addresses(link.index).iter();
    let mut public = held.filter(|address| address.is_public());
    match link.kind.as_str() {
        "veth" => link.leads_to_another_namespace() && public.any(super::link::Address::has_network),
        kind => !NEVER.contains(&kind) && public.next().is_some(),
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

#[cfg(test)]
#[path = "roles_tests.rs"]
mod tests;
