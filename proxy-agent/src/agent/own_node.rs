//! Checks that the cluster knows this node by the name that the agent was started with, and that no other
//! Node names its addresses.
//!
//! If no Node has the name, all endpoints here count as endpoints of other machines. Then health checks find
//! no endpoint, and policy Local drops packets. So the agent is not ready without its Node. A kubelet may
//! register the Node seconds after the agent's start, so for a while the agent only reports that it waits. A
//! Node of another name with an address of this node is an error at once. If two Nodes have one address, at
//! least one of them is wrong, and either may be this node.
//!
//! A directory without any Node describes no nodes, and the agent does not wait.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::Agent;
use crate::cluster::{ClusterState, Node};
use crate::config::{AgentOptions, SourceSpec};
use crate::control::ObjectError;
use crate::network::NodeAddresses;
use crate::trouble::Trouble;

/// The time that a kubelet may take to register its Node.
const REGISTRATION_TIMEOUT: Duration = Duration::from_secs(30);
/// The most Nodes that one message names.
const MOST_NAMED: usize = 4;

/// The state of this node in the cluster.
#[derive(Debug, Default)]
pub struct OwnNode {
    /// The time since which no Node has the name.
    missing_since: Option<Instant>,
    /// Whether the absence of the Node was reported.
    is_reported: bool,
    name: String,
    problems: Vec<ObjectError>,
}

/// The evidence of the Nodes.
#[derive(Debug, PartialEq, Eq)]
enum NodeLookup {
    /// A Node has the name; the listed Nodes have addresses of this node too.
    Known(Vec<(String, IpAddr)>),
    /// No Node has the name.
    Missing {
        /// Nodes that have an address of this node.
        with_address: Vec<(String, IpAddr)>,
        /// Names of Nodes that are similar to this node's.
        alike: Vec<String>,
    },
}

/// Looks for this node among the cluster's Nodes, and reports the problems.
pub fn look(agent: &mut Agent) {
    let addresses = agent.node.addresses();
    let new_problems = agent
        .own_node
        .look(&agent.cluster, &agent.options, addresses, Instant::now());
    for problem in new_problems {
        agent.survival.notify_of_node(&problem);
    }
}

/// Looks again if a Node did not appear in time.
pub fn look_when_due(agent: &mut Agent) {
    if agent.own_node.is_overdue(Instant::now()) {
        look(agent);
    }
}

impl OwnNode {
    /// Updates the problems with the present Nodes, and returns those that are new.
    fn look(
        &mut self,
        cluster: &ClusterState,
        options: &AgentOptions,
        addresses: &NodeAddresses,
        now: Instant,
    ) -> Vec<ObjectError> {
        let without_nodes = cluster.nodes().next().is_none();
        let lookup = if without_nodes && options.source != SourceSpec::Kubernetes {
            NodeLookup::Known(Vec::new())
        } else {
            let configured = &options.configuration.node_addresses;
            let own = addresses.all.iter().chain(configured).copied().collect();
            lookup(&options.node_name, cluster.nodes(), own)
        };
        self.name.clone_from(&options.node_name);
        self.take(&lookup, &addresses.all, now)
    }

    /// Takes in the evidence of the Nodes.
    fn take(&mut self, lookup: &NodeLookup, own: &[IpAddr], now: Instant) -> Vec<ObjectError> {
        let found = match lookup {
            NodeLookup::Known(duplicates) => {
                self.missing_since = None;
                self.is_reported = false;
                duplicates
                    .iter()
                    .map(|duplicate| duplicate_problem(&self.name, duplicate))
                    .collect()
            }
            NodeLookup::Missing { with_address, alike } => {
                let since = *self.missing_since.get_or_insert(now);
                self.is_reported =
                    !with_address.is_empty() || now.duration_since(since) >= REGISTRATION_TIMEOUT;
                let problem = || missing_problem(&self.name, with_address, alike, own);
                self.is_reported.then(problem).into_iter().collect()
            }
        };
        let before = std::mem::replace(&mut self.problems, found);
        let new_problems = self.problems.iter().filter(|problem| !before.contains(problem));
        new_problems.cloned().collect()
    }

