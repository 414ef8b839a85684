//! Frames with random MACs, tags, sources, destinations and contents, from a host on the node's link and from
//! a pod. The test checks every frame that arrives at pods, at the host and at sockets of the node against
//! the table of entries.
//!
//! `MILLRACE_FUZZ_FRAMES` sets how many frames each of the two sends, and `MILLRACE_FUZZ_SEED` the seed. A
//! failure names frames by their numbers; `MILLRACE_FUZZ_FIRST` is the first number that is sent.

mod frames;
mod packets;
mod receivers;
mod tunnels;

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use harness::{Place, Pod, Server};

use self::frames::{Entry, Kind, Mac, Made, Sender, TUNNEL_PORT};
use self::receivers::{Outcome, Receivers};
use self::tunnels::Tunnel;
use crate::neighbours::{known, link_local, link_local_of, own};
use crate::topology::{SECOND, Topology, at, wait_served};

const FRAMES: u64 = 40_000;
/// Frames that are sent before the receivers have to catch up. Their buffers hold more.
const BATCH: u64 = 512;
/// A hardware address that no host has.
const NO_HOST: Mac = [2, 0, 0, 0, 0, 0x99];
const GROUPS: [Mac; 3] = [[0xff; 6], [1, 0, 0x5e, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1]];

/// The frames that are sent.
struct Run {
    seed: u64,
    first: u64,
    count: u64,
}

impl Run {
    fn wanted() -> Self {
        let given = |name: &str| {
            let text = std::env::var(name).ok();
            text.map(|text| text.parse().expect("a number"))
        };
        Self {
            seed: given("MILLRACE_FUZZ_SEED").unwrap_or_else(|| fastrand::u64(..)),
            first: given("MILLRACE_FUZZ_FIRST").unwrap_or(0),
            count: given("MILLRACE_FUZZ_FRAMES").unwrap_or(FRAMES),
        }
    }
}

/// Sends the frames, and checks the receivers' frames meanwhile.
fn send(sender: &Sender, receivers: &Receivers, run: &Run) -> Outcome {
    let done = AtomicBool::new(false);
    let rounds = AtomicU64::new(0);
    thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let mut outcome = Outcome::default();
            loop {
                let is_last = done.load(Ordering::Relaxed);
                receivers.take(&mut outcome);
                rounds.fetch_add(1, Ordering::Relaxed);
                if is_last {
                    return outcome;
                }
            }
        });
        for number in run.first..run.first + run.count {
            sender.forge.send_frame(&sender.frame(run.seed, number).bytes);
            if number % BATCH == 0 {
                // One round may be under way already.
                let begun = rounds.load(Ordering::Relaxed);
                while rounds.load(Ordering::Relaxed) < begun + 2 && !watching.is_finished() {
                    thread::yield_now();
                }
            }
        }
        thread::sleep(SECOND / 2);
        done.store(true, Ordering::Relaxed);
        watching.join().expect("the receivers")
    })
}

#[track_caller]
fn assert_held(what: &str, sender: &Sender, receivers: &Receivers) {
    let run = Run::wanted();
    let Run { seed, first, count } = run;
    let outcome = send(sender, receivers, &run);
    println!("{what}: {count} frames of seed {seed} from number {first} on; arrived:");
    for (name, arrived) in receivers.names().iter().zip(&outcome.arrived) {
        let counts = Kind::ALL.map(|kind| format!("{kind:?} {}", arrived[kind as usize]));
        println!("  at {name}: {}", counts.join(", "));
    }
    if let Some(lost) = receivers.lost() {
        panic!("{what}, seed {seed}: the kernel lost captured frames, so nothing is proven: {lost}");
    }
    let show = |(number, seen): &(u64, String)| {
        let Made { kind, reach, bytes } = sender.frame(seed, *number);
        format!("{number}, {kind:?} of reach {reach}: {bytes:02x?}\n  seen as {seen}")
    };
    let shown: Vec<_> = outcome.wrong.iter().take(5).map(show).collect();
    let shown = shown.join("\n");
    assert!(
        outcome.wrong.is_empty(),
        "{what}, seed {seed}: {} arrived\n{shown}",
        outcome.wrong.len()
    );
    assert!(
        outcome.leaks.is_empty(),
        "{what}, seed {seed}: {} unexpected frames\n{}",
        outcome.leaks.len(),
        outcome.leaks[..outcome.leaks.len().min(5)].join("\n")
    );
    for kind in Kind::ALL {
        let (sent, arrived) = (count / Kind::ALL.len() as u64, outcome.of_kind(kind));
        assert!(
            arrived > sent / 1000 || count < FRAMES,
            "{what}, seed {seed}: {arrived} of about {sent} arrived of {kind:?}"
        );
    }
}

fn ips(all: &[&str]) -> Vec<IpAddr> {
    all.iter().map(|text| text.parse().expect("an address")).collect()
}

