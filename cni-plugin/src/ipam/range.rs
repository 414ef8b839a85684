//! Ranges of addresses, with the rules of host-local. An interface gets one address of each *set*. A set
//! consists of ranges of one family that are used one after the other.
//!
//! By default a range goes from the second address of its subnet to the last one, in IPv4 to the last but
//! one. The first address is the network's, and the last one of IPv4 is for broadcast. The default gateway is
//! the second address of the subnet.
//!
//! No pod gets the gateway's address, although Millrace's pods have another gateway. So host-local can use
//! the directory later, and the addresses stay the same when a plugin takes over a node.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::Deserialize;

use crate::config::go;

/// A range as the configuration has it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RangeConfig {
    subnet: IpNet,
    #[serde(default, deserialize_with = "go::address")]
    range_start: Option<IpAddr>,
    #[serde(default, deserialize_with = "go::address")]
    range_end: Option<IpAddr>,
    #[serde(default, deserialize_with = "go::address")]
    gateway: Option<IpAddr>,
}

/// A checked range. Both ends belong to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// The subnet that contains the range.
    pub subnet: IpNet,
    /// The first address.
    pub start: IpAddr,
    /// The last address.
    pub end: IpAddr,
    /// The gateway, whose address no pod gets.
    pub gateway: IpAddr,
}

/// At least one range, all of one family and without overlap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeSet {
    /// The ranges in the order of use.
    pub ranges: Vec<Range>,
}

impl Range {
    fn check(config: &RangeConfig) -> Result<Self, String> {
        let subnet = config.subnet;
        if subnet.addr() != subnet.network() {
            return Err(format!("{subnet} has host bits set: write {}", subnet.trunc()));
        }
        // A subnet needs addresses for itself, a gateway and at least one pod.
        if subnet.prefix_len() + 2 > subnet.max_prefix_len() {
            return Err(format!("{subnet} is too small to give addresses from"));
        }
        let number = |ip| number(ip) - number(subnet.network());
        let at = |offset| address(number_of(subnet) + offset, subnet.network());
        let size = number(subnet.broadcast());
        let range = Self {
            subnet,
            start: config.range_start.unwrap_or(at(1)),
            end: config
                .range_end
                .unwrap_or(at(size - u128::from(subnet.network().is_ipv4()))),
            gateway: config.gateway.unwrap_or(at(1)),
        };
        for (key, ip) in [
            ("rangeStart", range.start),
            ("rangeEnd", range.end),
            ("gateway", range.gateway),
        ] {
            if !subnet.contains(&ip) {
                return Err(format!("{key} {ip} is not in {subnet}"));
            }
        }
        if range.start > range.end {
            return Err(format!(
                "rangeStart {} is after rangeEnd {}",
                range.start, range.end
            ));
        }
        Ok(range)
    }

    /// Whether an address belongs to the range, even as the gateway.
    pub fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.start.is_ipv4() && self.start <= ip && ip <= self.end
    }

    /// The number of addresses; `u128::MAX` for all addresses of IPv6.
    fn size(&self) -> u128 {
        (number(self.end) - number(self.start)).saturating_add(1)
    }
}

impl RangeSet {
    /// Checks all sets of a configuration.
    pub fn all(configs: &[Vec<RangeConfig>]) -> Result<Vec<Self>, String> {
        let mut sets: Vec<Self> = Vec::new();
        for (index, configs) in configs.iter().enumerate() {
            let set = Self::check(configs).map_err(|why| format!("set {index}: {why}"))?;
            for (other, before) in sets.iter().enumerate() {
                let overlap = set.ranges.iter().find(|range| before.overlaps(range));
                if let Some(range) = overlap {
                    return Err(format!("{} is in set {other} and in set {index}", range.subnet));
                }
            }
            sets.push(set);
        }
        Ok(sets)
    }

    fn check(configs: &[RangeConfig]) -> Result<Self, String> {
        let mut set = Self { ranges: Vec::new() };
        for config in configs {
            let range = Range::check(config)?;
            if set.overlaps(&range) {
                return Err(format!("{} overlaps with another range", range.subnet));
            }
            let first = set.ranges.first();
            if first.is_some_and(|first| first.start.is_ipv4() != range.start.is_ipv4()) {
                return Err(format!(
                    "{} is of another family than the first: put it into a set of its own",
                    range.subnet
                ));
            }
            set.ranges.push(range);
        }
        if set.ranges.is_empty() {
            return Err("there is no range in it".to_owned());
        }
        Ok(set)
    }

    fn overlaps(&self, range: &Range) -> bool {
        let overlaps = |own: &Range| own.contains(range.start) || range.contains(own.start);
        self.ranges.iter().any(overlaps)
    }

    /// Whether the addresses are IPv6.
    pub fn is_ipv6(&self) -> bool {
        self.ranges.first().is_some_and(|range| range.start.is_ipv6())
    }

    /// Whether a pod may have an address that it asks for. The network's own address and the broadcast
    /// address are refused, even where the range begins or ends with them.
    pub fn offers(&self, ip: IpAddr) -> bool {
        let is_whole =
            |range: &Range| ip == range.subnet.network() || (ip.is_ipv4() && ip == range.subnet.broadcast());
        self.contains(ip) && !self.is_gateway(ip) && !self.ranges.iter().any(is_whole)
    }

    /// Whether an address is a gateway's; several ranges of one subnet may name several gateways.
    fn is_gateway(&self, ip: IpAddr) -> bool {
        self.ranges.iter().any(|range| range.gateway == ip)
    }