    /// Whether the patience has run out since the last look.
    fn is_overdue(&self, now: Instant) -> bool {
        let is_over = |since: Instant| now.duration_since(since) >= REGISTRATION_TIMEOUT;
        !self.is_reported && self.missing_since.is_some_and(is_over)
    }

    /// The problems with this node's Node.
    pub fn problems(&self) -> &[ObjectError] {
        &self.problems
    }

    /// The condition that `ready` waits for.
    pub fn waiting_for(&self) -> Option<String> {
        self.missing_since.map(|_| {
            let name = &self.name;
            if self.is_reported {
                format!("a Node called {name} (see errors)")
            } else {
                format!("the Node {name}, which its kubelet registers")
            }
        })
    }
}

fn lookup<'a>(name: &str, nodes: impl Iterator<Item = &'a Node>, mut own: BTreeSet<IpAddr>) -> NodeLookup {
    let (of_name, others): (Vec<_>, Vec<_>) = nodes.partition(|node| node.name == name);
    own.extend(of_name.iter().flat_map(|node| &node.addresses));
    let own = &own;
    let of_others = others.iter().flat_map(|node| {
        let held = node
            .addresses
            .iter()
            .filter(move |address| own.contains(*address));
        held.map(move |address| (node.name.to_string(), *address))
    });
    let mut shared: Vec<_> = of_others.collect();
    shared.sort_unstable();
    if !of_name.is_empty() {
        return NodeLookup::Known(shared);
    }
    let first_label = |name: &str| name.split('.').next().unwrap_or_default().to_lowercase();
    let alike = others
        .iter()
        .filter(|node| first_label(&node.name) == first_label(name));
    let mut alike: Vec<_> = alike.map(|node| node.name.to_string()).collect();
    alike.sort_unstable();
    NodeLookup::Missing {
        with_address: shared,
        alike,
    }
}

fn duplicate_problem(name: &str, (other, address): &(String, IpAddr)) -> ObjectError {
    ObjectError {
        code: Trouble::NodeAddressTwice,
        object: format!("Node {other}"),
        message: format!(
            "it has the address {address}, which is this node's too (Node {name}): packets for one of the two reach the \
             other. Delete the Node that no machine has any more (`kubectl delete node`), or give each its own address"
        ),
    }
}

