//! Checks where the kernel routes the packets that come in by an interface.
//!
//! A routing rule may match the source, the input interface and the protocol of a packet. Such a rule can cut
//! pods off while the node's own packets are routed as they should be. So the agent asks the kernel for the
//! routes of packets that pods send, and of those that come to pods from elsewhere. It asks by interface,
//! source, and TCP or UDP.
//!
//! The agent asks about each address of a pod once a second, each time with another destination or protocol.
//! If all questions fit into one second's share, as on a small node, it asks all of them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::self_test::{PODS, ROUTES, WrongRoutes, round_robin};
use crate::agent::Agent;
use crate::control::{ObjectError, Protocol};
use crate::network::inside::NextHop;
use crate::network::netlink::Packet;
use crate::trouble::Trouble;

/// Outside of the cluster: documentation addresses, for which there is a default route at most.
const OUTSIDE: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
/// The most sources that are reported one by one, since one rule may affect all.
const MOST: usize = 16;
/// The object of a problem begins with this; the source's address follows.
const OBJECT: &str = "packets from ";
/// Kinds of destinations of pods' packets, times the two protocols.
const KINDS: usize = 6;

/// A packet that comes in, and its expected route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct RouteQuery {
    source: IpAddr,
    arrives_by: u32,
    to: IpAddr,
    protocol: Protocol,
    /// `None` if any route will do.
    expected: Option<NextHop>,
    /// Whether every node needs this route. The routes to the outside are the operator's choice.
    is_needed: bool,
}

impl RouteQuery {
    fn packet(&self) -> Packet {
        Packet {
            to: self.to,
            protocol: self.protocol.number(),
            from: Some((self.source, self.arrives_by)),
        }
    }

    fn is_satisfied_by(&self, found: Option<NextHop>) -> bool {
        match (found, self.expected) {
            (Some(found), Some(expected)) => found == expected,
            (Some(_), None) => true,
            (None, _) => false,
        }
    }

    fn problem(&self, found: Option<NextHop>, name: impl Fn(u32) -> String) -> ObjectError {
        let by = |next_hop: NextHop| {
            let via = next_hop.via.map(|via| format!(" to {via}")).unwrap_or_default();
            format!("by {}{via}", name(next_hop.interface))
        };
        let found = found.map_or_else(|| "nowhere".to_owned(), by);
        let expected = self.expected.map(by).unwrap_or_default();
        let expected = if expected.is_empty() {
            expected
        } else {
            format!(" and not {expected}")
        };
        let (source, to, interface) = (self.source, self.to, name(self.arrives_by));
        let protocol = self.protocol.to_string();
        ObjectError {
            code: Trouble::SelfTestFailed,
            object: object(source),
            message: format!(
                "{protocol} packets to {to} that come in by {interface} go {found}{expected}: a rule is the \
                 cause, see `ip rule` and `ip route get {to} from {source} iif {interface} ipproto {}`",
                protocol.to_lowercase()
            ),
        }
    }
}

fn object(source: IpAddr) -> String {
    format!("{OBJECT}{source}")
}

/// A pod's address and its interface on the node.
type Pod = (IpAddr, u32);
/// An address within a range of another node's pods, and the route to it.
type Other = (IpAddr, NextHop);

/// The addresses for questions, with their interfaces or routes; IPv4 addresses come first.
#[derive(Debug, Clone, Copy)]
struct Addresses<'a> {
    /// The pods of this node, in order of their addresses.
    pods: &'a [Pod],
    /// One address within each range of other nodes' pods.
    others: &'a [Other],
    /// One address of each family outside of the cluster, if the route there leads to an uplink.
    outside: &'a [(IpAddr, u32)],
}

