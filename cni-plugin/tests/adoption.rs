//! Adoption of the plugin's attachments by an agent. It finds filters on the interfaces of this plugin's
//! pods. On the interfaces of other pods it uses the best kind of attachment that the kernel has.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, which panic with what went wrong"
)]

#[expect(dead_code, reason = "this file needs a part of it")]
mod support;

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::process::Command;

use nix::net::if_::if_nametoindex;
use proxy_bpf::links::{AttachMode, InterfaceRole, Links, Programs};
use proxy_bpf::pins::Pins;
use proxy_bpf::sys;
use proxy_bpf::traffic_control::{Direction, NewFilter, TrafficControl};
use support::{World, names, on_a_node};

fn programs() -> Programs {
    let load = |name| (name, World::load_program());
    ["from_pod", "from_own_pod", "to_pod"].map(load).into()
}

/// The ids of the programs of an interface's filters.
fn filters(interface: u32) -> Vec<u32> {
    let mut control = TrafficControl::open().unwrap();
    let of = |direction| control.filters(interface, direction).unwrap();
    let found = Direction::ALL.into_iter().flat_map(of);
    found.map(|filter| filter.program).collect()
}

/// The ids of the programs that belong on such an interface.
fn ids(programs: &Programs) -> Vec<u32> {
    let id = |name| sys::program_info(programs[name].as_fd()).unwrap().id;
    ["from_own_pod", "to_pod"].map(id).into()
}

#[test]
fn filters_of_our_own_pods_are_adopted_with_new_programs() {
    on_a_node(|world| {
        let pod = world.pod("pod");
        let result = world.add("c1", &pod).done();
        let ours = if_nametoindex(result["interfaces"][0]["name"].as_str().unwrap()).unwrap();
        let made = Command::new("ip")
            .args(["link", "add", "v0", "type", "veth", "peer", "name", "v1"])
            .status();
        assert!(made.unwrap().success());
        let others = if_nametoindex("v0").unwrap();
        let pins = Pins::existing(&world.bpf_root).unwrap();
        let adopt = |programs: &Programs| {
            Links::adopt(pins.links(), pins.qdiscs(), AttachMode::probe(programs), programs).unwrap()
        };
        let before = filters(ours);
        assert_eq!(before.len(), 2);
        let first = programs();
        let mut links = adopt(&first);
        let by_links = links.attach_mode() == AttachMode::Tcx;
        assert_eq!(
            *links.interfaces(),
            BTreeMap::from([(ours, InterfaceRole::OwnPod)])
        );
        assert_eq!(filters(ours), ids(&first), "of this generation");
        let wanted = BTreeMap::from([(ours, InterfaceRole::OwnPod), (others, InterfaceRole::Pod)]);
        assert!(links.set_interfaces(&wanted, &first).is_empty());
        assert_eq!(filters(ours), ids(&first));
        let pinned = names(&world.bpf_root.join("links")).len();
        assert_eq!(
            pinned,
            if by_links { 2 } else { 0 },
            "links on the interface of others"
        );
        // Older agents and plugins attached the same program to all pods' interfaces.
        let mut control = TrafficControl::open().unwrap();
        let older = NewFilter {
            direction: Direction::Ingress,
            position: control.filters(ours, Direction::Ingress).unwrap()[0].position,
            name: "millrace-from_pod".to_owned(),
            program: first["from_pod"].as_fd(),
        };
        control.set_filter(ours, &older).unwrap();
        assert_ne!(filters(ours), ids(&first));
        let second = programs();
        links.switch(&second).unwrap();
        assert_eq!(filters(ours), ids(&second));
        let links = adopt(&second);
        let expected = [(ours, InterfaceRole::OwnPod), (others, InterfaceRole::Pod)];
        assert_eq!(*links.interfaces(), BTreeMap::from(expected));
        // A removed interface leaves no pin.
        world.del("c1", None).done();
        let mut links = adopt(&second);
        assert_eq!(
            *links.interfaces(),
            BTreeMap::from([(others, InterfaceRole::Pod)])
        );
        assert!(links.set_interfaces(&BTreeMap::new(), &second).is_empty());
        assert_eq!(
            names(&world.bpf_root.join("links")).len() + names(&world.bpf_root.join("qdiscs")).len(),
            0
        );
    });
}
