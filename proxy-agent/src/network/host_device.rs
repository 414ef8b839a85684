//! Our own device, which takes the node's own packets to virtual addresses past a program.
//!
//! A socket hook translates most of them before there is a packet. The rest follows the routes on this
//! device: connected UDP, raw sockets, ping, and all packets if the hooks are off. A program on its egress
//! translates and redirects them. Translated replies enter by the device, so that strict reverse-path
//! filtering finds them where their route points.
//!
//! The device is a veth pair, since a dummy device needs a module that not every kernel has. Both ends are in
//! the node's namespace. The other end exists for the carrier: it neither forwards nor has IPv6, so it
//! discards a packet that no program redirected.
//!
//! The agent makes the device once and then keeps it: the routes, the MAC address and the programs on it
//! survive the agent. The kernel does not resolve neighbours on it. It sends nothing by itself: no link-local
//! address, no duplicate detection, no router solicitation, no multicast.

use std::collections::BTreeSet;

use rtnetlink::packet_route::link::LinkFlags;
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth};

use super::error::NetworkError;
use super::link::Link;
use super::links::Change;
use super::netlink::Netlink;
use super::port_rules::{PortAt, PortRules};
use super::sysctl::{self, Setting};
use super::{HOST_DEVICE, HOST_DEVICE_PEER, HostRoutes, NodeAddresses, Problem};

const fn setting(
    family: &'static str,
    device: &'static str,
    name: &'static str,
    value: &'static str,
) -> Setting<'static> {
    Setting {
        family,
        device,
        name,
        value,
    }
}

static IPV4_SETTINGS: [Setting<'static>; 2] = [
    setting("ipv4", HOST_DEVICE, "forwarding", "1"),
    setting("ipv4", HOST_DEVICE_PEER, "forwarding", "0"),
];

/// The order matters: each feature must be off before it can start. The value 1 of `addr_gen_mode` means
/// "none".
static IPV6_SETTINGS: [Setting<'static>; 6] = [
    setting("ipv6", HOST_DEVICE_PEER, "disable_ipv6", "1"),
    setting("ipv6", HOST_DEVICE, "addr_gen_mode", "1"),
    setting("ipv6", HOST_DEVICE, "accept_dad", "0"),
    setting("ipv6", HOST_DEVICE, "accept_ra", "0"),
    setting("ipv6", HOST_DEVICE, "forwarding", "1"),
    setting("ipv6", HOST_DEVICE, "disable_ipv6", "0"),
];

/// The settings that the agent makes.
fn settings(has_ipv6: bool) -> impl Iterator<Item = &'static Setting<'static>> {
    let ipv6 = IPV6_SETTINGS.iter().filter(move |_| has_ipv6);
    IPV4_SETTINGS.iter().chain(ipv6)
}

/// The smallest MTU that IPv6 works with, in bytes (RFC 8200, section 5).
const IPV6_MIN_MTU: u32 = 1280;

/// Our own device.
#[derive(Debug)]
pub struct HostDevice {
    netlink: Netlink,
    index: Option<u32>,
    has_ipv6: bool,
    settings_written: u64,
    routes: HostRoutes,
    rules: PortRules,
}

impl HostDevice {
    /// Makes the object; it reads and changes nothing yet.
    pub fn new(netlink: Netlink) -> Self {
        Self {
            netlink,
            index: None,
            has_ipv6: false,
            settings_written: 0,
            routes: HostRoutes::default(),
            rules: PortRules::default(),
        }
    }

