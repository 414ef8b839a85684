//! An address family in which this node has no address, though its pods or services have.
//!
//! The programs put the node's address in place of a client's address that cannot stay. Without an address of
//! the node such packets are dropped (reason `no_node_address`). The agent reports it at the start, before
//! the first packet is dropped.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::control::ObjectError;
use crate::network::NodeAddresses;
use crate::trouble::Trouble;

/// The facts that show which families are in use.
pub struct Families<'a> {
    /// The node's addresses.
    pub node: &'a NodeAddresses,
    /// The ranges of the node's pods; empty where they are not known.
    pub own_pods: &'a [IpNet],
    /// The ranges of virtual addresses.
    pub services: &'a [IpNet],
    /// Virtual addresses outside of these.
    pub outside_ranges: &'a BTreeSet<IpAddr>,
    /// Names of the uplinks.
    pub uplinks: Vec<&'a str>,
    /// Whether what pods send outside carries the node's address.
    pub masquerades: bool,
}

impl Families<'_> {
    /// The families in use in which the node has no address.
    pub fn problems(&self) -> impl Iterator<Item = ObjectError> {
        let families = [
            (true, self.node.primary_v4.is_none()),
            (false, self.node.primary_v6.is_none()),
        ];
        families
            .into_iter()
            .filter(move |(v4, is_missing)| *is_missing && self.uses(*v4))
            .map(move |(v4, _)| self.problem(v4))
    }

    /// If the pods' ranges are known and have none of a family, the node needs no address of it.
    fn uses(&self, v4: bool) -> bool {
        let of_family = |ranges: &[IpNet]| ranges.iter().any(|range| range.addr().is_ipv4() == v4);
        if self.own_pods.is_empty() {
            of_family(self.services) || self.outside_ranges.iter().any(|address| address.is_ipv4() == v4)
        } else {
            of_family(self.own_pods)
        }
    }

    fn problem(&self, v4: bool) -> ObjectError {
        let family = if v4 { "IPv4" } else { "IPv6" };
        let (flag, example) = if v4 { ("", "/24") } else { ("-6 ", "/64") };
        let place = match self.uplinks.as_slice() {
            [] => "an uplink".to_owned(),
            names => names.join(" or "),
        };
        let dev = self.uplinks.first().unwrap_or(&"UPLINK");
        let outside = if self.masquerades {
            ", and what pods send to the world outside is dropped"
        } else {
            ""
        };
        ObjectError {
            code: Trouble::AddressFamilyMissing,
            object: format!("{family} address of this node"),
            message: format!(
                "there is none by which other machines may know the node. In {family} no pod reaches itself by a service, \
                 datagrams of the node find no service (connected UDP, or any with socketLB: off), and node ports are not \
                 served. Clients from outside are not served under policy Cluster{outside}. Give {place} a global {family} \
                 address (`ip {flag}addr add ADDRESS{example} dev {dev}`), and name it in the Node (kubelet's --node-ip)"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn missing(node: &[&str], own_pods: &[&str], services: &[&str], outside_ranges: &[&str]) -> Vec<String> {
        let addresses: Vec<IpAddr> = node.iter().map(|text| text.parse().unwrap()).collect();
        let mut node = NodeAddresses::default();
        for address in addresses {
            match address {
                IpAddr::V4(address) => node.primary_v4 = Some(address),
                IpAddr::V6(address) => node.primary_v6 = Some(address),
            }
        }
        let families = Families {
            node: &node,
            own_pods: &nets(own_pods),
            services: &nets(services),
            outside_ranges: &outside_ranges.iter().map(|text| text.parse().unwrap()).collect(),
            uplinks: vec!["up0"],
            masquerades: true,
        };
        families.problems().map(|problem| problem.object).collect()
    }

    #[test]
    fn a_family_that_pods_have_and_the_node_has_not_is_lacking() {
        const V4: &str = "192.0.2.11";
        const V6: &str = "2001:db8::11";
        let both = &["10.244.1.0/24", "2001:db8:f1::/64"];
        let misses_v6 = ["IPv6 address of this node"];
        let misses_v4 = ["IPv4 address of this node"];
        let none: [&str; 0] = [];
        assert_eq!(missing(&[V4, V6], both, both, &[]), none);
        assert_eq!(missing(&[V4], both, &[], &[]), misses_v6);
        assert_eq!(missing(&[V6], both, &[], &[]), misses_v4);
        assert_eq!(missing(&[], both, &[], &[]), [misses_v4, misses_v6].concat());
        // Services of a family that no pod here has.
        assert_eq!(
            missing(&[V4], &["10.244.1.0/24"], both, &["2001:db8:96::1"]),
            none
        );
        // Where the ranges of pods are not known, services show the families in use.
        assert_eq!(missing(&[V4], &[], both, &[]), misses_v6);
        assert_eq!(missing(&[V4], &[], &[], &["2001:db8:96::1"]), misses_v6);
        assert_eq!(missing(&[V4], &[], &[], &["10.96.0.1"]), none);
    }
}
