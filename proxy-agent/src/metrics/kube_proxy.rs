//! The metric families of kube-proxy v1.36 that apply to Millrace, with its names, labels and buckets
//! (kubernetes, `pkg/proxy/metrics/metrics.go`).
//!
//! kube-proxy has a proxy for each address family and labels its rounds with it. A round of Millrace covers
//! both families, so it counts for both.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::{Label, set};
use crate::cluster::Family as IpFamily;

type Seconds = Gauge<f64, std::sync::atomic::AtomicU64>;
type Durations = Family<Label, Histogram, fn() -> Histogram>;

/// The families of kube-proxy.
#[derive(Clone)]
pub struct KubeProxy {
    rounds: Durations,
    full_rounds: Durations,
    partial_rounds: Durations,
    programming: Durations,
    last_done: Family<Label, Seconds>,
    last_queued: Family<Label, Seconds>,
    endpoint_changes: Changes,
    service_changes: Changes,
    no_local_endpoints: Family<[(&'static str, &'static str); 2], Gauge>,
    probes: Probes,
    requests: Family<[(&'static str, String); 3], Counter>,
}

/// The counters of health responses, by HTTP status.
#[derive(Clone, Default)]
pub struct Probes {
    healthz: Family<Label, Counter>,
    livez: Family<Label, Counter>,
}

impl Probes {
    /// Counts a response to `/healthz` with this status.
    pub fn healthz(&self, code: &str) {
        self.healthz.get_or_create(&[("code", fixed(code))]).inc();
    }

    /// Counts a response to `/livez` with this status.
    pub fn livez(&self, code: &str) {
        self.livez.get_or_create(&[("code", fixed(code))]).inc();
    }
}

/// The servers send only two statuses.
fn fixed(code: &str) -> &'static str {
    if code == "200" { "200" } else { "503" }
}

/// Changes of one kind of objects.
#[derive(Clone, Default)]
struct Changes {
    pending: Gauge,
    total: Counter,
}

/// A completed round of the loop.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// The duration of the round.
    pub took: Duration,
    /// Whether the round programmed everything, not only the changes.
    pub full: bool,
}

const FAMILIES: [IpFamily; 2] = [IpFamily::V4, IpFamily::V6];

fn of_family(family: IpFamily) -> Label {
    [("ip_family", family.name())]
}

/// Buckets from 1 ms to 16 s.
fn round_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

/// Buckets up to five minutes, as the objective for network programming requires (SIG Scalability).
fn programming_buckets() -> Histogram {
    let steps = |first: u32, step: u32, count: u32| (0..count).map(move |n| f64::from(first + n * step));
    let buckets = [0.25, 0.5].into_iter().chain(steps(1, 1, 59));
    Histogram::new(buckets.chain(steps(60, 5, 12)).chain(steps(120, 30, 7)))
}

