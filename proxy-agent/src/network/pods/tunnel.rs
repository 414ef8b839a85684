//! The device of the tunnel to other nodes, a VXLAN interface (RFC 7348) that learns nothing. The location of
//! each pod is in entries that follow from the Node objects, so the device sends no queries and trusts no
//! sender.
//!
//! The agent makes the device when a node needs it, and removes it when no node does. Otherwise it leaves the
//! device as it is, so the device survives the agent. It makes the device anew if the device's identity must
//! change (port, segment, addresses of our end), or if another program has altered it. The device is a port
//! of no bridge. A device of its name that is no VXLAN interface belongs to another program.

use std::net::IpAddr;

use rtnetlink::packet_route::address::AddressHeaderFlags;
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::{LinkUnspec, LinkVxlan};

use super::TUNNEL_DEVICE;
use super::plan::{Mac, TunnelPlan};
use super::tunnel_entries::Entries;
use crate::config::Vxlan;
use crate::network::error::NetworkError;
use crate::network::link::Link;
use crate::network::netlink::Netlink;
use crate::network::sysctl::{self, Setting};

/// With these the device sends nothing by itself. The value 1 of `addr_gen_mode` means "none".
const QUIET_IPV6: [(&str, &str); 3] = [("addr_gen_mode", "1"), ("accept_dad", "0"), ("accept_ra", "0")];
/// These follow [`QUIET_IPV6`], since each feature must be off before it can start.
const IPV6: [(&str, &str); 2] = [("disable_ipv6", "0"), ("forwarding", "1")];

/// The smallest MTU that IPv6 works with, in bytes (RFC 8200, section 5).
const IPV6_MIN_MTU: u32 = 1280;

/// The parameters at the creation of the device. If they differ, the agent makes the device anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    port: u16,
    id: u32,
    local: IpAddr,
    mac: Mac,
    /// The destination of frames to unknown MAC addresses; the agent sets none.
    remote: Option<IpAddr>,
    /// The one interface that the device sends by; the agent sets none, so the routes decide.
    lower: Option<u32>,
    /// The hop limit of its outer packets; 0 is the node's default.
    ttl: u8,
    /// Whether the device learns from received packets; the agent switches that off.
    learns: bool,
}

/// The device of the tunnel.
#[derive(Debug)]
pub struct Tunnel {
    netlink: Netlink,
    index: Option<u32>,
    /// The parameters of its creation, and the entries that were added.
    made: Option<(Identity, Entries)>,
}

impl Tunnel {
    /// Makes the object; it reads and changes nothing yet.
    pub fn new(netlink: Netlink) -> Self {
        Self {
            netlink,
            index: None,
            made: None,
        }
    }

    /// The index of the device, once the agent has made or found it.
    pub fn index(&self) -> Option<u32> {
        self.index
    }

    /// Makes the device and its entries or corrects them, and returns its index. Entries of nodes that the
    /// tunnel no longer serves stay until [`Self::forget_others`].
    pub async fn ensure(&mut self, plan: &TunnelPlan) -> Result<u32, NetworkError> {
        let wanted = Identity::of(plan);
        let found = match self.find().await? {
            Some((link, found)) if found == Some(wanted) => link,
            found => {
                if let Some((link, _)) = found {
                    tracing::info!(
                        ?wanted,
                        "making interface {TUNNEL_DEVICE} anew: its settings have changed"
                    );
                    self.delete(link.index).await?;
                }
                self.index = None;
                let made = self.create(plan).await?;
                if self.made.as_ref().is_some_and(|(before, _)| *before == wanted) {
                    self.netlink.note_restored("interface", TUNNEL_DEVICE.to_owned());
                }
                made
            }
        };
        self.index = Some(found.index);
        if found.master.is_some() {
            self.set(LinkUnspec::new_with_index(found.index).nocontroller().build())
                .await?;
            if self.made.is_some() {
                self.netlink.note_restored("interface", TUNNEL_DEVICE.to_owned());
            }
        }
        if found.mtu != plan.mtu {
            self.set(LinkUnspec::new_with_index(found.index).mtu(plan.mtu).build())
                .await?;
        }
        self.ensure_settings(plan)?;
        if !found.is_up() {
            self.set(LinkUnspec::new_with_index(found.index).up().build())
                .await?;
        }
        self.ensure_addresses(found.index, plan).await?;
        let entries = Entries::of(plan);
        let before = self.made.take().map(|(_, entries)| entries).unwrap_or_default();
        let added = entries.add_missing(&self.netlink, found.index, &before).await;
        self.made = Some((wanted, if added.is_ok() { entries } else { before }));
        added?;
        Ok(found.index)
    }

