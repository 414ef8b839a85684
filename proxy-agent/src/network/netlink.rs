//! Requests to rtnetlink, with a count of all writes, and parsers of route messages that several modules
//! need.
//!
//! Tests and `millrace status` use the count to check that the agent writes nothing if nothing differs.

use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::TryStreamExt as _;
use ipnet::IpNet;
use rtnetlink::packet_core::{DefaultNla, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::nsid::{NsidAttribute, NsidMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::AsyncSocket as _;
use rtnetlink::{Handle, RouteMessageBuilder};

use super::error::NetworkError;
use super::inside::NextHop;
use super::link::{Address, Link};

/// The kernel's error for a name that no link has.
const ENODEV: i32 = libc::ENODEV;

/// The attribute's number in `include/uapi/linux/if_addr.h`.
const IFA_TARGET_NETNSID: u16 = 10;

/// A netlink socket for requests, shared by its clones.
#[derive(Debug, Clone)]
pub struct Netlink {
    handle: Handle,
    writes: Arc<AtomicU64>,
    restored: Arc<Mutex<Vec<Restored>>>,
}

/// A hypothetical packet, for which the kernel looks up a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// The destination of the packet.
    pub to: IpAddr,
    /// The IP protocol number, which rules may match: that of TCP or UDP. Old kernels ignore it.
    pub protocol: u8,
    /// The source address and the input interface; `None` for a packet of the node itself.
    pub from: Option<(IpAddr, u32)>,
}

impl Packet {
    fn request(self) -> RouteMessage {
        let mut route = RouteMessage::default();
        let (family, length) = match self.to {
            IpAddr::V4(_) => (AddressFamily::Inet, 32),
            IpAddr::V6(_) => (AddressFamily::Inet6, 128),
        };
        route.header.address_family = family;
        route.header.destination_prefix_length = length;
        route.attributes.push(RouteAttribute::Destination(self.to.into()));
        if let Some((source, interface)) = self.from {
            route.header.source_prefix_length = length;
            route.attributes.push(RouteAttribute::Source(source.into()));
            route.attributes.push(RouteAttribute::Iif(interface));
        }
        route.attributes.push(RouteAttribute::IpProto(self.protocol));
        route
    }
}

/// The next hop in the kernel's reply.
fn next_hop(reply: &RouteMessage) -> Option<NextHop> {
    let (mut interface, mut via) = (None, None);
    for attribute in &reply.attributes {
        match attribute {
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Gateway(address) => via = ip(address),
            _ => {}
        }
    }
    Some(NextHop {
        interface: interface?,
        via,
    })
}

/// A lost object of ours that the agent made again: its kind and its name.
pub type Restored = (&'static str, String);

impl Netlink {
    /// Opens a netlink socket in the network namespace of this thread. Must be called within a tokio runtime.
    pub fn open() -> Result<Self, NetworkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetworkError::Socket)?;
        tokio::spawn(connection);
        Ok(Self {
            handle,
            writes: Arc::default(),
            restored: Arc::default(),
        })
    }

    /// The number of writing requests.
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    /// Counts a write that did not use [`Self::writing`].
    pub(super) fn note_write(&self) {
        self.writes.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that the agent made an object again.
    pub(super) fn note_restored(&self, what: &'static str, object: String) {
        let mut restored = self.restored.lock().unwrap_or_else(PoisonError::into_inner);
        restored.push((what, object));
    }

    /// The objects that the agent made again since the last call.
    pub fn take_restored(&self) -> Vec<Restored> {
        std::mem::take(&mut *self.restored.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The next hop that the kernel chooses for a packet; `None` if it has no route.
    pub async fn route_of(&self, packet: Packet) -> Result<Option<NextHop>, NetworkError> {
        let mut replies = Box::pin(self.handle.route().get(packet.request()).execute());
        match replies.try_next().await {
            Ok(reply) => Ok(reply.as_ref().and_then(next_hop)),
            Err(rtnetlink::Error::NetlinkError(_)) => Ok(None),
            Err(error) => {
                let what = format!("looking for the way to {}", packet.to);
                Err(NetworkError::request(what)(error))
            }
        }
    }

    /// The handle for a request that changes nothing.
    pub(super) fn reading(&self) -> &Handle {
        &self.handle
    }

    /// The handle for a request that changes something.
    pub(super) fn writing(&self) -> &Handle {
        self.writes.fetch_add(1, Ordering::Relaxed);
        &self.handle
    }

    /// Lists every link.
    pub async fn links(&self) -> Result<Vec<Link>, NetworkError> {
        let messages = self.handle.link().get().execute().try_collect::<Vec<_>>().await;
        let messages = messages.map_err(NetworkError::request("listing the links"))?;
        Ok(messages.iter().filter_map(Link::read).collect())
    }

    /// The link with this name.
    pub async fn link_by_name(&self, name: &str) -> Result<Option<Link>, NetworkError> {
        self.link(name, |get| get.match_name(name.to_owned())).await
    }

    /// The link with this index.
    pub async fn link_by_index(&self, index: u32) -> Result<Option<Link>, NetworkError> {
        self.link(&index.to_string(), |get| get.match_index(index)).await
    }

    /// The whole message of the link with this name.
    pub(super) async fn link_message_by_name(&self, name: &str) -> Result<Option<LinkMessage>, NetworkError> {
        self.link_message(name, |get| get.match_name(name.to_owned()))
            .await
    }

    async fn link(
        &self,
        object: &str,
        select: impl FnOnce(rtnetlink::LinkGetRequest) -> rtnetlink::LinkGetRequest,
    ) -> Result<Option<Link>, NetworkError> {
        let message = self.link_message(object, select).await?;
        Ok(message.as_ref().and_then(Link::read))
    }

    async fn link_message(
        &self,
        object: &str,
        select: impl FnOnce(rtnetlink::LinkGetRequest) -> rtnetlink::LinkGetRequest,
    ) -> Result<Option<LinkMessage>, NetworkError> {
        let found: Result<Option<LinkMessage>, _> = Box::pin(select(self.handle.link().get()).execute())
            .try_next()
            .await;
        match found {
            Ok(message) => Ok(message),
            Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == -ENODEV => Ok(None),
            Err(error) => Err(NetworkError::request(format!("looking up interface {object}"))(
                error,
            )),
        }
    }

    /// Lists every address, with the index of its link.
    pub async fn addresses(&self) -> Result<Vec<(u32, Address)>, NetworkError> {
        let messages = self
            .handle
            .address()
            .get()
            .execute()
            .try_collect::<Vec<_>>()
            .await;
        let messages = messages.map_err(NetworkError::request("listing the addresses"))?;
        Ok(messages.iter().filter_map(Address::read).collect())
    }

    /// The addresses of a link, with their whole messages.
    pub(super) async fn address_messages(
        &self,
        index: u32,
    ) -> Result<Vec<(Address, AddressMessage)>, NetworkError> {
        let request = self.handle.address().get().set_link_index_filter(index);
        let messages = request.execute().try_collect::<Vec<_>>().await;
        let messages = messages.map_err(NetworkError::request("listing the addresses"))?;
        let of_link = messages.into_iter().filter_map(|message| {
            let (found, address) = Address::read(&message)?;
            (found == index).then_some((address, message))
        });
        Ok(of_link.collect())
    }

    /// The addresses in another network namespace, by this namespace's id of it (Linux 5.0). Only a socket
    /// with strict checking gets them, so the call opens one of its own.
    pub async fn addresses_in(&self, namespace: i32) -> Result<Vec<IpAddr>, NetworkError> {
        let (mut connection, handle, _) = rtnetlink::new_connection().map_err(NetworkError::Socket)?;
        let socket = connection.socket_mut().socket_mut();
        socket
            .set_netlink_get_strict_chk(true)
            .map_err(NetworkError::Socket)?;
        let connection = tokio::spawn(connection);
        let mut request = handle.address().get();
        let target = DefaultNla::new(IFA_TARGET_NETNSID, namespace.to_ne_bytes().to_vec());
        request
            .message_mut()
            .attributes
            .push(AddressAttribute::Other(target));
        let messages = request.execute().try_collect::<Vec<_>>().await;
        connection.abort();
        let messages = messages.map_err(NetworkError::request("listing a pod's addresses"))?;
        Ok(messages
            .iter()
            .filter_map(|message| Some(Address::read(message)?.1.ip))
            .collect())
    }

    /// Lists every route of both families and all tables, without cached entries.
    pub async fn routes(&self) -> Result<Vec<RouteMessage>, NetworkError> {
        let mut routes = Vec::new();
        let v4 = RouteMessageBuilder::<std::net::Ipv4Addr>::new().build();
        let v6 = RouteMessageBuilder::<std::net::Ipv6Addr>::new().build();
        for family in [v4, v6] {
            let messages = self
                .handle
                .route()
                .get(family)
                .execute()
                .try_collect::<Vec<_>>()
                .await;
            routes.extend(messages.map_err(NetworkError::request("listing the routes"))?);
        }
        routes.retain(|route| !is_cached(route));
        Ok(routes)
    }

    /// This namespace's id of another one, which is open as a file; `None` if no link has led there yet.
    pub async fn namespace_id(&self, namespace: BorrowedFd<'_>) -> Result<Option<i32>, NetworkError> {
        let mut message = NsidMessage::default();
        message
            .attributes
            .push(NsidAttribute::Fd(namespace.as_raw_fd().cast_unsigned()));
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetNsId(message));
        request.header.flags = NLM_F_REQUEST;
        let reply = self.clone().handle.request(request);
        let mut reply = reply.map_err(NetworkError::request("asking for the id of a network namespace"))?;
        match futures::StreamExt::next(&mut reply)
            .await
            .map(|message| message.payload)
        {
            Some(NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNsId(message))) => {
                Ok(message.attributes.iter().find_map(|attribute| match attribute {
                    NsidAttribute::Id(id) if *id >= 0 => Some(*id),
                    _ => None,
                }))
            }
            Some(NetlinkPayload::Error(error)) => Err(NetworkError::Request {
                what: "asking for the id of a network namespace".into(),
                error: error.to_io(),
            }),
            _ => Err(NetworkError::Closed),
        }
    }
}

/// The number of the main table.
pub(super) const MAIN_TABLE: u32 = RouteHeader::RT_TABLE_MAIN as u32;

/// The table of a route.
pub(super) fn table(message: &RouteMessage) -> u32 {
    let long = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    long.unwrap_or_else(|| message.header.table.into())
}

/// Whether a route is in the main table.
pub(super) fn is_main_table(message: &RouteMessage) -> bool {
    table(message) == MAIN_TABLE
}

/// Whether the message shows a cached entry, such as one of an ICMP redirect. It is a temporary exception of
/// a next hop, and no route (`RTM_F_CLONED`).
pub(super) fn is_cached(message: &RouteMessage) -> bool {
    message.header.flags.contains(RouteFlags::Cloned)
}

/// The destination of a route.
pub(super) fn prefix(message: &RouteMessage) -> Option<IpNet> {
    let destination = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => ip(address),
        _ => None,
    });
    let unspecified = match message.header.address_family {
        AddressFamily::Inet => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    IpNet::new(
        destination.unwrap_or(unspecified),
        message.header.destination_prefix_length,
    )
    .ok()
}

/// The metric of a route.
pub(super) fn metric(message: &RouteMessage) -> u32 {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Priority(metric) => Some(*metric),
            _ => None,
        })
        .unwrap_or(0)
}

/// An address of a route, if it is an IP address.
pub(super) fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}