/// A topology whose nodes have a tunnel, and a pod at the other end of it.
struct TunnelTopology {
    topology: Topology,
    far: Pod,
    _servers: [Server; 2],
}

impl TunnelTopology {
    fn build() -> Self {
        let topology = Topology::with(harness::NodeSpec::millrace(), "routingMode: vxlan\n");
        let far = topology.world.node(2).add_pod("far");
        let servers = far.serve(8080);
        for address in far.addresses() {
            wait_served(&topology.pod, SocketAddr::new(*address, 8080));
        }
        Self {
            topology,
            far,
            _servers: servers,
        }
    }

    /// The addresses of both nodes.
    fn nodes(&self) -> [[IpAddr; 2]; 2] {
        [1, 2].map(|number| {
            let addresses = self.topology.world.node(number).addresses();
            [addresses[0], addresses[1]]
        })
    }

    /// The sockets of these places and of the other addresses, for each family.
    fn places(of: &[(&Place, u16)], more: [&[(&str, u16)]; 2]) -> [Vec<SocketAddr>; 2] {
        [0, 1].map(|family| {
            let places = of
                .iter()
                .map(|(place, port)| SocketAddr::new(place.addresses()[family], *port));
            let more = more[family].iter().map(|(text, port)| at(text, *port));
            places.chain(more).collect()
        })
    }

    /// Addresses of these places, and other addresses, for each family.
    fn sources(of: &[&Place], more: [&[&str]; 2]) -> [Vec<IpAddr>; 2] {
        [0, 1].map(|family| {
            let own = of.iter().map(|place| place.addresses()[family]);
            own.chain(ips(more[family])).collect()
        })
    }

    fn tunnel(&self, entrances: [Vec<SocketAddr>; 2]) -> Tunnel {
        let (topology, far) = (&self.topology, &self.far);
        let (n1, n2) = (topology.node(), topology.world.node(2));
        // The hardware address of the other node's end is not among these. A broadcast frame in this node's
        // name reaches that end, which accepts it rightly.
        Tunnel {
            entrances,
            pods: [
                topology.web.addresses(),
                topology.pod.addresses(),
                far.addresses(),
            ]
            .concat(),
            end: n1.mac("millrace-vxlan"),
            own: Self::places(
                &[(&topology.web, 8080), (&topology.pod, 9)],
                [
                    &[("10.244.1.0", 9), ("10.244.1.200", 9)],
                    &[("fd00:244:1::", 9), ("fd00:244:1::200", 9)],
                ],
            ),
            foreign: Self::places(
                &[
                    (far, 8080),
                    (n1, 30_080),
                    (n1, 9),
                    (n2, 9),
                    (&topology.outside, 9),
                ],
                [
                    &[("10.96.0.10", 80), ("203.0.113.7", 80)],
                    &[("fd00:96::10", 80), ("2001:db8:7::7", 80)],
                ],
            ),
            carried: Self::sources(
                &[far],
                [
                    &["10.244.2.77", "10.244.2.0"],
                    &["fd00:244:2::77", "fd00:244:2::"],
                ],
            ),
        }
    }

    fn on_link(&self) -> Sender {
        let (topology, far) = (&self.topology, &self.far);
        let (n1, n2) = (topology.node(), topology.world.node(2));
        let forge = topology.forge();
        let mut targets = Self::places(
            &[
                (&topology.web, 8080),
                (&topology.pod, 8080),
                (n1, TUNNEL_PORT),
                (n1, 9),
            ],
            [
                &[
                    ("127.0.0.1", 8080),
                    ("224.0.0.1", 9),
                    ("255.255.255.255", 9),
                    ("192.168.50.255", 9),
                ],
                &[("::1", 8080), ("ff02::1", 9)],
            ],
        );
        for (targets, is_v4) in targets.iter_mut().zip([true, false]) {
            targets.extend(topology.entrances(is_v4));
        }
        let entrances = Self::places(
            &[(n1, TUNNEL_PORT)],
            [
                &[
                    ("10.244.1.0", TUNNEL_PORT),
                    ("192.168.50.255", TUNNEL_PORT),
                    ("255.255.255.255", TUNNEL_PORT),
                    ("224.0.0.1", TUNNEL_PORT),
                ],
                &[("fd00:244:1::", TUNNEL_PORT), ("ff02::1", TUNNEL_PORT)],
            ],
        );
        Sender {
            entry: Entry::Link,
            macs: [[topology.web.mac("eth0"), NO_HOST].as_slice(), &GROUPS].concat(),
            honest: Self::sources(&[&topology.outside, n2], [&[], &[]]),
            // With a tunnel, packets of other nodes' pods come only through the tunnel.
            forged: Self::sources(
                &[&topology.web, &topology.pod, far, n1],
                [
                    &[
                        "10.96.0.10",
                        "10.96.77.77",
                        "203.0.113.7",
                        "127.0.0.1",
                        "0.0.0.0",
                        "224.0.0.5",
                        "255.255.255.255",
                        "169.254.1.1",
                        "10.244.1.200",
                        "10.244.1.0",
                        "10.244.2.0",
                        "192.168.50.255",
                        "240.0.0.1",
                    ],
                    &[
                        "fd00:96::10",
                        "fd00:96::7777",
                        "2001:db8:7::7",
                        "::1",
                        "::",
                        "ff02::1",
                        "ff0e::5",
                        "fd00:244:1::200",
                        "fd00:244:1::",
                        "::ffff:192.0.2.1",
                    ],
                ],
            ),
            link_local: link_local_of(forge.ethernet().from),
            targets,
            nodes: self.nodes(),
            tunnel: self.tunnel(entrances),
            forge,
        }
    }

