//! The objects of a node and its directories: entries of maps, attachments, and all other objects that ADD
//! makes, by name.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use proxy_bpf::links::{AttachMode, InterfaceRole, Links};
use proxy_bpf::pins::Pins;
use proxy_bpf::{HashTable, sys};
use proxy_common::maps::{Config, HostPort, HostPortKey, Pod, PodLink};
use proxy_common::{Ip, Plain, Port};

use super::{World, interfaces, names, text};

impl World {
    /// The entries of a pinned map.
    fn entries<K: Plain, V: Plain>(&self, name: &str) -> Vec<(K, V)> {
        let Some(pins) = Pins::existing(&self.bpf_root) else {
            return Vec::new();
        };
        let dir = pins.current().expect("pins").expect("pins in force");
        let map: OwnedFd = sys::open_pin(&dir.map(name)).expect("a map");
        let mut found = Vec::new();
        let table = HashTable::<K, V>::new(map).expect("a table");
        table
            .for_each(|key, value| found.push((key, value)))
            .expect("reading a table");
        found
    }

    /// The entries of `POD_NETNS`.
    pub fn namespaces(&self) -> Vec<(u64, u32)> {
        self.entries("POD_NETNS")
    }

    /// The entries of `PODS`, sorted by address.
    pub fn pods(&self) -> Vec<(IpAddr, Pod)> {
        let entries = self.entries::<Ip, Pod>("PODS").into_iter();
        let mut pods: Vec<_> = entries.map(|(ip, pod)| (IpAddr::from(ip), pod)).collect();
        pods.sort_by_key(|(ip, _)| *ip);
        pods
    }

    /// The entries of `POD_LINKS`.
    pub fn pod_links(&self) -> Vec<(u32, PodLink)> {
        self.entries("POD_LINKS")
    }

    /// The entries of `HOST_PORTS`, sorted by address.
    pub fn host_ports(&self) -> Vec<(HostPortKey, HostPort)> {
        let mut ports = self.entries("HOST_PORTS");
        ports.sort_by_key(|(key, _)| *key);
        ports
    }

    /// Enters the flags of an address in `ADDRESSES`, as an agent does.
    pub fn enter_address(&self, address: IpAddr, flags: u32) {
        let pins = Pins::existing(&self.bpf_root).expect("a bpf root");
        let dir = pins.current().expect("pins").expect("pins in force");
        let map = sys::open_pin(&dir.map("ADDRESSES")).expect("a map");
        let table = HashTable::<Ip, u32>::new(map).expect("a table");
        table.set(&Ip::from(address), &flags).expect("an entry");
    }

    /// Enters the port of the nodes' tunnels in `CONFIG`, as an agent does.
    pub fn enter_tunnel_port(&self, port: u16) {
        let pins = Pins::existing(&self.bpf_root).expect("a bpf root");
        let dir = pins.current().expect("pins").expect("pins in force");
        let map = sys::open_pin(&dir.map("CONFIG")).expect("a map");
        let config = Config {
            tunnel_port: Port::new(port),
            ..Config::default()
        };
        let table = HashTable::<u32, Config>::new(map).expect("a table");
        table.set(&0, &config).expect("an element");
    }

    /// Enters addresses in `PODS` as those of another pod.
    pub fn enter_pods(&self, addresses: &[IpAddr]) {
        let pins = Pins::existing(&self.bpf_root).expect("a bpf root");
        let dir = pins.current().expect("pins").expect("pins in force");
        let map = sys::open_pin(&dir.map("PODS")).expect("a map");
        let table = HashTable::<Ip, Pod>::new(map).expect("a table");
        let other = Pod {
            interface: u32::MAX,
            ..Pod::default()
        };
        for address in addresses {
            table.set(&Ip::from(*address), &other).expect("an entry");
        }
    }

    /// The values of `IN_USE` for `PODS` and `HOST_PORTS`.
    pub fn in_use(&self) -> [u32; 2] {
        let values = self.entries::<u32, u32>("IN_USE");
        [0, 1].map(|index| {
            values
                .iter()
                .find(|(key, _)| *key == index)
                .expect("an element")
                .1
        })
    }

    /// Detaches the programs from a pod's interface.
    pub fn detach(&self, interface: u32) {
        let pins = Pins::existing(&self.bpf_root).expect("a bpf root");
        let mut links = Links::open(pins.links(), pins.qdiscs(), AttachMode::Clsact).expect("attachments");
        links
            .detach_interface(interface, InterfaceRole::OwnPod)
            .expect("detaching");
    }

    /// All objects that ADD makes on the node and in directories, by name.
    pub fn traces(&self) -> BTreeSet<String> {
        let mut traces = BTreeSet::new();
        for interface in interfaces() {
            if ["mr", "ml", "mk"]
                .iter()
                .any(|prefix| interface.starts_with(prefix))
            {
                traces.insert(format!("interface {interface}"));
            }
        }
        for route in text("/proc/thread-self/net/route").lines().skip(1) {
            traces.insert(format!("route {route}"));
        }
        let v6 = text("/proc/thread-self/net/ipv6_route");
        // Only destination, prefix length and interface count. The routes of the loopback belong to the node.
        // Those of link-local and multicast addresses appear and disappear a moment after the interface.
        let of_pods =
            |line: &&str| !line.ends_with(" lo") && !line.starts_with("fe8") && !line.starts_with("ff");
        for route in v6.lines().filter(of_pods) {
            let fields: Vec<_> = route.split_whitespace().collect();
            traces.insert(format!("route {} {} {}", fields[0], fields[1], fields[9]));
        }
        for (what, dir) in [
            ("lease", self.data_dir.clone()),
            ("note", self.data_dir.join("millrace")),
            ("pin", self.bpf_root.join("links")),
            ("qdisc", self.bpf_root.join("qdiscs")),
        ] {
            for name in names(&dir) {
                let stays = name == "lock" || name == "millrace" || name.starts_with("last_reserved_ip.");
                if !stays {
                    traces.insert(format!("{what} {name}"));
                }
            }
        }
        for (cookie, interface) in self.namespaces() {
            traces.insert(format!("namespace {cookie} of {interface}"));
        }
        for (address, pod) in self.pods() {
            traces.insert(format!("address {address} of {}", pod.interface));
        }
        for (interface, _) in self.pod_links() {
            traces.insert(format!("pod at {interface}"));
        }
        for (key, port) in self.host_ports() {
            traces.insert(format!("{key:?} of {}", port.interface));
        }
        traces
    }
}
