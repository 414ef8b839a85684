//! Checks whether a firewall of the node drops packets from or to pods, and reports how to mend it.
//!
//! Each second the agent asks the kernel for the generation of its rules, which takes 4 µs. After a change it
//! asks for chains and rules. A list of a few chains takes 20 µs. A list with the 30 000 chains that
//! kube-proxy left takes 22 ms, at most once a second. Netlink messages about changes would cost more, since
//! there is one for each rule. The tables of the legacy iptables have no generation, so the agent reads them
//! each second, where there are any.

use std::collections::BTreeSet;
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use super::ranges::{around, own_pod_cidrs, pod_cidrs};
use super::stale_rules::keep_in_step;
use crate::cluster::ClusterState;
use crate::config::AgentOptions;
use crate::http::Faults;
use crate::network::firewall::{PodInterfaces, Pods, Watcher};

/// The interval between two checks.
const LOOK: Duration = Duration::from_secs(1);
/// Ranges of pods are joined into a range of this length (IPv4, IPv6) at the widest; a wider one may hold
/// addresses of others.
const WIDEST: [u8; 2] = [12, 32];

/// Tells the task which packets must pass.
pub struct Firewall(watch::Sender<Pods>);

impl Firewall {
    /// Starts the checks, and keeps `faults` in step with the results. Must be called within a tokio runtime.
    pub fn start(faults: Faults) -> Self {
        let (sender, updates) = watch::channel(Pods::default());
        tokio::spawn(keep_looking(updates, faults));
        Self(sender)
    }

    /// Passes the present addresses and interfaces on to the task.
    pub fn notify(
        &self,
        cluster: &ClusterState,
        options: &AgentOptions,
        interfaces: PodInterfaces,
        uplinks: Vec<String>,
    ) {
        let all = pod_cidrs(cluster, options);
        let own = own_pod_cidrs(cluster, options);
        let pods = Pods {
            of_cluster: together(&all),
            of_node: if own.is_empty() { all } else { own },
            interfaces,
            uplinks,
        };
        self.0.send_if_modified(|known| {
            let has_changed = *known != pods;
            *known = pods;
            has_changed
        });
    }
}

async fn keep_looking(mut updates: watch::Receiver<Pods>, faults: Faults) {
    let mut watcher = Watcher::default();
    let mut known = BTreeSet::new();
    // The channel closes when the agent ends.
    while let Ok(must) = updates.has_changed() {
        let pods = updates.borrow_and_update().clone();
        let looking = spawn_blocking(move || {
            let seen = watcher.look(&pods, must);
            (watcher, seen)
        });
        let seen = match looking.await {
            Ok((looked, seen)) => {
                watcher = looked;
                seen
            }
            Err(error) => {
                watcher = Watcher::default();
                Err(error.into())
            }
        };
        match seen {
            Ok(None) => {}
            Ok(Some(problems)) => keep_in_step(&faults, &mut known, problems),
            Err(error) => tracing::debug!(%error, "cannot look for firewalls"),
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// A few ranges that contain all of these, and few other addresses.
fn together(ranges: &[IpNet]) -> Vec<IpNet> {
    let families = around(ranges).into_iter().zip([true, false]).zip(WIDEST);
    families
        .flat_map(|((around, is_v4), widest)| match around {
            Some(around) if around.prefix_len() >= widest => vec![around],
            _ => {
                let of_family = ranges.iter().filter(|range| range.addr().is_ipv4() == is_v4);
                IpNet::aggregate(&of_family.map(IpNet::trunc).collect())
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_taken_together_where_they_lie_together() {
        for (ranges, expected) in [
            (
                &["10.244.1.0/24", "10.244.2.0/24", "fd00:244:1::/64"][..],
                &["10.244.0.0/22", "fd00:244:1::/64"][..],
            ),
            (
                &["10.244.1.0/24", "10.0.0.0/24", "10.0.1.0/24"],
                &["10.0.0.0/23", "10.244.1.0/24"],
            ),
            (&["10.244.1.0/24", "10.244.0.0/16"], &["10.244.0.0/16"]),
            (&[], &[]),
        ] {
            let nets =
                |texts: &[&str]| -> Vec<IpNet> { texts.iter().map(|text| text.parse().unwrap()).collect() };
            assert_eq!(together(&nets(ranges)), nets(expected), "{ranges:?}");
        }
    }
}
