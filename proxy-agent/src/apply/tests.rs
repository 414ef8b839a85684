//! What the programmer owes, over tables that can be told to fail.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Instant;

use proxy_common::Ip;
use proxy_common::maps::{Backend, BackendState, Frontend, FrontendKey, Slot, SlotRange, SourceRangeKey};

use super::{Limits, Programmer, Store};
use crate::bpf::BpfError;
use crate::bpf::object::MapSizes;
use crate::cluster::{Changes, ClusterState};
use crate::plan::NodeContext;
use crate::plan::programmed::View;
use crate::source::{Change, Event, Kind, Object, ObjectId, ObjectIdSet};

/// Tables in memory; every `fail_every`-th write fails.
struct Fake {
    frontends: RefCell<BTreeMap<FrontendKey, Frontend>>,
    addresses: RefCell<BTreeMap<Ip, u32>>,
    ranges: RefCell<BTreeSet<SourceRangeKey>>,
    slots: RefCell<Vec<Slot>>,
    backends: RefCell<Vec<Backend>>,
    sizes: MapSizes,
    fail_every: Cell<u32>,
    calls: Cell<u32>,
    writes: Cell<u32>,
}

impl Fake {
    fn new(size: u32) -> Self {
        Self {
            frontends: RefCell::default(),
            addresses: RefCell::default(),
            ranges: RefCell::default(),
            slots: RefCell::new(vec![Slot::default(); size as usize]),
            backends: RefCell::new(vec![Backend::default(); size as usize]),
            sizes: sizes(size),
            fail_every: Cell::new(0),
            calls: Cell::new(0),
            writes: Cell::new(0),
        }
    }

    fn write(&self) -> io::Result<()> {
        self.writes.set(self.writes.get() + 1);
        self.calls.set(self.calls.get() + 1);
        let every = self.fail_every.get();
        if every > 0 && self.calls.get().is_multiple_of(every) {
            Err(io::ErrorKind::OutOfMemory.into())
        } else {
            Ok(())
        }
    }

    /// What clients can reach: frontend → backends, by value.
    fn dump(&self) -> BTreeMap<FrontendKey, Vec<(Ip, u16, u8)>> {
        let backends = |value: &Frontend| {
            let range = SlotRange(value.slots);
            (range.start()..range.start() + range.count())
                .map(|index| {
                    let slot = self.slots.borrow()[index as usize];
                    let backend = self.backends.borrow()[slot.backend() as usize];
                    assert_eq!((slot.service(), backend.service), (value.service, value.service));
                    (backend.address, backend.port.number(), backend.state)
                })
                .collect()
        };
        self.frontends
            .borrow()
            .iter()
            .map(|(key, value)| (*key, backends(value)))
            .collect()
    }
}

fn sizes(size: u32) -> MapSizes {
    MapSizes {
        frontends: size,
        slots: size,
        backends: size,
        addresses: size,
        flows: 1,
        affinity: 1,
        socket_peers: 1,
        pod_netns: 1,
    }
}

impl View for Fake {
    fn slot(&self, index: u32) -> Slot {
        self.slots.borrow()[index as usize]
    }

    fn backend(&self, id: u32) -> Backend {
        self.backends.borrow()[id as usize]
    }
}