impl Addresses<'_> {
    /// Questions about packets that pods send: each address comes once before any address comes a second
    /// time.
    fn sent_by_pods(&self) -> Vec<RouteQuery> {
        let mut queries = Vec::new();
        for round in 0..KINDS {
            for (number, pod) in self.pods.iter().enumerate() {
                queries.extend(self.sent_by_pod(number, *pod, number + round));
            }
        }
        queries
    }

    fn sent_by_pod(
        &self,
        number: usize,
        (source, arrives_by): (IpAddr, u32),
        kind: usize,
    ) -> Option<RouteQuery> {
        let (to, expected) = match kind % KINDS / 2 {
            0 => {
                let pods = of_family(self.pods, source);
                let next = pods.partition_point(|(ip, _)| *ip <= source);
                let (to, interface) = *pods.get(next).or(pods.first())?;
                if interface == arrives_by {
                    return None;
                }
                (to, Some(NextHop { interface, via: None }))
            }
            1 => {
                let others = of_family(self.others, source);
                let (to, next_hop) = *others.get(number % others.len().max(1))?;
                (to, Some(next_hop))
            }
            _ => (of_family(self.outside, source).first()?.0, None),
        };
        Some(RouteQuery {
            source,
            arrives_by,
            to,
            protocol: protocol(kind),
            expected,
            is_needed: expected.is_some(),
        })
    }

    /// Questions about packets to pods: from other nodes' pods and from outside.
    fn sent_to_pods(&self) -> Vec<RouteQuery> {
        let others = self
            .others
            .iter()
            .map(|(ip, next_hop)| (*ip, next_hop.interface, true));
        let outside = self
            .outside
            .iter()
            .map(|(ip, interface)| (*ip, *interface, false));
        let mut queries = Vec::new();
        for (number, (source, arrives_by, is_needed)) in others.chain(outside).enumerate() {
            let pods = of_family(self.pods, source);
            let Some((to, interface)) = pods.get(number % pods.len().max(1)).copied() else {
                continue;
            };
            queries.extend([0, 1].map(|kind| RouteQuery {
                source,
                arrives_by,
                to,
                protocol: protocol(kind),
                expected: Some(NextHop { interface, via: None }),
                is_needed,
            }));
        }
        queries
    }
}

/// The part of the places that has the family of an address.
fn of_family<T>(addresses: &[(IpAddr, T)], like: IpAddr) -> &[(IpAddr, T)] {
    let (v4, v6) = addresses.split_at(addresses.partition_point(|(ip, _)| ip.is_ipv4()));
    if like.is_ipv4() { v4 } else { v6 }
}

fn protocol(kind: usize) -> Protocol {
    if kind.is_multiple_of(2) {
        Protocol::Tcp
    } else {
        Protocol::Udp
    }
}

/// Asks about packets of `pods` and to them; `others` are addresses of other nodes' pods. It asks in any case
/// about sources that failed `before`. Destinations in `misrouted`, to which the node's own packets take a
/// wrong route as well, are reported elsewhere.
pub async fn routes(
    agent: &Agent,
    (pods, others): (&[Pod], &[Other]),
    (iteration, before): (usize, &[ObjectError]),
    misrouted: &BTreeSet<IpAddr>,
) -> WrongRoutes {
    let mut wrong = WrongRoutes::default();
    if pods.is_empty() {
        return wrong;
    }
    let outside = outside(agent).await;
    let addresses = Addresses {
        pods,
        others,
        outside: &outside,
    };
    let (from_pods, to_pods) = (addresses.sent_by_pods(), addresses.sent_to_pods());
    let failed = before
        .iter()
        .filter_map(|problem| problem.object.strip_prefix(OBJECT));
    let failed: BTreeSet<IpAddr> = failed.filter_map(|source| source.parse().ok()).collect();
    let has_failed = |query: &&RouteQuery| failed.contains(&query.source);
    let again = from_pods.iter().chain(&to_pods).filter(has_failed);
    let due = round_robin(&from_pods, iteration, PODS).chain(round_robin(&to_pods, iteration, 2 * ROUTES));
    let due = due.filter(|query| !has_failed(query));
    let mut named = BTreeSet::new();
    for query in again.chain(due) {
        // A source that failed before is asked about again, even if the node's own packets fail by now.
        let is_misrouted = misrouted.contains(&query.to) && !has_failed(&query);
        let is_known = is_misrouted || named.contains(&(query.source, query.is_needed));
        // An interface that is gone has no route.
        if is_known || !agent.node.has_interface(query.arrives_by) {
            continue;
        }
        let problem = match agent.node.route_of(query.packet()).await {
            Ok(found) if query.is_satisfied_by(found) => continue,
            Ok(found) => query.problem(found, |index| agent.node.interface_name(index)),
            Err(error) => ObjectError::new(error.trouble(), object(query.source), &error),
        };
        named.insert((query.source, query.is_needed));
        if query.is_needed {
            wrong.needed.push(problem);
        } else {
            wrong.named.push(problem);
        }
        if named.len() == MOST {
            break;
        }
    }
    wrong
}