    /// Makes the device or corrects it, and returns its index. `mtu` is that of the smallest uplink, in
    /// bytes.
    ///
    /// The program must be on the device before [`Self::sync_routes`] leads packets there.
    pub async fn ensure(&mut self, mtu: u32) -> Result<u32, NetworkError> {
        let (device, peer) = if let Some(pair) = find(&self.netlink).await? {
            pair
        } else {
            let made = self.create().await?;
            if self.index.is_some() {
                self.netlink.note_restored("interface", HOST_DEVICE.to_owned());
            }
            made
        };
        for link in [&peer, &device] {
            if link.mtu != mtu {
                self.set(link, LinkUnspec::new_with_index(link.index).mtu(mtu))
                    .await?;
            }
        }
        self.has_ipv6 = sysctl::has_ipv6() && mtu >= IPV6_MIN_MTU;
        for setting in settings(self.has_ipv6) {
            self.settings_written += u64::from(setting.ensure()?);
        }
        for link in [&peer, &device] {
            if link.flags.difference(LinkFlags::LowerUp) != LinkFlags::Up | LinkFlags::Noarp {
                let flags = LinkUnspec::new_with_index(link.index)
                    .arp(false)
                    .multicast(false)
                    .up();
                self.set(link, flags).await?;
            }
        }
        self.index = Some(device.index);
        Ok(device.index)
    }

    /// Brings the routes on the device in step. It returns the problems of single routes, and sets the others
    /// all the same.
    pub async fn sync_routes(&mut self, wanted: HostRoutes) -> Result<Vec<Problem>, NetworkError> {
        let Some(index) = self.index else {
            return Ok(Vec::new());
        };
        let before = std::mem::replace(&mut self.routes, wanted).wanted();
        self.routes.sync(&self.netlink, index, &before).await
    }

    /// Brings the rules in step that lead the node's packets to single ports to the device.
    pub async fn sync_rules(
        &mut self,
        node: &NodeAddresses,
        wanted: BTreeSet<PortAt>,
    ) -> Result<Vec<Problem>, NetworkError> {
        match self.index {
            Some(index) => self.rules.sync(&self.netlink, index, node, wanted).await,
            None => Ok(Vec::new()),
        }
    }

    /// The rules that lead to the device.
    pub const fn rules(&self) -> &PortRules {
        &self.rules
    }

    /// The index of the device, once the agent has made or found it.
    pub const fn index(&self) -> Option<u32> {
        self.index
    }

    /// The index of the device, and the prefixes that lead to it.
    pub fn own_routes(&self) -> Option<(u32, Vec<ipnet::IpNet>)> {
        Some((self.index?, self.routes.wanted().into_keys().collect()))
    }

    /// Whether a prefix leads to the device only because services name its one address.
    pub fn is_lone(&self, prefix: ipnet::IpNet) -> bool {
        self.routes.is_lone(prefix)
    }

    /// The agent's settings of the device that have another value now.
    pub fn changed_settings(&self) -> Vec<String> {
        let made = self.index.map(|_| settings(self.has_ipv6));
        let changed = made.into_iter().flatten().filter(|setting| setting.is_changed());
        changed.map(ToString::to_string).collect()
    }

    /// Whether a change may affect the device or its routes, so that [`Self::ensure`] and
    /// [`Self::sync_routes`] should run again.
    pub fn is_concerned(&self, change: &Change) -> bool {
        change.resynced
            || change.addresses
            || change.lost_rules.iter().any(|port| self.rules.contains(port))
            || self.index.is_some_and(|index| change.links.contains(&index))
            || change.routes.iter().any(|prefix| self.routes.wants(*prefix))
    }

    /// The number of writes to the kernel, by netlink or to a setting.
    pub fn writes(&self) -> u64 {
        self.netlink.writes() + self.settings_written
    }

    /// Removes the device, and with it the routes. Returns whether there was one. A foreign device of that
    /// name stays.
    pub async fn remove(&mut self) -> Result<bool, NetworkError> {
        self.index = None;
        let Some((device, _)) = find(&self.netlink).await? else {
            return Ok(false);
        };
        let removed = self.netlink.writing().link().del(device.index).execute().await;
        removed.map_err(NetworkError::request(format!("removing interface {HOST_DEVICE}")))?;
        Ok(true)
    }

