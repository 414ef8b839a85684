//! Tables of the agent that another process empties or alters.

use std::net::IpAddr;

use aya::maps::{HashMap, Map, MapData};
use harness::{Place, Probe};

use super::pins::empty;
use super::topology::{CLUSTER_IP, SECOND, Topology};

fn table<const K: usize, const V: usize>(
    topology: &Topology,
    name: &str,
) -> HashMap<MapData, [u8; K], [u8; V]> {
    let path = topology.node().bpf_root().join("current/maps").join(name);
    let data = MapData::from_pin(path).expect("a map");
    HashMap::try_from(Map::HashMap(data)).expect("a hash table")
}

/// Changes the last byte of each value.
fn alter<const K: usize, const V: usize>(topology: &Topology, name: &str) {
    let mut table = table::<K, V>(topology, name);
    let entries: Vec<_> = table.iter().flatten().collect();
    assert!(!entries.is_empty(), "{name} holds something");
    for (key, mut value) in entries {
        value[V - 1] ^= 0x40;
        table.insert(key, value, 0).expect("to write");
    }
}

/// All elements, in sorted order.
fn contents<const K: usize, const V: usize>(topology: &Topology, name: &str) -> Vec<([u8; K], [u8; V])> {
    let mut entries: Vec<_> = table(topology, name).iter().flatten().collect();
    entries.sort_unstable();
    entries
}

/// Damages a table in each of these ways, and asserts that the agent restores it.
#[track_caller]
fn lose<const K: usize, const V: usize>(topology: &Topology, name: &str, losses: &[&dyn Fn(&Topology)]) {
    for (index, loss) in losses.iter().enumerate() {
        let what = format!("{name} in way {index}");
        let before = contents::<K, V>(topology, name);
        topology.lose_one_of(&what, "entry", loss);
        assert_eq!(contents::<K, V>(topology, name), before, "{what}");
        let service = (CLUSTER_IP.parse::<IpAddr>().expect("an address"), 80).into();
        for client in [&topology.near as &Place, topology.node()] {
            let reply = client.ask_within(Probe::Tcp, service, SECOND);
            reply.unwrap_or_else(|error| panic!("{what}: {error}"));
        }
    }
}

#[test]
fn tables_that_another_process_empties_or_alters_are_put_back() {
    harness::require_root!();
    let topology = Topology::build();
    lose::<20, 32>(
        &topology,
        "FRONTENDS",
        &[
            &|topology| empty::<20, 32>(topology, "FRONTENDS", |_| true),
            &|topology| {
                alter::<20, 32>(topology, "FRONTENDS");
            },
        ],
    );
    lose::<16, 4>(
        &topology,
        "ADDRESSES",
        &[
            &|topology| empty::<16, 4>(topology, "ADDRESSES", |_| true),
            &|topology| alter::<16, 4>(topology, "ADDRESSES"),
            &|topology| {
                let mut table = table::<16, 4>(topology, "ADDRESSES");
                table.insert([7; 16], [1, 0, 0, 0], 0).expect("to write");
            },
        ],
    );
    lose::<8, 4>(
        &topology,
        "POD_NETNS",
        &[
            &|topology| empty::<8, 4>(topology, "POD_NETNS", |_| true),
            &|topology| {
                alter::<8, 4>(topology, "POD_NETNS");
            },
        ],
    );
    topology.assert_in_order("in the end");
    topology.assert_in_time();
}
