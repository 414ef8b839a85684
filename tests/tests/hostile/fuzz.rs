//! Frames of random MACs, tags, sources and destinations at the wire, from a host on the node's link and from a pod. What
//! arrives at pods and at the host is held against the table of entries.
//!
//! `MILLRACE_FUZZ_FRAMES` says how many frames each of the two sends.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use fastrand::Rng;
use harness::forge::{SERVICE_VLAN, Tag, VLAN, packet};
use harness::{Forge, Frame, PacketSocket};

use crate::town::{SECOND, Town, at, captured};

const FRAMES: u64 = 40_000;
/// Stands before what tells of a frame: whether it may arrive, and its number.
const MAGIC: &[u8] = b"millrace fuzz ";

/// Who sends, and what the table of entries says of what that one sends.
struct Sender {
    forge: Forge,
    /// The receiver that frames of one host go to.
    to: [u8; 6],
    /// Whether a priority tag is taken off and the rest is read.
    takes_priority_tag: bool,
    own_mac: [u8; 6],
    macs: Vec<[u8; 6]>,
    /// Sources that the entry admits, of each family.
    honest: [IpAddr; 2],
    forged: [Vec<IpAddr>; 2],
    targets: [Vec<SocketAddr>; 2],
}

impl Sender {
    /// A frame, and whether what it carries may arrive anywhere.
    fn frame(&self, rng: &mut Rng, number: u64) -> (Vec<u8>, bool) {
        let family = rng.usize(..2);
        let is_honest_source = rng.u8(..4) == 0;
        let source = if is_honest_source {
            self.honest[family]
        } else {
            pick(rng, &self.forged[family])
        };
        let mut ethernet = self.forge.ethernet();
        let is_to_node = rng.bool();
        ethernet.to = if is_to_node {
            self.to
        } else {
            pick(rng, &self.macs)
        };
        let is_own_mac = rng.u8(..4) != 0;
        ethernet.from = if is_own_mac {
            self.own_mac
        } else {
            pick(rng, &self.macs)
        };
        ethernet.tags = tags(rng);
        let is_bare = match ethernet.tags.as_slice() {
            [] => true,
            [(_, 0)] => self.takes_priority_tag,
            _ => false,
        };
        let may_arrive = is_honest_source
            && ethernet.to == self.to
            && is_bare
            // The link vouches for no sender's address; a pod has one.
            && (self.takes_priority_tag || ethernet.from == self.own_mac);
        let target = pick(rng, &self.targets[family]);
        let from = SocketAddr::new(source, rng.u16(1024..));
        let mark = [MAGIC, &[u8::from(may_arrive)], &number.to_be_bytes()].concat();
        let packet = if rng.bool() {
            packet::udp(from, target, &mark)
        } else {
            packet::tcp(from, target, packet::SYN, rng.u32(..), &mark)
        };
        (ethernet.of_packet(&packet), may_arrive)
    }
}

fn pick<T: Copy>(rng: &mut Rng, all: &[T]) -> T {
    all[rng.usize(..all.len())]
}

fn tags(rng: &mut Rng) -> Vec<Tag> {
    let kind = |rng: &mut Rng| if rng.bool() { VLAN } else { SERVICE_VLAN };
    let number = |rng: &mut Rng| if rng.bool() { 0 } else { rng.u16(1..4095) };
    let count = match rng.u8(..8) {
        0 | 1 => 1,
        2 => 2,
        3 => 3,
        _ => 0,
    };
    (0..count).map(|_| (kind(rng), number(rng))).collect()
}

/// What tells of a frame of this test, if it is one.
fn told(frame: &Frame) -> Option<(bool, u64)> {
    let bytes = &frame.bytes;
    let place = bytes.windows(MAGIC.len()).position(|window| window == MAGIC)?;
    let rest = bytes.get(place + MAGIC.len()..place + MAGIC.len() + 9)?;
    let number = u64::from_be_bytes(rest[1..].try_into().ok()?);
    Some((rest[0] == 1, number))
}

/// The numbers that a frame is made of, so that a single one can be made again.
fn generator(seed: u64, number: u64) -> Rng {
    Rng::with_seed(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// Sends the frames, and looks at what the receivers get meanwhile: how many that may arrive have, and the numbers of the
/// others.
fn run(sender: &Sender, receivers: &[PacketSocket], seed: u64, count: u64) -> (u64, Vec<u64>) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let (mut arrived, mut wrong) = (0, Vec::new());
            loop {
                let is_last = done.load(Ordering::Relaxed);
                for receiver in receivers {
                    for frame in receiver.so_far().expect("to read") {
                        match told(&frame).filter(|_| !frame.outgoing) {
                            Some((true, _)) => arrived += 1,
                            Some((false, number)) => wrong.push(number),
                            None => {}
                        }
                    }
                }
                if is_last {
                    return (arrived, wrong);
                }
            }
        });
        for number in 0..count {
            let (frame, _) = sender.frame(&mut generator(seed, number), number);
            sender.forge.send_frame(&frame);
        }
        thread::sleep(SECOND / 2);
        done.store(true, Ordering::Relaxed);
        watching.join().expect("the receivers")
    })
}