    async fn create(&self) -> Result<(Link, Link), NetworkError> {
        // The kernel makes a device with multicast. If IPv6 forwarding is on, the device would join the group
        // of all routers and announce that. An MTU too small for IPv6 keeps IPv6 off until multicast is off.
        let pair = LinkVeth::new(HOST_DEVICE, HOST_DEVICE_PEER)
            .multicast(false)
            .mtu(IPV6_MIN_MTU - 1)
            .build();
        let made = self.netlink.writing().link().add(pair).execute().await;
        made.map_err(NetworkError::request(format!("making interface {HOST_DEVICE}")))?;
        tracing::info!("made interface {HOST_DEVICE}");
        find(&self.netlink).await?.ok_or(NetworkError::ForeignDevice {
            name: HOST_DEVICE,
            what: "it was removed right after it was made".into(),
        })
    }

    async fn set(&self, link: &Link, to: LinkMessageBuilder<LinkUnspec>) -> Result<(), NetworkError> {
        let set = self.netlink.writing().link().set(to.build()).execute().await;
        set.map_err(NetworkError::request(format!(
            "setting up interface {}",
            link.name
        )))
    }
}

/// The device and its peer, if they exist. A foreign device of that name is an error.
async fn find(netlink: &Netlink) -> Result<Option<(Link, Link)>, NetworkError> {
    let device = netlink.link_by_name(HOST_DEVICE).await?;
    let peer = netlink.link_by_name(HOST_DEVICE_PEER).await?;
    pair(device, peer)
}

fn pair(device: Option<Link>, peer: Option<Link>) -> Result<Option<(Link, Link)>, NetworkError> {
    let foreign = |name, what: String| Err(NetworkError::ForeignDevice { name, what });
    let describe = |link: &Link| {
        if link.kind.is_empty() {
            "a device".into()
        } else {
            format!("a {}", link.kind)
        }
    };
    let (device, peer) = match (device, peer) {
        (None, None) => return Ok(None),
        (Some(device), Some(peer)) => (device, peer),
        (Some(device), None) => {
            return foreign(
                HOST_DEVICE,
                format!("{} without a peer {HOST_DEVICE_PEER}", describe(&device)),
            );
        }
        (None, Some(peer)) => {
            return foreign(
                HOST_DEVICE_PEER,
                format!("{} whose peer is not {HOST_DEVICE}", describe(&peer)),
            );
        }
    };
    let are_peers =
        device.kind == "veth" && device.peer_namespace.is_none() && device.peer == Some(peer.index);
    if !are_peers {
        return foreign(
            HOST_DEVICE,
            format!("{} whose peer is not {HOST_DEVICE_PEER}", describe(&device)),
        );
    }
    Ok(Some((device, peer)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::fixture::link;

    #[test]
    fn only_a_pair_of_our_names_is_adopted() {
        let end = |index, name, peer| Link {
            peer: Some(peer),
            ..link(index, name, "veth")
        };
        let (ours, peer) = (end(7, HOST_DEVICE, 8), end(8, HOST_DEVICE_PEER, 7));
        let adopted = pair(Some(ours.clone()), Some(peer.clone())).expect("ours");
        assert_eq!(adopted.map(|(device, _)| device.index), Some(7));
        assert_eq!(pair(None, None).expect("none"), None);
        let elsewhere = Link {
            peer_namespace: Some(0),
            ..ours.clone()
        };
        for (device, peer) in [
            (Some(link(7, HOST_DEVICE, "bridge")), Some(peer.clone())),
            (Some(end(7, HOST_DEVICE, 9)), Some(peer.clone())),
            (Some(elsewhere), Some(peer.clone())),
            (Some(ours), None),
            (None, Some(peer)),
        ] {
            assert!(matches!(
                pair(device, peer),
                Err(NetworkError::ForeignDevice { .. })
            ));
        }
    }
}