    /// Whether the device and its entries are as the agent made them; true if it has made none.
    pub async fn is_whole(&self) -> Result<bool, NetworkError> {
        let Some((made, entries)) = &self.made else {
            return Ok(true);
        };
        match self.find().await? {
            Some((link, found)) if found == Some(*made) && link.master.is_none() => {
                entries.are_on(&self.netlink, link.index).await
            }
            _ => Ok(false),
        }
    }

    /// Removes the entries of nodes that the tunnel no longer serves.
    pub async fn forget_others(&self, plan: &TunnelPlan) -> Result<(), NetworkError> {
        match self.index {
            Some(index) => Entries::of(plan).remove_others(&self.netlink, index).await,
            None => Ok(()),
        }
    }

    /// Removes the device. Returns whether there was one. A foreign device of that name is an error and
    /// stays.
    pub async fn remove(&mut self) -> Result<bool, NetworkError> {
        (self.index, self.made) = (None, None);
        let Some((link, _)) = self.find().await? else {
            return Ok(false);
        };
        self.delete(link.index).await?;
        Ok(true)
    }

    /// The device and its parameters, if they can be read.
    async fn find(&self) -> Result<Option<(Link, Option<Identity>)>, NetworkError> {
        let Some(message) = self.netlink.link_message_by_name(TUNNEL_DEVICE).await? else {
            return Ok(None);
        };
        let Some(link) = Link::read(&message) else {
            return Ok(None);
        };
        if link.kind != "vxlan" {
            let kind = if link.kind.is_empty() {
                "device"
            } else {
                &link.kind
            };
            return Err(NetworkError::ForeignDevice {
                name: TUNNEL_DEVICE,
                what: format!("a {kind} and no VXLAN interface"),
            });
        }
        let identity = Identity::read(&message, link.mac);
        Ok(Some((link, identity)))
    }

    async fn create(&self, plan: &TunnelPlan) -> Result<Link, NetworkError> {
        let Vxlan { port, id } = plan.vxlan;
        let device = LinkVxlan::new(TUNNEL_DEVICE, id.get())
            .port(port)
            .learning(false)
            .address(plan.mac.to_vec())
            .mtu(plan.mtu)
            .multicast(false);
        let device = match plan.local {
            IpAddr::V4(local) => device.local(local),
            IpAddr::V6(local) => device.local6(local),
        };
        let made = self.netlink.writing().link().add(device.build()).execute().await;
        made.map_err(|error| {
            let what = format!("making interface {TUNNEL_DEVICE} (VXLAN {id} at port {port})");
            let error = NetworkError::request(what.clone())(error);
            match error.raw_os_error() {
                Some(libc::EEXIST) => NetworkError::Request {
                    what,
                    error: std::io::Error::other(
                        "another VXLAN interface has this port and id, flannel.1 perhaps: remove it, or configure another \
                         port or id for both ends",
                    ),
                },
                _ => error,
            }
        })?;
        tracing::info!(id = id.get(), port, "made interface {TUNNEL_DEVICE}");
        let made = self.netlink.link_by_name(TUNNEL_DEVICE).await?;
        made.ok_or(NetworkError::ForeignDevice {
            name: TUNNEL_DEVICE,
            what: "it was removed right after it was made".into(),
        })
    }

    async fn delete(&self, index: u32) -> Result<(), NetworkError> {
        let removed = self.netlink.writing().link().del(index).execute().await;
        removed.map_err(NetworkError::request(format!(
            "removing interface {TUNNEL_DEVICE}"
        )))
    }

    async fn set(&self, message: LinkMessage) -> Result<(), NetworkError> {
        let set = self.netlink.writing().link().set(message).execute().await;
        set.map_err(NetworkError::request(format!(
            "setting up interface {TUNNEL_DEVICE}"
        )))
    }

    fn ensure_settings(&self, plan: &TunnelPlan) -> Result<(), NetworkError> {
        for setting in settings(plan) {
            if setting.ensure()? {
                self.netlink.note_write();
            }
        }
        Ok(())
    }

    /// The agent's settings of the device that have another value now.
    pub fn changed_settings(&self, plan: &TunnelPlan) -> Vec<String> {
        let made = self.index.map(|_| settings(plan)).into_iter().flatten();
        let changed = made.filter(Setting::is_changed);
        changed.map(|setting| setting.to_string()).collect()
    }

