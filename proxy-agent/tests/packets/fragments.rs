//! Tests of fragments: the later ones follow the first, and each source has places of its own for its
//! datagrams.

use std::collections::HashMap;

use millrace::bpf::HashTable;
use proxy_common::Ip;
use proxy_common::maps::{FirstFragment, FragmentKey, Reason};
use proxy_common::protocol;

use super::frame::{frame, sum};
use super::live::{Program, open_map};
use super::{Bench, FAMILIES, PASS, SHOT, ip};

const CLIENT: &str = FAMILIES[0].0;
const VIP: &str = FAMILIES[0].1;
const VIP_B: &str = "10.96.0.20:80";
const BACKEND: [u8; 4] = [10, 244, 2, 2];

/// Makes both fragments of a datagram, or of a SYN with data. Only the first one has ports.
fn fragments(from: &str, to: &str, protocol: u8, id: u32) -> [Vec<u8>; 2] {
    const SYN: u8 = 0x02;
    const FRAGMENT: u8 = 44;
    /// The payload of the first fragment in bytes, a multiple of eight.
    const FIRST: usize = 32;
    let whole = frame(from, to, protocol, SYN, &[0; 64]);
    let is_v4 = whole[14] >> 4 == 4;
    let (header, content) = whole.split_at(if is_v4 { 34 } else { 54 });
    let (first, later) = content.split_at(FIRST);
    [(0, first), (FIRST as u16, later)].map(|(offset, content)| {
        let mut header = header.to_vec();
        let is_first = u16::from(offset == 0);
        if is_v4 {
            header[16..18].copy_from_slice(&(20 + content.len() as u16).to_be_bytes());
            header[18..20].copy_from_slice(&(id as u16).to_be_bytes());
            header[20..22].copy_from_slice(&((is_first << 13) | (offset / 8)).to_be_bytes());
            header[24..26].fill(0);
            let checksum = !sum(&header[14..34], 0);
            header[24..26].copy_from_slice(&checksum.to_be_bytes());
        } else {
            header[18..20].copy_from_slice(&(8 + content.len() as u16).to_be_bytes());
            header[20] = FRAGMENT;
            header.extend([protocol, 0]);
            header.extend((offset | is_first).to_be_bytes());
            header.extend(id.to_be_bytes());
        }
        [&header[..], content].concat()
    })
}

#[test]
fn fragments_follow_the_first_and_are_dropped_by_name_before_it() {
    let bench = Bench::new();
    let [first, later] = fragments(CLIENT, VIP, protocol::UDP, 1);
    assert_eq!(bench.run("from_pod", &later).0, SHOT);
    assert_eq!(bench.count(Reason::FragmentBeforeFirst), 1);
    for (fragment, reason) in [(first, Reason::NewFlow), (later, Reason::Established)] {
        let (verdict, out) = bench.run("from_pod", &fragment);
        assert_eq!(verdict, PASS);
        assert_eq!(out[30..34], BACKEND, "the backend's address");
        assert_eq!(sum(&out[14..34], 0), 0xffff, "the header's checksum");
        assert_eq!(bench.count(reason), 1);
    }
}

/// Both datagrams hash to one place, and differ in the field that the row names.
#[test]
fn fragments_are_not_taken_for_those_of_another_datagram_in_their_place() {
    const NEIGHBOUR6: &str = "[fd00:244:1::6]:40001";
    const CLIENT_B: &str = "10.244.1.5:40001";
    let bench = Bench::new();
    let backend = "10.244.2.3:8080".parse().unwrap();
    bench.service(20, "10.96.0.20", 80, protocol::UDP, Some(backend));
    let (client6, vip6, _) = FAMILIES[1];
    let beyond = 7 + FragmentKey::PLACES;
    for (what, first, other) in [
        (
            "source",
            fragments(client6, vip6, protocol::UDP, 7),
            fragments(NEIGHBOUR6, vip6, protocol::UDP, 7),
        ),
        (
            "destination",
            fragments(CLIENT, VIP, protocol::UDP, 7),
            fragments(CLIENT_B, VIP_B, protocol::UDP, 7),
        ),
        (
            "identification",
            fragments(CLIENT, VIP, protocol::UDP, 7),
            fragments(CLIENT_B, VIP, protocol::UDP, beyond),
        ),
        (
            "identification of IPv6",
            fragments(client6, vip6, protocol::UDP, 7 << 6),
            fragments(client6, vip6, protocol::UDP, 7 << 28),
        ),
        (
            "protocol",
            fragments(CLIENT, VIP, protocol::UDP, 9),
            fragments(CLIENT_B, VIP, protocol::TCP, 9),
        ),
    ] {
        let verdict = |fragment: &[u8]| bench.run("from_pod", fragment).0;
        let unseen = bench.count(Reason::FragmentBeforeFirst);
        assert_eq!(verdict(&first[0]), PASS, "{what}");
        assert_eq!(verdict(&other[1]), SHOT, "{what}: not the first one's");
        assert_eq!(verdict(&other[0]), PASS, "{what}");
        assert_eq!(verdict(&first[1]), SHOT, "{what}: overwritten");
        assert_eq!(verdict(&other[1]), PASS, "{what}");
        assert_eq!(bench.count(Reason::FragmentBeforeFirst), unseen + 2, "{what}");
    }
}

#[test]
fn fragments_of_others_come_through_a_flood_of_first_ones() {
    const FLOOD: u32 = 20_000;
    const OTHERS: u32 = 32;
    let bench = Bench::new();
    let mut from_pod = Program::open(&bench.datapath, "from_pod", 1);
    let mut run = |fragment: &[u8]| {
        let (verdict, out) = from_pod.run(fragment).expect("a run");
        (verdict, out.to_vec())
    };
    let others: Vec<_> = (0..OTHERS)
        .map(|id| fragments(CLIENT, VIP, protocol::UDP, id))
        .collect();
    for [first, _] in &others {
        assert_eq!(run(first).0, PASS);
    }
    for id in 0..FLOOD {
        let [first, _] = fragments("10.244.1.6:40000", VIP, protocol::UDP, id);
        assert_eq!(run(&first).0, PASS, "of the flood");
    }
    for (id, [_, later]) in others.iter().enumerate() {
        let (verdict, out) = run(later);
        assert_eq!(verdict, PASS, "the later fragment of datagram {id}");
        assert_eq!(out[30..34], BACKEND);
    }
    let map = open_map(&bench.datapath, "FRAGMENTS");
    let table: HashTable<FragmentKey, FirstFragment> = HashTable::new(map).expect("fragments");
    let mut places: HashMap<Ip, u32> = HashMap::new();
    table
        .for_each(|key, _| *places.entry(key.source).or_default() += 1)
        .expect("a walk");
    let expected = [("10.244.1.5", OTHERS), ("10.244.1.6", FragmentKey::PLACES)];
    assert_eq!(
        places,
        HashMap::from(expected.map(|(source, held)| (ip(source), held)))
    );
}
