//! The agent's reports to clients: its health, its metrics, the health of single services, events on objects.
//!
//! The loop reports each event that it takes in, and when all of them are applied. All other reports follow
//! from that. A *round* begins with the first event that changes something. It ends when no write is left,
//! however many tries that takes.

use std::net::SocketAddr;
use std::time::Instant;

use jiff::Timestamp;
use tokio::sync::mpsc;

use super::firewall::Firewall;
use crate::cluster::{Changes, ClusterState, Family};
use crate::config::AgentOptions;
use crate::control::ObjectError;
use crate::events::{self, Recorder};
use crate::health::proxy::ProxyHealth;
use crate::health::{Health, ServiceCheck, ServiceChecks, endpoints};
use crate::http::{ConnectionLimiter, Faults, Handler, Room, Use, keep_serving, listen, serve};
use crate::metrics::server::{MetricsServer, Shown};
use crate::metrics::{Metrics, Round, Scrape};
use crate::source::{Change, Event, Kind, Object, ObjectId, ObjectIdMap};
use crate::trouble::Remark;

/// The most requests of the metrics server that wait for the loop.
const SCRAPES_AHEAD: usize = 8;
/// The most events of one round whose times are noted: a round that cannot end must not fill the memory.
const MOST_NOTED: usize = 4096;

/// The servers, the metrics and the recorder of events.
pub struct Reporter {
    /// The agent's metrics.
    pub metrics: Metrics,
    /// Checks whether a firewall drops packets of pods.
    pub firewall: Firewall,
    health: Health,
    checks: ServiceChecks,
    faults: Faults,
    limiter: ConnectionLimiter,
    shown: Shown,
    started: Timestamp,
    round: OpenRound,
    synced: bool,
    recorder: Recorder,
    /// The last message to the owner of each service.
    notified: ObjectIdMap<String>,
}

/// A round that is not complete.
#[derive(Default)]
struct OpenRound {
    began: Option<Instant>,
    /// The time at which the bytes of each event arrived.
    received: Vec<Instant>,
    /// The time at which each slice was changed, by the clock of the control plane.
    triggers: Vec<(Family, Timestamp)>,
    services: u64,
    endpoints: u64,
}

/// The facts of an event that are noted before the loop takes it in.
pub struct Note {
    received: Instant,
    kind: Option<Kind>,
    trigger: Option<(ObjectId, Family, Timestamp)>,
}

impl Note {
    /// The facts of this event.
    pub fn of(event: &Event) -> Self {
        let (kind, trigger) = match &event.change {
            Change::Apply(object) => (Some(object.kind()), trigger(object)),
            Change::Delete(kind, _) => (Some(*kind), None),
            Change::Begin(_) | Change::End(_) | Change::Unreadable(_) | Change::Problems { .. } => {
                (None, None)
            }
        };
        Self {
            received: event.received,
            kind,
            trigger,
        }
    }
}

/// The service of a slice, its family, and the time at which its content changed.
fn trigger(object: &Object) -> Option<(ObjectId, Family, Timestamp)> {
    let Object::EndpointSlice(slice) = object else {
        return None;
    };
    let metadata = &slice.metadata;
    let changed = metadata
        .annotations
        .as_ref()?
        .last_change
        .as_deref()?
        .parse()
        .ok()?;
    let owner = metadata.labels.as_ref()?.service_name.as_deref()?;
    let family = match slice.address_type.as_deref() {
        Some("IPv6") => Family::V6,
        _ => Family::V4,
    };
    let owner = ObjectId::new(Kind::Service, metadata.namespace(), owner);
    Some((owner, family, changed))
}

impl Reporter {
    /// Sends an event to the API server.
    pub fn record(&self, event: events::Event) {
        self.recorder.record(event);
    }

    /// Starts the servers. The receiver yields the requests for metrics that the loop has to look up.
    pub fn start(
        options: &AgentOptions,
        recorder: Recorder,
    ) -> anyhow::Result<(Self, mpsc::Receiver<Scrape>)> {
        let (scrapes, asked) = mpsc::channel(SCRAPES_AHEAD);
        let (health, metrics, faults) = (Health::default(), Metrics::default(), Faults::default());
        let (limiter, reached) = ConnectionLimiter::new();
        let node = options.node_name.clone();
        tokio::spawn(super::at_share::report(reached, node, recorder.clone()));
        let room = Room {
            limiter: limiter.clone(),
            name: "service",
        };
        let reporter = Self {
            checks: ServiceChecks::new(health.clone(), room.clone(), faults.clone(), recorder.clone()),
            health: health.clone(),
            metrics: metrics.clone(),
            firewall: Firewall::start(faults.clone()),
            faults: faults.clone(),
            limiter,
            shown: Shown::default(),
            started: Timestamp::now(),
            round: OpenRound::default(),
            synced: false,
            recorder,
            notified: ObjectIdMap::default(),
        };
        reporter.show(options);
        let configuration = &options.configuration;
        let hard = configuration.bind_address_hard_fail;
        if let Some(address) = configuration.health_address {
            let probes = metrics.kube_proxy.probes();
            let handler = ProxyHealth { health, probes };
            start_server(address, handler, room.called("health"), &faults, hard)?;
        }
        if let Some(address) = configuration.metrics_address {
            let server = MetricsServer {
                metrics,
                shown: reporter.shown.clone(),
                scrapes,
            };
            start_server(address, server, room.called("metrics"), &faults, hard)?;
        }
        tokio::spawn(super::stale_rules::look_for_stale_rules(faults));
        Ok((reporter, asked))
    }

    /// Sets the configuration that `/configz` shows.
    pub fn show(&self, options: &AgentOptions) {
        self.shown.set(&super::configz::page(options).to_string());
    }

