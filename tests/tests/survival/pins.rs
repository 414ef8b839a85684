//! Pins, maps, links and filters that are lost.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use aya::maps::{HashMap, Map, MapData};
use harness::{Endpoint, LongFlows, Place, Probe, Service, eventually, wait_for};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::json;

use super::topology::{
    ANY_SOURCE, CHECK_INTERVAL, CLUSTER_IP, HOST_PORT, PROMISED, SECOND, SOON, Topology, of_family,
};

const NODE_PORT: u16 = 30_080;

/// Removes everything below a directory, as `rm -r` does it.
fn remove_below(dir: &Path) {
    for entry in fs::read_dir(dir).expect("a directory").flatten() {
        let path = entry.path();
        if path.is_dir() && !path.is_symlink() {
            fs::remove_dir_all(&path).expect("to remove");
        } else {
            fs::remove_file(&path).expect("to remove");
        }
    }
}

/// A bpffs that is unmounted when it is dropped.
struct Bpffs(PathBuf);

impl Bpffs {
    fn mount(place: PathBuf) -> Self {
        mount(Some("bpf"), &place, Some("bpf"), MsFlags::empty(), None::<&str>).expect("to mount");
        Self(place)
    }

    /// Mounts the bpffs at another place too, over the files there.
    fn also_at(&self, place: PathBuf) -> Self {
        let none = None::<&str>;
        mount(Some(&self.0), &place, none, MsFlags::MS_BIND, none).expect("to mount");
        Self(place)
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn current(topology: &Topology) -> PathBuf {
    topology.node().bpf_root().join("current")
}

/// Holds connections of each kind in both families: between pods, from the node, and from outside by a host
/// port and a node port. Each kind has its name.
fn hold(topology: &Topology) -> Vec<(String, LongFlows)> {
    let service = Service::new("held")
        .cluster_ip("10.96.0.12")
        .cluster_ip("fd00:96::12")
        .tcp("http", 80, 80)
        .node_port("http", NODE_PORT);
    topology
        .world
        .apply_all(service.slices([Endpoint::of(&topology.web)]));
    topology.world.apply(&service);
    let mut flows = Vec::new();
    for v4 in [true, false] {
        let of = |place: &Place| of_family(place.addresses(), v4);
        let paths: [(&str, &Place, IpAddr, u16); 4] = [
            ("between pods", &topology.near, of(&topology.far), 8080),
            ("masqueraded", &topology.near, of(&topology.outside), 8080),
            (
                "to a host port",
                &topology.outside,
                of(topology.node()),
                HOST_PORT,
            ),
            (
                "to a node port",
                &topology.outside,
                of(topology.node()),
                NODE_PORT,
            ),
        ];
        for (kind, from, to, port) in paths {
            let to = SocketAddr::new(to, port);
            wait_for(&format!("{to} to be served"), SOON, || {
                from.ask_within(Probe::Tcp, to, SECOND)
            });
            let held = LongFlows::start(from, to, 4, SECOND / 20).expect("flows");
            flows.push((format!("{kind}, to {to}"), held));
        }
    }
    flows
}

/// Asserts that connections of every kind go on, and that none has waited for this long.
#[track_caller]
fn assert_went_on(flows: Vec<(String, LongFlows)>, longest: Duration) {
    for (_, flows) in &flows {
        flows.wait_progress(10 * SECOND);
    }
    for (kind, flows) in flows {
        let report = flows.stop();
        println!(
            "{kind}: {} exchanges, the longest {:?}",
            report.exchanges, report.longest_wait
        );
        assert!(report.interruptions.is_empty(), "{kind}: {report:?}");
        report.assert_unnoticed(longest);
    }
}

/// A loss: its name, and the function that causes it.
type Loss<'a> = (&'a str, Box<dyn Fn() + 'a>);

#[test]
fn running_pods_keep_all_they_have_if_pins_go_while_the_agent_is_away() {
    harness::require_root!();
    let mut topology = Topology::build();
    let forger = topology.forge();
    forger.assert_held("at first");
    topology.agents[0].kill();
    remove_below(topology.node().bpf_root());
    forger.assert_held("without pins");
    topology.agents[0].start_again();
    topology.agents[0].wait_ready(10 * SECOND);
    forger.assert_held("with new tables");
    topology.assert_in_order("with new tables");
    // A restart of the agent changes nothing.
    topology.agents[0].restart();
    topology.agents[0].wait_ready(10 * SECOND);
    forger.assert_held("after one more start");
    topology.assert_in_order("after one more start");
}

/// Renames the generation in force as if an agent with this layout had left it; returns the name of its own
/// layout.
fn name_layout(topology: &Topology, layout: &str) -> String {
    let root = topology.node().bpf_root();
    let name = fs::read_link(current(topology)).expect("a link");
    let (own, rest) = name.to_str().expect("text").split_once('-').expect("a name");
    let other = format!("{layout}-{rest}");
    fs::rename(root.join(&name), root.join(&other)).expect("to rename");
    fs::remove_file(current(topology)).expect("to remove");
    std::os::unix::fs::symlink(&other, current(topology)).expect("a link");
    own.to_owned()
}

/// Flows begin anew with the client's next segment, which gets the same port and the same backend.
#[test]
fn tables_of_an_older_layout_are_given_up_and_pods_are_not() {
    harness::require_root!();
    let mut topology = Topology::build();
    let forger = topology.forge();
    let flows = hold(&topology);
    let before = topology.node().pinned();
    topology.agents[0].kill();
    name_layout(&topology, "l1");
    topology.agents[0].start_again();
    topology.agents[0].wait_ready(10 * SECOND);
    forger.assert_held("with another layout");
    topology.assert_in_order("with another layout");
    let now = topology.node().pinned();
    assert!(
        now.maps.is_disjoint(&before.maps),
        "{now:?} has tables of {before:?}"
    );
    assert_went_on(flows, PROMISED);
}

/// A downgrade: the older agent does not know the layout that it finds.
#[test]
fn an_agent_that_finds_a_later_layout_is_refused_and_interrupts_nothing() {
    harness::require_root!();
    let mut topology = Topology::build();
    let forger = topology.forge();
    let flows = hold(&topology);
    topology.agents[0].kill();
    let own = name_layout(&topology, "l99");
    let pinned = topology.node().pinned();
    topology.agents[0].start_again();
    assert!(!topology.agents[0].wait_ended(10 * SECOND).success());
    let log = topology.agents[0].log();
    assert!(log.contains("pinned by an agent with layout 99"), "{log}");
    assert_eq!(topology.node().pinned(), pinned, "nothing was touched");
    forger.assert_held("after the refusal");
    topology.assert_whole("after the refusal");
    // The agent of this layout takes the tables over.
    name_layout(&topology, &own);
    topology.agents[0].start_again();
    topology.agents[0].wait_ready(10 * SECOND);
    assert_eq!(topology.node().pinned(), pinned, "nothing was made anew");
    forger.assert_held("with the agent that knows them");
    topology.assert_in_order("with the agent that knows them");
    assert_went_on(flows, SECOND);
}

#[test]
fn pins_that_go_under_a_running_agent_are_made_again_unnoticed() {
    harness::require_root!();
    let topology = Topology::build();
    let forger = topology.forge();
    let flows = hold(&topology);
    let pinned = topology.node().pinned();
    let node: &Place = topology.node();
    let links = topology.node().bpf_root().join("links");
    let losses: [Loss<'_>; 4] = [
        (
            "everything",
            Box::new(|| remove_below(topology.node().bpf_root())),
        ),
        (
            "one map",
            Box::new(|| fs::remove_file(current(&topology).join("maps/PODS")).expect("to remove")),
        ),
        (
            "one program",
            Box::new(|| {
                fs::remove_file(current(&topology).join("programs/from_own_pod")).expect("to remove");
            }),
        ),
        ("the links", Box::new(|| remove_below(&links))),
    ];
    // Each loss comes twice, since a single repair may be late.
    for (what, remove) in losses.iter().chain(&losses) {
        let lost = topology.before_loss_of(what, "pins");
        remove();
        topology.assert_whole(&format!("without {what}"));
        forger.assert_held(what);
        lost.wait_restored();
        assert_eq!(
            topology.node().pinned(),
            pinned,
            "{what}: the same objects as before"
        );
    }
    topology.assert_in_time();
    assert_went_on(flows, PROMISED);
    // The plugin works with the restored pins, and removes its own objects.
    let other = topology.node().add_pod("other");
    let to = (of_family(topology.web.addresses(), true), 80).into();
    other.ask(Probe::Tcp, to).expect("a reply");
    node.ask(Probe::Tcp, to).expect("a reply");
    other.delete();
    topology.assert_in_order("in the end");
}

#[test]
fn a_bpffs_that_is_unmounted_is_named_and_one_that_is_mounted_anew_is_filled() {
    harness::require_root!();
    let mut topology = Topology::build();
    let forger = topology.forge();
    let root = topology.node().bpf_root().to_owned();
    let mount = root.parent().expect("a mount").display().to_string();
    topology.run("umount", &format!("-l {mount}"));
    let status = topology.wait_named("mount -t bpf bpf");
    assert!(status["waitingFor"].to_string().contains("pins"), "{status}");
    forger.assert_held("without a bpffs");
    topology.assert_whole("without a bpffs");
    let lost = topology.before_loss("pins");
    topology.run("mount", &format!("-t bpf bpf {mount}"));
    lost.wait_restored();
    topology.assert_in_time();
    forger.assert_held("with another bpffs");
    topology.assert_in_order("with another bpffs");
    topology.agents[0].restart();
    topology.agents[0].wait_ready(10 * SECOND);
    forger.assert_held("after a start with another bpffs");
    topology.assert_in_order("after a start with another bpffs");
}

#[test]
fn a_bpf_root_that_another_agent_has_by_now_is_left_to_it() {
    harness::require_root!();
    let topology = Topology::build();
    let root = topology.node().bpf_root().to_owned();
    let mount = root.parent().expect("a mount").to_owned();
    let second = mount.with_file_name("another-bpf");
    fs::create_dir(&second).expect("a directory");
    let bpffs = Bpffs::mount(second.clone());
    // Another agent with another run directory would create and lock this directory.
    let place = second.join(root.file_name().expect("a name")).join("agent");
    fs::create_dir_all(&place).expect("directories");
    let place = fs::File::open(place).expect("a directory");
    let lock = Flock::lock(place, FlockArg::LockExclusiveNonblock).expect("the lock");
    let _over = bpffs.also_at(mount);
    let part = format!("another agent is running with --bpf-root {}", root.display());
    let status = topology.wait_named(&part);
    assert!(status["waitingFor"].to_string().contains("pins"), "{status}");
    assert!(!root.join("current").exists(), "nothing is pinned there");
    let lost = topology.before_loss("pins");
    drop(lock);
    lost.wait_restored();
    topology.assert_in_time();
    // No other agent can lock the directory now.
    let place = fs::File::open(root.join("agent")).expect("a directory");
    Flock::lock(place, FlockArg::LockExclusiveNonblock).expect_err("it is locked");
    remove_below(&root);
    eventually("the root to be locked again", SOON, || {
        fs::File::open(root.join("agent"))
            .is_ok_and(|place| Flock::lock(place, FlockArg::LockExclusiveNonblock).is_err())
    });
    topology.assert_in_order("in the end");
}

#[test]
fn programs_of_a_hidden_bpf_root_do_not_run_before_ours() {
    harness::require_root!();
    let mut topology = Topology::build();
    let mount = topology.node().bpf_root().parent().expect("a mount").to_owned();
    topology.agents[0].kill();
    let _over = Bpffs::mount(mount);
    topology.agents[0].start_again();
    topology.agents[0].wait_ready(10 * SECOND);
    // The hidden programs and maps, which no agent updates any more, lead to the old endpoint.
    let service = Service::new("web").cluster_ip(CLUSTER_IP).tcp("http", 80, 8080);
    topology.world.apply(&service);
    topology
        .world
        .apply_all(service.slices([Endpoint::of(&topology.far)]));
    let to = (CLUSTER_IP.parse::<IpAddr>().expect("an address"), 80).into();
    for client in [topology.node() as &Place, &topology.near] {
        eventually("the service to lead elsewhere", CHECK_INTERVAL, || {
            let reply = client.ask_within(Probe::Tcp, to, SECOND);
            reply.is_ok_and(|reply| reply.backend == "far")
        });
    }
    topology.wait_ready();
    assert!(topology.restored("program") > 0, "they got the errors");
}

#[test]
fn a_filter_ahead_of_ours_is_named() {
    harness::require_root!();
    let topology = Topology::build();
    let interface = topology.near.host_interface().to_owned();
    topology.run(
        "tc",
        &format!("filter add dev {interface} ingress prio 1 protocol all u32 match u32 0 0 flowid 1:1"),
    );
    let status = topology.wait_reported("a filter of kind u32 with priority 1");
    let names = format!("from_own_pod at {interface}");
    assert!(status["errors"].to_string().contains(&names), "{status}");
    topology.run("tc", &format!("filter del dev {interface} ingress prio 1"));
    eventually("no error to be reported", CHECK_INTERVAL, || {
        topology.status()["errors"] == json!([])
    });
}

#[test]
fn a_filter_in_the_place_of_ours_is_named_until_it_goes() {
    harness::require_root!();
    let mut topology = Topology::build();
    let interface = topology.near.host_interface().to_owned();
    let place = format!("dev {interface} ingress protocol all pref 77 handle 0x6d72 bpf");
    let program = current(&topology).join("programs/to_pod");
    let batch = topology.node().dir().join("batch");
    // A running agent would restore its filter between the two commands.
    topology.agents[0].kill();
    let text = format!(
        "filter del {place}\nfilter add {place} da object-pinned {}\n",
        program.display()
    );
    fs::write(&batch, text).expect("a file");
    topology.run("tc", &format!("-batch {}", batch.display()));
    topology.agents[0].start_again();
    let status = topology.wait_named("priority 77");
    assert!(status["errors"].to_string().contains(&interface), "{status}");
    topology.lose("program", |topology| {
        topology.run("tc", &format!("filter del {place}"));
    });
    topology.assert_in_time();
    topology.assert_in_order("in the end");
}

#[test]
fn filters_and_qdiscs_are_attached_again() {
    harness::require_root!();
    let topology = Topology::build();
    let interface = topology.near.host_interface().to_owned();
    for loss in [
        format!("qdisc del dev {interface} clsact"),
        format!("filter del dev {interface} ingress"),
        format!("filter del dev {interface} egress"),
    ] {
        topology.lose("program", |topology| topology.run("tc", &loss));
        let forger = topology.forge();
        forger.assert_held(&loss);
        drop(forger);
        topology.assert_in_order(&loss);
    }
    topology.assert_in_time();
}

/// Removes elements of a hash table.
pub fn empty<const K: usize, const V: usize>(
    topology: &Topology,
    name: &str,
    is_doomed: fn(&[u8; K]) -> bool,
) {
    let path = current(topology).join("maps").join(name);
    let data = MapData::from_pin(path).expect("a map");
    let mut table: HashMap<_, [u8; K], [u8; V]> =
        HashMap::try_from(Map::HashMap(data)).expect("a hash table");
    let keys: Vec<_> = table.keys().flatten().filter(is_doomed).collect();
    assert!(!keys.is_empty(), "{name} holds something");
    for key in keys {
        table.remove(&key).expect("to remove");
    }
}

#[test]
fn entries_that_are_removed_are_made_again_and_their_pods_send_nothing_meanwhile() {
    type Remove = fn(&Topology);
    harness::require_root!();
    let topology = Topology::with(ANY_SOURCE);
    topology.assert_forgeries_arrive_if_allowed();
    let forger = topology.forge();
    let losses: [(&str, Remove); 3] = [
        ("PODS", |topology| empty::<16, 24>(topology, "PODS", |_| true)),
        ("POD_LINKS", |topology| {
            empty::<4, 16>(topology, "POD_LINKS", |_| true);
            empty::<16, 24>(topology, "PODS", |_| true);
        }),
        ("HOST_PORTS", |topology| {
            empty::<20, 28>(topology, "HOST_PORTS", |_| true);
        }),
    ];
    // Each loss comes twice, since a single repair may be late.
    for (name, remove) in losses.iter().chain(&losses) {
        let lost = topology.before_loss_of(name, "entry");
        remove(&topology);
        forger.assert_refused(topology.node(), name);
        lost.wait_restored();
        topology.assert_in_order(name);
    }
    topology.assert_in_time();
}