#[track_caller]
fn assert_held(what: &str, sender: &Sender, receivers: &[PacketSocket]) {
    let count = std::env::var("MILLRACE_FUZZ_FRAMES").ok();
    let count = count.map_or(FRAMES, |text| text.parse().expect("a number"));
    let seed = fastrand::u64(..);
    let (arrived, wrong) = run(sender, receivers, seed, count);
    println!("{what}: {count} frames of seed {seed}, {arrived} arrivals");
    let frame = |number: &u64| {
        let (frame, _) = sender.frame(&mut generator(seed, *number), *number);
        format!("{number}: {frame:02x?}")
    };
    let shown: Vec<_> = wrong.iter().take(5).map(frame).collect();
    let shown = shown.join("\n");
    assert!(
        wrong.is_empty(),
        "{what}, seed {seed}: {} arrived\n{shown}",
        wrong.len()
    );
    assert!(
        arrived > count / 1000,
        "{what}: {arrived} honest ones of {count} arrived"
    );
}

fn ips(all: &[&str]) -> Vec<IpAddr> {
    all.iter().map(|text| text.parse().expect("an address")).collect()
}

#[test]
fn frames_from_the_link_arrive_as_the_table_of_entries_says() {
    harness::require_root!();
    let town = Town::build();
    let node = town.node();
    let forge = town.forge();
    let mut targets = [true, false].map(|is_v4| town.entrances(is_v4));
    for (family, targets) in targets.iter_mut().enumerate() {
        for pod in [&town.web, &town.pod] {
            targets.push(SocketAddr::new(pod.addresses()[family], 8080));
        }
        targets.push(SocketAddr::new(node.addresses()[family], 8472));
    }
    let of = |family: usize| [&town.web, &town.pod].map(|pod| pod.addresses()[family]).to_vec();
    let sender = Sender {
        to: forge.ethernet().to,
        own_mac: forge.ethernet().from,
        takes_priority_tag: true,
        macs: vec![
            town.web.mac("eth0"),
            [0xff; 6],
            [1, 0, 0x5e, 0, 0, 1],
            [0x33, 0x33, 0, 0, 0, 1],
            [2, 0, 0, 0, 0, 0x99],
        ],
        honest: [town.outside.addresses()[0], town.outside.addresses()[1]],
        forged: [
            [
                of(0),
                vec![node.addresses()[0]],
                ips(&[
                    "10.96.0.10",
                    "10.96.77.77",
                    "203.0.113.7",
                    "127.0.0.1",
                    "0.0.0.0",
                    "224.0.0.5",
                    "255.255.255.255",
                    "169.254.1.1",
                    "10.244.1.200",
                    "192.168.50.255",
                    "240.0.0.1",
                ]),
            ]
            .concat(),
            [
                of(1),
                vec![node.addresses()[1]],
                ips(&[
                    "fd00:96::10",
                    "fd00:96::7777",
                    "2001:db8:7::7",
                    "::1",
                    "::",
                    "ff02::1",
                    "ff0e::5",
                    "fd00:244:1::200",
                    "::ffff:192.0.2.1",
                ]),
            ]
            .concat(),
        ],
        targets,
        forge,
    };
    assert_held(
        "from the link",
        &sender,
        &[captured(&town.web), captured(&town.pod)],
    );
}

#[test]
fn frames_of_a_pod_arrive_as_the_table_of_entries_says() {
    harness::require_root!();
    let town = Town::build();
    let node = town.node();
    let forge = town.pod.forge_out();
    let targets = [0, 1].map(|family: usize| {
        let vip = [at("10.96.0.10", 80), at("fd00:96::10", 80)][family];
        let balancer = [at("203.0.113.7", 80), at("2001:db8:7::7", 80)][family];
        vec![
            vip,
            balancer,
            SocketAddr::new(town.web.addresses()[family], 8080),
            SocketAddr::new(node.addresses()[family], 30_080),
            SocketAddr::new(town.outside.addresses()[family], 9),
        ]
    });
    let sender = Sender {
        to: forge.ethernet().to,
        own_mac: forge.ethernet().from,
        takes_priority_tag: false,
        macs: vec![
            town.web.mac("eth0"),
            node.mac("eth0"),
            [0xff; 6],
            [1, 0, 0x5e, 0, 0, 1],
            [0x33, 0x33, 0, 0, 0, 1],
            [2, 0, 0, 0, 0, 0x99],
        ],
        honest: [town.pod.addresses()[0], town.pod.addresses()[1]],
        forged: [0, 1].map(|family: usize| {
            let others = [
                town.web.addresses()[family],
                node.addresses()[family],
                town.outside.addresses()[family],
            ];
            let odd: &[&str] = match family {
                0 => &[
                    "10.96.0.10",
                    "10.244.1.99",
                    "127.0.0.1",
                    "0.0.0.0",
                    "224.0.0.5",
                    "169.254.1.1",
                ],
                _ => &[
                    "fd00:96::10",
                    "fd00:244:1::99",
                    "::1",
                    "::",
                    "ff02::1",
                    "fe80::1",
                    "::ffff:10.0.0.1",
                ],
            };
            [&others[..], &ips(odd)].concat()
        }),
        targets,
        forge,
    };
    assert_held(
        "from a pod",
        &sender,
        &[captured(&town.web), captured(&town.outside)],
    );
}
