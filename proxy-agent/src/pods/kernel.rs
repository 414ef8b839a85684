//! The kernel's state of pods: interfaces, and the entries of the plugin's maps.
//!
//! The agent reads maps before interfaces. An interface that is missing afterwards has been removed, so an
//! entry that names it is stale and not new. The kernel reuses an interface index only after four thousand
//! million others.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use cni_plugin::ipam::Note;
use cni_plugin::netlink::{NetlinkError, NetlinkSocket, Request, link};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use nix::sys::statfs::{FsType, fstatfs};
use proxy_bpf::pins::{LayoutDir, Pins};
use proxy_bpf::{BpfError, HashTable, sys};
use proxy_common::maps::{Config, HostPort, HostPortKey, Pod, PodLink};
use proxy_common::{Ip, LAYOUT_VERSION, Plain};

/// `NSFS_MAGIC` of `include/uapi/linux/magic.h`.
const NSFS: FsType = FsType(0x6e73_6673);

/// An interface of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The name of the interface.
    pub name: String,
    /// The MTU in bytes.
    pub mtu: u32,
    /// The Ethernet address, if the interface has one.
    pub mac: Option<[u8; 6]>,
    /// The index of the device that the interface is a port of.
    pub master: Option<u32>,
    /// Whether the administrator switched the interface on.
    pub is_up: bool,
    /// Whether it is an intermediate functional block, which older versions used as a limiter.
    pub is_ifb: bool,
    /// Whether it is an end of a veth pair, which limiters consist of.
    pub is_veth: bool,
}

/// Interfaces by their index.
pub type Interfaces = BTreeMap<u32, Interface>;

/// Reads all interfaces of the network namespace of a netlink socket.
pub fn interfaces(node: &mut NetlinkSocket) -> Result<Interfaces, NetlinkError> {
    let all = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let replies = node.ask(Request::list("listing interfaces", all))?;
    Ok(replies.iter().filter_map(interface).collect())
}

fn interface(reply: &RouteNetlinkMessage) -> Option<(u32, Interface)> {
    let RouteNetlinkMessage::NewLink(message) = reply else {
        return None;
    };
    let mut interface = Interface {
        name: String::new(),
        mtu: 0,
        mac: None,
        master: None,
        is_up: message.header.flags.contains(LinkFlags::Up),
        is_ifb: false,
        is_veth: false,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
            LinkAttribute::Address(bytes) => interface.mac = bytes.as_slice().try_into().ok(),
            LinkAttribute::Controller(index) => interface.master = Some(*index).filter(|index| *index != 0),
            LinkAttribute::LinkInfo(infos) => {
                interface.is_ifb = infos.contains(&LinkInfo::Kind(InfoKind::Ifb));
                interface.is_veth = infos.contains(&LinkInfo::Kind(InfoKind::Veth));
            }
            _ => {}
        }
    }
    Some((message.header.index, interface))
}

/// The index of the interface with a name.
pub fn index_of(interfaces: &Interfaces, name: &str) -> Option<u32> {
    let named = interfaces.iter().find(|(_, interface)| interface.name == name);
    named.map(|(index, _)| *index)
}

/// The maps that the plugin writes.
pub struct Tables {
    /// The addresses and their pods (`PODS`).
    pub pods: HashTable<Ip, Pod>,
    /// The permitted packets of each interface (`POD_LINKS`).
    pub links: HashTable<u32, PodLink>,
    /// The ports of the node that lead to pods (`HOST_PORTS`).
    pub host_ports: HashTable<HostPortKey, HostPort>,
    /// The interface of each network namespace cookie (`POD_NETNS`).
    pub namespaces: HashTable<u64, u32>,
    /// The programs' configuration of the node (`CONFIG`).
    config: HashTable<u32, Config>,
}

/// The entries of the maps.
#[derive(Debug, Default)]
pub struct Entries {
    /// The entries of `PODS`.
    pub pods: BTreeMap<IpAddr, Pod>,
    /// The entries of `POD_LINKS`.
    pub links: BTreeMap<u32, PodLink>,
    /// The entries of `HOST_PORTS`.
    pub host_ports: BTreeMap<HostPortKey, HostPort>,
    /// The entries of `POD_NETNS`.
    pub namespaces: BTreeMap<u64, u32>,
}

