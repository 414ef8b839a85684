//! The entries for the other ends of the tunnel. Each end's address has a MAC address (a neighbour), and each
//! MAC address has the node behind it (a forwarding entry). All are permanent; an entry on the device that is
//! not permanent is the kernel's.

use std::collections::BTreeMap;
use std::net::IpAddr;

use futures::TryStreamExt as _;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};

use super::TUNNEL_DEVICE;
use super::plan::{Mac, TunnelPlan, mac_text};
use crate::network::error::NetworkError;
use crate::network::netlink::Netlink;

/// Entries of the device.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Entries {
    neighbours: BTreeMap<IpAddr, Mac>,
    forwarding: BTreeMap<Mac, IpAddr>,
}

impl Entries {
    /// The wanted entries of a plan.
    pub(super) fn of(plan: &TunnelPlan) -> Self {
        let ends = plan.ends.iter();
        let neighbours = ends
            .clone()
            .flat_map(|(mac, (_, ends))| ends.iter().map(|end| (*end, *mac)));
        Self {
            neighbours: neighbours.collect(),
            forwarding: ends.map(|(mac, (node, _))| (*mac, *node)).collect(),
        }
    }

    /// Adds the missing entries and changes those that differ. `before` are the entries that were added
    /// earlier.
    pub(super) async fn add_missing(
        &self,
        netlink: &Netlink,
        device: u32,
        before: &Self,
    ) -> Result<(), NetworkError> {
        let found = Self::read(netlink, device).await?;
        for (mac, node) in &self.forwarding {
            if found.forwarding.get(mac) == Some(node) {
                continue;
            }
            let neighbours = netlink.writing().neighbours();
            let request = neighbours
                .add_bridge(device, mac)
                .destination(*node)
                .state(NeighbourState::Permanent)
                .flags(NeighbourFlags::Own);
            let set = request.replace().execute().await;
            set.map_err(refused("adding", &mac_text(*mac)))?;
            if before.forwarding.get(mac) == Some(node) {
                netlink.note_restored("forwarding entry", mac_text(*mac));
            }
        }
        for (end, mac) in &self.neighbours {
            if found.neighbours.get(end) == Some(mac) {
                continue;
            }
            let request = netlink
                .writing()
                .neighbours()
                .add(device, *end)
                .link_layer_address(mac);
            let set = request.replace().execute().await;
            set.map_err(refused("adding", &end.to_string()))?;
            if before.neighbours.get(end) == Some(mac) {
                netlink.note_restored("neighbour", end.to_string());
            }
        }
        Ok(())
    }

    /// Whether all of these entries are on the device.
    pub(super) async fn are_on(&self, netlink: &Netlink, device: u32) -> Result<bool, NetworkError> {
        let found = Self::read(netlink, device).await?;
        Ok(self.are_among(&found))
    }

    fn are_among(&self, found: &Self) -> bool {
        let mut forwarding = self.forwarding.iter();
        let mut neighbours = self.neighbours.iter();
        forwarding.all(|(mac, node)| found.forwarding.get(mac) == Some(node))
            && neighbours.all(|(end, mac)| found.neighbours.get(end) == Some(mac))
    }

    /// Removes all other permanent entries of the device.
    pub(super) async fn remove_others(&self, netlink: &Netlink, device: u32) -> Result<(), NetworkError> {
        let found = Self::read(netlink, device).await?;
        for end in found.neighbours.keys() {
            if self.neighbours.contains_key(end) {
                continue;
            }
            let mut message = message(device, family(*end));
            let destination = NeighbourAttribute::Destination((*end).into());
            message.attributes.push(destination);
            remove(netlink, message, &end.to_string()).await?;
        }
        for (mac, node) in &found.forwarding {
            if self.forwarding.contains_key(mac) {
                continue;
            }
            let mut message = message(device, AddressFamily::Bridge);
            message.header.flags = NeighbourFlags::Own;
            message.attributes.extend([
                NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
                NeighbourAttribute::Destination((*node).into()),
            ]);
            remove(netlink, message, &mac_text(*mac)).await?;
        }
        Ok(())
    }

