//! The families that only Millrace has.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::kube_proxy::Adder;
use super::{Label, set, store};
use crate::http::{Cut, Use};

/// The families of Millrace.
#[derive(Clone)]
pub struct Own {
    map_entries: Family<[(&'static str, String); 1], Gauge>,
    map_capacity: Family<[(&'static str, String); 1], Gauge>,
    packets: Family<Label, Counter>,
    bytes: Family<Label, Counter>,
    event_to_map: Histogram,
    conntrack_entries: Gauge,
    conntrack_expired: Counter,
    clients_at_share: Family<Label, Gauge>,
    services: Gauge,
    endpoints: Gauge,
    writes: Counter,
    failing_writes: Gauge,
    problems: Gauge,
    ready: Gauge,
    connections: Family<Label, Gauge>,
    peers_at_share: Family<Label, Gauge>,
    connections_cut: Family<[(&'static str, &'static str); 2], Counter>,
    restored: Family<Label, Counter>,
}

impl Own {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let families = Self {
            map_entries: Family::default(),
            map_capacity: Family::default(),
            packets: Family::default(),
            bytes: Family::default(),
            // From 16 µs to half a second, where normal changes fall, and then coarse buckets for late ones.
            event_to_map: Histogram::new(exponential_buckets(0.000_016, 2.0, 16).chain([1.0, 10.0, 60.0])),
            conntrack_entries: Gauge::default(),
            conntrack_expired: Counter::default(),
            clients_at_share: Family::default(),
            services: Gauge::default(),
            endpoints: Gauge::default(),
            writes: Counter::default(),
            failing_writes: Gauge::default(),
            problems: Gauge::default(),
            ready: Gauge::default(),
            connections: Family::default(),
            peers_at_share: Family::default(),
            connections_cut: Family::default(),
            restored: Family::default(),
        };
        let build: Family<[(&'static str, &'static str); 2], Gauge> = Family::default();
        let version = [
            ("version", env!("CARGO_PKG_VERSION")),
            ("revision", env!("MILLRACE_REVISION")),
        ];
        build.get_or_create(&version).set(1);
        let mut add = Adder(registry.sub_registry_with_prefix("millrace"));
        add.one("build_info", "Which build runs; always 1", &build);
        add.one("ready", "1 if `millrace status` says ready", &families.ready);
        add.one(
            "problems",
            "What `millrace status` lists as errors",
            &families.problems,
        );
        add.one("services", "Services that are served", &families.services);
        add.one("endpoints", "Their endpoints", &families.endpoints);
        add.one("map_entries", "Entries of a map", &families.map_entries);
        add.one(
            "map_capacity",
            "Entries that a map has room for now",
            &families.map_capacity,
        );
        add.one(
            "conntrack_entries",
            "Entries of the flow table, two for each flow",
            &families.conntrack_entries,
        );
        add.one(
            "conntrack_expired",
            "Entries of the tables that evict nothing, removed since they had expired",
            &families.conntrack_expired,
        );
        add.one(
            "clients_at_share",
            "Clients that use all of their share: of flows, source ports, neighbours or host ports",
            &families.clients_at_share,
        );
        add.one(
            "packets",
            "Packets and socket calls by what became of them (see `millrace trace` for what a reason means)",
            &families.packets,
        );
        add.one(
            "bytes",
            "Bytes of packets by what became of them",
            &families.bytes,
        );
        add.one(
            "event_to_map_seconds",
            "Time from the arrival of a change until the maps have it",
            &families.event_to_map,
        );
        add.one("writes", "Map elements written since the start", &families.writes);
        add.one(
            "failing_writes",
            "Map elements that could not be written and are tried again",
            &families.failing_writes,
        );
        add.one(
            "http_connections",
            "Connections to the ports that listen, by what the port is for",
            &families.connections,
        );
        add.one(
            "http_peers_at_share",
            "Addresses that hold as many connections to a port as one may",
            &families.peers_at_share,
        );
        add.one(
            "http_connections_cut",
            "Connections that were refused or ended before their reply: share (of the peer), full (all places), slow",
            &families.connections_cut,
        );
        add.one(
            "restored",
            "Things of ours that were removed or changed and made again, by what they are",
            &families.restored,
        );
        families
    }

    /// Counts an object of the data plane that was missing and that the agent made again.
    pub fn restored(&self, what: &'static str) {
        self.restored.get_or_create(&[("what", what)]).inc();
    }

    /// Notes the time from the arrival of a change until it was in the maps.
    pub fn applied(&self, after: Duration) {
        self.event_to_map.observe(after.as_secs_f64());
    }

    /// Sets the usage of a map.
    pub fn map(&self, name: &str, entries: u64, capacity: u64) {
        let labels = [("map", name.to_owned())];
        self.map_entries.get_or_create(&labels).set(entries.cast_signed());
        self.map_capacity
            .get_or_create(&labels)
            .set(capacity.cast_signed());
        if name == "flows" {
            self.conntrack_entries.set(entries.cast_signed());
        }
    }

    /// Counts the entries that a pass over the flows removed.
    pub fn expired(&self, entries: u64) {
        self.conntrack_expired.inc_by(entries);
    }

    /// Sets the number of clients that use all of a share.
    pub fn at_share(&self, kind: &'static str, clients: usize) {
        self.clients_at_share
            .get_or_create(&[("share", kind)])
            .set(i64::try_from(clients).unwrap_or(i64::MAX));
    }

    /// Sets the packets and bytes that the programs counted for a reason.
    pub fn reason(&self, name: &'static str, packets: u64, bytes: u64) {
        set(&self.packets, &[("reason", name)], packets);
        set(&self.bytes, &[("reason", name)], bytes);
    }

    /// Sets the number of services and endpoints that are proxied.
    pub fn served(&self, services: u64, endpoints: u64) {
        self.services.set(services.cast_signed());
        self.endpoints.set(endpoints.cast_signed());
    }

    /// Sets the writes to maps since the start, and the writes that fail at present.
    pub fn written(&self, writes: u64, failing: u64) {
        store(&self.writes, writes);
        self.failing_writes.set(failing.cast_signed());
    }

    /// Sets the usage of a kind of port.
    pub fn port(&self, port: &'static str, usage: &Use) {
        let label = [("port", port)];
        self.connections
            .get_or_create(&label)
            .set(usage.open.cast_signed());
        self.peers_at_share
            .get_or_create(&label)
            .set(usage.at_share.cast_signed());
        for why in [Cut::Share, Cut::Full, Cut::Slow] {
            let count = usage.cut.get(&why).copied().unwrap_or(0);
            let labels = [("port", port), ("reason", why.name())];
            set(&self.connections_cut, &labels, count);
        }
    }

    /// Sets the state that `millrace status` shows.
    pub fn status(&self, ready: bool, problems: u64) {
        self.ready.set(i64::from(ready));
        self.problems.set(problems.cast_signed());
    }
}
