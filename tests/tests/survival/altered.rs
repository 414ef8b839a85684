//! Tables of the agent that another process empties or alters.

use std::net::IpAddr;

use aya::maps::{HashMap, Map, MapData};
use harness::{Place, Probe};

use super::pins::empty;
use super::town::{CLUSTER_IP, SECOND, Town};

fn table<const K: usize, const V: usize>(town: &Town, name: &str) -> HashMap<MapData, [u8; K], [u8; V]> {
    let path = town.node().bpf_root().join("current/maps").join(name);
    let data = MapData::from_pin(path).expect("a map");
    HashMap::try_from(Map::HashMap(data)).expect("a hash table")
}

/// Changes the last byte of each value.
fn alter<const K: usize, const V: usize>(town: &Town, name: &str) {
    let mut table = table::<K, V>(town, name);
    let entries: Vec<_> = table.iter().flatten().collect();
    assert!(!entries.is_empty(), "{name} holds something");
    for (key, mut value) in entries {
        value[V - 1] ^= 0x40;
        table.insert(key, value, 0).expect("to write");
    }
}

/// All elements, in sorted order.
fn contents<const K: usize, const V: usize>(town: &Town, name: &str) -> Vec<([u8; K], [u8; V])> {
    let mut entries: Vec<_> = table(town, name).iter().flatten().collect();
    entries.sort_unstable();
    entries
}

/// Damages a table in each of these ways, and asserts that the agent restores it.
#[track_caller]
fn lose<const K: usize, const V: usize>(town: &Town, name: &str, losses: &[&dyn Fn(&Town)]) {
    for (way, loss) in losses.iter().enumerate() {
        let what = format!("{name} in way {way}");
        let before = contents::<K, V>(town, name);
        town.lose_one_of(&what, "entry", loss);
        assert_eq!(contents::<K, V>(town, name), before, "{what}");
        let service = (CLUSTER_IP.parse::<IpAddr>().expect("an address"), 80).into();
        for client in [&town.near as &Place, town.node()] {
            let answer = client.ask_within(Probe::Tcp, service, SECOND);
            answer.unwrap_or_else(|error| panic!("{what}: {error}"));
        }
    }
}

#[test]
fn tables_that_another_process_empties_or_alters_are_put_back() {
    harness::require_root!();
    let town = Town::build();
    lose::<20, 32>(
        &town,
        "FRONTENDS",
        &[&|town| empty::<20, 32>(town, "FRONTENDS", |_| true), &|town| {
            alter::<20, 32>(town, "FRONTENDS");
        }],
    );
    lose::<16, 4>(
        &town,
        "ADDRESSES",
        &[
            &|town| empty::<16, 4>(town, "ADDRESSES", |_| true),
            &|town| alter::<16, 4>(town, "ADDRESSES"),
            &|town| {
                let mut table = table::<16, 4>(town, "ADDRESSES");
                table.insert([7; 16], [1, 0, 0, 0], 0).expect("to write");
            },
        ],
    );
    lose::<8, 4>(
        &town,
        "POD_NETNS",
        &[&|town| empty::<8, 4>(town, "POD_NETNS", |_| true), &|town| {
            alter::<8, 4>(town, "POD_NETNS");
        }],
    );
    town.assert_in_order("in the end");
    town.assert_in_time();
}
