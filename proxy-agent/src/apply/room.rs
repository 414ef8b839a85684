//! The sizes of the tables.
//!
//! To grow, the agent makes new tables and programs, which costs a good part of a second for any difference
//! in size. While the first lists still come in, tables grow ahead of the objects that have arrived. So no
//! table has to grow when the lists are complete. Before the first sync the needs of the whole cluster are
//! known, so that all tables grow at once. Later a table grows when an element does not fit. Then all tables
//! grow that would be full before this one is full again, and each as far as the new elements need. So tables
//! that fill together cost one set of programs for each doubling of the cluster.

use crate::bpf::object::MapSizes;
use crate::cluster::{ClusterState, Family};
use crate::plan::{Full, NodeContext};
use crate::source::{Change, Object};

/// The number of entries that each table needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    frontends: u32,
    addresses: u32,
    /// The need of slots, and of backends.
    endpoints: u32,
}

impl Need {
    /// The need of a whole cluster.
    pub fn of(cluster: &ClusterState, node: &NodeContext) -> Self {
        let (mut frontends, mut addresses, mut endpoints) = (0_usize, 0_usize, 0_usize);
        for (id, service) in cluster.services() {
            let ports = service.ports.len();
            for address in service.cluster_ips() {
                addresses += 1;
                frontends += ports;
                if let Some(external) = service.external.as_deref() {
                    let listed = external.load_balancer_ips.len() + external.external_ips.len();
                    // Node ports have the loopback too. Under policy Local each address has two views.
                    let each = if external.local { 2 } else { 1 };
                    addresses += listed;
                    frontends += ports * each * (listed + node.node_port_addresses.len() + 1);
                }
                let family = Family::of(address);
                let slices = cluster.slices_of(id).map(|slice| &slice.endpoints);
                let own = slices.filter(|endpoints| endpoints.family() == family);
                // Some ports may have fewer endpoints. That costs no more than a table of twice the size.
                endpoints += ports * own.map(crate::cluster::Endpoints::len).sum::<usize>();
            }
        }
        Self {
            frontends: frontends as u32,
            addresses: addresses as u32,
            endpoints: endpoints as u32,
        }
    }

    /// The same need and one part in 64 more.
    #[must_use]
    pub fn and_more(self) -> Self {
        let more = |entries: u32| entries + entries / 64;
        Self {
            frontends: more(self.frontends),
            addresses: more(self.addresses),
            endpoints: more(self.endpoints),
        }
    }

    /// Sizes that satisfy the need, as far as the largest sizes allow.
    pub fn sizes(self, now: MapSizes, max: MapSizes) -> MapSizes {
        MapSizes {
            frontends: size(now.frontends, self.frontends, max.frontends),
            slots: size(now.slots, self.endpoints, max.slots),
            backends: size(now.backends, self.endpoints, max.backends),
            addresses: size(now.addresses, self.addresses, max.addresses),
            ..now
        }
    }

    /// The number of further entries that fit into every table.
    pub fn left(self, sizes: &MapSizes) -> u32 {
        [
            (sizes.frontends, self.frontends),
            (sizes.slots, self.endpoints),
            (sizes.backends, self.endpoints),
            (sizes.addresses, self.addresses),
        ]
        .map(|(size, need)| size.saturating_sub(need))
        .into_iter()
        .min()
        .unwrap_or(0)
    }
}

/// Entries that the tables hold, with those of a service that does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// The number of frontends.
    pub frontends: u32,
    /// The number of slots.
    pub slots: u32,
    /// The number of backends.
    pub backends: u32,
    /// The number of addresses.
    pub addresses: u32,
}

impl Load {
    /// Sizes that hold the load if a table is full, as far as the largest sizes allow.
    pub fn sizes(self, full: Full, now: MapSizes, max: MapSizes) -> MapSizes {
        let next = |table: Full, now: u32, load: u32, max: u32| {
            // A table that is more than half full would be full before a table that doubles is full again.
            let doubles = table == full || load > now / 2;
            let least = if doubles { now.saturating_add(1) } else { now };
            size(now, load.max(least), max)
        };
        MapSizes {
            frontends: next(Full::Frontends, now.frontends, self.frontends, max.frontends),
            slots: next(Full::Slots, now.slots, self.slots, max.slots),
            backends: next(Full::Backends, now.backends, self.backends, max.backends),
            addresses: next(Full::Addresses, now.addresses, self.addresses, max.addresses),
            ..now
        }
    }
}

/// An upper bound of the entries that a change of an object adds to a table.
pub fn most_entries(change: &Change) -> usize {
    let Change::Apply(object) = change else { return 0 };
    match &**object {
        Object::Service(service) => {
            let Some(spec) = &service.spec else { return 0 };
            let listed = spec.external_ips.as_ref().map_or(0, Vec::len);
            let balancer = service
                .status
                .as_ref()
                .and_then(|status| status.load_balancer.as_ref());
            let ingress = balancer
                .and_then(|balancer| balancer.ingress.as_ref())
                .map_or(0, Vec::len);
            // Cluster IPs and loopbacks of two families, a node with some addresses, and two views of each.
            spec.ports.as_ref().map_or(0, Vec::len) * 2 * (8 + listed + ingress)
        }
        Object::EndpointSlice(slice) => {
            slice.ports.as_ref().map_or(0, Vec::len) * slice.endpoints.as_ref().map_or(0, Vec::len)
        }
        _ => 0,
    }
}

/// A size for so many entries: the present size, doubled as often as needed, and no more than the largest. It
/// is never less than the present size.
pub fn size(now: u32, entries: u32, max: u32) -> u32 {
    let mut size = now.max(1);
    while size < entries {
        size = size.saturating_mul(2);
    }
    size.min(max).max(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_double_within_limits() {
        assert_eq!(size(100, 100, 1_000), 100);
        assert_eq!(size(100, 101, 1_000), 200);
        assert_eq!(size(100, 900, 1_000), 1_000);
        assert_eq!(size(100, 5_000, 1_000), 1_000);
        assert_eq!(size(100, u32::MAX, u32::MAX), u32::MAX);
        assert_eq!(
            size(100, 5_000, 50),
            100,
            "a limit below the present size takes nothing away"
        );
    }
}
