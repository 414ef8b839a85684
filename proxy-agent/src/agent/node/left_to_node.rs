//! Services whose cluster IPs are left to the node, while no interface of the node has these addresses.
//!
//! The annotation is for a program that holds the address on an interface of the node, such as a DNS cache.
//! Before that program starts, and after it ends, packets to the address are dropped, as packets to an
//! address that no service has.

use std::net::IpAddr;

use crate::agent::Agent;
use crate::control::ObjectError;
use crate::trouble::Trouble;

/// Services left to the node whose address no interface has.
pub fn problems(agent: &Agent) -> Vec<ObjectError> {
    let names = agent.cluster.names();
    let services = agent.cluster.services().map(|(_, service)| service);
    let unheld = services
        .filter(|service| service.left_to_node)
        .filter_map(|service| {
            let is_held = |address: &IpAddr| agent.node.addresses().holds(*address);
            let unheld: Vec<_> = service
                .cluster_ips()
                .filter(|address| !is_held(address))
                .collect();
            problem(names.text(service.namespace), &service.name, &unheld)
        });
    unheld.collect()
}

fn problem(namespace: &str, name: &str, unheld: &[IpAddr]) -> Option<ObjectError> {
    let addresses: Vec<_> = unheld.iter().map(ToString::to_string).collect();
    (!addresses.is_empty()).then(|| ObjectError {
        code: Trouble::LeftToNodeUnheld,
        object: format!("Service {namespace}/{name}"),
        message: format!(
            "millrace.dev/leave-to-node leaves {} to the node, which has no such address: packets to it are dropped. Start \
             the program that holds it on an interface of the node, or remove the annotation",
            addresses.join(" and ")
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_node_does_not_hold_is_named() {
        assert_eq!(problem("kube-system", "kube-dns", &[]), None);
        let unheld = ["10.96.0.10", "fd00:96::a"].map(|text| text.parse().unwrap());
        let problem = problem("kube-system", "kube-dns", &unheld).unwrap();
        assert_eq!(problem.object, "Service kube-system/kube-dns");
        assert!(
            problem
                .message
                .contains("leaves 10.96.0.10 and fd00:96::a to the node")
        );
    }
}
