//! Tests of programs on clsact qdiscs, on the live kernel. The agent attaches them there if the kernel has no
//! tcx, and every kernel supports it.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, which panic with what went wrong"
)]

mod support;

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::PathBuf;
use std::process::Command;

use millrace::bpf::links::{AttachMode, InterfaceRole, Links};
use millrace::bpf::object::MapSizes;
use millrace::bpf::traffic_control::{Direction, Filter, NewFilter, Position, Qdisc, TrafficControl};
use millrace::bpf::{BpfError, Datapath, clsact, sys};
use support::Sandbox;

const SIZES: MapSizes = MapSizes {
    frontends: 64,
    slots: 128,
    backends: 64,
    addresses: 64,
    flows: 128,
    affinity: 64,
    socket_peers: 64,
    pod_netns: 16,
};

/// The position of another program's filter.
const THEIRS: Position = Position {
    priority: 1,
    handle: 1,
};

struct Bench {
    datapath: Datapath,
    control: TrafficControl,
    /// The index of one end of a veth pair.
    interface: u32,
    sandbox: Sandbox,
}

impl Bench {
    fn new() -> Self {
        let sandbox = Sandbox::enter();
        let datapath = Datapath::open(&sandbox.bpf_root(), &SIZES).unwrap();
        run("ip", "link add v0 type veth peer name v1");
        let interface = nix::net::if_::if_nametoindex("v0").unwrap();
        Self {
            datapath,
            control: TrafficControl::open().unwrap(),
            interface,
            sandbox,
        }
    }

    fn qdiscs(&self) -> PathBuf {
        self.sandbox.bpf_root().join("qdiscs")
    }

    /// Adopts the links as an agent does at its start.
    fn links(&self) -> Links {
        let dir = self.sandbox.bpf_root().join("links");
        Links::adopt(dir, self.qdiscs(), AttachMode::Clsact, &self.datapath.programs).unwrap()
    }

    fn attach(&self, links: &mut Links, role: InterfaceRole) -> Vec<BpfError> {
        let wanted = BTreeMap::from([(self.interface, role)]);
        let errors = links.set_interfaces(&wanted, &self.datapath.programs);
        errors.into_iter().map(|(_, error)| error).collect()
    }

    fn detach(&self, links: &mut Links) {
        let errors = links.set_interfaces(&BTreeMap::new(), &self.datapath.programs);
        assert!(errors.is_empty(), "{errors:?}");
    }

    fn filters(&mut self, direction: Direction) -> Vec<Filter> {
        self.control.filters(self.interface, direction).unwrap()
    }

    fn names(&mut self, direction: Direction) -> Vec<String> {
        self.filters(direction)
            .into_iter()
            .map(|filter| filter.name)
            .collect()
    }

    fn qdisc(&mut self) -> Qdisc {
        self.control.qdisc(self.interface).unwrap()
    }

    fn add_theirs(&mut self) {
        let program = self.datapath.programs["from_uplink"].as_fd();
        self.control
            .set_filter(self.interface, &theirs(THEIRS, program))
            .unwrap();
    }
}

fn theirs(position: Position, program: BorrowedFd<'_>) -> NewFilter<'_> {
    NewFilter {
        direction: Direction::Ingress,
        position,
        name: "theirs".to_owned(),
        program,
    }
}

fn run(program: &str, arguments: &str) {
    let status = Command::new(program).args(arguments.split(' ')).status();
    assert!(status.unwrap().success(), "{program} {arguments}");
}

#[test]
fn a_restarted_agent_finds_its_filters_and_leaves_them() {
    let mut bench = Bench::new();
    let mut links = bench.links();
    assert!(links.interfaces().is_empty());
    assert!(bench.attach(&mut links, InterfaceRole::Pod).is_empty());
    assert_eq!(bench.names(Direction::Ingress), ["millrace-from_pod"]);
    assert_eq!(bench.names(Direction::Egress), ["millrace-to_pod"]);
    let before = bench.filters(Direction::Ingress);
    drop(links);

    let mut links = bench.links();
    let role = BTreeMap::from([(bench.interface, InterfaceRole::Pod)]);
    assert_eq!(*links.interfaces(), role);
    assert!(bench.attach(&mut links, InterfaceRole::Pod).is_empty());
    assert_eq!(bench.filters(Direction::Ingress), before);
    assert_eq!(bench.control.interfaces().unwrap(), [bench.interface]);

    bench.detach(&mut links);
    assert_eq!(
        bench.qdisc(),
        Qdisc::None,
        "it was ours, and nothing hangs there any more"
    );
    assert!(bench.links().interfaces().is_empty());
    bench.detach(&mut links);
}

#[test]
fn another_generation_of_programs_takes_the_place_of_the_old_one() {
    let mut bench = Bench::new();
    let mut links = bench.links();
    assert!(bench.attach(&mut links, InterfaceRole::Uplink).is_empty());
    let other = Datapath::open(&bench.sandbox.bpf_root().with_file_name("other"), &SIZES).unwrap();
    links.switch(&other.programs).unwrap();
    let found = bench.filters(Direction::Ingress);
    let wanted = sys::program_info(other.programs["from_uplink"].as_fd()).unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].program, wanted.id);

    // An interface that changes its role loses its earlier programs.
    assert!(bench.attach(&mut links, InterfaceRole::Host).is_empty());
    assert_eq!(bench.names(Direction::Ingress), [""; 0]);
    assert_eq!(bench.names(Direction::Egress), ["millrace-from_host"]);
}