impl KubeProxy {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let rounds = || Family::new_with_constructor(round_buckets as fn() -> Histogram);
        let families = Self {
            rounds: rounds(),
            full_rounds: rounds(),
            partial_rounds: rounds(),
            programming: Family::new_with_constructor(programming_buckets as fn() -> Histogram),
            last_done: Family::default(),
            last_queued: Family::default(),
            endpoint_changes: Changes::default(),
            service_changes: Changes::default(),
            no_local_endpoints: Family::default(),
            probes: Probes::default(),
            requests: Family::default(),
        };
        let mut add = Adder(registry.sub_registry_with_prefix("kubeproxy"));
        add.one(
            "sync_proxy_rules_duration_seconds",
            "How long a round of programming took",
            &families.rounds,
        );
        add.one(
            "sync_full_proxy_rules_duration_seconds",
            "How long a round took in which everything was programmed",
            &families.full_rounds,
        );
        add.one(
            "sync_partial_proxy_rules_duration_seconds",
            "How long a round took in which only changes were programmed",
            &families.partial_rounds,
        );
        add.one(
            "network_programming_duration_seconds",
            "Time from a change of a Service or a pod until it was programmed here, by the clock of the control plane",
            &families.programming,
        );
        add.one(
            "sync_proxy_rules_last_timestamp_seconds",
            "When a round was last completed",
            &families.last_done,
        );
        add.one(
            "sync_proxy_rules_last_queued_timestamp_seconds",
            "When a round was last asked for",
            &families.last_queued,
        );
        for (kind, changes) in [
            ("endpoint", &families.endpoint_changes),
            ("service", &families.service_changes),
        ] {
            add.one(
                &format!("sync_proxy_rules_{kind}_changes_pending"),
                &format!("Changes of {kind}s that are not programmed yet"),
                &changes.pending,
            );
            add.one(
                &format!("sync_proxy_rules_{kind}_changes"),
                &format!("Changes of {kind}s that were seen"),
                &changes.total,
            );
        }
        add.one(
            "sync_proxy_rules_no_local_endpoints_total",
            "Services with traffic policy Local that have endpoints, and none of them on this node",
            &families.no_local_endpoints,
        );
        let probes = &families.probes;
        add.one("proxy_healthz", "Replies of /healthz", &probes.healthz);
        add.one("proxy_livez", "Replies of /livez", &probes.livez);
        Adder(registry).one(
            "rest_client_requests",
            "Requests to the API server",
            &families.requests,
        );
        families
    }

    /// The counters for the health servers.
    pub fn probes(&self) -> Probes {
        self.probes.clone()
    }

    /// Notes the time at which a round was requested, in seconds since the epoch.
    pub fn queued(&self, now: f64) {
        for family in FAMILIES {
            self.last_queued.get_or_create(&of_family(family)).set(now);
        }
    }

    /// Notes a completed round.
    pub fn done(&self, round: Round, now: f64) {
        let kind = if round.full {
            &self.full_rounds
        } else {
            &self.partial_rounds
        };
        for label in FAMILIES.map(of_family) {
            for durations in [&self.rounds, kind] {
                durations.get_or_create(&label).observe(round.took.as_secs_f64());
            }
            self.last_done.get_or_create(&label).set(now);
        }
    }

    /// Notes the seconds from a change in the cluster until it was programmed.
    pub fn programmed(&self, family: IpFamily, seconds: f64) {
        self.programming
            .get_or_create(&of_family(family))
            .observe(seconds);
    }

    /// Counts changes that the loop received.
    pub fn changes(&self, services: u64, endpoints: u64) {
        self.service_changes.total.inc_by(services);
        self.endpoint_changes.total.inc_by(endpoints);
    }

    /// Sets the number of changes that wait.
    pub fn pending(&self, services: u64, endpoints: u64) {
        self.service_changes.pending.set(services.cast_signed());
        self.endpoint_changes.pending.set(endpoints.cast_signed());
    }

    /// Sets the number of services whose policy (`internal`, `external`) keeps traffic on this node, which
    /// has no endpoint of theirs.
    pub fn no_local_endpoints(&self, policy: &'static str, family: IpFamily, services: u64) {
        let labels = [("traffic_policy", policy), ("ip_family", family.name())];
        let gauge = self.no_local_endpoints.get_or_create(&labels);
        gauge.set(services.cast_signed());
    }

    /// Adds requests to the API server with this outcome.
    pub fn requests(&self, host: &str, method: &str, code: Option<u16>, count: u64) {
        let code = code.map_or_else(|| "<error>".to_owned(), |code| code.to_string());
        let labels = [
            ("code", code),
            ("host", host.to_owned()),
            ("method", method.to_owned()),
        ];
        set(&self.requests, &labels, count);
    }
}

/// Adds families to a registry.
pub(super) struct Adder<'a>(pub(super) &'a mut Registry);

impl Adder<'_> {
    /// Adds one family; a counter gets its `_total` when the page is written.
    pub(super) fn one<M>(&mut self, name: &str, help: &str, metric: &M)
    where
        M: prometheus_client::registry::Metric + Clone,
    {
        self.0.register(name, help, metric.clone());
    }
}