impl Store for Fake {
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.frontends.borrow().get(key).copied()
    }

    fn set_frontends(&self, frontends: &[(FrontendKey, Frontend)]) -> Result<(), (usize, io::Error)> {
        for (index, (key, value)) in frontends.iter().enumerate() {
            self.write().map_err(|error| (index, error))?;
            let range = SlotRange(value.slots);
            for slot in range.start()..range.start() + range.count() {
                let backend = self.backend(self.slot(slot).backend());
                assert_ne!(
                    backend.state,
                    BackendState::Gone as u8,
                    "a frontend is set before its backends"
                );
            }
            self.frontends.borrow_mut().insert(*key, *value);
        }
        Ok(())
    }

    fn remove_frontends(&self, keys: &[FrontendKey]) -> Result<(), (usize, io::Error)> {
        for (index, key) in keys.iter().enumerate() {
            self.write().map_err(|error| (index, error))?;
            self.frontends.borrow_mut().remove(key);
        }
        Ok(())
    }

    fn set_addresses(&self, addresses: &[(Ip, u32)]) -> Result<(), (usize, io::Error)> {
        for (index, (address, flags)) in addresses.iter().enumerate() {
            self.write().map_err(|error| (index, error))?;
            self.addresses.borrow_mut().insert(*address, *flags);
        }
        Ok(())
    }

    fn remove_addresses(&self, addresses: &[Ip]) -> Result<(), (usize, io::Error)> {
        for (index, address) in addresses.iter().enumerate() {
            self.write().map_err(|error| (index, error))?;
            self.addresses.borrow_mut().remove(address);
        }
        Ok(())
    }

    fn set_range(&self, range: &SourceRangeKey) -> io::Result<()> {
        self.write()?;
        self.ranges.borrow_mut().insert(*range);
        Ok(())
    }

    fn remove_range(&self, range: &SourceRangeKey) -> io::Result<()> {
        self.write()?;
        self.ranges.borrow_mut().remove(range);
        Ok(())
    }

    fn each_range(&self, each: &mut dyn FnMut(SourceRangeKey)) -> io::Result<()> {
        self.ranges.borrow().iter().copied().for_each(each);
        Ok(())
    }

    fn write_backend(&self, id: u32, backend: &Backend) {
        if backend.state == BackendState::Gone as u8 {
            for value in self.frontends.borrow().values() {
                let range = SlotRange(value.slots);
                for slot in range.start()..range.start() + range.count() {
                    assert_ne!(
                        self.slot(slot).backend(),
                        id,
                        "a backend is marked gone while a frontend leads to it"
                    );
                }
            }
        }
        self.writes.set(self.writes.get() + 1);
        self.backends.borrow_mut()[id as usize] = *backend;
    }

    fn write_slot(&self, index: u32, slot: Slot) {
        for value in self.frontends.borrow().values() {
            let range = SlotRange(value.slots);
            assert!(
                index < range.start() || index >= range.start() + range.count(),
                "a live slice is edited"
            );
        }
        self.writes.set(self.writes.get() + 1);
        self.slots.borrow_mut()[index as usize] = slot;
    }

    fn each_frontend(&self, each: &mut dyn FnMut(FrontendKey, Frontend)) -> io::Result<()> {
        self.frontends
            .borrow()
            .iter()
            .for_each(|(key, value)| each(*key, *value));
        Ok(())
    }

    fn each_address(&self, each: &mut dyn FnMut(Ip, u32)) -> io::Result<()> {
        self.addresses
            .borrow()
            .iter()
            .for_each(|(address, flags)| each(*address, *flags));
        Ok(())
    }

    fn sizes(&self) -> MapSizes {
        self.sizes
    }

    fn grow(&mut self, sizes: &MapSizes) -> Result<(), BpfError> {
        self.sizes = *sizes;
        self.slots
            .borrow_mut()
            .resize(sizes.slots as usize, Slot::default());
        self.backends
            .borrow_mut()
            .resize(sizes.backends as usize, Backend::default());
        Ok(())
    }
}

mod full;

/// A cluster and the programmer of its node.
struct World {
    cluster: ClusterState,
    changes: Changes,
    programmer: Programmer<Fake>,
}

impl World {
    fn new(store: Fake, max: u32) -> Self {
        let mut world = Self {
            cluster: ClusterState::new(None),
            changes: Changes::default(),
            programmer: Programmer::new(store, Limits { max: sizes(max) }),
        };
        for kind in Kind::ALL {
            world.event(Change::Begin(kind));
            world.event(Change::End(kind));
        }
        world.changes.clear();
        world
    }

