//! The table `POD_NETNS`: whose sockets the socket hooks take for those of this node's pods.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::bpf::Datapath;
use crate::control::ObjectError;
use crate::network::{Links, PodNamespaces, Roles};

/// The network namespaces of pods whose sockets are translated.
pub struct PodSockets {
    namespaces: PodNamespaces,
    /// What the table holds: the cookie of the namespace behind each interface.
    known: BTreeMap<u32, u64>,
    adopted: bool,
}

impl PodSockets {
    /// Nothing is looked at yet.
    pub fn new(namespaces: PodNamespaces) -> Self {
        Self {
            namespaces,
            known: BTreeMap::new(),
            adopted: false,
        }
    }

    /// Waits until a namespace may have been named that was not before.
    pub async fn mounted(&mut self) {
        self.namespaces.mounted().await;
    }

    /// Writes what differs: every pod's namespace, or where some pods opted out, those that have an address of one of the
    /// others.
    pub async fn refresh(
        &mut self,
        (links, roles): (&Links, &Roles),
        with_sockets: Option<&BTreeSet<IpAddr>>,
        datapath: &Datapath,
        problems: &mut Vec<ObjectError>,
    ) {
        self.namespaces.update(links, roles).await;
        if let Some(limitation) = self.namespaces.limitation() {
            problems.push(ObjectError::new("pods' namespaces", &limitation));
        }
        let mut wanted: BTreeMap<u32, u64> = self.namespaces.cookies().collect();
        if let Some(with_sockets) = with_sockets {
            for interface in wanted.keys().copied().collect::<Vec<_>>() {
                let addresses = self.namespaces.addresses(interface).await;
                if !addresses.iter().any(|address| with_sockets.contains(address)) {
                    wanted.remove(&interface);
                }
            }
        }
        let mut known: BTreeMap<u64, u32> = BTreeMap::new();
        if self.adopted {
            known.extend(self.known.iter().map(|(index, cookie)| (*cookie, *index)));
        } else {
            let _ = datapath.pod_netns.for_each(|cookie, index| {
                known.insert(cookie, index);
            });
            self.adopted = true;
        }
        for cookie in known
            .keys()
            .filter(|cookie| !wanted.values().any(|wanted| wanted == *cookie))
        {
            let _ = datapath.pod_netns.remove(cookie);
        }
        for (index, cookie) in &wanted {
            if known.get(cookie) != Some(index)
                && let Err(error) = datapath.pod_netns.set(cookie, index)
            {
                let object = format!("interface {}", links.name(*index));
                let message =
                    format!("noting the pod's namespace: {error}; its sockets are left to the packet path");
                problems.push(ObjectError { object, message });
            }
        }
        self.known = wanted;
    }
}
