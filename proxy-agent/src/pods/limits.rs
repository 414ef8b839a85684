//! Bandwidth limits that follow the annotations of running pods.
//!
//! The pod's owner writes the annotation; the runtime's limit is the one that the operator admitted when the
//! pod was made. So an annotation lowers the limit and never raises it: in each direction the smaller rate
//! holds. Without an annotation the runtime's limit holds, or none. The agent compares the rates with those
//! in force, so a look without changes writes nothing.
//!
//! The agent reports a foreign qdisc at an interface without a limit and leaves it there; a limit replaces
//! it.
//!
//! While the agent adds or removes a limit, the flags in `PODS` and `POD_LINKS` are set for longer than the
//! qdisc exists. A packet may take the slower path without a qdisc, but not the faster one past a qdisc.

use std::collections::BTreeMap;

use cni_plugin::attachment::{host_mac, limiter, limiter_end};
use cni_plugin::config::runtime::Limit;
use cni_plugin::ipam::{Note, Store};
use cni_plugin::netlink::limiter::{self as device, Limiter};
use cni_plugin::netlink::rates::Queues;
use cni_plugin::netlink::{NetlinkError, limit, link};
use proxy_bpf::BpfError;
use proxy_common::Ip;
use proxy_common::maps::{PodFlags, PodLinkFlags};

use super::kernel::{Kernel, index_of};
use super::{PluginPaths, PodsError};
use crate::cluster::{Bandwidth, BandwidthByPod};
use crate::network::queues::name_foreign;

/// The limits in force after the last look, by the pods' interfaces.
pub type Known = BTreeMap<String, Bandwidth>;

/// The result of a look.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// The limits that were changed, in words.
    pub changes: Vec<String>,
    /// The limits that were lost without a change of the wanted rate, and were made again.
    pub restored: Vec<String>,
    /// The failures, in words.
    pub errors: Vec<String>,
    /// The foreign qdiscs at interfaces of pods without a limit, in words. The agent leaves them there.
    pub named: Vec<String>,
    /// Whether an ADD for some pod is still running, so that another look is necessary.
    pub early: bool,
    /// The limits in force now.
    pub known: Known,
}

/// Sets the limits of all pods as wanted. `known` is the result of the last look.
pub fn apply(paths: &PluginPaths, wanted: &BandwidthByPod, known: &Known) -> Result<Applied, PodsError> {
    let mut applied = Applied::default();
    let Some(store) = Store::existing(&paths.lease_dir) else {
        return Ok(applied);
    };
    let mut notes = store.notes()?;
    notes.retain(|note| {
        // ADD sets the first limits itself.
        let early = store.is_in_the_making(&note.host_interface);
        applied.early |= early;
        !early && !note.adopted
    });
    let mut kernel = Kernel::read(&paths.bpf_root)?;
    let Queues { rates, foreign } = Queues::read(&mut kernel.node)?;
    for note in &notes {
        let Some(index) = index_of(&kernel.interfaces, &note.host_interface) else {
            continue;
        };
        let now = wanted_of(note, wanted);
        // ADD has set the limits of the note.
        let made = Bandwidth {
            ingress: note.ingress_rate,
            egress: note.egress_rate,
        };
        let before = known.get(&note.host_interface).copied().unwrap_or(made);
        let mut in_force = now;
        let limiter = limiter(&note.attachment());
        let foreign_qdisc = |index: Option<u32>, name: &str| Some(name_foreign(foreign.get(&index?)?, name));
        let of_pod = foreign_qdisc(Some(index), &note.host_interface);
        let of_limiter = foreign_qdisc(index_of(&kernel.interfaces, &limiter), &limiter);
        let mut pod = Limits {
            kernel: &mut kernel,
            rates: &rates,
            note,
            index,
        };
        let received = (pod.set_ingress(now.ingress), of_pod);
        let sent = (pod.set_egress(now.egress), of_limiter);
        for (verb, (changed, foreign_qdisc), rate, known) in [
            ("receives", received, now.ingress, before.ingress),
            ("sends", sent, now.egress, before.egress),
        ] {
            match changed {
                Ok(false) if rate.is_none() => applied
                    .named
                    .extend(foreign_qdisc.map(|foreign_qdisc| format!("{}: {foreign_qdisc}", note.owner()))),
                Ok(false) => {}
                Ok(true) if rate.is_some() && rate == known => {
                    applied
                        .restored
                        .push(format!("{}: it {verb} {}", note.owner(), in_words(rate)));
                }
                Ok(true) => applied
                    .changes
                    .push(format!("{} {verb} {} now", note.owner(), in_words(rate))),
                // A pod that was removed meanwhile has no limits.
                Err(_) if !is_there(&mut kernel, note) => {}
                Err(error) => {
                    // The kernel refuses to change a foreign qdisc that has the number of ours.
                    let why = foreign_qdisc.unwrap_or_else(|| error.to_string());
                    applied.errors.push(format!("{}: {why}", note.owner()));
                    in_force = before;
                }
            }
        }
        applied.known.insert(note.host_interface.clone(), in_force);
    }
    Ok(applied)
}