    fn in_pod(&self) -> Sender {
        let (topology, far) = (&self.topology, &self.far);
        let (n1, n2) = (topology.node(), topology.world.node(2));
        let forge = topology.pod.forge_out();
        let targets = Self::places(
            &[
                (&topology.web, 8080),
                (n1, 30_080),
                (n1, 9),
                (n1, TUNNEL_PORT),
                (far, 8080),
                (&topology.outside, 9),
                (&topology.outside, TUNNEL_PORT),
            ],
            [
                &[
                    ("10.96.0.10", 80),
                    ("203.0.113.7", 80),
                    ("127.0.0.1", 8080),
                    ("255.255.255.255", 9),
                ],
                &[
                    ("fd00:96::10", 80),
                    ("2001:db8:7::7", 80),
                    ("::1", 8080),
                    ("ff02::1", 9),
                ],
            ],
        );
        let entrances = Self::places(
            &[
                (&topology.web, TUNNEL_PORT),
                (n1, TUNNEL_PORT),
                (n2, TUNNEL_PORT),
                (&topology.outside, TUNNEL_PORT),
                (far, TUNNEL_PORT),
            ],
            [
                &[
                    ("10.244.1.0", TUNNEL_PORT),
                    ("10.244.2.0", TUNNEL_PORT),
                    ("10.96.0.10", TUNNEL_PORT),
                    ("255.255.255.255", TUNNEL_PORT),
                ],
                &[
                    ("fd00:244:1::", TUNNEL_PORT),
                    ("fd00:244:2::", TUNNEL_PORT),
                    ("ff02::1", TUNNEL_PORT),
                ],
            ],
        );
        Sender {
            entry: Entry::Pod,
            macs: [
                [topology.web.mac("eth0"), n1.mac("eth0"), NO_HOST].as_slice(),
                &GROUPS,
            ]
            .concat(),
            honest: Self::sources(&[&topology.pod], [&[], &[]]),
            forged: Self::sources(
                &[&topology.web, n1, &topology.outside, far],
                [
                    &[
                        "10.96.0.10",
                        "10.244.1.99",
                        "127.0.0.1",
                        "0.0.0.0",
                        "224.0.0.5",
                        "169.254.1.1",
                    ],
                    &[
                        "fd00:96::10",
                        "fd00:244:1::99",
                        "::1",
                        "::",
                        "ff02::1",
                        "fe80::1",
                        "::ffff:10.0.0.1",
                    ],
                ],
            ),
            link_local: link_local(&topology.pod),
            targets,
            nodes: self.nodes(),
            tunnel: self.tunnel(entrances),
            forge,
        }
    }
}

#[test]
fn frames_from_the_link_arrive_as_the_table_of_entries_says() {
    harness::require_root!();
    let tunnel_topology = TunnelTopology::build();
    let topology = &tunnel_topology.topology;
    let sender = tunnel_topology.on_link();
    let foreign_macs = vec![sender.forge.ethernet().from, NO_HOST];
    let pods: [&Place; 3] = [&topology.web, &topology.pod, &tunnel_topology.far];
    let receivers = Receivers::open(topology.node(), &pods, None, foreign_macs);
    assert_held("from the link", &sender, &receivers);
}

#[test]
fn frames_of_a_pod_arrive_as_the_table_of_entries_says() {
    harness::require_root!();
    let tunnel_topology = TunnelTopology::build();
    let topology = &tunnel_topology.topology;
    let sender = tunnel_topology.in_pod();
    let foreign_macs = vec![sender.forge.ethernet().from, NO_HOST];
    let pods: [&Place; 2] = [&topology.web, &tunnel_topology.far];
    let receivers = Receivers::open(topology.node(), &pods, Some(&topology.outside), foreign_macs);
    assert_held("from a pod", &sender, &receivers);
    let own = own(&topology.pod);
    let mut neighbours = known(&topology.pod);
    neighbours.retain(|neighbour| !own.contains(neighbour));
    assert!(neighbours.is_empty(), "at the pod's interface: {neighbours:?}");
}
