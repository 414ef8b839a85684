//! Metrics that no code counts as it happens: the agent looks them up when a client reads the metrics.
//!
//! A walk over the tables that the programs write takes some ten milliseconds when they are full, and the
//! loop stands still meanwhile. So the agent walks over them every ten seconds at the most, however many
//! clients read the metrics.

use std::time::{Duration, Instant};

use proxy_common::maps::Reason;

use super::{Agent, report};
use crate::cluster::{ClusterState, Family};
use crate::health::endpoints::only_elsewhere;
use crate::metrics::Metrics;

/// The most age of the counts of entries.
const FRESH: Duration = Duration::from_secs(10);

/// Updates the metrics that have to be looked up.
pub fn measure(agent: &mut Agent) {
    let metrics = agent.reporter.metrics.clone();
    let own = &metrics.own;
    own.served(
        agent.cluster.service_count() as u64,
        agent.programmer.endpoint_count(),
    );
    own.written(agent.programmer.writes(), agent.programmer.pending() as u64);
    let (ready, problems) = report::summary(agent);
    own.status(ready, problems);
    for reason in Reason::ALL {
        if let Ok(counter) = agent.programmer.store().counter(*reason) {
            own.reason(reason.name(), counter.packets, counter.bytes);
        }
    }
    let origin = agent.source.origin();
    let host = origin.split_once("://").map_or("", |(_, host)| host);
    for (method, code, count) in agent.source.requests() {
        metrics.kube_proxy.requests(host, method, code, count);
    }
    for (port, usage) in agent.reporter.usage_of_ports() {
        own.port(port, &usage);
    }
    count_without_local(&metrics, &agent.cluster, &agent.context.name);
    if agent.walked.is_none_or(|walked| walked.elapsed() >= FRESH) {
        for (name, usage) in report::maps(agent) {
            own.map(&name, usage.entries, usage.capacity);
        }
        agent.walked = Some(Instant::now());
    }
}

/// Counts services whose traffic policy leaves them no endpoint on this node.
fn count_without_local(metrics: &Metrics, cluster: &ClusterState, node: &str) {
    for family in [Family::V4, Family::V6] {
        let (mut internal, mut external) = (0, 0);
        for (id, service) in cluster.services() {
            let local_outside = service.external.as_deref().is_some_and(|external| external.local);
            if (service.internal_local || local_outside) && only_elsewhere(cluster, id, node, family) {
                internal += u64::from(service.internal_local);
                external += u64::from(local_outside);
            }
        }
        metrics
            .kube_proxy
            .no_local_endpoints("internal", family, internal);
        metrics
            .kube_proxy
            .no_local_endpoints("external", family, external);
    }
}
