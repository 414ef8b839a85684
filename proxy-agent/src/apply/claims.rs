//! Frontends that more than one service claims: the service whose cluster IP it is comes first, then the
//! oldest. The others wait until it releases the frontend.
//!
//! Almost every frontend has one claimant, so only the contested ones are remembered here.

use std::collections::{HashMap, HashSet};

use proxy_common::maps::FrontendKey;

use crate::cluster::ClusterState;
use crate::plan::{Programmed, ServicePlan};
use crate::source::{ObjectId, ObjectIdMap, ObjectIdSet};
use crate::trouble::{Remark, Trouble};

/// The contested frontends and the services that claim them.
#[derive(Debug, Default)]
pub struct Claims {
    contested: HashMap<FrontendKey, Vec<ObjectId>>,
}

impl Claims {
    /// Removes from the plan the frontends that another service wins, and notes that in the plan's remarks.
    /// Adds services whose plans may change by this to `again`. `owner` returns the other service that holds
    /// a key that is new to this one.
    pub fn settle(
        &mut self,
        id: ObjectId,
        plan: &mut ServicePlan,
        old: Option<&Programmed>,
        cluster: &ClusterState,
        again: &mut ObjectIdSet,
        mut owner: impl FnMut(&FrontendKey) -> Option<ObjectId>,
    ) {
        self.forget_unclaimed(id, plan, again);
        let held =
            |key: &FrontendKey| old.is_some_and(|old| old.groups.iter().any(|group| group.has_key(key)));
        let mut lost = HashSet::new();
        for group in &plan.groups {
            for key in group.frontends.iter().map(|frontend| &frontend.key) {
                if !self.contested.contains_key(key) {
                    if held(key) {
                        continue;
                    }
                    let Some(other) = owner(key).filter(|other| *other != id) else {
                        continue;
                    };
                    self.contested.insert(*key, vec![other]);
                }
                let claimants = self.contested.entry(*key).or_default();
                if !claimants.contains(&id) {
                    claimants.push(id);
                    again.extend(claimants.iter().copied().filter(|other| *other != id));
                }
                let winner = claimants
                    .iter()
                    .copied()
                    .min_by_key(|claimant| (!is_its_own(cluster, *claimant, key), age(cluster, *claimant)));
                if let Some(winner) = winner.filter(|winner| *winner != id) {
                    lost.insert(*key);
                    plan.remarks.push(remark(cluster, key, id, winner));
                }
            }
        }
        if !lost.is_empty() {
            for group in &mut plan.groups {
                group.frontends.retain(|frontend| !lost.contains(&frontend.key));
            }
            plan.groups.retain(|group| !group.frontends.is_empty());
        }
    }

    /// Withdraws the claims to frontends that are no longer planned.
    fn forget_unclaimed(&mut self, id: ObjectId, plan: &ServicePlan, again: &mut ObjectIdSet) {
        if self.contested.is_empty() {
            return;
        }
        self.contested.retain(|key, claimants| {
            let claims = plan
                .groups
                .iter()
                .any(|group| group.frontends.iter().any(|frontend| frontend.key == *key));
            if !claims && claimants.contains(&id) {
                claimants.retain(|claimant| *claimant != id);
                again.extend(claimants.iter().copied());
            }
            claimants.len() > 1
        });
    }
}

/// The service that is programmed with a service number. It walks over all services, since it is called only
/// for a contested frontend.
pub fn owner_of(programmed: &ObjectIdMap<Programmed>, service: u32) -> Option<ObjectId> {
    let holds = |programmed: &Programmed| programmed.groups.iter().any(|group| group.service == service);
    programmed
        .iter()
        .find(|(_, programmed)| holds(programmed))
        .map(|(id, _)| *id)
}

/// Whether a frontend has the cluster IP of a service.
fn is_its_own(cluster: &ClusterState, id: ObjectId, key: &FrontendKey) -> bool {
    let address = std::net::IpAddr::from(key.address);
    cluster
        .service(id)
        .is_some_and(|service| service.cluster_ips().any(|own| own == address))
}

/// Orders services by age, then by name.
fn age(cluster: &ClusterState, id: ObjectId) -> (i64, String) {
    cluster.service(id).map_or((i64::MAX, String::new()), |service| {
        (service.created, name(cluster, id))
    })
}

/// A service in the form for messages.
pub fn name(cluster: &ClusterState, id: ObjectId) -> String {
    cluster.service(id).map_or_else(
        || "a service that is gone".to_owned(),
        |service| format!("{}/{}", cluster.names().text(service.namespace), service.name),
    )
}

fn remark(cluster: &ClusterState, key: &FrontendKey, id: ObjectId, winner: ObjectId) -> Remark {
    let address = std::net::IpAddr::from(key.address);
    let why = if is_its_own(cluster, winner, key) && !is_its_own(cluster, id, key) {
        "the cluster IP of"
    } else {
        "already taken by the older"
    };
    let (port, winner) = (key.port.number(), name(cluster, winner));
    let message = format!("{address} port {port}: {why} Service {winner}; left out");
    Remark::new(Trouble::AddressHeldTwice, message)
}