    /// The store in which tasks beside the loop note problems.
    pub fn faults(&self) -> Faults {
        self.faults.clone()
    }

    /// The use of the ports that listen.
    pub fn usage_of_ports(&self) -> impl Iterator<Item = (&'static str, Use)> {
        self.limiter.usage().into_iter()
    }

    /// The recorder of events.
    pub fn recorder(&self) -> Recorder {
        self.recorder.clone()
    }

    /// Problems with ports, and problems that tasks beside the loop noted.
    pub fn problems(&self) -> Vec<ObjectError> {
        let faults = self.faults.list().into_iter();
        faults
            .map(|(object, Remark { code, message })| ObjectError {
                code,
                object,
                message,
            })
            .collect()
    }

    /// Takes note of an event that the loop took in; `changes` has to be applied since the last round.
    pub fn taken(&mut self, note: &Note, changes: &Changes) {
        let services = u64::from(note.kind == Some(Kind::Service));
        let endpoints = u64::from(note.kind == Some(Kind::EndpointSlice));
        self.metrics.kube_proxy.changes(services, endpoints);
        if changes.is_empty() {
            return;
        }
        self.health.waits(note.received);
        let round = &mut self.round;
        if round.began.is_none() {
            round.began = Some(Instant::now());
            self.metrics.kube_proxy.queued(seconds(Timestamp::now()));
        }
        round.services += services;
        round.endpoints += endpoints;
        if note.kind.is_some() && self.synced && round.received.len() < MOST_NOTED {
            round.received.push(note.received);
        }
        if let Some((owner, family, changed)) = note.trigger
            && changed > self.started
            && changes.services.contains(&owner)
            && round.triggers.len() < MOST_NOTED
        {
            round.triggers.push((family, changed));
        }
    }

    /// Takes note of whether every event is applied. The loop calls it after each step.
    pub fn observe(&mut self, settled: bool) {
        if !settled {
            if self.synced || self.round.began.is_some() {
                self.health.waits(Instant::now());
            }
            self.metrics
                .kube_proxy
                .pending(self.round.services, self.round.endpoints);
            return;
        }
        self.health.settled();
        let Some(began) = self.round.began.take() else {
            return;
        };
        let (done, now) = (Instant::now(), Timestamp::now());
        let kube_proxy = &self.metrics.kube_proxy;
        let took = done.saturating_duration_since(began);
        let unix = seconds(now);
        let full = !std::mem::replace(&mut self.synced, true);
        kube_proxy.done(Round { took, full }, unix);
        kube_proxy.pending(0, 0);
        for received in self.round.received.drain(..) {
            self.metrics.own.applied(done.saturating_duration_since(received));
        }
        for (family, changed) in self.round.triggers.drain(..) {
            // The clocks of two machines differ, and no time is negative.
            kube_proxy.programmed(family, (unix - seconds(changed)).max(0.0));
        }
        (self.round.services, self.round.endpoints) = (0, 0);
    }

    /// Reads from this node's object whether the node leaves the cluster.
    pub fn look_at_node(&self, cluster: &ClusterState, node: &str) {
        let leaving = cluster.node(node).is_some_and(|node| node.leaving);
        self.health.set_node_leaving(leaving);
    }

    /// Updates the health of these services.
    pub fn look_at_services(
        &mut self,
        services: impl Iterator<Item = ObjectId>,
        cluster: &ClusterState,
        node: &str,
    ) {
        self.checks
            .update(services.map(|id| (id, check(id, cluster, node))));
    }

    /// Reports to the owner of a service which part of it is not served, if that is new. `problems` came up
    /// with the tables; the object's own problems are added to them.
    pub fn notify(&mut self, id: ObjectId, cluster: &ClusterState, problems: &[Remark]) {
        let of_object = cluster.problems_of(id).iter().map(String::as_str);
        let of_tables = problems.iter().map(|problem| problem.message.as_str());
        let note = of_object.chain(of_tables).collect::<Vec<_>>().join("; ");
        let Some(service) = cluster.service(id).filter(|_| !note.is_empty()) else {
            self.notified.remove(&id);
            return;
        };
        if self.notified.get(&id) != Some(&note) {
            self.recorder.record(events::Event::warning_of_service(
                cluster.names().text(service.namespace),
                &service.name,
                "NotFullyServed",
                "Serve",
                note.clone(),
            ));
            self.notified.insert(id, note);
        }
    }
}

/// The health of a service as its balancer asks for it, if the service has a port for it.
fn check(id: ObjectId, cluster: &ClusterState, node: &str) -> Option<ServiceCheck> {
    let service = cluster.service(id)?;
    let external = service.external.as_deref()?;
    let port = external.health_check_node_port;
    (external.local && port != 0).then(|| ServiceCheck {
        namespace: cluster.names().text(service.namespace).to_owned(),
        name: service.name.to_string(),
        port,
        endpoints: endpoints::local_ready(cluster, id, node),
    })
}

fn start_server(
    address: SocketAddr,
    handler: impl Handler,
    room: Room,
    faults: &Faults,
    hard: bool,
) -> anyhow::Result<()> {
    let what = room.name;
    if hard {
        use anyhow::Context as _;
        let listener = listen(address).with_context(|| {
            format!("listening at {address} for {what}, which bindAddressHardFail makes necessary")
        })?;
        tokio::spawn(async move { serve(listener, handler, &room).await });
    } else {
        let subject = format!("{what} port");
        let faults = faults.clone();
        tokio::spawn(keep_serving(address, handler, room, faults, subject, |_| {}));
    }
    Ok(())
}

fn seconds(time: Timestamp) -> f64 {
    time.as_duration().as_secs_f64()
}