    fn event(&mut self, change: Change) {
        self.cluster
            .apply(Event::new(Instant::now(), change), &mut self.changes);
    }

    fn service(&mut self, name: &str, ip: &str, created: &str, port: u16) {
        let json = format!(
            r#"{{"metadata":{{"namespace":"t","name":"{name}","creationTimestamp":"{created}"}},
            "spec":{{"clusterIP":"{ip}","ports":[{{"name":"p","port":{port}}}]}}}}"#
        );
        self.event(Change::Apply(Box::new(Object::Service(
            serde_json::from_str(&json).unwrap(),
        ))));
    }

    fn slice(&mut self, service: &str, endpoints: &[(&str, &str)]) {
        let endpoints: Vec<_> = endpoints
            .iter()
            .map(|(address, conditions)| {
                format!(r#"{{"addresses":["{address}"],"conditions":{{{conditions}}}}}"#)
            })
            .collect();
        let json = format!(
            r#"{{"metadata":{{"namespace":"t","name":"{service}-1","labels":{{"kubernetes.io/service-name":"{service}"}}}},
            "addressType":"IPv4","ports":[{{"name":"p","port":8080}}],"endpoints":[{}]}}"#,
            endpoints.join(",")
        );
        self.event(Change::Apply(Box::new(Object::EndpointSlice(
            serde_json::from_str(&json).unwrap(),
        ))));
    }

    fn delete(&mut self, name: &str) {
        self.event(Change::Delete(
            Kind::Service,
            ObjectId::new(Kind::Service, "t", name),
        ));
    }

    fn sync(&mut self) -> u64 {
        self.programmer
            .sync(&self.cluster, &NodeContext::default())
            .unwrap()
            .writes
    }

    fn update(&mut self) -> u64 {
        let ids: ObjectIdSet = self.changes.services.drain().collect();
        self.programmer
            .update(&ids, &self.cluster, &NodeContext::default())
            .writes
    }

    fn backends_of(&self, ip: &str) -> Vec<String> {
        let ip: Ip = ip.parse::<std::net::IpAddr>().unwrap().into();
        let dump = self.programmer.store().dump();
        let found = dump.iter().find(|(key, _)| key.address == ip);
        let text = |(address, ..): &(Ip, u16, u8)| std::net::IpAddr::from(*address).to_string();
        found
            .map(|(_, backends)| backends.iter().map(text).collect())
            .unwrap_or_default()
    }
}

const OLD: &str = "2026-01-01T00:00:00Z";
const NEW: &str = "2026-02-01T00:00:00Z";

fn two_services(world: &mut World) {
    world.service("a", "10.96.0.1", OLD, 80);
    world.slice("a", &[("10.244.1.1", ""), ("10.244.1.2", "")]);
    world.service("b", "10.96.0.2", OLD, 80);
    world.slice("b", &[("10.244.1.1", "")]);
}

#[test]
fn a_service_is_programmed_and_follows_its_endpoints() {
    let mut world = World::new(Fake::new(64), 64);
    two_services(&mut world);
    world.sync();
    assert_eq!(world.backends_of("10.96.0.1"), ["10.244.1.1", "10.244.1.2"]);
    world.slice("a", &[("10.244.1.2", ""), ("10.244.1.3", "")]);
    world.update();
    assert_eq!(world.backends_of("10.96.0.1"), ["10.244.1.2", "10.244.1.3"]);
    assert_eq!(world.backends_of("10.96.0.2"), ["10.244.1.1"]);
    world.delete("a");
    world.update();
    assert_eq!(world.programmer.store().frontends.borrow().len(), 1);
    assert_eq!(world.programmer.store().addresses.borrow().len(), 1);
}

#[test]
fn what_did_not_change_is_not_written() {
    let mut world = World::new(Fake::new(64), 64);
    two_services(&mut world);
    assert!(world.sync() > 0);
    world.slice("a", &[("10.244.1.1", ""), ("10.244.1.2", "")]);
    world
        .changes
        .services
        .insert(ObjectId::new(Kind::Service, "t", "a"));
    assert_eq!(world.update(), 0);
}

