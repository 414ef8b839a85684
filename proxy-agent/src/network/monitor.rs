//! Follows the kernel's messages about links, addresses, routes, rules, neighbours and filters, and keeps
//! [`Links`] up to date.
//!
//! The socket joins its groups before the first dump, so that no message is lost between the two. A message
//! that repeats a part of the dump changes nothing. If this process was slow and the kernel dropped messages
//! (`ENOBUFS`), the monitor dumps everything anew and reports the difference like any other change.
//!
//! A waiting [`Monitor::changed`] may be dropped at any point: received messages stay noted for the next
//! call.

use futures::StreamExt as _;
use futures::channel::mpsc::UnboundedReceiver;
use nix::sys::socket::{setsockopt, sockopt};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NLM_F_REPLACE, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::sys::{AsyncSocket as _, SocketAddr};

use super::error::NetworkError;
use super::links::{Change, Links};
use super::netlink::Netlink;

const GROUPS: [MulticastGroup; 9] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Tc,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
];

/// The receive buffer, in bytes, for the messages about some thousand links that arrive while the agent is
/// busy. The kernel counts about 4 KiB for each, and its default would hold fifty.
const RECEIVE_BUFFER: usize = 16 << 20;

/// The current state of the namespace's links.
#[derive(Debug)]
pub struct Monitor {
    netlink: Netlink,
    messages: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    links: Links,
    noted: Change,
    stale: Stale,
}

/// The state that must be requested, since the kernel sends no message about it.
#[derive(Debug, Default)]
struct Stale {
    everything: bool,
    routes: bool,
    links: Vec<u32>,
}

impl Monitor {
    /// Starts to follow the network namespace of this thread and reads its state. Must be called within a
    /// tokio runtime, which drives the socket.
    pub async fn start(netlink: Netlink) -> Result<Self, NetworkError> {
        let (mut connection, _, messages) =
            rtnetlink::new_multicast_connection(&GROUPS).map_err(NetworkError::Socket)?;
        let socket = connection.socket_mut().socket_ref();
        if let Err(error) = setsockopt(socket, sockopt::RcvBufForce, &RECEIVE_BUFFER) {
            tracing::debug!(%error, "the buffer for netlink messages stays small");
        }
        tokio::spawn(connection);
        let mut monitor = Self {
            netlink,
            messages,
            links: Links::default(),
            noted: Change::default(),
            stale: Stale::default(),
        };
        monitor.read_everything().await?;
        monitor.noted = Change::default();
        Ok(monitor)
    }

    /// The links as last reported.
    pub fn links(&self) -> &Links {
        &self.links
    }

    /// Waits until something changes, and returns the change. It covers all messages that have arrived by
    /// then.
    pub async fn changed(&mut self) -> Result<Change, NetworkError> {
        loop {
            while let Ok(message) = self.messages.try_recv() {
                self.take(&message.0);
            }
            self.refresh().await?;
            if !self.noted.is_empty() {
                return Ok(std::mem::take(&mut self.noted));
            }
            let Some((message, _)) = self.messages.next().await else {
                return Err(NetworkError::Closed);
            };
            self.take(&message);
        }
    }

    fn take(&mut self, message: &NetlinkMessage<RouteNetlinkMessage>) {
        let flags = message.header.flags;
        match &message.payload {
            NetlinkPayload::Overrun(_) => self.stale.everything = true,
            NetlinkPayload::InnerMessage(message) => {
                match message {
                    RouteNetlinkMessage::DelLink(LinkMessage { header, .. }) => {
                        self.stale.links.extend(self.links.peers_of(header.index));
                    }
                    RouteNetlinkMessage::NewLink(LinkMessage { header, .. }) => {
                        let down = !header
                            .flags
                            .contains(rtnetlink::packet_route::link::LinkFlags::Up);
                        self.stale.routes |= down && self.links.may_lose_routes(header.index);
                    }
                    RouteNetlinkMessage::DelAddress(message) => {
                        self.stale.routes |= self.links.may_lose_routes(message.header.index);
                    }
                    // The kernel sends no message about the replaced route.
                    RouteNetlinkMessage::NewRoute(message) => {
                        self.stale.routes |=
                            flags & NLM_F_REPLACE != 0 && self.links.keeps_route_like(message);
                    }
                    _ => {}
                }
                self.links.take(message, &mut self.noted);
            }
            _ => {}
        }
    }

    /// Requests the stale state.
    async fn refresh(&mut self) -> Result<(), NetworkError> {
        if self.stale.everything {
            tracing::info!("netlink messages were lost: reading all links anew");
            self.read_everything().await?;
            self.noted.resynced = true;
            self.stale = Stale::default();
        }
        if self.stale.routes {
            let routes = self.netlink.routes().await?;
            self.links.set_routes(&routes, &mut self.noted);
            self.stale.routes = false;
        }
        while let Some(index) = self.stale.links.last().copied() {
            // If the link no longer exists, the kernel has sent a message of its own about that.
            if let Some(link) = self.netlink.link_by_index(index).await?
                && self.links.get(index).is_some()
            {
                self.links.set_link(link, &mut self.noted);
            }
            self.stale.links.pop();
        }
        Ok(())
    }

    async fn read_everything(&mut self) -> Result<(), NetworkError> {
        let mut dumped = Links::default();
        let mut ignored = Change::default();
        for link in self.netlink.links().await? {
            dumped.set_link(link, &mut ignored);
        }
        for (index, address) in self.netlink.addresses().await? {
            dumped.set_address(index, address, &mut ignored);
        }
        dumped.set_routes(&self.netlink.routes().await?, &mut ignored);
        self.links.replace(dumped, &mut self.noted);
        Ok(())
    }
}