    async fn read(netlink: &Netlink, device: u32) -> Result<Self, NetworkError> {
        let mut entries = Self::default();
        for family in [AddressFamily::Inet, AddressFamily::Inet6, AddressFamily::Bridge] {
            let request = netlink.reading().neighbours().get().set_address_family(family);
            let messages = request.execute().try_collect::<Vec<_>>().await;
            let messages = messages.map_err(NetworkError::request("listing the neighbours"))?;
            for message in &messages {
                if message.header.ifindex == device {
                    entries.take(message);
                }
            }
        }
        Ok(entries)
    }

    fn take(&mut self, message: &NeighbourMessage) {
        let state = u16::from(message.header.state);
        if state & u16::from(NeighbourState::Permanent) == 0 {
            return;
        }
        let (mut mac, mut ip) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::LinkLayerAddress(bytes) => mac = Mac::try_from(bytes.as_slice()).ok(),
                NeighbourAttribute::Destination(address) => ip = address_of(address),
                // The kernel includes these attributes only if they differ from the device's, so the entry
                // leads elsewhere.
                NeighbourAttribute::Port(_) | NeighbourAttribute::Vni(_) | NeighbourAttribute::IfIndex(_) => {
                    return;
                }
                _ => {}
            }
        }
        let (Some(mac), Some(ip)) = (mac, ip) else {
            return;
        };
        if message.header.family == AddressFamily::Bridge {
            self.forwarding.insert(mac, ip);
        } else {
            self.neighbours.insert(ip, mac);
        }
    }
}

fn message(device: u32, family: AddressFamily) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family;
    message.header.ifindex = device;
    message
}

async fn remove(netlink: &Netlink, message: NeighbourMessage, what: &str) -> Result<(), NetworkError> {
    match netlink.writing().neighbours().del(message).execute().await {
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENOENT => Ok(()),
        removed => removed.map_err(refused("removing", what)),
    }
}

fn refused(what: &str, entry: &str) -> impl FnOnce(rtnetlink::Error) -> NetworkError {
    NetworkError::request(format!("{what} the entry {entry} of interface {TUNNEL_DEVICE}"))
}

fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}

/// The address in a forwarding entry, which has no family of its own.
fn address_of(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(ip) => Some((*ip).into()),
        NeighbourAddress::Inet6(ip) => Some((*ip).into()),
        NeighbourAddress::Other(bytes) => {
            let v4 = <[u8; 4]>::try_from(bytes.as_slice()).map(IpAddr::from);
            v4.or_else(|_| <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from))
                .ok()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [0x0a, 0x6d, 192, 0, 2, 9];

    /// Parses the forwarding entry of a node, with one more attribute.
    fn taken(state: NeighbourState, more: Option<NeighbourAttribute>) -> Entries {
        let mut message = message(7, AddressFamily::Bridge);
        message.header.state = state;
        message.attributes = vec![
            NeighbourAttribute::LinkLayerAddress(MAC.to_vec()),
            NeighbourAttribute::Destination(NeighbourAddress::Other(vec![192, 0, 2, 9])),
        ];
        message.attributes.extend(more);
        let mut entries = Entries::default();
        entries.take(&message);
        entries
    }

    #[test]
    fn an_entry_with_another_target_or_a_lifetime_does_not_count() {
        let wanted = Entries {
            forwarding: BTreeMap::from([(MAC, IpAddr::from([192, 0, 2, 9]))]),
            ..Entries::default()
        };
        assert!(wanted.are_among(&taken(NeighbourState::Permanent, None)));
        assert!(!wanted.are_among(&taken(NeighbourState::Reachable, None)));
        for elsewhere in [
            NeighbourAttribute::Port(9999),
            NeighbourAttribute::Vni(7),
            NeighbourAttribute::IfIndex(1),
        ] {
            assert!(!wanted.are_among(&taken(NeighbourState::Permanent, Some(elsewhere))));
        }
    }
}