fn missing_problem(
    name: &str,
    with_address: &[(String, IpAddr)],
    alike: &[String],
    own: &[IpAddr],
) -> ObjectError {
    let advice = match with_address {
        [] => {
            let own: Vec<_> = own.iter().map(ToString::to_string).collect();
            let own = if own.is_empty() {
                "an address of this node".to_owned()
            } else {
                format!("an address of this node ({})", own.join(", "))
            };
            let alike: Vec<_> = alike
                .iter()
                .take(MOST_NAMED)
                .map(|alike| format!("; one is called {alike}"))
                .collect();
            format!(
                "no Node has {own}{}: see `kubectl get nodes -o wide`, and start with the Node's name as --node-name",
                alike.concat()
            )
        }
        several => {
            let mut named: Vec<String> = Vec::new();
            for (node, address) in several {
                let this =
                    format!("Node {node} has this node's address {address}: start with --node-name {node}");
                let is_known = several
                    .iter()
                    .any(|(other, before)| other == node && before < address);
                if !is_known && named.len() < MOST_NAMED {
                    named.push(this);
                }
            }
            named.join("; ")
        }
    };
    ObjectError {
        code: Trouble::NodeNotFound,
        object: format!("Node {name}"),
        message: format!(
            "no Node has this name, with which the agent was started: {advice}. Until then health checks of services find no \
             endpoint on this node, and policy Local drops packets to them"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn node(name: &str, addresses: &[&str]) -> Node {
        Node {
            name: name.into(),
            addresses: addresses.iter().map(|text| ip(text)).collect(),
            other_addresses: vec![ip("203.0.113.1")],
            pod_cidrs: Vec::new(),
            zone: None,
            tunnel_mac: None,
            leaving: false,
        }
    }

    fn own(addresses: &[&str]) -> BTreeSet<IpAddr> {
        addresses.iter().map(|text| ip(text)).collect()
    }

    #[test]
    fn a_node_is_known_by_its_very_name() {
        let nodes = [
            node("n1", &["192.0.2.11", "2001:db8::11"]),
            node("n2", &["192.0.2.12"]),
        ];
        let here = || own(&["192.0.2.11", "2001:db8::11", "172.17.0.1", "203.0.113.1"]);
        assert_eq!(lookup("n1", nodes.iter(), here()), NodeLookup::Known(Vec::new()));
        for name in ["N1", "n1.example.internal", "other"] {
            let NodeLookup::Missing { with_address, alike } = lookup(name, nodes.iter(), here()) else {
                panic!("{name} is known");
            };
            assert_eq!(with_address[0], ("n1".to_owned(), ip("192.0.2.11")));
            assert_eq!(alike.is_empty(), name == "other", "{name}");
            let problem = missing_problem(name, &with_address, &alike, &[]);
            assert_eq!(problem.object, format!("Node {name}"));
            assert!(
                problem.message.contains(
                    ": Node n1 has this node's address 192.0.2.11: start with --node-name n1. Until"
                ),
                "{}",
                problem.message
            );
        }
    }

    #[test]
    fn a_missing_node_is_reported_with_its_addresses() {
        let nodes = [node("worker-1", &["192.0.2.99"])];
        let NodeLookup::Missing { with_address, alike } =
            lookup("worker-1.example", nodes.iter(), own(&["192.0.2.11"]))
        else {
            panic!("it is known");
        };
        let problem = missing_problem("worker-1.example", &with_address, &alike, &[ip("192.0.2.11")]);
        assert!(
            problem
                .message
                .contains("no Node has an address of this node (192.0.2.11); one is called worker-1: see"),
            "{}",
            problem.message
        );
    }

    #[test]
    fn an_address_of_two_nodes_is_named_on_both() {
        let nodes = [
            node("n1", &["192.0.2.11"]),
            node("n2", &["192.0.2.12", "192.0.2.11"]),
        ];
        let shared = |other: &str| NodeLookup::Known(vec![(other.to_owned(), ip("192.0.2.11"))]);
        assert_eq!(lookup("n1", nodes.iter(), own(&["192.0.2.11"])), shared("n2"));
        // No interface here holds the address, and yet the node's own object names it.
        assert_eq!(lookup("n2", nodes.iter(), own(&["192.0.2.12"])), shared("n1"));
    }

    #[test]
    fn a_late_node_is_awaited_before_it_is_reported() {
        let mut own_node = OwnNode {
            name: "n1".into(),
            ..OwnNode::default()
        };
        let missing = || NodeLookup::Missing {
            with_address: Vec::new(),
            alike: Vec::new(),
        };
        let (begin, address) = (Instant::now(), [ip("192.0.2.11")]);
        assert_eq!(own_node.take(&missing(), &address, begin), []);
        let waits = own_node.waiting_for().unwrap();
        assert_eq!(waits, "the Node n1, which its kubelet registers");
        let soon = begin + REGISTRATION_TIMEOUT / 2;
        assert_eq!(own_node.take(&missing(), &address, soon), []);
        assert!(!own_node.is_overdue(soon) && own_node.is_overdue(begin + REGISTRATION_TIMEOUT));
        assert_eq!(
            own_node
                .take(&missing(), &address, begin + REGISTRATION_TIMEOUT)
                .len(),
            1
        );
        assert_eq!(own_node.problems().len(), 1);
        assert!(!own_node.is_overdue(begin + 2 * REGISTRATION_TIMEOUT));
        assert_eq!(
            own_node.take(&missing(), &address, begin + 2 * REGISTRATION_TIMEOUT),
            [],
            "told"
        );
        own_node.take(
            &NodeLookup::Known(Vec::new()),
            &address,
            begin + 3 * REGISTRATION_TIMEOUT,
        );
        assert_eq!((own_node.problems().len(), own_node.waiting_for()), (0, None));
        // A Node of another name with this node's address is an error at once.
        let other = NodeLookup::Missing {
            with_address: vec![("n1.example".into(), address[0])],
            alike: Vec::new(),
        };
        assert_eq!(
            own_node
                .take(&other, &address, begin + 4 * REGISTRATION_TIMEOUT)
                .len(),
            1
        );
    }
}