impl Tables {
    /// Opens the maps in force below a bpf root; `None` if there are none of the known layout.
    pub fn open(bpf_root: &Path) -> Result<Option<Self>, BpfError> {
        let Some(pins) = Pins::existing(bpf_root) else {
            return Ok(None);
        };
        let current = || -> Result<_, BpfError> {
            let dir = pins.current()?;
            Ok(dir.filter(|dir| dir.layout == LAYOUT_VERSION))
        };
        let mut dir = current()?;
        while let Some(tried) = dir {
            match Self::open_in(&tried) {
                Ok(tables) => return Ok(Some(tables)),
                Err(error) => {
                    // The agent may have made larger maps, in another directory.
                    dir = current()?;
                    if dir.as_ref() == Some(&tried) {
                        return Err(error);
                    }
                }
            }
        }
        Ok(None)
    }

    fn open_in(dir: &LayoutDir) -> Result<Self, BpfError> {
        Ok(Self {
            pods: open(&dir.map("PODS"))?,
            links: open(&dir.map("POD_LINKS"))?,
            host_ports: open(&dir.map("HOST_PORTS"))?,
            namespaces: open(&dir.map("POD_NETNS"))?,
            config: open(&dir.map("CONFIG"))?,
        })
    }

    /// Reads the programs' configuration of the node, which the agent writes.
    pub fn config(&self) -> Result<Config, BpfError> {
        let config = self
            .config
            .get(&0)
            .map_err(BpfError::syscall("reading the map CONFIG"))?;
        Ok(config.unwrap_or_default())
    }

    /// Reads the entries of all maps.
    pub fn read(&self) -> Result<Entries, BpfError> {
        let mut entries = Entries::default();
        let failed = |table: &str| BpfError::syscall(format!("reading the map {table}"));
        self.pods
            .for_each(|address, pod| entries.pods.extend([(address.into(), pod)]))
            .map_err(failed("PODS"))?;
        self.links
            .for_each(|index, link| entries.links.extend([(index, link)]))
            .map_err(failed("POD_LINKS"))?;
        self.host_ports
            .for_each(|key, port| entries.host_ports.extend([(key, port)]))
            .map_err(failed("HOST_PORTS"))?;
        self.namespaces
            .for_each(|cookie, index| entries.namespaces.extend([(cookie, index)]))
            .map_err(failed("POD_NETNS"))?;
        Ok(entries)
    }
}

fn open<K: Plain, V: Plain>(path: &Path) -> Result<HashTable<K, V>, BpfError> {
    let map: OwnedFd = sys::open_pin(path).map_err(BpfError::file("opening", path))?;
    HashTable::new(map).map_err(BpfError::file("opening", path))
}

/// The maps, their entries and the interfaces.
pub struct Kernel {
    /// A netlink socket in the node's network namespace.
    pub node: NetlinkSocket,
    /// The maps, if they exist.
    pub tables: Option<Tables>,
    /// The entries of the maps.
    pub entries: Entries,
    /// The interfaces of the node.
    pub interfaces: Interfaces,
}

impl Kernel {
    /// Reads maps and interfaces.
    pub fn read(bpf_root: &Path) -> Result<Self, super::PodsError> {
        let tables = Tables::open(bpf_root)?;
        let entries = tables.as_ref().map(Tables::read).transpose()?.unwrap_or_default();
        let mut node = NetlinkSocket::open()?;
        let interfaces = interfaces(&mut node)?;
        Ok(Self {
            node,
            tables,
            entries,
            interfaces,
        })
    }

    /// Whether a part of an attachment exists that may be in use: its interface, even one newer than the
    /// list, or its network namespace.
    pub fn has(&mut self, note: &Note) -> bool {
        let name = &note.host_interface;
        index_of(&self.interfaces, name).is_some()
            // If the query fails, the interface may exist.
            || link::find(&mut self.node, name).map_or(true, |found| found.is_some())
            || is_namespace(&note.netns)
    }
}

/// Whether a path that a runtime passed is a network namespace.
pub fn is_namespace(path: &Path) -> bool {
    let mut candidates = vec![path.to_path_buf()];
    // Runtimes often write /var/run, which is a link to /run on a node, and may not exist in a container.
    if let Ok(below) = path.strip_prefix("/var/run") {
        candidates.push(PathBuf::from("/run").join(below));
    }
    let holds_one =
        |path: &PathBuf| -> io::Result<bool> { Ok(fstatfs(File::open(path)?)?.filesystem_type() == NSFS) };
    candidates.iter().any(|path| holds_one(path).unwrap_or(false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_differs_from_the_file_that_it_was_mounted_over() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("cni-1");
        std::fs::write(&file, "").expect("a file");
        for path in [&file, &dir.path().join("missing"), &PathBuf::new()] {
            assert!(!is_namespace(path), "{}", path.display());
        }
        assert!(is_namespace(Path::new("/proc/self/ns/net")));
    }
}
