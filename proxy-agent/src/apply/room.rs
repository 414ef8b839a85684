//! How large the tables have to be.
//!
//! Growing means new tables and programs, which costs a good part of a second whatever it is by. While the first lists still
//! come in, tables grow ahead of what has arrived, so that nothing has to grow when they are complete; before the first sync
//! it is plain what the cluster needs, so that everything grows at once; later a table grows when something does not fit.
//! Then all grow that would be full before it is full again, and each as far as what comes in needs, so that tables that
//! fill together cost one set of programs for each doubling of the cluster.

use crate::bpf::object::MapSizes;
use crate::cluster::{ClusterState, Family};
use crate::plan::{Full, NodeContext};
use crate::source::{Change, Object};

/// Entries that each table needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    frontends: u32,
    addresses: u32,
    /// Of slots, and of backends.
    endpoints: u32,
}

impl Need {
    /// What a whole cluster needs.
    pub fn of(cluster: &ClusterState, node: &NodeContext) -> Self {
        let (mut frontends, mut addresses, mut endpoints) = (0_usize, 0_usize, 0_usize);
        for (id, service) in cluster.services() {
            let ports = service.ports.len();
            for address in service.cluster_ips() {
                addresses += 1;
                frontends += ports;
                if let Some(external) = service.external.as_deref() {
                    let listed = external.load_balancer_ips.len() + external.external_ips.len();
                    // Node ports have the loopback too, and under policy Local each address has two views.
                    let each = if external.local { 2 } else { 1 };
                    addresses += listed;
                    frontends += ports * each * (listed + node.node_port_addresses.len() + 1);
                }
                let family = Family::of(address);
                let slices = cluster.slices_of(id).map(|slice| &slice.endpoints);
                let own = slices.filter(|endpoints| endpoints.family() == family);
                // Some ports may have fewer endpoints; that costs no more than a table of twice the size.
                endpoints += ports * own.map(crate::cluster::Endpoints::len).sum::<usize>();
            }
        }
        Self {
            frontends: frontends as u32,
            addresses: addresses as u32,
            endpoints: endpoints as u32,
        }
    }

    /// The same and a little more.
    #[must_use]
    pub fn and_more(self) -> Self {
        let more = |entries: u32| entries + entries / 64;
        Self {
            frontends: more(self.frontends),
            addresses: more(self.addresses),
            endpoints: more(self.endpoints),
        }
    }

    /// Sizes with room for it, as far as the largest ones allow.
    pub fn sizes(self, now: MapSizes, max: MapSizes) -> MapSizes {
        MapSizes {
            frontends: size(now.frontends, self.frontends, max.frontends),
            slots: size(now.slots, self.endpoints, max.slots),
            backends: size(now.backends, self.endpoints, max.backends),
            addresses: size(now.addresses, self.addresses, max.addresses),
            ..now
        }
    }

    /// How many more entries fit into every table.
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
    /// Of frontends.
    pub frontends: u32,
    /// Of slots.
    pub slots: u32,
    /// Of backends.
    pub backends: u32,
    /// Of addresses.
    pub addresses: u32,
}

impl Load {
    /// Sizes with room for it where a table is full, as far as the largest ones allow.
    pub fn sizes(self, full: Full, now: MapSizes, max: MapSizes) -> MapSizes {
        let next = |table: Full, now: u32, load: u32, max: u32| {
            // What is more than half full would be full before a table that doubles is full again.
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

/// The most entries that what happened to an object can add to a table.
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

/// A size for so many entries: twice the size as often as needed, never less than now, nor above the largest.
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
