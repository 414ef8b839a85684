//! The required state of the node's side of a pod's interface: settings, the gateway's address, neighbours
//! and routes.
//!
//! The plugin makes all of it once, and the kernel drops most of it when the interface is switched off, or
//! IPv6 is. The agent compares a pod with lists of the kernel's state, and each missing object carries the
//! request that makes it again. The order is that of ADD: no packet arrives before the node can reply.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use cni_plugin::attachment::{host_mac, pod_mac};
use cni_plugin::ipam::Note;
use cni_plugin::netlink::host_side::{HOST_V4, HOST_V6, gateway_v6};
use cni_plugin::netlink::{NetlinkError, NetlinkSocket, Request, ip, link};
use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage};

use super::kernel::Interfaces;
use crate::network::sysctl::{Setting, has_ipv6};

/// An Ethernet address.
pub type Mac = [u8; 6];

/// The kernel's addresses, routes and neighbours.
#[derive(Debug, Default)]
pub struct KernelState {
    routes: BTreeMap<IpAddr, BTreeSet<u32>>,
    /// The routes of any kind to one address, in the main table, with the interface if they have one.
    others: BTreeMap<IpAddr, Option<u32>>,
    neighbours: BTreeMap<(u32, IpAddr), Mac>,
    addresses: BTreeSet<(u32, IpNet)>,
}

/// A pod whose interface exists.
pub struct Pod<'a> {
    /// The index of the interface on the node's side.
    pub index: u32,
    /// The name of that interface.
    pub name: &'a str,
    /// The Ethernet address of the pod's side.
    pub mac: Mac,
    /// The Ethernet address of the node's side, if our plugin gave it.
    pub host_mac: Option<Mac>,
    /// The MTU that the plugin gave both sides, in bytes, if the note has it.
    pub mtu: Option<u32>,
    /// The addresses of the pod.
    pub addresses: &'a [IpAddr],
}

/// A missing object of a pod.
pub struct MissingObject {
    /// The kind of the object.
    pub what: &'static str,
    /// The missing object, in words.
    pub message: String,
    /// The step that makes it again.
    pub repair: Repair,
}

/// A step that makes an object again.
pub enum Repair {
    /// Write a setting: family, name, value.
    Set(&'static str, &'static str, &'static str),
    /// Send a netlink request.
    Ask(Request),
    /// Add a route to this address.
    Route(IpAddr),
}

impl KernelState {
    /// Reads addresses, routes and neighbours.
    pub fn read(node: &mut NetlinkSocket) -> Result<Self, NetlinkError> {
        let mut found = Self::default();
        let routes = RouteNetlinkMessage::GetRoute(RouteMessage::default());
        for reply in node.ask(Request::list("listing the node's routes", routes))? {
            let RouteNetlinkMessage::NewRoute(route) = reply else {
                continue;
            };
            match host_route(&route) {
                Some((to, Some(interface), false)) => {
                    found.routes.entry(to).or_default().insert(interface);
                    found.others.insert(to, Some(interface));
                }
                Some((to, interface, _)) => drop(found.others.insert(to, interface)),
                None => {}
            }
        }
        let neighbours = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
        for reply in node.ask(Request::list("listing the node's neighbours", neighbours))? {
            if let RouteNetlinkMessage::NewNeighbour(entry) = reply
                && let Some((ip, mac)) = permanent(&entry)
            {
                found.neighbours.insert((entry.header.ifindex, ip), mac);
            }
        }
        found.addresses = ip::addresses(node)?.into_iter().collect();
        Ok(found)
    }

    /// Adds the required objects of one address of a pod.
    #[cfg(test)]
    pub fn put(&mut self, index: u32, address: IpAddr, mac: Mac) {
        self.routes.entry(address).or_default().insert(index);
        self.neighbours.insert((index, address), mac);
        if address.is_ipv6() {
            self.addresses.insert((index, gateway_v6()));
        }
    }

    /// The output interface of a foreign route that keeps a pod's interface from having a route to this
    /// address. The inner `None` is a route without an interface.
    pub fn rival(&self, index: u32, address: IpAddr) -> Option<Option<u32>> {
        let routes = self.routes.get(&address);
        let has_route = routes.is_some_and(|routes| routes.contains(&index));
        self.others.get(&address).copied().filter(|_| !has_route)
    }