/// Addresses outside of the cluster that the kernel routes to an uplink, and that uplink. If the route leads
/// elsewhere, the operator may not want pods to send there.
async fn outside(agent: &Agent) -> Vec<(IpAddr, u32)> {
    let mut outside = Vec::new();
    for to in OUTSIDE.iter().filter_map(|ip| ip.parse().ok()) {
        let packet = Packet {
            to,
            protocol: Protocol::Udp.number(),
            from: None,
        };
        if let Ok(Some(found)) = agent.node.route_of(packet).await
            && agent.node.is_uplink(found.interface)
        {
            outside.push((to, found.interface));
        }
    }
    outside
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn pods(count: u8) -> Vec<(IpAddr, u32)> {
        let of_family = |v4: bool| {
            (0..count).map(move |host| {
                let address = if v4 {
                    format!("10.244.1.{host}")
                } else {
                    format!("fd00:244:1::{host:x}")
                };
                (ip(&address), 100 + u32::from(host))
            })
        };
        of_family(true).chain(of_family(false)).collect()
    }

    fn other(address: &str, via: &str) -> (IpAddr, NextHop) {
        let via = Some(ip(via));
        (ip(address), NextHop { interface: 2, via })
    }

    #[test]
    fn pods_are_asked_for_with_each_destination_and_protocol_and_none_waits_for_another() {
        let pods = pods(30);
        let others = [
            other("10.244.2.1", "192.168.50.12"),
            other("fd00:244:2::1", "fd00:50::12"),
        ];
        let outside = OUTSIDE.map(|address| (ip(address), 2));
        let addresses = Addresses {
            pods: &pods,
            others: &others,
            outside: &outside,
        };
        let queries = addresses.sent_by_pods();
        assert_eq!(queries.len(), pods.len() * KINDS);
        for (source, interface) in &pods {
            let of_it: Vec<_> = queries.iter().filter(|it| it.source == *source).collect();
            assert!(of_it.iter().all(|it| it.arrives_by == *interface));
            assert!(of_it.iter().all(|it| it.to.is_ipv4() == source.is_ipv4()));
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let asked = of_it.iter().filter(|it| it.protocol == protocol);
                let asked: BTreeSet<_> = asked.map(|it| it.to).collect();
                assert!(
                    asked.len() == 3 && !asked.contains(source),
                    "{source} to {asked:?}"
                );
            }
        }
        let first: BTreeSet<_> = queries.iter().take(pods.len()).map(|it| it.source).collect();
        assert_eq!(first.len(), pods.len());
    }

    #[test]
    fn pods_are_reached_from_other_nodes_and_from_outside() {
        let pods = pods(3);
        let others = [
            other("10.244.2.1", "192.168.50.12"),
            other("fd00:244:2::1", "fd00:50::12"),
        ];
        let outside = [(ip(OUTSIDE[0]), 2)];
        let addresses = Addresses {
            pods: &pods,
            others: &others,
            outside: &outside,
        };
        let asked = addresses.sent_to_pods();
        let asked: Vec<_> = asked
            .iter()
            .map(|it| (it.source, it.protocol, it.is_needed))
            .collect();
        let expected = [(others[0].0, true), (others[1].0, true), (outside[0].0, false)];
        let expected = expected.map(|(source, is_needed)| {
            [Protocol::Tcp, Protocol::Udp].map(|protocol| (source, protocol, is_needed))
        });
        assert_eq!(asked, expected.concat());
        let none = Addresses {
            pods: &[],
            others: &others,
            outside: &outside,
        };
        assert_eq!((none.sent_by_pods(), none.sent_to_pods()), (vec![], vec![]));
    }

    #[test]
    fn a_route_must_have_the_expected_gateway() {
        let (to, expected) = other("10.244.2.1", "192.168.50.12");
        let query = RouteQuery {
            source: ip("10.244.1.3"),
            arrives_by: 9,
            to,
            protocol: Protocol::Tcp,
            expected: Some(expected),
            is_needed: true,
        };
        let elsewhere = NextHop {
            via: Some(ip("192.168.50.1")),
            ..expected
        };
        assert!(query.is_satisfied_by(Some(expected)));
        assert!(!query.is_satisfied_by(Some(elsewhere)) && !query.is_satisfied_by(None));
        let problem = query.problem(Some(elsewhere), |index| format!("eth{index}"));
        assert_eq!(problem.object, "packets from 10.244.1.3");
        for part in [
            "go by eth2 to 192.168.50.1 and not by eth2 to 192.168.50.12",
            "`ip route get 10.244.2.1 from 10.244.1.3 iif eth9 ipproto tcp`",
        ] {
            assert!(problem.message.contains(part), "{}", problem.message);
        }
        let outside = RouteQuery {
            expected: None,
            is_needed: false,
            ..query
        };
        assert!(outside.is_satisfied_by(Some(elsewhere)) && !outside.is_satisfied_by(None));
    }
}