    /// Whether an address belongs to the set, even as a gateway.
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.ranges.iter().any(|range| range.contains(ip))
    }

    /// All addresses that may be given, from the one after `last` round to `last` itself.
    pub fn after(&self, last: Option<IpAddr>) -> impl Iterator<Item = IpAddr> {
        let position = last.and_then(|last| {
            let range = self.ranges.iter().position(|range| range.contains(last))?;
            Some((range, number(last) - number(self.ranges[range].start) + 1))
        });
        let (first, offset) = position.unwrap_or((0, 0));
        let count = self.ranges.len();
        // The range of `last` comes twice: first the part after `last`, in the end the part up to it.
        let all = (0..=count).flat_map(move |pass| {
            let range = &self.ranges[(first + pass) % count];
            let (from, to) = match pass {
                0 => (offset, range.size()),
                pass if pass == count => (0, offset),
                _ => (0, range.size()),
            };
            let base = number(range.start);
            Offsets { next: from, end: to }.map(move |offset| address(base + offset, range.start))
        });
        all.filter(|ip| !self.is_gateway(*ip))
    }
}

/// Like `Range<u128>`, with a simpler iterator.
struct Offsets {
    next: u128,
    end: u128,
}

impl Iterator for Offsets {
    type Item = u128;

    fn next(&mut self) -> Option<u128> {
        (self.next < self.end).then(|| {
            self.next += 1;
            self.next - 1
        })
    }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    }
}

fn number_of(subnet: IpNet) -> u128 {
    number(subnet.network())
}

/// The address of a number, of the family of `like`.
fn address(number: u128, like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::from(number as u32).into(),
        IpAddr::V6(_) => Ipv6Addr::from(number).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sets(json: &str) -> Result<Vec<RangeSet>, String> {
        RangeSet::all(&serde_json::from_str::<Vec<_>>(json).unwrap())
    }

    fn ips(set: &RangeSet, last: Option<&str>) -> Vec<String> {
        set.after(last.map(|last| last.parse().unwrap()))
            .map(|ip| ip.to_string())
            .collect()
    }

    #[test]
    fn a_subnet_alone_sets_range_and_gateway() {
        let set = &sets(r#"[[{"subnet": "10.1.2.0/29"}]]"#).unwrap()[0];
        assert_eq!(
            ips(set, None),
            ["10.1.2.2", "10.1.2.3", "10.1.2.4", "10.1.2.5", "10.1.2.6"]
        );
        let set = &sets(r#"[[{"subnet": "fd00::/126"}]]"#).unwrap()[0];
        assert_eq!(ips(set, None), ["fd00::2", "fd00::3"]);
    }

    #[test]
    fn allocation_cycles_through_all_ranges() {
        let set = &sets(
            r#"[[{"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.8", "rangeEnd": "10.0.0.10", "gateway": "10.0.0.9"},
                 {"subnet": "10.0.1.0/24", "rangeStart": "10.0.1.5", "rangeEnd": "10.0.1.6"}]]"#,
        )
        .unwrap()[0];
        assert_eq!(ips(set, None), ["10.0.0.8", "10.0.0.10", "10.0.1.5", "10.0.1.6"]);
        assert_eq!(
            ips(set, Some("10.0.1.5")),
            ["10.0.1.6", "10.0.0.8", "10.0.0.10", "10.0.1.5"]
        );
        assert_eq!(
            ips(set, Some("10.0.0.10")),
            ["10.0.1.5", "10.0.1.6", "10.0.0.8", "10.0.0.10"]
        );
        assert_eq!(ips(set, Some("192.0.2.1")), ips(set, None));
        assert!(set.offers("10.0.0.8".parse().unwrap()) && !set.offers("10.0.0.9".parse().unwrap()));
    }

    #[test]
    fn the_whole_of_ipv6_is_no_problem() {
        let set = &sets(r#"[[{"subnet": "::/0"}]]"#).unwrap()[0];
        assert_eq!(set.after(None).next().unwrap().to_string(), "::2");
        let last = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        assert_eq!(
            set.after(Some(last.parse().unwrap())).next().unwrap().to_string(),
            "::2"
        );
    }

    #[test]
    fn invalid_ranges_are_refused() {
        for (bad, why) in [
            ("[[]]", "no range"),
            (r#"[[{"subnet": "10.0.0.1/24"}]]"#, "host bits"),
            (r#"[[{"subnet": "10.0.0.0/31"}]]"#, "too small"),
            (
                r#"[[{"subnet": "10.0.0.0/24", "rangeStart": "10.0.1.1"}]]"#,
                "rangeStart",
            ),
            (
                r#"[[{"subnet": "10.0.0.0/24", "rangeEnd": "fd00::1"}]]"#,
                "rangeEnd",
            ),
            (
                r#"[[{"subnet": "10.0.0.0/24", "gateway": "10.0.1.1"}]]"#,
                "gateway",
            ),
            (
                r#"[[{"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.9", "rangeEnd": "10.0.0.8"}]]"#,
                "after",
            ),
            (
                r#"[[{"subnet": "10.0.0.0/24"}, {"subnet": "10.0.0.0/25"}]]"#,
                "overlaps",
            ),
            (
                r#"[[{"subnet": "10.0.0.0/24"}, {"subnet": "fd00::/64"}]]"#,
                "another family",
            ),
            (
                r#"[[{"subnet": "10.0.0.0/24"}], [{"subnet": "10.0.0.128/25"}]]"#,
                "set 0 and in set 1",
            ),
        ] {
            let error = sets(bad).unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }
}
