//! The facts besides their service that plans depend on: the node's addresses and zone, ranges of the
//! cluster, API servers.

use super::{Agent, api_servers, ranges};
use crate::plan::NodeContext;
use crate::source::ObjectIdSet;

impl Agent {
    /// Collects these facts, and adds to `services` those whose plans may change by them. If the zone of this
    /// node has changed, these are all services; otherwise those that are reached from outside.
    pub(super) fn update_context(&mut self, services: &mut ObjectIdSet) {
        self.reporter.look_at_node(&self.cluster, &self.context.name);
        let zone = self
            .cluster
            .node(&self.context.name)
            .and_then(|node| node.zone.as_ref())
            .map(ToString::to_string);
        let mut cluster_ranges = ranges::service_cidrs(&self.cluster, &self.options);
        cluster_ranges.extend(ranges::pod_cidrs(&self.cluster, &self.options));
        let context = NodeContext {
            name: self.context.name.clone(),
            zone,
            node_port_addresses: self.node.node_port_addresses(&self.options),
            external_ips: self.options.configuration.external_ips,
            cluster_ranges,
            no_hosts: self.node.addresses().no_hosts(),
            api_servers: api_servers::find(&self.cluster, &self.source),
            tunnel_port: self.options.tunnel_port(),
        };
        let old = std::mem::replace(&mut self.context, context);
        if old == self.context {
            return;
        }
        let everywhere = old.zone != self.context.zone;
        let concerned = self
            .cluster
            .services()
            .filter(|(_, service)| everywhere || service.external.is_some());
        services.extend(concerned.map(|(id, _)| id));
    }

    /// Reads the facts of the node anew. Plans the services anew whose addresses from outside may have
    /// another meaning now.
    pub(super) async fn look_outside(&mut self) {
        if !self.synced {
            return;
        }
        self.refresh_node().await;
        // Node ports are served on addresses that may be new or gone; the same holds for API servers.
        let mut services = ObjectIdSet::default();
        let servers = self.context.api_servers.clone();
        self.update_context(&mut services);
        if !services.is_empty() {
            let progress = self.programmer.update(&services, &self.cluster, &self.context);
            self.note(progress.writes);
        }
        let addresses = self.programmer.take_changed_addresses();
        if !addresses.is_empty()
            || servers != self.context.api_servers
            || self.node.has_other_ports(&self.cluster, &self.programmer)
        {
            self.refresh_node().await;
        }
    }
}