#[test]
fn foreign_filters_stay() {
    let mut bench = Bench::new();
    bench.control.add_clsact(bench.interface).unwrap();
    bench.add_theirs();
    let mut links = bench.links();
    assert!(bench.attach(&mut links, InterfaceRole::Pod).is_empty());
    assert_eq!(
        bench.names(Direction::Ingress),
        ["theirs", "millrace-from_pod"],
        "in the order of their priorities"
    );
    bench.detach(&mut links);
    assert_eq!(bench.names(Direction::Ingress), ["theirs"]);
    assert_eq!(bench.qdisc(), Qdisc::Clsact);
    assert!(!bench.qdiscs().exists(), "not ours, so not noted");
}

#[test]
fn our_qdisc_stays_while_others_use_it() {
    let mut bench = Bench::new();
    let mut links = bench.links();
    assert!(bench.attach(&mut links, InterfaceRole::Uplink).is_empty());
    bench.add_theirs();
    bench.detach(&mut links);
    assert_eq!(bench.names(Direction::Ingress), ["theirs"]);
    assert_eq!(bench.qdisc(), Qdisc::Clsact);
}

#[test]
fn a_filter_of_others_at_our_place_is_not_replaced() {
    let mut bench = Bench::new();
    let mut links = bench.links();
    assert!(bench.attach(&mut links, InterfaceRole::Uplink).is_empty());
    let ours = bench.filters(Direction::Ingress)[0].position;
    bench.detach(&mut links);
    bench.control.add_clsact(bench.interface).unwrap();
    let program = bench.datapath.programs["from_host"].as_fd();
    bench
        .control
        .set_filter(bench.interface, &theirs(ours, program))
        .unwrap();
    let errors = bench.attach(&mut links, InterfaceRole::Uplink);
    assert!(
        matches!(&errors[..], [BpfError::ForeignFilter { name, .. }] if name == "theirs"),
        "{errors:?}"
    );
    bench.detach(&mut links);
    assert_eq!(bench.names(Direction::Ingress), ["theirs"]);
}

#[test]
fn an_ingress_qdisc_serves_what_comes_in_only() {
    let mut bench = Bench::new();
    run("tc", "qdisc add dev v0 ingress");
    assert_eq!(bench.qdisc(), Qdisc::Ingress);
    let mut links = bench.links();
    let errors = bench.attach(&mut links, InterfaceRole::Uplink);
    assert_eq!(bench.names(Direction::Ingress), ["millrace-from_uplink"]);
    assert!(
        matches!(&errors[..], [BpfError::ForeignQdisc { .. }]),
        "what goes out has no place there: {errors:?}"
    );
    assert_eq!(bench.qdisc(), Qdisc::Ingress);
}

#[test]
fn uninstalling_takes_filters_and_our_qdiscs_away() {
    let mut bench = Bench::new();
    let mut links = bench.links();
    assert!(bench.attach(&mut links, InterfaceRole::Pod).is_empty());
    let removed = clsact::remove_all(Some(&bench.qdiscs())).unwrap();
    let names: Vec<_> = removed.iter().map(|removed| removed.name.clone()).collect();
    let interface = bench.interface;
    assert_eq!(
        names,
        [
            format!("from_pod of interface {interface}"),
            format!("to_pod of interface {interface}")
        ]
    );
    assert_eq!(bench.qdisc(), Qdisc::None);
    assert!(!bench.qdiscs().exists());
    assert_eq!(clsact::remove_all(Some(&bench.qdiscs())).unwrap(), []);
}

#[test]
fn an_interface_that_is_gone_is_forgotten() {
    let bench = Bench::new();
    let mut links = bench.links();
    assert!(bench.attach(&mut links, InterfaceRole::Pod).is_empty());
    run("ip", "link del v0");
    bench.detach(&mut links);
    assert!(!bench.qdiscs().join(bench.interface.to_string()).exists());
}