    async fn ensure_addresses(&self, index: u32, plan: &TunnelPlan) -> Result<(), NetworkError> {
        let refused = |ip: &IpAddr, what| {
            NetworkError::request(format!("{what} address {ip} of interface {TUNNEL_DEVICE}"))
        };
        let mut found = self.netlink.address_messages(index).await?;
        found.retain(|(address, _)| address.is_public());
        for ip in &plan.addresses {
            let here = found.iter().position(|(address, _)| address.ip == *ip);
            if let Some(here) = here {
                found.swap_remove(here);
                continue;
            }
            let length = if ip.is_ipv4() { 32 } else { 128 };
            let mut request = self.netlink.writing().address().add(index, *ip, length);
            if ip.is_ipv6() {
                request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
            }
            request.execute().await.map_err(refused(ip, "adding"))?;
        }
        for (address, message) in found {
            let removed = self.netlink.writing().address().del(message).execute().await;
            removed.map_err(refused(&address.ip, "removing"))?;
        }
        Ok(())
    }
}

impl Identity {
    fn of(plan: &TunnelPlan) -> Self {
        Self {
            port: plan.vxlan.port,
            id: plan.vxlan.id.get(),
            local: plan.local,
            mac: plan.mac,
            remote: None,
            lower: None,
            ttl: 0,
            learns: false,
        }
    }

    fn read(message: &LinkMessage, mac: Option<Mac>) -> Option<Self> {
        let infos = message.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => Some(infos),
            _ => None,
        })?;
        debug_assert!(infos.contains(&LinkInfo::Kind(InfoKind::Vxlan)));
        let infos = infos.iter().find_map(|info| match info {
            LinkInfo::Data(InfoData::Vxlan(infos)) => Some(infos),
            _ => None,
        })?;
        let (mut port, mut id, mut local) = (None, None, None);
        let (mut remote, mut lower, mut ttl, mut learns) = (None, None, 0, false);
        for info in infos {
            match info {
                InfoVxlan::Port(found) => port = Some(*found),
                InfoVxlan::Id(found) => id = Some(*found),
                InfoVxlan::Local(found) => local = Some(IpAddr::V4(*found)),
                InfoVxlan::Local6(found) => local = Some(IpAddr::V6(*found)),
                InfoVxlan::Group(found) => remote = Some(IpAddr::V4(*found)),
                InfoVxlan::Group6(found) => remote = Some(IpAddr::V6(*found)),
                InfoVxlan::Link(found) => lower = Some(*found),
                InfoVxlan::Ttl(found) => ttl = *found,
                InfoVxlan::Learning(found) => learns = *found,
                _ => {}
            }
        }
        Some(Self {
            port: port?,
            id: id?,
            local: local?,
            mac: mac?,
            remote,
            lower,
            ttl,
            learns,
        })
    }
}

/// The settings of the device.
fn settings(plan: &TunnelPlan) -> impl Iterator<Item = Setting<'static>> + use<> {
    let with_v6 = sysctl::has_ipv6() && plan.mtu >= IPV6_MIN_MTU;
    let used = plan.addresses.iter().any(IpAddr::is_ipv6);
    let quiet = QUIET_IPV6.iter().filter(move |_| with_v6);
    let v6 = quiet.chain(IPV6.iter().filter(move |_| with_v6 && used));
    let v6 = v6.map(|(name, value)| ("ipv6", *name, *value));
    let all = [("ipv4", "forwarding", "1")].into_iter().chain(v6);
    all.map(|(family, name, value)| Setting {
        family,
        device: TUNNEL_DEVICE,
        name,
        value,
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_device_that_another_program_altered_is_another_one() {
        let mac = [0x0a, 0x6d, 192, 0, 2, 1];
        let read = |more: Option<InfoVxlan>| {
            let mut infos = vec![
                InfoVxlan::Id(1),
                InfoVxlan::Local(Ipv4Addr::new(192, 0, 2, 1)),
                InfoVxlan::Ttl(0),
                InfoVxlan::Learning(false),
                InfoVxlan::Port(8472),
            ];
            infos.extend(more);
            let mut message = LinkMessage::default();
            message.attributes = vec![LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Vxlan),
                LinkInfo::Data(InfoData::Vxlan(infos)),
            ])];
            Identity::read(&message, Some(mac))
        };
        let made = Identity {
            port: 8472,
            id: 1,
            local: Ipv4Addr::new(192, 0, 2, 1).into(),
            mac,
            remote: None,
            lower: None,
            ttl: 0,
            learns: false,
        };
        assert_eq!(read(None), Some(made));
        for altered in [
            InfoVxlan::Port(4789),
            InfoVxlan::Local(Ipv4Addr::new(192, 0, 2, 99)),
            InfoVxlan::Group(Ipv4Addr::new(192, 0, 2, 9)),
            InfoVxlan::Link(1),
            InfoVxlan::Ttl(1),
            InfoVxlan::Learning(true),
        ] {
            assert_ne!(read(Some(altered)), Some(made));
        }
    }
}
