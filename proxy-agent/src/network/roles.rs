//! Which interfaces lead to pods and which to other machines.
//!
//! A program hangs on each interface by its role. Uplinks are those that the operator names; else each
//! interface that holds an address of the Node object, that a default route of any table leads to, or that
//! holds an address with which other machines know the node: packets of pods and services take all of these.
//! A pod's interface is then the host side of any veth that leads to another namespace, so that beside any CNI
//! plugin, and on the ports of a bridge too, the program sees what a pod sends; the operator may name them
//! instead. The order matters: the uplink of a virtual node is such a veth.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::error::Problem;
use super::is_own;
use super::link::Link;
use super::links::Links;
use crate::config::NamePattern;

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

    /// Whether programs read what comes by each interface that others can send by. Both ends of a veth in
    /// this namespace lead to no other; a link without Ethernet header is not read.
    pub fn watch_all(&self, links: &Links) -> bool {
        let leads_nowhere = |link: &Link| link.kind == "veth" && !link.leads_to_another_namespace();
        links
            .iter()
            .filter(|link| link.is_up() && !link.is_loopback() && !is_own(&link.name) && !leads_nowhere(link))
            .all(|link| {
                let has_role = self
                    .interfaces
                    .iter()
                    .any(|interface| interface.index == link.index);
                has_role && link.mac.is_some()
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
    let (mut uplinks, mut main) = uplinks(links, options, &mut problems);
    let is_read = |index: &u32| links.get(*index).is_some_and(|link| link.mac.is_some());
    for index in uplinks.iter().filter(|index| !is_read(index)) {
        problems.push(Problem {
            object: format!("interface {}", links.name(*index)),
            message: NO_ETHERNET.into(),
        });
    }
    main = uplinks.iter().take(main).filter(|index| is_read(index)).count();
    uplinks.retain(is_read);
    let named = &options.pod_interfaces;
    let is_pods = |link: &Link| {
        if named.is_empty() {
            link.leads_to_another_namespace()
        } else {
            !link.is_loopback() && named.iter().any(|pattern| pattern.matches(&link.name))
        }
    };
    let pods = links
        .iter()
        .filter(|link| is_pods(link) && !is_own(&link.name) && !uplinks.contains(&link.index));
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
    Roles {
        interfaces,
        main,
        problems,
    }
}

/// Of a link without Ethernet header, such as `WireGuard`, a tun device or an IP tunnel.
const NO_ETHERNET: &str = "packets here have no Ethernet header, which the programs do not read: no service is served \
                           here, and packets of pods leave here with the pod's address. Lead them by another interface, \
                           or translate them by a rule of yours";

/// The uplinks, and how many of them, from the first on, are main ones.
fn uplinks(links: &Links, options: &RoleOptions, problems: &mut Vec<Problem>) -> (Vec<u32>, usize) {
    let mut problem = |object, message: &str| {
        problems.push(Problem {
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
    let bridges: BTreeSet<u32> = candidates()
        .filter(|port| !port.leads_to_another_namespace())
        .filter_map(|port| port.master)
        .collect();
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
mod tests {
    use rtnetlink::packet_route::link::LinkFlags;

    use super::*;
    use crate::network::fixture::{World, link};

    fn named(world: &World, options: &RoleOptions) -> (Vec<String>, Vec<String>) {
        let roles = roles(&world.0, options);
        let names = |role| roles.of(role).map(|interface| interface.name.clone()).collect();
        (names(Role::Uplink), names(Role::Pod))
    }

    fn strings(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    /// A virtual node: its uplink is a veth into another namespace, as are its pods.
    fn node() -> World {
        World::new()
            .pod(2, "eth0", None)
            .holding(2, &["192.0.2.1/24", "2001:db8::1/64"])
            .pod(3, "veth3", None)
            .pod(4, "veth4", Some(5))
            .add(link(5, "cni0", "bridge"))
            .holding(5, &["10.244.0.1/24"])
            .add(link(6, "flannel.1", "vxlan"))
            .holding(6, &["10.244.0.0/32"])
            .add(link(7, HOST, "veth"))
            .add(link(8, "kube-ipvs0", "dummy"))
            .holding(8, &["10.96.0.10/32"])
    }

    const HOST: &str = crate::network::HOST_DEVICE;

    #[test]
    fn addresses_alone_find_the_uplinks_of_a_virtual_node() {
        let expected = (strings(&["eth0", "flannel.1"]), strings(&["veth3", "veth4"]));
        assert_eq!(named(&node(), &RoleOptions::default()), expected);
    }

    #[test]
    fn interfaces_of_the_node_object_come_first_and_then_those_of_default_routes() {
        let world = node()
            .add(link(9, "eth1", ""))
            .holding(9, &["198.51.100.1/24"])
            .default_route(9);
        let by_default = strings(&["eth1", "eth0", "flannel.1"]);
        assert_eq!(named(&world, &RoleOptions::default()).0, by_default);
        let object = RoleOptions {
            node_addresses: vec!["192.0.2.1".parse().expect("address")],
            ..RoleOptions::default()
        };
        assert_eq!(named(&world, &object).0, strings(&["eth0", "eth1", "flannel.1"]));
        let small = Link {
            mtu: 1450,
            ..link(6, "flannel.1", "vxlan")
        };
        let world = world.add(small);
        assert_eq!(roles(&world.0, &object).uplink_mtu(&world.0), Some(1500));
    }

    #[test]
    fn a_bridge_is_an_uplink_if_a_port_leads_to_other_machines() {
        let port = Link {
            master: Some(5),
            ..link(9, "eth1", "")
        };
        let world = node().add(port).pod(4, "veth4", Some(5));
        let found = named(&world, &RoleOptions::default());
        assert_eq!(found.0, strings(&["eth0", "cni0", "flannel.1"]));
    }

    #[test]
    fn an_uplink_without_ethernet_is_named_and_not_read() {
        let wireguard = Link {
            mac: None,
            ..link(9, "wg0", "wireguard")
        };
        let world = node().add(wireguard).holding(9, &["198.51.100.1/32"]);
        let object = RoleOptions {
            node_addresses: vec!["198.51.100.1".parse().expect("address")],
            ..RoleOptions::default()
        };
        assert_eq!(named(&world, &object).0, strings(&["eth0", "flannel.1"]));
        let problems = roles(&world.0, &object).problems;
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].object, "interface wg0");
    }

    #[test]
    fn a_pods_limiter_with_an_address_is_no_uplink() {
        let world = node()
            .add(link(9, "ml0123456789ab", "veth"))
            .holding(9, &["198.51.100.1/24"])
            .default_route(9)
            .add(link(10, "mk0123456789ab", "veth"))
            .holding(10, &["198.51.100.2/24"]);
        let object = RoleOptions {
            node_addresses: vec!["198.51.100.1".parse().expect("address")],
            ..RoleOptions::default()
        };
        for options in [RoleOptions::default(), object] {
            assert_eq!(named(&world, &options).0, strings(&["eth0", "flannel.1"]));
        }
    }

    #[test]
    fn a_node_address_on_loopback_names_no_uplink() {
        let world = node().holding(1, &["203.0.113.1/32"]).default_route(2);
        let object = RoleOptions {
            node_addresses: vec!["203.0.113.1".parse().expect("address")],
            ..RoleOptions::default()
        };
        assert_eq!(named(&world, &object).0, strings(&["eth0", "flannel.1"]));
    }

    #[test]
    fn the_operator_beats_everything_and_hears_of_mistakes() {
        let options = RoleOptions {
            uplinks: strings(&["veth3", "eth7", HOST, "veth3"]),
            ..RoleOptions::default()
        };
        let world = node().default_route(2);
        assert_eq!(
            named(&world, &options),
            (strings(&["veth3"]), strings(&["eth0", "veth4"]))
        );
        let problems = roles(&world.0, &options).problems;
        let objects: Vec<_> = problems.iter().map(|problem| problem.object.as_str()).collect();
        assert_eq!(objects, ["interface eth7", "interface millrace0"]);
    }

    #[test]
    fn the_operator_names_the_interfaces_of_pods() {
        let options = RoleOptions {
            pod_interfaces: ["veth3", "cni*", "eth0"]
                .map(|text| text.parse().expect("a pattern"))
                .into(),
            ..RoleOptions::default()
        };
        let expected = (strings(&["eth0", "flannel.1"]), strings(&["veth3", "cni0"]));
        assert_eq!(named(&node(), &options), expected);
    }

    #[test]
    fn each_interface_is_watched_or_some_are_not() {
        let watched = |world: &World| {
            let found = roles(&world.0, &RoleOptions::default());
            found.watch_all(&world.0)
        };
        let of = |index, name, kind, mac| Link {
            mac,
            ..link(index, name, kind)
        };
        let mac = Some([2, 0, 0, 0, 0, 7]);
        let eth0 = of(2, "eth0", "", mac);
        let world = || World::new().add(eth0.clone()).holding(2, &["192.0.2.1/24"]);
        assert!(watched(&world()));
        assert!(
            watched(&world().add(of(7, "ml1", "veth", mac))),
            "ends in this namespace"
        );
        let down = Link {
            flags: LinkFlags::empty(),
            ..of(7, "eth1", "", mac)
        };
        assert!(watched(&world().add(down)));
        assert!(!watched(&world().add(of(7, "eth1", "", mac))), "of no role");
        let tunnel = of(2, "wg0", "wireguard", None);
        assert!(!watched(&World::new().add(tunnel).holding(2, &["192.0.2.1/24"])));
    }

    #[test]
    fn lone_gateway_addresses_make_no_uplinks() {
        let world = World::new().pod(2, "veth2", None).holding(2, &["10.1.1.1/32"]);
        assert_eq!(
            named(&world, &RoleOptions::default()),
            (vec![], strings(&["veth2"]))
        );
        assert_eq!(roles(&world.0, &RoleOptions::default()).problems.len(), 1);
    }

    #[test]
    fn a_veth_within_the_namespace_is_no_pod() {
        let world = World::new().add(link(2, "a", "veth")).add(link(3, "b", "veth"));
        assert_eq!(roles(&world.0, &RoleOptions::default()).interfaces, []);
    }

    #[test]
    fn a_changed_role_is_detached_and_attached() {
        let pod = |index| Interface {
            index,
            name: format!("veth{index}"),
            role: Role::Pod,
        };
        let attached = BTreeMap::from([(2, Role::Uplink), (3, Role::Pod), (4, Role::Pod)]);
        let changes = RoleChanges::between(&attached, &[pod(2), pod(3), pod(5)]);
        assert_eq!(changes.detach, [(2, Role::Uplink), (4, Role::Pod)]);
        assert_eq!(changes.attach, [pod(2), pod(5)]);
        let attached = BTreeMap::from([(2, Role::Pod)]);
        assert_eq!(RoleChanges::between(&attached, &[pod(2)]), RoleChanges::default());
    }
}
