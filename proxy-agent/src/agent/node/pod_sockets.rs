//! The table `POD_NETNS`: the network namespaces whose sockets the socket hooks treat as those of this node's
//! pods.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use cni_plugin::netlink::link;

use crate::bpf::Datapath;
use crate::control::ObjectError;
use crate::network::{Links, PodNamespaces, Roles};
use crate::trouble::Trouble;

/// The network namespaces of pods whose sockets are translated.
pub struct PodSockets {
    namespaces: PodNamespaces,
    /// The content of the table: the cookie of the namespace behind each interface.
    known: BTreeMap<u32, u64>,
    adopted: bool,
}

impl PodSockets {
    /// A table whose content is not read yet.
    pub fn new(namespaces: PodNamespaces) -> Self {
        Self {
            namespaces,
            known: BTreeMap::new(),
            adopted: false,
        }
    }

    /// Waits until a runtime may have mounted a namespace that had no name before.
    pub async fn mounted(&mut self) {
        self.namespaces.mounted().await;
    }

    /// Writes the differences: the namespace of every pod. If some pods opted out, only the namespaces of
    /// pods with an address of one of the other pods.
    pub async fn refresh(
        &mut self,
        (links, roles): (&Links, &Roles),
        with_sockets: Option<&BTreeSet<IpAddr>>,
        datapath: &Datapath,
        problems: &mut Vec<ObjectError>,
    ) {
        self.namespaces.update(links, roles).await;
        if let Some(limitation) = self.namespaces.limitation() {
            problems.push(ObjectError::new(
                Trouble::PodNamespacesUnknown,
                "pods' namespaces",
                &limitation,
            ));
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
                problems.push(ObjectError::new(Trouble::MapAccessFailed, object, &message));
            }
        }
        self.known = wanted;
    }
    /// Compares the table with its written content, restores the entries that another process altered or
    /// removed, and reports them. The plugin writes there too: its entry for a pod that the agent does not
    /// know yet stays. The plugin removes an interface before its entry.
    pub fn compare(&self, datapath: &Datapath) -> io::Result<Option<String>> {
        let table = &datapath.pod_netns;
        let mut found: BTreeMap<u64, u32> = BTreeMap::new();
        table.for_each(|cookie, index| {
            found.insert(cookie, index);
        })?;
        let (lost, foreign) = differences(&self.known, &found);
        let mut done = 0;
        for (index, cookie) in lost {
            if link::name_of(index).is_some() {
                table.set(&cookie, &index)?;
                done += 1;
            }
        }
        for cookie in foreign {
            table.remove(&cookie)?;
            done += 1;
        }
        Ok((done > 0).then(|| format!("POD_NETNS: {done} lost or altered")))
    }
}

/// The namespaces without an entry, by their interfaces, and the entries that name an interface of another
/// namespace.
fn differences(known: &BTreeMap<u32, u64>, found: &BTreeMap<u64, u32>) -> (Vec<(u32, u64)>, Vec<u64>) {
    // Another interface of the same pod may have the entry.
    let is_entered = |cookie: &u64| {
        let entered = found.get(cookie);
        entered.is_some_and(|index| known.get(index) == Some(cookie))
    };
    let lost = known.iter().filter(|(_, cookie)| !is_entered(cookie));
    let is_anothers = |(cookie, index): &(&u64, &u32)| {
        let own = known.get(*index);
        own.is_some_and(|own| own != *cookie) && !known.values().any(|known| known == *cookie)
    };
    let foreign = found.iter().filter(is_anothers);
    (
        lost.map(|(index, cookie)| (*index, *cookie)).collect(),
        foreign.map(|(cookie, _)| *cookie).collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_the_plugin_are_no_differences() {
        // Two interfaces lead to the namespace 70.
        let known = BTreeMap::from([(1, 70), (2, 70), (3, 80)]);
        let of = |found: &[(u64, u32)]| differences(&known, &found.iter().copied().collect());
        assert_eq!(of(&[(70, 2), (80, 3)]), (vec![], vec![]));
        assert_eq!(
            of(&[(70, 1), (80, 3), (90, 4)]),
            (vec![], vec![]),
            "the plugin was earlier"
        );
        assert_eq!(of(&[(70, 1)]), (vec![(3, 80)], vec![]));
        assert_eq!(of(&[(70, 1), (80, 1)]), (vec![(3, 80)], vec![]), "altered");
        assert_eq!(of(&[(70, 1), (81, 3)]), (vec![(3, 80)], vec![81]));
        assert_eq!(of(&[]), (vec![(1, 70), (2, 70), (3, 80)], vec![]));
    }
}
