//! The frontends of a service as the kernel's maps hold them, compared with the plan.
//!
//! The maps have no names, so those come from the plan. Frontends, affinity and backends come from the maps,
//! and the difference to the plan is noted for each frontend.

use proxy_common::Ip;
use proxy_common::maps::{Backend, Frontend, FrontendKey, SlotRange};

use super::programmer::Programmer;
use super::store::Store;
use crate::cluster::ClusterState;
use crate::plan::programmed::draining;
use crate::plan::{Group, NodeContext, PlannedFrontend, Programmed, ProgrammedGroup, plan};
use crate::source::ObjectId;

/// The reason why the maps do not hold the planned form of a frontend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Difference {
    /// A write is to come, or failed and is tried again.
    Waiting,
    /// A map has no room for the planned form of the service.
    NoRoom,
}

/// One frontend of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The key and the flags of the frontend.
    pub frontend: PlannedFrontend,
    /// The group of the plan; `None` if the plan has the frontend no longer.
    pub group: Option<Group>,
    /// The time for which a client keeps its backend, in seconds; 0 without affinity.
    pub affinity: u32,
    /// The backends of the slice that the map's entry points to, first those of new flows.
    pub backends: Vec<Backend>,
    /// The reason for a difference from the plan.
    pub difference: Option<Difference>,
}

impl<S: Store> Programmer<S> {
    /// The frontends of a service that are programmed or planned. Frontends that another service holds are
    /// left out, as are those that are not listed for people.
    pub fn list(&self, id: ObjectId, cluster: &ClusterState, node: &NodeContext) -> Vec<Listed> {
        let empty = Programmed::default();
        let programmed = self.programmed(id).unwrap_or(&empty);
        let planned = plan(cluster, id, node);
        let mut listed = Vec::new();
        for group in &planned.groups {
            for frontend in group.frontends.iter().filter(|frontend| frontend.is_listed()) {
                let held = self.store().frontend(&frontend.key);
                if held.is_some_and(|held| !is_of(programmed, &frontend.key, &held)) {
                    continue;
                }
                let backends = held.map_or_else(Vec::new, |held| self.slice(&held));
                let is_as_planned = held.is_some_and(|held| {
                    held.affinity == group.affinity_seconds && has_backends(group, &backends)
                });
                listed.push(Listed {
                    frontend: *frontend,
                    group: Some(group.clone()),
                    affinity: held.map_or(group.affinity_seconds, |held| held.affinity),
                    backends,
                    difference: self.difference(id, is_as_planned),
                });
            }
        }
        let is_planned = |key: &FrontendKey| {
            let mut groups = planned.groups.iter();
            groups.any(|group| group.frontends.iter().any(|frontend| frontend.key == *key))
        };
        let frontends = programmed.groups.iter().flat_map(|group| &group.frontends);
        for frontend in frontends.filter(|frontend| frontend.is_listed() && !is_planned(&frontend.key)) {
            if let Some(held) = self.store().frontend(&frontend.key) {
                listed.push(Listed {
                    frontend: ProgrammedGroup::frontend(frontend.key, &held),
                    group: None,
                    affinity: held.affinity,
                    backends: self.slice(&held),
                    difference: self.difference(id, false),
                });
            }
        }
        listed
    }

    fn difference(&self, id: ObjectId, is_as_planned: bool) -> Option<Difference> {
        (!is_as_planned).then(|| {
            if self.does_not_fit(id) {
                Difference::NoRoom
            } else {
                Difference::Waiting
            }
        })
    }

    /// The backends of a frontend's slice. A slot that leads to a removed backend is left out.
    fn slice(&self, held: &Frontend) -> Vec<Backend> {
        let range = SlotRange(held.slots);
        let slots = range.start()..range.start() + range.count() + u32::from(draining(held));
        let slots = slots.map(|index| self.store().slot(index));
        slots
            .filter(|slot| slot.service() == held.service)
            .map(|slot| self.store().backend(slot.backend()))
            .filter(|backend| backend.service == held.service && backend.is_alive())
            .collect()
    }
}

/// Whether an entry of the map belongs to this service.
fn is_of(programmed: &Programmed, key: &FrontendKey, held: &Frontend) -> bool {
    let mut groups = programmed.groups.iter();
    groups.any(|group| group.service == held.service && group.has_key(key))
}

/// Whether these are the backends of the plan, in any order.
fn has_backends(group: &Group, backends: &[Backend]) -> bool {
    let planned = group.active.iter().chain(&group.draining);
    let planned = planned.map(|target| (target.address, target.port.number(), target.state as u8));
    let mut planned: Vec<(Ip, u16, u8)> = planned.collect();
    let held = backends.iter();
    let held = held.map(|backend| (backend.address, backend.port.number(), backend.state));
    let mut held: Vec<(Ip, u16, u8)> = held.collect();
    planned.sort_unstable();
    held.sort_unstable();
    planned == held
}
