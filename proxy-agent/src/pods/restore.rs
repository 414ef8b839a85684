//! Restores the lost objects of running pods: their leases, their entries in maps, the names of their
//! interfaces, and the state of the node's side.
//!
//! All of it follows from the plugin's notes and from the kernel's state, so the agent remembers nothing
//! else. It makes leases and entries again under the lock of the leases, which DEL takes before it removes
//! any. So a running DEL finds the new objects and removes them. The agent leaves a pod alone while its ADD
//! runs. It reads limits from the kernel, where they are in force. It reports a pod whose note is lost as
//! well, see [`super::lost`].
//!
//! An attachment that was adopted from another plugin has no interface of ours. An attachment whose note was
//! lost and written anew from its leases has one. In that case its host ports are unknown, and everything
//! else is as before.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use cni_plugin::attachment::limiter;
use cni_plugin::datapath::{Datapath, DatapathError, Entry};
use cni_plugin::ipam::{Note, Store};
use cni_plugin::netlink::ip;
use cni_plugin::netlink::rates::rates;
use cni_plugin::netlink::socket::errno;
use cni_plugin::spec::CniError;
use proxy_bpf::BpfError;
use proxy_bpf::pins::{LayoutDir, Pins};

use super::check;
use super::kernel::{Interfaces, index_of, interfaces};
use super::lost;
use super::names::{self, Renamed};
use super::required::{
    KernelState, MissingObject, Pod, Repair, Watched, host_mac_of, mac_of, mtu_of, setting,
};
use super::{PluginPaths, PodsError};
use crate::control::ObjectError;
use crate::trouble::Trouble;

/// The result of a look.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// The objects that were made again: the kind, and the missing object with its pod.
    pub restored: Vec<(&'static str, String)>,
    /// The failures, by pod.
    pub problems: Vec<ObjectError>,
    /// Interfaces of pods, for the watch of their settings.
    pub watched: Vec<Watched>,
    /// Pods whose namespace exists and whose interface does not. A pod that is being removed is among them
    /// for a short time. The kernel does not tell whether the pod or the node removed its end; every pod with
    /// `CAP_NET_ADMIN` can.
    pub without_interface: Vec<ObjectError>,
    /// The files among leases and notes that can be read as neither.
    pub unreadable: Vec<ObjectError>,
}

/// Makes entries of pods in maps that are about to come into force.
pub fn prepare(paths: &PluginPaths, pins: &Pins, dir: &LayoutDir) -> Result<Restored, PodsError> {
    let Some(store) = Store::existing(&paths.lease_dir) else {
        return Ok(Restored::default());
    };
    let mut look = Look::new(&store)?;
    look.entries(Some(&Datapath::in_dir(pins.clone(), dir.clone())))?;
    Ok(look.done)
}

/// Looks once at all pods and makes all missing objects.
pub fn restore(paths: &PluginPaths) -> Result<Restored, PodsError> {
    let Some(store) = Store::existing(&paths.lease_dir) else {
        let mut node = cni_plugin::netlink::NetlinkSocket::open()?;
        let interfaces = interfaces(&mut node)?;
        return Ok(Restored {
            problems: lost::without_notes(paths, &mut node, &interfaces)?,
            ..Restored::default()
        });
    };
    let mut look = Look::new(&store)?;
    look.names(paths)?;
    look.leases()?;
    let without_notes = lost::without_notes(paths, &mut look.node, &look.interfaces)?;
    look.done.problems.extend(without_notes);
    let datapath = match Datapath::open(&paths.bpf_root) {
        Ok(datapath) => Some(datapath),
        // Without pins no entry can be missing; the agent makes the pins.
        Err(DatapathError::NotReady(_) | DatapathError::Bpf(BpfError::NewerLayout { .. })) => None,
        Err(error) => return Err(CniError::from(error).into()),
    };
    look.entries(datapath.as_ref())?;
    look.kernel_state();
    look.unreadable()?;
    Ok(look.done)
}

/// The state of one look.
struct Look<'a> {
    store: &'a Store,
    notes: Vec<Note>,
    node: cni_plugin::netlink::NetlinkSocket,
    interfaces: Interfaces,
    kernel_state: KernelState,
    /// The names that could not be given back to their interfaces.
    misnamed: BTreeSet<String>,
    done: Restored,
}

impl<'a> Look<'a> {
    fn new(store: &'a Store) -> Result<Self, PodsError> {
        let mut notes = store.notes()?;
        notes.retain(|note| !store.is_in_the_making(&note.host_interface));
        let mut node = cni_plugin::netlink::NetlinkSocket::open()?;
        Ok(Self {
            store,
            notes,
            interfaces: interfaces(&mut node)?,
            kernel_state: KernelState::read(&mut node)?,
            node,
            misnamed: BTreeSet::new(),
            done: Restored::default(),
        })
    }