    /// The Ethernet address of a permanent neighbour entry for an address at an interface.
    pub fn mac(&self, index: u32, address: IpAddr) -> Option<Mac> {
        self.neighbours.get(&(index, address)).copied()
    }
}

/// The Ethernet address of a pod: from the note, else from the kernel's neighbour entry, else the default of
/// a pod that requests none.
pub fn mac_of(note: &Note, index: u32, kernel_state: &KernelState) -> Mac {
    let noted: Vec<u8> = note
        .mac
        .split(':')
        .filter_map(|octet| u8::from_str_radix(octet, 16).ok())
        .collect();
    let from_neighbour = || note.addresses.iter().find_map(|ip| kernel_state.mac(index, *ip));
    Mac::try_from(noted)
        .ok()
        .or_else(from_neighbour)
        .unwrap_or_else(|| pod_mac(&note.attachment()))
}

/// The Ethernet address of the node's side; `None` for a pod that another plugin made.
pub fn host_mac_of(note: &Note) -> Option<Mac> {
    (!note.adopted).then(|| host_mac(&note.attachment()))
}

/// The MTU of both sides in bytes; `None` for a pod of another plugin, and for a note that is older than this
/// field.
pub fn mtu_of(note: &Note) -> Option<u32> {
    Some(note.mtu).filter(|mtu| *mtu != 0)
}

impl Pod<'_> {
    /// The missing objects of the pod.
    pub fn missing_objects(&self, interfaces: &Interfaces, kernel_state: &KernelState) -> Vec<MissingObject> {
        let mut missing = self.settings();
        let (index, name) = (self.index, self.name);
        if let Some(interface) = interfaces.get(&index) {
            if !interface.is_up {
                let message = format!("interface {name} is switched off");
                missing.push(MissingObject::with_request("interface", message, link::up(index)));
            }
            if let Some(mac) = self.host_mac.filter(|mac| interface.mac != Some(*mac)) {
                let message = format!("interface {name} has another Ethernet address than its pod sends to");
                missing.push(MissingObject::with_request(
                    "interface",
                    message,
                    link::address(index, &mac),
                ));
            }
            // A smaller MTU loses datagrams of the pod's size; a larger one lets in packets that the pod does
            // not take.
            if let Some(mtu) = self.mtu.filter(|mtu| interface.mtu != *mtu) {
                let message = format!(
                    "interface {name} has the MTU {} and not {mtu}, as its pod has it",
                    interface.mtu
                );
                missing.push(MissingObject::with_request(
                    "interface",
                    message,
                    link::mtu(index, mtu),
                ));
            }
            if interface.master.is_some() {
                let message =
                    format!("interface {name} is a port of another device, which takes its packets");
                missing.push(MissingObject::with_request(
                    "interface",
                    message,
                    link::release(index),
                ));
            }
        }
        if self.has(false) && !kernel_state.addresses.contains(&(index, gateway_v6())) {
            let message = format!("interface {name} lacks the gateway's address {}", gateway_v6());
            let request = ip::address(index, gateway_v6());
            missing.push(MissingObject::with_request("address", message, request));
        }
        for address in self.addresses {
            if kernel_state.mac(index, *address) != Some(self.mac) {
                let message = format!("the Ethernet address of {address} is not noted at interface {name}");
                let request = ip::neighbour(index, *address, self.mac);
                missing.push(MissingObject::with_request("neighbour", message, request));
            }
            let routes = kernel_state.routes.get(address);
            if !routes.is_some_and(|routes| routes.contains(&index)) {
                let message = format!("there is no route to {address} by interface {name}");
                missing.push(MissingObject {
                    what: "route",
                    message,
                    repair: Repair::Route(*address),
                });
            }
        }
        missing
    }

    fn has(&self, v4: bool) -> bool {
        self.addresses.iter().any(|address| address.is_ipv4() == v4)
    }

    /// The settings that differ. A setting that this kernel does not have, or whose interface no longer
    /// exists, is left out.
    fn settings(&self) -> Vec<MissingObject> {
        let v4 = HOST_V4.iter().filter(|_| self.has(true));
        let v6 = HOST_V6.iter().filter(|_| self.has(false) && has_ipv6());
        let differs = |(family, name, value): &&(&'static str, &'static str, &'static str)| {
            let setting = setting(self.name, (*family, *name, *value));
            matches!(setting.is_so(), Ok(false))
        };
        v4.chain(v6)
            .filter(differs)
            .map(|(family, name, value)| MissingObject {
                what: "setting",
                message: format!("net.{family}.conf.{}.{name} is not {value}", self.name),
                repair: Repair::Set(family, name, value),
            })
            .collect()
    }
}

impl MissingObject {
    fn with_request(what: &'static str, message: String, request: Request) -> Self {
        Self {
            what,
            message,
            repair: Repair::Ask(request),
        }
    }
}

/// A pod's interface whose settings the agent watches: its name, and whether the pod has IPv4 and IPv6.
pub type Watched = (String, bool, bool);

/// Whether a setting was changed so that the kernel no longer forwards packets of the pod.
pub fn is_cut_off((name, v4, v6): &Watched) -> bool {
    let all = [
        (*v4, ("ipv4", "forwarding", "1")),
        (*v6 && has_ipv6(), ("ipv6", "forwarding", "1")),
        (*v6 && has_ipv6(), ("ipv6", "disable_ipv6", "0")),
    ];
    let mut required = all.into_iter().filter(|(required, _)| *required);
    required.any(|(_, it)| setting(name, it).is_changed())
}

/// A setting of an interface.
pub fn setting<'a>(
    device: &'a str,
    (family, name, value): (&'static str, &'static str, &'static str),
) -> Setting<'a> {
    Setting {
        family,
        device,
        name,
        value,
    }
}