fn wanted_of(note: &Note, wanted: &BandwidthByPod) -> Bandwidth {
    let annotated = match (&note.pod_namespace, &note.pod_name) {
        (Some(namespace), Some(name)) => wanted.get(&(namespace.clone(), name.clone())).copied(),
        _ => None,
    }
    .unwrap_or_default();
    Bandwidth {
        ingress: smaller(annotated.ingress, note.ingress_rate),
        egress: smaller(annotated.egress, note.egress_rate),
    }
}

/// The smaller one of the rates that exist.
fn smaller(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    one.into_iter().chain(other).min()
}

fn is_there(kernel: &mut Kernel, note: &Note) -> bool {
    link::find(&mut kernel.node, &note.host_interface).is_ok_and(|found| found.is_some())
}

/// The limits of one pod.
struct Limits<'a> {
    kernel: &'a mut Kernel,
    rates: &'a BTreeMap<u32, u64>,
    note: &'a Note,
    index: u32,
}

impl Limits<'_> {
    /// Limits the packets that the pod receives; returns whether a change was necessary.
    fn set_ingress(&mut self, rate: Option<u64>) -> Result<bool, PodsError> {
        if !differs(rate, self.rates.get(&self.index).copied()) {
            return Ok(false);
        }
        if let Some(rate) = rate {
            self.flag(PodFlags::LIMITED_INGRESS, true)?;
            self.limit(self.index, rate)?;
        } else {
            self.kernel.node.ask(limit::unlimit(self.index))?;
            self.flag(PodFlags::LIMITED_INGRESS, false)?;
        }
        Ok(true)
    }

    /// Limits the packets that the pod sends; returns whether a change was necessary.
    fn set_egress(&mut self, rate: Option<u64>) -> Result<bool, PodsError> {
        let name = limiter(&self.note.attachment());
        let there = index_of(&self.kernel.interfaces, &name);
        let is_new = differs(rate, there.and_then(|index| self.rates.get(&index)).copied());
        // A limiter of an older version is behind the programs, and misses some packets of the pod.
        let is_old = there.is_some_and(|index| self.kernel.interfaces[&index].is_ifb);
        let is_broken = match there {
            Some(index) if !is_old => !self.is_passable(index)?,
            _ => false,
        };
        if !is_new && !is_broken && (is_old || self.is_noted(there)) {
            return Ok(false);
        }
        match (rate, there) {
            (Some(_), Some(limiter)) if !is_new && !is_broken => self.note_limiter(limiter)?,
            (Some(rate), Some(limiter)) if !is_old && !is_broken => {
                self.limit(limiter, rate)?;
                self.note_limiter(limiter)?;
            }
            (Some(rate), there) => {
                if let Some(old) = there {
                    device::release(&mut self.kernel.node, self.index)?;
                    link::remove(&mut self.kernel.node, old)?;
                }
                let limiter = self.make_limiter(&name, rate)?;
                self.note_limiter(limiter)?;
            }
            (None, there) => {
                device::release(&mut self.kernel.node, self.index)?;
                self.note_limiter(0)?;
                if let Some(limiter) = there {
                    link::remove(&mut self.kernel.node, limiter)?;
                }
            }
        }
        Ok(true)
    }

    /// Whether packets that enter a limiter leave at the pod's interface. Both ends must be on and carry
    /// packets of the pod's size, and the far one must lead to the interface.
    fn is_passable(&mut self, limiter: u32) -> Result<bool, NetlinkError> {
        let interfaces = &self.kernel.interfaces;
        let is_on = |index: u32| {
            let interface = interfaces.get(&index);
            interface.is_some_and(|interface| {
                interface.is_up && interface.is_veth && interface.mtu >= self.note.mtu
            })
        };
        let end = index_of(interfaces, &limiter_end(&self.note.attachment()));
        let Some(end) = end.filter(|end| is_on(*end) && is_on(limiter)) else {
            return Ok(false);
        };
        device::redirects_into(&mut self.kernel.node, end, self.index)
    }

    fn make_limiter(&mut self, name: &str, rate: u64) -> Result<u32, NetlinkError> {
        let attachment = self.note.attachment();
        let limiter = Limiter {
            name,
            end: &limiter_end(&attachment),
            interface: self.index,
            mac: host_mac(&attachment),
            mtu: self.note.mtu,
            limit: Limit { rate, burst: None },
        };
        limiter.make(&mut self.kernel.node)
    }

    /// Whether the maps lead the pod's packets through this device. A pod without an entry needs no change.
    fn is_noted(&self, limiter: Option<u32>) -> bool {
        let entry = self.kernel.entries.links.get(&self.index);
        entry.is_none_or(|entry| {
            let is_first = entry.flags & PodLinkFlags::LIMITED_FIRST != 0;
            (entry.limiter, is_first) == (limiter.unwrap_or_default(), limiter.is_some())
        })
    }

    fn limit(&mut self, interface: u32, rate: u64) -> Result<(), NetlinkError> {
        let limit = Limit { rate, burst: None };
        let requests = Vec::from(limit::limit(interface, limit, self.note.mtu));
        self.kernel.node.batch(requests).map(drop)
    }

    /// Writes into the maps which device limits the packets that the pod sends; 0 for none.
    fn note_limiter(&self, limiter: u32) -> Result<(), BpfError> {
        if let Some(tables) = &self.kernel.tables {
            let failed = || BpfError::syscall("changing an entry of POD_LINKS");
            if let Some(mut link) = tables.links.get(&self.index).map_err(failed())? {
                let flag = PodLinkFlags::LIMITED_FIRST;
                link.flags = if limiter == 0 {
                    link.flags & !flag
                } else {
                    link.flags | flag
                };
                link.limiter = limiter;
                tables.links.set(&self.index, &link).map_err(failed())?;
            }
        }
        self.flag(PodFlags::LIMITED_EGRESS, limiter != 0)
    }

    /// Sets or clears a flag in the entries of all addresses of the pod.
    fn flag(&self, flag: u32, set: bool) -> Result<(), BpfError> {
        let Some(tables) = &self.kernel.tables else {
            return Ok(());
        };
        let failed = || BpfError::syscall("changing an entry of PODS");
        for address in &self.note.addresses {
            let key = Ip::from(*address);
            let found = tables.pods.get(&key).map_err(failed())?;
            let Some(mut pod) = found.filter(|pod| pod.interface == self.index) else {
                continue;
            };
            pod.flags = if set { pod.flags | flag } else { pod.flags & !flag };
            tables.pods.set(&key, &pod).map_err(failed())?;
        }
        Ok(())
    }
}

