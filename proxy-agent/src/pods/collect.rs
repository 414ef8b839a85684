//! Removes the remains of a lost DEL.
//!
//! A runtime may be killed, a node may lose power, and containerd never calls GC. So the agent looks itself,
//! when it starts and every few minutes. First it finds attachments of which no part can be in use, and
//! removes their entries and leases together. Then it removes entries of maps and pins whose interface no
//! longer exists.
//!
//! It holds the lock of the leases meanwhile, so no address changes its holder. A running ADD or DEL has its
//! note or its interface, and the collection leaves that attachment alone.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use cni_plugin::attachment::{LIMITER_PREFIX, PREFIX};
use cni_plugin::datapath::{Datapath, DatapathError};
use cni_plugin::ipam::boot::BootTimestamp;
use cni_plugin::ipam::collect::{self, Left};
use cni_plugin::ipam::{Note, Store};
use cni_plugin::netlink::{NetlinkError, link};
use cni_plugin::spec::CniError;
use cni_plugin::verbs::detach::forget;
use proxy_bpf::BpfError;
use proxy_common::{Ip, Plain};

use super::kernel::{Entries, Interface, Interfaces, Kernel, Tables, index_of};
use super::{PluginPaths, PodsError};

/// The result of a collection.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// The addresses that were freed.
    pub freed: Vec<IpAddr>,
    /// The addresses of another plugin that the agent manages from now on.
    pub adopted: Vec<IpAddr>,
    /// The entries of maps and the interfaces that were removed.
    pub removed: Vec<String>,
    /// The remains that are broken or could not be freed.
    pub left: Vec<Left>,
}

/// The kernel, as the collection of leases queries it.
struct Remains<'a> {
    kernel: Kernel,
    bpf_root: &'a Path,
}

impl collect::Kernel for Remains<'_> {
    fn exists(&mut self, note: &Note) -> bool {
        self.kernel.has(note)
    }

    fn remove(&mut self, note: &Note, leased: &[IpAddr]) -> Result<(), CniError> {
        forget(self.bpf_root, &mut self.kernel.node, note, leased)
    }
}

/// Looks once and removes all remains.
pub fn collect(paths: &PluginPaths) -> Result<Collected, PodsError> {
    let mut collected = Collected::default();
    let store = Store::existing(&paths.lease_dir);
    if let Some(store) = &store {
        let mut remains = Remains {
            kernel: Kernel::read(&paths.bpf_root)?,
            bpf_root: &paths.bpf_root,
        };
        let leases = collect::collect(store, &BootTimestamp::now(), &mut remains)?;
        collected.freed = leases.freed;
        collected.adopted = leases.adopted;
        collected.left = leases.left;
    }
    let _locked = store.as_ref().map(Store::lock).transpose()?;
    collected.removed = sweep(&paths.bpf_root)?;
    Ok(collected)
}

/// Removes entries, limiters and pins whose interface no longer exists, and returns their names.
fn sweep(bpf_root: &Path) -> Result<Vec<String>, PodsError> {
    let mut kernel = Kernel::read(bpf_root)?;
    let mut removed = Vec::new();
    for (index, name) in lone_limiters(&kernel.interfaces) {
        let interface = name.replacen(LIMITER_PREFIX, PREFIX, 1);
        if link::find(&mut kernel.node, &interface)?.is_none() {
            link::remove(&mut kernel.node, index)?;
            removed.push(format!("limiter {name}"));
        }
    }
    let gone = gone(&mut kernel)?;
    if let Some(tables) = &kernel.tables {
        remove_entries(tables, &kernel.entries, &gone, &mut removed)?;
    }
    match Datapath::open(bpf_root).and_then(|datapath| datapath.unpin(None)) {
        Ok(()) | Err(DatapathError::NotReady(_)) => Ok(removed),
        Err(error) => Err(CniError::from(error).into()),
    }
}

