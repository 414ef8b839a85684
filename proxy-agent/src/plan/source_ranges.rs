//! The clients that the addresses of load balancers accept, and a service's share of the table of source
//! ranges.
//!
//! Every group has its own copy of the ranges of its family, and all services share one table of a fixed
//! size. A service beyond its share loses its load balancer's addresses: they are closed, never open.

use std::sync::Arc;

use ipnet::IpNet;
use proxy_common::maps::{FrontendFlags, SourceRangeKey};

use super::frontends::PlannedFrontend;
use super::service::{Group, ServicePlan};
use crate::cluster::{Family, Service};
use crate::trouble::{Remark, Trouble};

/// The number of table entries that one service may have.
pub const SHARE: usize = 65_536;

/// The ranges that apply to some frontends of a service.
pub fn of(service: &Service, family: Family, frontends: &[PlannedFrontend]) -> Arc<[IpNet]> {
    let external = service
        .external
        .as_deref()
        .filter(|_| frontends.iter().any(is_limited));
    let ranges = external.and_then(|external| external.source_ranges.as_ref());
    ranges.map(|ranges| ranges.of(family).clone()).unwrap_or_default()
}

/// Closes the load balancer's addresses of a service that would exceed its share.
pub fn keep_to_share(plan: &mut ServicePlan) {
    let count = entries(plan);
    if count > SHARE {
        close(plan);
        let message = format!(
            "spec.loadBalancerSourceRanges: {count} entries for all ports together, where a service has {SHARE} at the \
             most; the load balancer's addresses are left out"
        );
        plan.remarks.push(Remark::new(Trouble::LimitExceeded, message));
    }
}

/// The number of entries that a plan needs.
pub fn entries(plan: &ServicePlan) -> usize {
    plan.groups.iter().map(|group| group.source_ranges.len()).sum()
}

/// Removes the frontends that would be open to every client without their ranges.
pub fn close(plan: &mut ServicePlan) {
    for group in &mut plan.groups {
        group.frontends.retain(|frontend| !is_limited(frontend));
        group.source_ranges = Arc::default();
    }
    plan.groups.retain(|group| !group.frontends.is_empty());
}

fn is_limited(frontend: &PlannedFrontend) -> bool {
    FrontendFlags(u32::from(frontend.flags)).has(FrontendFlags::SOURCE_RANGES)
}

/// The ranges of a group as keys of the table, in order.
pub(super) fn keys(group: &Group, service: u32) -> Vec<SourceRangeKey> {
    let key = |range: &IpNet| SourceRangeKey {
        prefix_len: 32 + u32::from(range.prefix_len()) + if range.addr().is_ipv4() { 96 } else { 0 },
        service,
        address: range.network().into(),
    };
    let mut keys: Vec<_> = group.source_ranges.iter().map(key).collect();
    // The keys are in this order already, so the sort compares each pair once.
    keys.sort_unstable();
    keys
}

/// Adds to `removed` the elements that only the first list has, and to `added` those that only the second
/// has. Both lists are sorted.
pub(super) fn compare<T: Ord + Copy>(old: &[T], new: &[T], added: &mut Vec<T>, removed: &mut Vec<T>) {
    let mut old = old.iter().peekable();
    for key in new {
        while let Some(gone) = old.next_if(|known| *known < key) {
            removed.push(*gone);
        }
        if old.next_if_eq(&key).is_none() {
            added.push(*key);
        }
    }
    removed.extend(old.copied());
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::*;
    use proxy_common::maps::{Backend, FrontendKey, Slot};
    use proxy_common::{Ip, Port};

    use super::*;
    use crate::plan::programmed::View;
    use crate::plan::{Allocator, Frontends, Programmed, Writes, diff};

    struct Empty;

    impl View for Empty {
        fn slot(&self, _index: u32) -> Slot {
            Slot::default()
        }

        fn backend(&self, _id: u32) -> Backend {
            Backend::default()
        }
    }

    /// Plans four ports of a load balancer with 30 000 ranges.
    fn planned(first: u32) -> ServicePlan {
        let address = |number: u32| std::net::Ipv4Addr::from((11 << 24) + number * 2);
        let source_ranges: Arc<[IpNet]> = (first..first + 30_000)
            .map(|number| IpNet::from(std::net::IpAddr::from(address(number))))
            .collect();
        let group = |port| Group {
            frontends: Frontends::from_buf([PlannedFrontend {
                key: FrontendKey::new(Ip::from(std::net::IpAddr::from(address(0))), Port::new(port), 6),
                flags: FrontendFlags::SOURCE_RANGES as u16,
            }]),
            port_name: crate::cluster::Names::default().intern("p"),
            local: false,
            active: Vec::new(),
            draining: Vec::new(),
            flags: 0,
            affinity_seconds: 0,
            source_ranges: source_ranges.clone(),
        };
        ServicePlan {
            groups: (80..84).map(group).collect(),
            remarks: Vec::new(),
        }
    }

    #[test]
    fn many_ranges_are_compared_in_seconds() {
        let mut allocator = Allocator::new(64, 64);
        let mut writes = Writes::default();
        let mut diff = |old: &Programmed, first| {
            writes.clear();
            let started = Instant::now();
            let new = diff(old, &planned(first), &Empty, &mut allocator, &mut writes).expect("room");
            // A comparison of each range with each other one would take minutes.
            assert!(
                started.elapsed() < Duration::from_secs(10),
                "{:?}",
                started.elapsed()
            );
            (new, writes.set_ranges.len(), writes.remove_ranges.len())
        };
        let (programmed, set, removed) = diff(&Programmed::default(), 0);
        assert_eq!((set, removed), (120_000, 0));
        let (programmed, set, removed) = diff(&programmed, 0);
        assert_eq!((set, removed), (0, 0));
        let (_, set, removed) = diff(&programmed, 15_000);
        assert_eq!((set, removed), (60_000, 60_000));
    }

    proptest! {
        #[test]
        fn two_lists_differ_by_what_is_added_and_removed(
            old in prop::collection::btree_set(0_u8..40, 0..40),
            new in prop::collection::btree_set(0_u8..40, 0..40),
        ) {
            let list = |set: &std::collections::BTreeSet<u8>| set.iter().copied().collect::<Vec<_>>();
            let (mut added, mut removed) = (Vec::new(), Vec::new());
            compare(&list(&old), &list(&new), &mut added, &mut removed);
            prop_assert_eq!(added, new.difference(&old).copied().collect::<Vec<_>>());
            prop_assert_eq!(removed, old.difference(&new).copied().collect::<Vec<_>>());
        }
    }
}