#[test]
fn a_restarted_agent_adopts_everything_and_writes_only_what_differs() {
    let mut world = World::new(Fake::new(64), 64);
    two_services(&mut world);
    world.slice(
        "b",
        &[
            ("10.244.1.1", ""),
            ("10.244.1.9", r#""ready":false,"serving":true,"terminating":true"#),
        ],
    );
    world.sync();
    world.slice("a", &[("10.244.1.2", "")]);
    world.update();
    let before = world.programmer.store().dump();
    let World {
        cluster,
        changes,
        programmer,
    } = world;
    let mut again = World {
        cluster,
        changes,
        programmer: Programmer::new(clone(programmer.store()), Limits { max: sizes(64) }),
    };
    assert_eq!(again.sync(), 0);
    assert_eq!(again.programmer.store().dump(), before);

    again.delete("b");
    again.changes.services.clear();
    let mut third = Programmer::new(clone(again.programmer.store()), Limits { max: sizes(64) });
    third.sync(&again.cluster, &NodeContext::default()).unwrap();
    assert_eq!(
        third.store().frontends.borrow().len(),
        1,
        "a service deleted while the agent was away goes"
    );
    assert_eq!(third.store().addresses.borrow().len(), 1);
}

fn clone(store: &Fake) -> Fake {
    Fake {
        frontends: store.frontends.clone(),
        addresses: store.addresses.clone(),
        ranges: store.ranges.clone(),
        slots: store.slots.clone(),
        backends: store.backends.clone(),
        sizes: store.sizes,
        fail_every: Cell::new(0),
        calls: Cell::new(0),
        writes: Cell::new(0),
    }
}

#[test]
fn the_oldest_service_keeps_a_contested_address_and_the_next_inherits_it() {
    let mut world = World::new(Fake::new(64), 64);
    two_services(&mut world);
    world.service("young", "10.96.0.1", NEW, 80);
    world.slice("young", &[("10.244.1.7", "")]);
    world.sync();
    assert_eq!(world.backends_of("10.96.0.1"), ["10.244.1.1", "10.244.1.2"]);
    assert_eq!(world.programmer.problems().count(), 1);
    world.delete("a");
    world.update();
    assert_eq!(world.backends_of("10.96.0.1"), ["10.244.1.7"]);
    assert_eq!(world.programmer.problems().count(), 0);
    // The older one comes back and takes its address again.
    world.service("a", "10.96.0.1", OLD, 80);
    world.update();
    assert_eq!(world.backends_of("10.96.0.1"), ["10.244.1.1", "10.244.1.2"]);
}

#[test]
fn writes_that_fail_are_made_up_for() {
    let mut faulty = World::new(Fake::new(256), 256);
    let mut sound = World::new(Fake::new(256), 256);
    faulty.sync();
    sound.sync();
    faulty.programmer.store().fail_every.set(10);
    for step in 0..500_u32 {
        for world in [&mut faulty, &mut sound] {
            let name = format!("s{}", step % 20);
            match step % 7 {
                0 => world.delete(&name),
                1 | 2 => world.service(&name, &format!("10.96.0.{}", 1 + step % 20), OLD, 80),
                _ => {
                    let address = format!("10.244.1.{}", step % 50);
                    world.slice(&name, &[(address.as_str(), ""), ("10.244.3.3", "")]);
                }
            }
            world.update();
        }
    }
    for _ in 0..20 {
        faulty.programmer.retry();
    }
    assert_eq!(faulty.programmer.pending(), 0);
    assert_eq!(faulty.programmer.store().dump(), sound.programmer.store().dump());
    assert_eq!(
        *faulty.programmer.store().addresses.borrow(),
        *sound.programmer.store().addresses.borrow()
    );
}
