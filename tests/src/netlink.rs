//! Links, addresses, routes and neighbours by rtnetlink, with one call per step of a set-up. A netlink socket
//! belongs to the namespace of the thread that opened it, and every thread may use it later.

use std::fmt::Display;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use anyhow::{Context, Result};
use futures::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::address::AddressHeaderFlags;
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, State};
use netlink_packet_route::neighbour::NeighbourState;
use netlink_packet_route::route::RouteScope;
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use tokio::runtime::Runtime;

use crate::wait;

/// A hardware address.
pub type Mac = [u8; 6];

/// A veth pair: one end here, its peer in another namespace.
pub(crate) struct Veth<'a> {
    pub(crate) name: &'a str,
    pub(crate) mac: Mac,
    pub(crate) peer_name: &'a str,
    pub(crate) peer_mac: Mac,
    pub(crate) peer_netns: BorrowedFd<'a>,
}

/// A netlink socket for one namespace.
pub(crate) struct Rtnl {
    runtime: Runtime,
    handle: Handle,
}

impl Rtnl {
    /// Opens a netlink socket in the namespace of the calling thread.
    pub(crate) fn open() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("starting a runtime for netlink")?;
        let (connection, handle, _) = runtime
            .block_on(async { rtnetlink::new_connection() })
            .context("opening a netlink socket")?;
        runtime.spawn(connection);
        Ok(Self { runtime, handle })
    }

    fn run<T>(
        &self,
        what: impl Display,
        request: impl Future<Output = Result<T, rtnetlink::Error>>,
    ) -> Result<T> {
        self.runtime.block_on(request).with_context(|| what.to_string())
    }

    /// The index of a link.
    pub(crate) fn index(&self, link: &str) -> Result<u32> {
        let mut found = self.handle.link().get().match_name(link.to_owned()).execute();
        let message = self.run(format_args!("looking up link {link}"), found.try_next())?;
        Ok(message
            .with_context(|| format!("there is no link {link}"))?
            .header
            .index)
    }

    pub(crate) fn set_up(&self, link: &str) -> Result<()> {
        let message = LinkUnspec::new_with_index(self.index(link)?).up().build();
        self.run(
            format_args!("setting {link} up"),
            self.handle.link().set(message).execute(),
        )
    }

    /// Takes a link down, as a pulled cable does.
    pub(crate) fn set_down(&self, link: &str) -> Result<()> {
        let message = LinkUnspec::new_with_index(self.index(link)?).down().build();
        self.run(
            format_args!("setting {link} down"),
            self.handle.link().set(message).execute(),
        )
    }

    /// Waits until a link carries traffic: the kernel notices a carrier a moment after both ends are up.
    pub(crate) fn wait_operational(&self, link: &str) -> Result<()> {
        wait::poll(std::time::Duration::from_secs(5), || {
            let mut found = self.handle.link().get().match_name(link.to_owned()).execute();
            let message = self.run(format_args!("looking up link {link}"), found.try_next())?;
            let up = message.is_some_and(|m| m.attributes.contains(&LinkAttribute::OperState(State::Up)));
            if up {
                Ok(())
            } else {
                Err(anyhow::anyhow!("link {link} does not become operational"))
            }
        })
    }

    pub(crate) fn add_veth(&self, veth: &Veth<'_>) -> Result<()> {
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(veth.peer_name)
            .address(veth.peer_mac.to_vec())
            .setns_by_fd(veth.peer_netns.as_raw_fd())
            .build();
        let message = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(veth.name)
            .address(veth.mac.to_vec())
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        self.run(
            format_args!("adding veth {}", veth.name),
            self.handle.link().add(message).execute(),
        )
    }

    pub(crate) fn add_bridge(&self, name: &str, mac: Mac) -> Result<()> {
        let message = LinkBridge::new(name).address(mac.to_vec()).up().build();
        self.run(
            format_args!("adding bridge {name}"),
            self.handle.link().add(message).execute(),
        )
    }

    pub(crate) fn set_bridge(&self, port: &str, bridge: &str) -> Result<()> {
        let message = LinkUnspec::new_with_index(self.index(port)?)
            .controller(self.index(bridge)?)
            .build();
        self.run(
            format_args!("putting {port} on {bridge}"),
            self.handle.link().set(message).execute(),
        )
    }

    pub(crate) fn delete_link(&self, link: &str) -> Result<()> {
        let index = self.index(link)?;
        self.run(
            format_args!("deleting {link}"),
            self.handle.link().del(index).execute(),
        )
    }

    pub(crate) fn add_address(&self, link: &str, address: IpAddr, prefix: u8) -> Result<()> {
        let mut request = self.handle.address().add(self.index(link)?, address, prefix);
        if address.is_ipv6() {
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        self.run(
            format_args!("adding {address}/{prefix} to {link}"),
            request.execute(),
        )
    }

    /// Routes `to` out of `link`, through the gateway `via` if there is one. The gateway may be outside of
    /// the link's subnets.
    pub(crate) fn add_route(&self, to: IpNet, via: Option<IpAddr>, link: &str) -> Result<()> {
        let what = match via {
            Some(gateway) => format!("adding route {to} via {gateway} dev {link}"),
            None => format!("adding route {to} dev {link}"),
        };
        let mut route = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(to.addr(), to.prefix_len())
            .with_context(|| what.clone())?
            .output_interface(self.index(link)?);
        route = match via {
            Some(gateway) => route.gateway(gateway).with_context(|| what.clone())?.onlink(),
            None => route.scope(RouteScope::Link),
        };
        self.run(what, self.handle.route().add(route.build()).replace().execute())
    }

    pub(crate) fn add_neighbour(&self, link: &str, address: IpAddr, mac: Mac) -> Result<()> {
        let request = self
            .handle
            .neighbours()
            .add(self.index(link)?, address)
            .link_layer_address(&mac)
            .state(NeighbourState::Permanent)
            .replace();
        self.run(
            format_args!("adding neighbour {address} on {link}"),
            request.execute(),
        )
    }
}

/// The default route's destination in the family of `gateway`.
pub(crate) fn everywhere(gateway: IpAddr) -> IpNet {
    let any = match gateway {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    IpNet::new_assert(any, 0)
}
