//! How large the tables have to be.
//!
//! Growing means new tables and programs, which costs a good part of a second whatever it is by. While the first lists still
//! come in, tables grow ahead of what has arrived, so that nothing has to grow when they are complete; before the first sync
//! it is plain what the cluster needs, so that everything grows at once; later a table grows when something does not fit.

use crate::bpf::object::MapSizes;
use crate::cluster::{ClusterState, Family};
use crate::plan::NodeContext;

/// Sizes with room for a whole cluster, as far as the largest ones allow. With `more_to_come` there is room for another eighth.
pub fn for_all(
    cluster: &ClusterState,
    node: &NodeContext,
    more_to_come: bool,
    now: MapSizes,
    max: MapSizes,
) -> MapSizes {
    let (mut frontends, mut addresses, mut endpoints) = (0_usize, 0_u32, 0_usize);
    for (id, service) in cluster.services() {
        let ports = service.ports.len();
        for address in service.cluster_ips() {
            addresses += 1;
            frontends += ports;
            if let Some(external) = service.external.as_deref() {
                let listed = external.load_balancer_ips.len() + external.external_ips.len();
                // Node ports have the loopback too, and under policy Local each address has two views.
                let each = if external.local { 2 } else { 1 };
                addresses += listed as u32;
                frontends += ports * each * (listed + node.node_port_addresses.len() + 1);
            }
            let family = Family::of(address);
            let slices = cluster.slices_of(id).map(|slice| &slice.endpoints);
            let own = slices.filter(|endpoints| endpoints.family() == family);
            // Some ports may have fewer endpoints; that costs no more than a table of twice the size.
            endpoints += ports * own.map(crate::cluster::Endpoints::len).sum::<usize>();
        }
    }
    let ahead = |entries: u32| {
        if more_to_come {
            entries + entries / 8
        } else {
            entries
        }
    };
    let (frontends, endpoints) = (ahead(frontends as u32), ahead(endpoints as u32));
    MapSizes {
        frontends: size(now.frontends, frontends, max.frontends),
        slots: size(now.slots, endpoints, max.slots),
        backends: size(now.backends, endpoints, max.backends),
        addresses: size(now.addresses, ahead(addresses), max.addresses),
        ..now
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
