//! The endpoints of one port of a Service, merged over its slices.
//!
//! A Service may have many slices of a family, and each has its own ports. An endpoint counts for a Service
//! port if its slice has a port of that name and protocol. While an endpoint moves from one slice to another
//! it may be in both. A new pod may inherit the address of one that is still terminating. So one address and
//! port is one endpoint. If slices disagree about it, an endpoint wins that is not terminating, then one that
//! is ready, then one that serves. After these the first slice by name wins. kube-proxy prefers the same
//! (`pkg/proxy/endpointslicecache.go`), but leaves the rest to chance.
//!
//! Invariant: the result depends on the content of the slices, never on the order in which they arrived.

use std::cmp::Reverse;
use std::net::IpAddr;

use super::address::Family;
use super::endpoint::Conditions;
use super::endpoint_slice::EndpointSlice;
use super::interner::Symbol;
use super::problems::Findings;
use super::service::ServicePort;

/// One endpoint of a Service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MergedEndpoint {
    /// The address of the endpoint.
    pub address: IpAddr,
    /// The port that packets are sent to.
    pub port: u16,
    /// The state of the endpoint.
    pub conditions: Conditions,
    /// The node and zone of the endpoint; see [`super::Names::placement`].
    pub placement: Symbol,
}

/// The endpoints of a Service port.
#[derive(Debug, Default)]
pub struct Merged {
    /// Every endpoint once, in the order of address and port, in any state.
    pub endpoints: Vec<MergedEndpoint>,
    /// One line for each endpoint about whose state two slices disagree.
    pub disagreements: Vec<String>,
}

impl Merged {
    /// Merges the endpoints of `slices` for `port` in `family`.
    pub fn new<'a>(
        slices: impl Iterator<Item = &'a EndpointSlice>,
        family: Family,
        port: &ServicePort,
    ) -> Self {
        let mut found = Vec::new();
        for slice in slices.filter(|slice| slice.endpoints.family() == family) {
            let same =
                |other: &&super::EndpointPort| other.name == port.name && other.protocol == port.protocol;
            for target in slice.ports.iter().filter(same) {
                found.extend(slice.endpoints.iter().map(|endpoint| {
                    let (address, conditions) = (endpoint.address, endpoint.conditions);
                    let merged = MergedEndpoint {
                        address,
                        port: target.port,
                        conditions,
                        placement: endpoint.placement,
                    };
                    (merged, slice.name.as_str())
                }));
            }
        }
        found.sort_by_key(|&(endpoint, slice)| {
            (endpoint.address, endpoint.port, rank(endpoint.conditions), slice)
        });
        let mut findings = Findings::default();
        found.dedup_by(|(loser, other), (winner, slice)| {
            let same = (loser.address, loser.port) == (winner.address, winner.port);
            if same && loser.conditions != winner.conditions {
                findings.add(|| disagreement(winner, slice, loser, other));
            }
            same
        });
        let endpoints = found.into_iter().map(|(endpoint, _)| endpoint).collect();
        Self {
            endpoints,
            disagreements: findings.into_messages(),
        }
    }
}

/// The rank of an endpoint; the lowest wins.
fn rank(conditions: Conditions) -> (bool, Reverse<bool>, Reverse<bool>) {
    (
        conditions.terminating(),
        Reverse(conditions.ready()),
        Reverse(conditions.serving()),
    )
}

fn disagreement(winner: &MergedEndpoint, slice: &str, loser: &MergedEndpoint, other: &str) -> String {
    let (address, port) = (winner.address, winner.port);
    let (used, unused) = (describe(winner.conditions), describe(loser.conditions));
    format!(
        "endpoint {address} port {port}: {used} in EndpointSlice {slice}, {unused} in EndpointSlice {other}; the former is used"
    )
}

fn describe(conditions: Conditions) -> String {
    let not = |set: bool, word: &str| {
        if set {
            word.to_owned()
        } else {
            format!("not {word}")
        }
    };
    let state = format!(
        "{} and {}",
        not(conditions.ready(), "ready"),
        not(conditions.serving(), "serving")
    );
    if conditions.terminating() {
        format!("terminating, {state}")
    } else {
        state
    }
}
