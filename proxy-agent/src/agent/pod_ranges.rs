//! The table `POD_RANGES`: ranges of pods, ranges reached through the tunnel, and ranges to which packets of
//! pods keep their source address.

use std::collections::BTreeMap;

use ipnet::IpNet;
use proxy_common::maps::{NodeNumber, RangeFlags, RangeKey};

use super::ranges::{is_host, pod_cidrs, pod_cidrs_of_others, range_key};
use crate::bpf::Datapath;
use crate::cluster::ClusterState;
use crate::config::AgentOptions;
use crate::control::ObjectError;
use crate::network::Links;
use crate::network::pods::Plan;
use crate::trouble::Trouble;

/// The content of the table.
#[derive(Debug, Default)]
pub struct PodRanges {
    known: BTreeMap<RangeKey, RangeFlags>,
    adopted: bool,
}

impl PodRanges {
    /// Writes the differences. The first call reads the entries of an earlier agent.
    pub fn refresh(
        &mut self,
        cluster: &ClusterState,
        options: &AgentOptions,
        (plan, links): (&Plan, &Links),
        datapath: &Datapath,
    ) -> Result<(), ObjectError> {
        let kept = options.configuration.non_masquerade_cidrs.iter().copied();
        let local = links.local_ranges().filter(|range| !is_host(range));
        let wanted = range_flags(Ranges {
            pods: pod_cidrs(cluster, options),
            of_others: pod_cidrs_of_others(cluster, options).collect(),
            tunnelled: plan.tunnelled().collect(),
            not_masqueraded: kept.collect(),
            local: local.collect(),
        });
        if !self.adopted {
            let mut found = BTreeMap::new();
            let result = datapath.pod_ranges.for_each(|key, flags| {
                found.insert(key, RangeFlags(flags));
            });
            if result.is_ok() {
                self.known = found;
                self.adopted = true;
            }
        }
        let mut failed = None;
        for key in self.known.keys().filter(|key| !wanted.contains_key(key)) {
            failed = datapath.pod_ranges.remove(key).err().or(failed);
        }
        for (key, flags) in &wanted {
            if self.known.get(key) != Some(flags) {
                failed = datapath.pod_ranges.set(key, &flags.0).err().or(failed);
            }
        }
        match failed {
            None => {
                self.known = wanted;
                Ok(())
            }
            Some(error) => Err(ObjectError {
                code: Trouble::MapAccessFailed,
                object: "pod ranges".into(),
                message: format!(
                    "writing the map POD_RANGES: {error}; will be tried again with the next change"
                ),
            }),
        }
    }
}

/// Ranges by their properties.
#[derive(Default)]
struct Ranges {
    /// Ranges of pods.
    pods: Vec<IpNet>,
    /// Ranges of the pods of other nodes, each with its node.
    of_others: Vec<(IpNet, NodeNumber)>,
    /// Ranges that are reached through the tunnel.
    tunnelled: Vec<IpNet>,
    /// Ranges to which packets of pods keep their source address.
    not_masqueraded: Vec<IpNet>,
    /// Ranges that a route makes the node's own.
    local: Vec<IpNet>,
}

/// The flags of each range in `POD_RANGES`. The programs look at the smallest range that contains an address.
/// So each range has the flags of the ranges around it too. It has the node number of the ranges around it
/// only if it has none of its own.
fn range_flags(all: Ranges) -> BTreeMap<RangeKey, RangeFlags> {
    let mut ranges: BTreeMap<IpNet, u32> = BTreeMap::new();
    for (of_kind, flag) in [
        (all.pods, RangeFlags::PODS),
        (all.tunnelled, RangeFlags::TUNNEL),
        (all.not_masqueraded, RangeFlags::NO_MASQUERADE),
        (all.local, RangeFlags::LOCAL),
    ] {
        for range in of_kind {
            *ranges.entry(range.trunc()).or_default() |= flag;
        }
    }
    let mut owners: BTreeMap<IpNet, u32> = BTreeMap::new();
    for (range, number) in all.of_others {
        // If two nodes have one range, the first of them keeps it, as with its route.
        owners
            .entry(range.trunc())
            .or_insert(number.0 << NodeNumber::SHIFT);
    }
    // The order puts a range before the ranges within it.
    let mut around: Vec<(IpNet, u32)> = Vec::new();
    let mut flags = BTreeMap::new();
    for (range, mut own) in ranges {
        while around.last().is_some_and(|(outer, _)| !outer.contains(&range)) {
            around.pop();
        }
        let (outer, owner) = around.last().map_or((0, 0), |(_, flags)| split(*flags));
        own |= outer | owners.get(&range).copied().unwrap_or(owner);
        around.push((range, own));
        flags.insert(range_key(&range), RangeFlags(own));
    }
    flags
}

/// The flags of a value, and its node number.
const fn split(value: u32) -> (u32, u32) {
    let flags = (1 << NodeNumber::SHIFT) - 1;
    (value & flags, value & !flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_says_what_those_around_it_do() {
        const PODS: u32 = RangeFlags::PODS;
        let nets =
            |texts: &[&str]| -> Vec<IpNet> { texts.iter().map(|text| text.parse().unwrap()).collect() };
        let flags = range_flags(Ranges {
            pods: nets(&["10.244.0.0/16", "10.244.1.0/24", "10.244.2.0/24", "fd00:1::/64"]),
            of_others: vec![("10.244.2.0/24".parse().unwrap(), NodeNumber(7))],
            tunnelled: nets(&["10.244.2.0/24"]),
            not_masqueraded: nets(&["10.0.0.0/9", "10.244.2.8/29", "10.244.0.0/17", "192.0.2.7/24"]),
            local: nets(&["203.0.113.0/24"]),
        });
        let of_seven = 7 << NodeNumber::SHIFT;
        let expected = [
            ("10.0.0.0/9", RangeFlags::NO_MASQUERADE),
            ("10.244.0.0/16", PODS),
            ("10.244.0.0/17", PODS | RangeFlags::NO_MASQUERADE),
            ("10.244.1.0/24", PODS | RangeFlags::NO_MASQUERADE),
            (
                "10.244.2.0/24",
                PODS | RangeFlags::NO_MASQUERADE | RangeFlags::TUNNEL | of_seven,
            ),
            (
                "10.244.2.8/29",
                PODS | RangeFlags::NO_MASQUERADE | RangeFlags::TUNNEL | of_seven,
            ),
            ("192.0.2.0/24", RangeFlags::NO_MASQUERADE),
            ("203.0.113.0/24", RangeFlags::LOCAL),
            ("fd00:1::/64", PODS),
        ];
        let key = |text: &str| range_key(&text.parse().unwrap());
        let expected = expected.map(|(range, flags)| (key(range), RangeFlags(flags)));
        assert_eq!(flags, expected.into());
    }
}