    /// Sets the names of interfaces by which DEL and the programs know them.
    fn names(&mut self, paths: &PluginPaths) -> Result<(), PodsError> {
        let renamed = names::renamed(paths, &self.interfaces, &self.notes)?;
        if renamed.is_empty() {
            return Ok(());
        }
        for Renamed {
            index,
            now,
            expected,
            pod,
        } in renamed
        {
            let what = format!("interface {expected} was renamed to {now}");
            match names::restore_name(&mut self.node, index, &expected) {
                Ok(()) => self.done.restored.push(("interface", format!("{pod}: {what}"))),
                Err(error) => {
                    let message = format!(
                        "{what}, and renaming it back fails: {error}: run `ip link set {now} down` and `ip link set {now} \
                         name {expected}`"
                    );
                    self.done.problems.push(problem(pod, message));
                    self.misnamed.insert(expected);
                }
            }
        }
        self.interfaces = interfaces(&mut self.node)?;
        self.kernel_state = KernelState::read(&mut self.node)?;
        Ok(())
    }

    /// Makes the missing leases of pods whose interfaces exist.
    fn leases(&mut self) -> Result<(), PodsError> {
        for note in &self.notes {
            if index_of(&self.interfaces, &note.host_interface).is_none()
                || !lost::lacks_lease(self.store, note)
            {
                continue;
            }
            let locked = self.store.lock()?;
            // DEL may have removed the note since.
            let Some(note) = self.store.note(&note.host_interface)? else {
                continue;
            };
            let attachment = note.attachment();
            for address in &note.addresses {
                match self.store.lease(*address) {
                    None if locked.add_lease(*address, &attachment)? => {
                        let what = format!("{}: {address}", note.owner());
                        self.done.restored.push(("lease", what));
                    }
                    Some(lease) if !lease.is_readable() => {
                        let path = self.store.dir().join(address.to_string());
                        let message = format!(
                            "the lease of its address {address} cannot be read: remove {}, so that it is made anew",
                            path.display()
                        );
                        self.done.problems.push(problem(note.owner(), message));
                    }
                    Some(lease) if !lease.is_of(&attachment) => {
                        let message = format!(
                            "its address {address} is leased to {}: delete one of the two pods",
                            lease.owner()
                        );
                        self.done.problems.push(problem(note.owner(), message));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Reports the files that can be read neither as a lease nor as a note, unless another problem mentions
    /// them.
    fn unreadable(&mut self) -> Result<(), PodsError> {
        let mut found = check::unreadable(self.store)?;
        let is_named = |found: &ObjectError| {
            let problems = self.done.problems.iter();
            problems
                .map(|problem| &problem.message)
                .any(|message| message.contains(&found.object))
        };
        found.retain(|found| !is_named(found));
        self.done.unreadable = found;
        Ok(())
    }

    /// Makes the missing entries.
    fn entries(&mut self, datapath: Option<&Datapath>) -> Result<(), PodsError> {
        let limited: BTreeMap<u32, u64> = rates(&mut self.node)?;
        let Some(datapath) = datapath else { return Ok(()) };
        let _locked = self.store.lock()?;
        for note in &self.notes {
            // DEL may have removed the note since.
            let Some(note) = self.store.note(&note.host_interface)? else {
                continue;
            };
            let Some(index) = index_of(&self.interfaces, &note.host_interface) else {
                continue;
            };
            let device = index_of(&self.interfaces, &limiter(&note.attachment()));
            let entry = Entry {
                interface: index,
                netns_cookie: note.netns_cookie,
                mac: mac_of(&note, index, &self.kernel_state),
                addresses: &note.addresses,
                is_limited: limited.contains_key(&index),
                limiter: device,
                host_ports: &note.host_ports,
            };
            match datapath.restore(&mut self.node, &entry) {
                Ok(lost) => {
                    let lost = lost.into_iter();
                    let lost = lost.map(|what| ("entry", format!("{}: {what}", note.owner())));
                    self.done.restored.extend(lost);
                }
                Err(error) => {
                    let message = format!("restoring its entries: {}", CniError::from(error));
                    self.done.problems.push(problem(note.owner(), message));
                }
            }
        }
        Ok(())
    }

    /// Makes the missing objects around interfaces.
    fn kernel_state(&mut self) {
        for note in std::mem::take(&mut self.notes) {
            let Some(index) = index_of(&self.interfaces, &note.host_interface) else {
                let is_reported = note.adopted || self.misnamed.contains(&note.host_interface);
                if !is_reported && super::kernel::is_namespace(&note.netns) {
                    let message = format!(
                        "interface {} is gone while its pod is there: delete the pod, so that it is made anew",
                        note.host_interface
                    );
                    let gone = ObjectError::new(Trouble::PodInterfaceGone, note.owner(), &message);
                    self.done.without_interface.push(gone);
                }
                continue;
            };
            let pod = Pod {
                index,
                name: &note.host_interface,
                mac: mac_of(&note, index, &self.kernel_state),
                host_mac: host_mac_of(&note),
                mtu: mtu_of(&note),
                addresses: &note.addresses,
            };
            let has = |v4: bool| note.addresses.iter().any(|ip| ip.is_ipv4() == v4);
            let watched = (note.host_interface.clone(), has(true), has(false));
            self.done.watched.push(watched);
            for object in pod.missing_objects(&self.interfaces, &self.kernel_state) {
                let what = (object.what, format!("{}: {}", note.owner(), object.message));
                match self.repair(&note, index, object) {
                    Ok(true) => self.done.restored.push(what),
                    Ok(false) => {}
                    Err(error) => {
                        let message = format!("{}, and making it again fails: {error}", what.1);
                        self.done.problems.push(problem(note.owner(), message));
                    }
                }
            }
        }
    }

    /// Makes one object again; returns false if it exists by now, or its interface no longer exists.
    fn repair(&mut self, note: &Note, index: u32, object: MissingObject) -> Result<bool, String> {
        match object.repair {
            Repair::Set(family, name, value) => {
                let setting = setting(&note.host_interface, (family, name, value));
                setting.ensure().map_err(|error| error.to_string())
            }
            Repair::Ask(request) => match self.node.ask(request) {
                Ok(_) => Ok(true),
                Err(error) if matches!(errno(&error), Some(libc::EEXIST | libc::ENODEV)) => Ok(false),
                Err(error) => Err(error.to_string()),
            },
            Repair::Route(to) => match self.node.ask(ip::link_route(index, to)) {
                Ok(_) => Ok(true),
                Err(error) if errno(&error) == Some(libc::ENODEV) => Ok(false),
                Err(error) if errno(&error) == Some(libc::EEXIST) => self.name_rival(index, to),
                Err(error) => Err(error.to_string()),
            },
        }
    }

    /// Looks up the route that prevented a new one. It is ours by now, which returns false, or a foreign one,
    /// which stays and is an error.
    fn name_rival(&mut self, index: u32, to: IpAddr) -> Result<bool, String> {
        let now = KernelState::read(&mut self.node).map_err(|error| error.to_string())?;
        let Some(rival) = now.rival(index, to) else {
            return Ok(false);
        };
        let name = |index: u32| {
            let known = self.interfaces.get(&index);
            known.map_or_else(
                || format!("interface {index}"),
                |known| format!("interface {}", known.name),
            )
        };
        let target = rival.map_or_else(|| "nowhere".to_owned(), |index| format!("by {}", name(index)));
        Err(format!(
            "a foreign route to {to} goes {target}: remove it with `ip route del {to}`"
        ))
    }
}

fn problem(object: String, message: String) -> ObjectError {
    ObjectError {
        code: Trouble::PodNotWhole,
        object,
        message,
    }
}

/// A summary of the pods' maps and of the directories of leases and notes. While it is unchanged, no entry
/// and no lease was lost.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Fingerprint {
    leases: Option<std::time::SystemTime>,
    notes: Option<std::time::SystemTime>,
    pods: BTreeMap<IpAddr, u32>,
    links: Vec<u32>,
    host_ports: usize,
}

impl Fingerprint {
    /// Reads the summary, in a few system calls.
    pub fn read(paths: &PluginPaths) -> Result<Self, PodsError> {
        let changed = |dir: &std::path::Path| std::fs::metadata(dir).and_then(|metadata| metadata.modified());
        let tables = super::kernel::Tables::open(&paths.bpf_root)?;
        let entries = tables
            .map(|tables| tables.read())
            .transpose()?
            .unwrap_or_default();
        Ok(Self {
            leases: changed(&paths.lease_dir).ok(),
            notes: changed(&paths.lease_dir.join("millrace")).ok(),
            pods: entries
                .pods
                .iter()
                .map(|(ip, pod)| (*ip, pod.interface))
                .collect(),
            links: entries.links.keys().copied().collect(),
            host_ports: entries.host_ports.len(),
        })
    }
}
