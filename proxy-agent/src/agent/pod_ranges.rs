//! The table `POD_RANGES`: which addresses are pods', which are reached through the tunnel, and where what pods send keeps their
//! address.

use std::collections::BTreeMap;

use ipnet::IpNet;
use proxy_common::maps::{RangeFlags, RangeKey};

use super::ranges::{pod_cidrs, range_key};
use crate::bpf::Datapath;
use crate::cluster::ClusterState;
use crate::config::AgentOptions;
use crate::control::ObjectError;
use crate::network::pods::Plan;

/// What the table holds.
#[derive(Debug, Default)]
pub struct PodRanges {
    known: BTreeMap<RangeKey, RangeFlags>,
    adopted: bool,
}

impl PodRanges {
    /// Writes what differs. What an earlier agent wrote is read first.
    pub fn refresh(
        &mut self,
        cluster: &ClusterState,
        options: &AgentOptions,
        plan: &Plan,
        datapath: &Datapath,
    ) -> Result<(), ObjectError> {
        let kept = options.configuration.non_masquerade_cidrs.iter().copied();
        let wanted = range_flags(pod_cidrs(cluster, options), plan.tunnelled(), kept);
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
                object: "pod ranges".into(),
                message: format!(
                    "writing the map POD_RANGES: {error}; will be tried again with the next change"
                ),
            }),
        }
    }
}

/// What `POD_RANGES` says of each range. Only the smallest one that an address lies in is looked at, so a range says too what
/// those around it do.
fn range_flags(
    pods: impl IntoIterator<Item = IpNet>,
    tunnelled: impl IntoIterator<Item = IpNet>,
    not_masqueraded: impl IntoIterator<Item = IpNet>,
) -> BTreeMap<RangeKey, RangeFlags> {
    let mut ranges: BTreeMap<IpNet, u32> = BTreeMap::new();
    let mut add = |range: IpNet, flag| *ranges.entry(range.trunc()).or_default() |= flag;
    pods.into_iter().for_each(|range| add(range, RangeFlags::PODS));
    tunnelled
        .into_iter()
        .for_each(|range| add(range, RangeFlags::TUNNEL));
    not_masqueraded
        .into_iter()
        .for_each(|range| add(range, RangeFlags::NO_MASQUERADE));
    // A range stands before those within it.
    let mut around: Vec<(IpNet, u32)> = Vec::new();
    let mut flags = BTreeMap::new();
    for (range, mut own) in ranges {
        while around.last().is_some_and(|(outer, _)| !outer.contains(&range)) {
            around.pop();
        }
        own |= around.last().map_or(0, |(_, flags)| *flags);
        around.push((range, own));
        flags.insert(range_key(&range), RangeFlags(own));
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_says_what_those_around_it_do() {
        const PODS: u32 = RangeFlags::PODS;
        let nets =
            |texts: &[&str]| -> Vec<IpNet> { texts.iter().map(|text| text.parse().unwrap()).collect() };
        let flags = range_flags(
            nets(&["10.244.0.0/16", "10.244.1.0/24", "10.244.2.0/24", "fd00:1::/64"]),
            nets(&["10.244.2.0/24"]),
            nets(&["10.0.0.0/9", "10.244.2.8/29", "10.244.0.0/17", "192.0.2.7/24"]),
        );
        let expected = [
            ("10.0.0.0/9", RangeFlags::NO_MASQUERADE),
            ("10.244.0.0/16", PODS),
            ("10.244.0.0/17", PODS | RangeFlags::NO_MASQUERADE),
            ("10.244.1.0/24", PODS | RangeFlags::NO_MASQUERADE),
            (
                "10.244.2.0/24",
                PODS | RangeFlags::NO_MASQUERADE | RangeFlags::TUNNEL,
            ),
            (
                "10.244.2.8/29",
                PODS | RangeFlags::NO_MASQUERADE | RangeFlags::TUNNEL,
            ),
            ("192.0.2.0/24", RangeFlags::NO_MASQUERADE),
            ("fd00:1::/64", PODS),
        ];
        let key = |text: &str| range_key(&text.parse().unwrap());
        let expected = expected.map(|(range, flags)| (key(range), RangeFlags(flags)));
        assert_eq!(flags, expected.into());
    }
}