/// The interfaces that entries name and that no longer exist. A list of interfaces may lack one if others
/// changed meanwhile, so the function queries each missing one again.
fn gone(kernel: &mut Kernel) -> Result<BTreeSet<u32>, NetlinkError> {
    let entries = &kernel.entries;
    let mut named: BTreeSet<u32> = entries.links.keys().copied().collect();
    named.extend(entries.pods.values().map(|pod| pod.interface));
    named.extend(entries.host_ports.values().map(|port| port.interface));
    named.extend(entries.namespaces.values());
    named.retain(|index| !kernel.interfaces.contains_key(index));
    let mut gone = BTreeSet::new();
    for index in named {
        // The index 0 would request all interfaces.
        if index == 0 || !link::exists(&mut kernel.node, index)? {
            gone.insert(index);
        }
    }
    Ok(gone)
}

/// The limiters whose pod interface no longer exists. The plugin makes a limiter after its interface.
fn lone_limiters(interfaces: &Interfaces) -> Vec<(u32, String)> {
    let is_device = |interface: &Interface| interface.is_ifb || interface.is_veth;
    let limiters = interfaces.iter().filter(|(_, interface)| is_device(interface));
    let is_lone = |name: &str| {
        let rest = name.strip_prefix(LIMITER_PREFIX);
        rest.is_some_and(|rest| {
            rest.len() == 12 && index_of(interfaces, &format!("{PREFIX}{rest}")).is_none()
        })
    };
    limiters
        .filter(|(_, interface)| is_lone(&interface.name))
        .map(|(index, interface)| (*index, interface.name.clone()))
        .collect()
}

fn remove_entries(
    tables: &Tables,
    entries: &Entries,
    gone: &BTreeSet<u32>,
    removed: &mut Vec<String>,
) -> Result<(), PodsError> {
    let is_gone = |index: u32| gone.contains(&index);
    for (address, pod) in &entries.pods {
        if is_gone(pod.interface) {
            let key = Ip::from(*address);
            let what = format!("entry of PODS for {address}, of interface {}", pod.interface);
            remove_if_same(&tables.pods, &key, pod, what, removed)?;
        }
    }
    for (index, link) in &entries.links {
        if is_gone(*index) {
            let what = format!("entry of POD_LINKS for interface {index}");
            remove_if_same(&tables.links, index, link, what, removed)?;
        }
    }
    for (key, port) in &entries.host_ports {
        if is_gone(port.interface) {
            let what = format!(
                "entry of HOST_PORTS for port {} of {}, of interface {}",
                key.port.number(),
                IpAddr::from(key.address),
                port.interface
            );
            remove_if_same(&tables.host_ports, key, port, what, removed)?;
        }
    }
    for (cookie, index) in &entries.namespaces {
        if is_gone(*index) {
            let what = format!("entry of POD_NETNS for namespace {cookie}, of interface {index}");
            remove_if_same(&tables.namespaces, cookie, index, what, removed)?;
        }
    }
    Ok(())
}

/// Removes an entry if its value has not changed.
fn remove_if_same<K: Plain, V: Plain + PartialEq>(
    table: &proxy_bpf::HashTable<K, V>,
    key: &K,
    value: &V,
    what: String,
    removed: &mut Vec<String>,
) -> Result<(), PodsError> {
    let failed = |what: &str| BpfError::syscall(format!("removing the {what}"));
    if table.get(key).map_err(failed(&what))?.as_ref() == Some(value) {
        table.remove(key).map_err(failed(&what))?;
        removed.push(what);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limiter_without_its_interface_is_lone() {
        let interface = |name: &str, is_ifb, is_veth| Interface {
            name: name.into(),
            mtu: 1450,
            mac: None,
            master: None,
            is_up: true,
            is_ifb,
            is_veth,
        };
        let interfaces = Interfaces::from([
            (1, interface("mr0000000000aa", false, true)),
            (2, interface("ml0000000000aa", false, true)),
            (3, interface("mk0000000000aa", false, true)),
            (4, interface("ml0000000000bb", false, true)),
            // Its peer disappears with it.
            (5, interface("mk0000000000bb", false, true)),
            (6, interface("ml0000000000cc", true, false)),
            (7, interface("ml0000000000dd", false, false)),
            (8, interface("ifb0", true, false)),
        ]);
        let lone = lone_limiters(&interfaces).into_iter();
        let names: Vec<_> = lone.map(|(index, name)| format!("{index} {name}")).collect();
        assert_eq!(names, ["4 ml0000000000bb", "6 ml0000000000cc"]);
    }
}