/// A route of the main table to one address: its interface, and whether it has a gateway.
fn host_route(message: &RouteMessage) -> Option<(IpAddr, Option<u32>, bool)> {
    let (mut to, mut interface, mut via) = (None, None, false);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => to = Some(IpAddr::V4(*ip)),
            RouteAttribute::Destination(RouteAddress::Inet6(ip)) => to = Some(IpAddr::V6(*ip)),
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => via = true,
            _ => {}
        }
    }
    let to = to?;
    let is_alone = message.header.destination_prefix_length == if to.is_ipv4() { 32 } else { 128 };
    let is_ours = is_alone && message.header.table == RouteHeader::RT_TABLE_MAIN;
    is_ours.then_some((to, interface, via))
}

/// The address and MAC address of a permanent neighbour entry.
fn permanent(message: &NeighbourMessage) -> Option<(IpAddr, Mac)> {
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => address = Some(IpAddr::V4(*ip)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => address = Some(IpAddr::V6(*ip)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = Mac::try_from(bytes.as_slice()).ok(),
            _ => {}
        }
    }
    (message.header.state == NeighbourState::Permanent)
        .then_some(())
        .and(address.zip(mac))
}

#[cfg(test)]
mod tests {
    use super::super::kernel::Interface;
    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 1];
    const HOST_MAC: Mac = [2, 0, 0, 0, 0, 2];

    fn addresses() -> Vec<IpAddr> {
        ["10.244.1.2", "fd00:1::2"]
            .map(|text| text.parse().expect("an address"))
            .into()
    }

    /// All required objects of a pod at interface 7.
    fn whole() -> (Interfaces, KernelState) {
        let interface = Interface {
            name: "mr0".into(),
            mtu: 1500,
            mac: Some(HOST_MAC),
            master: None,
            is_up: true,
            is_ifb: false,
            is_veth: true,
        };
        let mut kernel_state = KernelState::default();
        for address in addresses() {
            kernel_state.put(7, address, MAC);
        }
        (Interfaces::from([(7, interface)]), kernel_state)
    }

    fn missing(interfaces: &Interfaces, kernel_state: &KernelState) -> Vec<&'static str> {
        let pod = Pod {
            index: 7,
            // There is no such interface, and so no setting that differs.
            name: "mr-none",
            mac: MAC,
            host_mac: Some(HOST_MAC),
            mtu: Some(1500),
            addresses: &addresses(),
        };
        let missing = pod.missing_objects(interfaces, kernel_state).into_iter();
        missing.map(|object| object.what).collect()
    }

    #[test]
    fn each_missing_object_has_a_repair() {
        type Damage = fn(&mut Interfaces, &mut KernelState);
        let damages: [(&[&str], Damage); 11] = [
            (&[], |_, _| {}),
            (&["interface"], |interfaces, _| {
                interfaces.get_mut(&7).expect("it").is_up = false;
            }),
            (&["interface"], |interfaces, _| {
                interfaces.get_mut(&7).expect("it").mac = Some([9; 6]);
            }),
            (&["interface"], |interfaces, _| {
                interfaces.get_mut(&7).expect("it").master = Some(8);
            }),
            (&["interface"], |interfaces, _| {
                interfaces.get_mut(&7).expect("it").mtu = 1300;
            }),
            (&["interface"], |interfaces, _| {
                interfaces.get_mut(&7).expect("it").mtu = 9000;
            }),
            (&["address"], |_, kernel_state| kernel_state.addresses.clear()),
            (&["neighbour", "neighbour"], |_, kernel_state| {
                kernel_state.neighbours.clear();
            }),
            (&["neighbour"], |_, kernel_state| {
                *kernel_state.neighbours.first_entry().expect("one").get_mut() = [9; 6];
            }),
            (&["route", "route"], |_, kernel_state| kernel_state.routes.clear()),
            (&["route"], |_, kernel_state| {
                *kernel_state.routes.first_entry().expect("one").get_mut() = BTreeSet::from([8]);
            }),
        ];
        for (expected, damage) in damages {
            let (mut interfaces, mut kernel_state) = whole();
            damage(&mut interfaces, &mut kernel_state);
            assert_eq!(missing(&interfaces, &kernel_state), expected);
        }
    }

    #[test]
    fn an_older_note_has_no_ethernet_address_and_no_mtu() {
        let attachment = cni_plugin::config::Attachment {
            container_id: "c".into(),
            if_name: "eth0".into(),
        };
        let now = cni_plugin::ipam::boot::BootTimestamp::now();
        let mut note = Note::adopting(&attachment, "mr0".into(), addresses(), &now);
        let (_, kernel_state) = whole();
        assert_eq!(
            mac_of(&note, 7, &kernel_state),
            MAC,
            "as the neighbour entry has it"
        );
        assert_eq!(
            mac_of(&note, 7, &KernelState::default()),
            pod_mac(&attachment),
            "as pods get it"
        );
        assert_eq!(mtu_of(&note), None);
        note.mtu = 1450;
        assert_eq!(mtu_of(&note), Some(1450));
        note.mac = "0a:00:00:00:00:ff".into();
        assert_eq!(mac_of(&note, 7, &kernel_state), [10, 0, 0, 0, 0, 255]);
    }
}