/// The kernel counts in bytes per second.
fn differs(wanted: Option<u64>, in_force: Option<u64>) -> bool {
    wanted.map(|rate| rate / 8) != in_force.map(|rate| rate / 8)
}

fn in_words(rate: Option<u64>) -> String {
    rate.map_or_else(
        || "without a limit".to_owned(),
        |rate| format!("at most {rate} bit/s"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use cni_plugin::config::Attachment;
    use cni_plugin::ipam::boot::BootTimestamp;

    #[test]
    fn of_an_annotation_and_what_the_runtime_gave_the_smaller_holds_each_way() {
        let attachment = Attachment {
            container_id: "c".into(),
            if_name: "eth0".into(),
        };
        let limits = |ingress, egress| Bandwidth { ingress, egress };
        let holds = |annotated: Bandwidth, runtimes: Bandwidth| {
            let note = Note {
                pod_namespace: Some("shop".into()),
                pod_name: Some("cart".into()),
                ingress_rate: runtimes.ingress,
                egress_rate: runtimes.egress,
                ..Note::adopting(&attachment, "mr0".into(), vec![], &BootTimestamp::now())
            };
            let key = ("shop".to_owned(), "cart".to_owned());
            wanted_of(&note, &BandwidthByPod::from([(key, annotated)]))
        };
        let (low, high) = (Some(1_000), Some(900_000_000));
        for (annotated, runtimes, wanted) in [
            (limits(high, low), limits(low, high), limits(low, low)),
            (limits(high, high), limits(low, None), limits(low, high)),
            (limits(None, low), limits(low, None), limits(low, low)),
            (limits(None, None), limits(low, high), limits(low, high)),
            (limits(None, None), limits(None, None), limits(None, None)),
        ] {
            assert_eq!(
                holds(annotated, runtimes),
                wanted,
                "{annotated:?} and {runtimes:?}"
            );
        }
    }

    #[test]
    fn rates_are_the_same_if_they_are_the_same_bytes() {
        assert!(!differs(Some(10_001), Some(10_000)));
        assert!(differs(Some(10_008), Some(10_000)));
        assert!(differs(None, Some(10_000)) && differs(Some(10_000), None) && !differs(None, None));
    }
}
