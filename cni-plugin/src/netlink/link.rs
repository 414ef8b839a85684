//! Interfaces: the veth pair, and requests about its ends.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::thread;
use std::time::{Duration, Instant};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet, AfSpecUnspec, InetDevConf, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage,
};
use netlink_packet_route::route::{RouteAttribute, RouteMessage};

use super::error::NetlinkError;
use super::socket::{NetlinkSocket, Request, errno};

/// The parameters of a veth pair that the plugin makes.
pub struct Pair<'a> {
    /// The node's side.
    pub host: End<'a>,
    /// The pod's side.
    pub pod: End<'a>,
    /// The MTU of both sides in bytes.
    pub mtu: u32,
    /// The namespace of the pod's side; `None` for the node's own namespace.
    pub namespace: Option<BorrowedFd<'a>>,
}

/// The parameters of one end of a pair.
#[derive(Clone, Copy)]
pub struct End<'a> {
    /// The name of the end.
    pub name: &'a str,
    /// The Ethernet address of the end.
    pub mac: [u8; 6],
}

/// An interface that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The interface's index.
    pub index: u32,
    /// The index of the other end of a veth, in the namespace of that end.
    pub peer: u32,
    /// The interface's MTU in bytes.
    pub mtu: u32,
    /// The interface's Ethernet address.
    pub mac: Vec<u8>,
    /// Whether the interface is administratively up.
    pub is_up: bool,
    /// Whether the interface carries packets: it has a carrier, and its queue is not `noop`, which drops all
    /// packets.
    pub carries: bool,
}

impl Pair<'_> {
    fn end(&self, end: &End<'_>) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(end.name.to_owned()),
            LinkAttribute::Address(end.mac.to_vec()),
            LinkAttribute::Mtu(self.mtu),
        ];
        message
    }

    /// Makes the pair, both ends down, and returns the node's side. The pod's side starts in the pod's
    /// namespace: its name clashes with no interface of the node, and it disappears with the pod's namespace.
    pub fn make(&self, socket: &mut NetlinkSocket) -> Result<Link, NetlinkError> {
        let mut peer = self.end(&self.pod);
        let namespace = self.namespace.map(|namespace| namespace.as_raw_fd());
        peer.attributes.extend(namespace.map(LinkAttribute::NetNsFd));
        let mut message = self.end(&self.host);
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        let what = format!("making the veth pair {} and {}", self.host.name, self.pod.name);
        let request = Request::make(what, RouteNetlinkMessage::NewLink(message));
        match make(socket, self.host.name, request) {
            // The kernel does not report which of the two names exists.
            Err(error) if errno(&error) == Some(libc::EEXIST) => {
                Err(if find(socket, self.host.name)?.is_some() {
                    NetlinkError::HostInterfaceExists(self.host.name.to_owned())
                } else {
                    NetlinkError::InterfaceExists(self.pod.name.to_owned())
                })
            }
            made => made,
        }
    }
}

/// Makes an interface and looks it up.
pub fn make(socket: &mut NetlinkSocket, name: &str, request: Request) -> Result<Link, NetlinkError> {
    let replies = socket.batch(vec![request, lookup(name)])?;
    let gone = || io::Error::from_raw_os_error(libc::ENODEV);
    let made = replies.iter().find_map(read);
    made.ok_or_else(|| NetlinkError::refused(format!("looking for {name}, which was just made"))(gone()))
}

fn lookup(name: &str) -> Request {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    let what = format!("looking for interface {name}");
    Request::plain(what, RouteNetlinkMessage::GetLink(message))
}

/// Looks an interface up by name.
pub fn find(socket: &mut NetlinkSocket, name: &str) -> Result<Option<Link>, NetlinkError> {
    match socket.ask(lookup(name)) {
        Ok(replies) => Ok(replies.iter().find_map(read)),
        Err(error) if errno(&error) == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The name of the interface with an index, in the network namespace of this thread.
pub fn name_of(index: u32) -> Option<String> {
    // nix takes the null pointer for a missing interface as success and returns an empty name.
    let name = nix::net::if_::if_indextoname(index).ok()?;
    Some(name.to_string_lossy().into_owned()).filter(|name| !name.is_empty())
}

/// Whether there is an interface with an index.
pub fn exists(socket: &mut NetlinkSocket, index: u32) -> Result<bool, NetlinkError> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    let what = format!("looking for interface {index}");
    match socket.ask(Request::plain(what, RouteNetlinkMessage::GetLink(message))) {
        Err(error) if errno(&error) == Some(libc::ENODEV) => Ok(false),
        found => found.map(|_| true),
    }
}

fn read(reply: &RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = reply else {
        return None;
    };
    let mut link = Link {
        index: message.header.index,
        peer: 0,
        mtu: 0,
        mac: Vec::new(),
        is_up: message.header.flags.contains(LinkFlags::Up),
        carries: message.header.flags.contains(LinkFlags::LowerUp),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Link(peer) => link.peer = *peer,
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(mac) => link.mac.clone_from(mac),
            LinkAttribute::Qdisc(kind) => link.carries &= kind != "noop",
            _ => {}
        }
    }
    Some(link)
}

/// Waits until an interface carries packets.
///
/// The end of a pair that goes up first gets its carrier with the other end. A task of the kernel installs
/// its queue later, and until then the interface drops packets. Since Linux 6.8 a request for the interface
/// runs that task first (`linkwatch_sync_dev()` of `net/core/link_watch.c`). Older kernels take a moment.
pub fn await_queue(socket: &mut NetlinkSocket, name: &str) -> Result<(), NetlinkError> {
    let deadline = Instant::now() + Duration::from_secs(2);
    while !find(socket, name)?.is_some_and(|link| link.carries) {
        if Instant::now() > deadline {
            let late = io::Error::from_raw_os_error(libc::ETIMEDOUT);
            return Err(NetlinkError::refused(format!(
                "waiting for interface {name} to carry packets"
            ))(late));
        }
        thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}

/// Sets an interface up.
pub fn up(index: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    Request::plain(
        format!("switching on interface {index}"),
        RouteNetlinkMessage::SetLink(message),
    )
}

/// Sets an interface down.
pub fn down(index: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.change_mask = LinkFlags::Up;
    Request::plain(
        format!("switching off interface {index}"),
        RouteNetlinkMessage::SetLink(message),
    )
}

/// Gives an interface another name.
pub fn rename(index: u32, name: &str) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    Request::plain(
        format!("giving interface {index} the name {name}"),
        RouteNetlinkMessage::SetLink(message),
    )
}

/// Gives an interface an Ethernet address.
pub fn address(index: u32, mac: &[u8; 6]) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes.push(LinkAttribute::Address(mac.to_vec()));
    Request::plain(
        format!("setting the Ethernet address of interface {index}"),
        RouteNetlinkMessage::SetLink(message),
    )
}

/// Gives an interface an MTU.
pub fn mtu(index: u32, mtu: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes.push(LinkAttribute::Mtu(mtu));
    Request::plain(
        format!("setting the MTU of interface {index} to {mtu}"),
        RouteNetlinkMessage::SetLink(message),
    )
}

/// Removes an interface from the bridge, bond or VRF that it is a port of.
pub fn release(index: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes.push(LinkAttribute::Controller(0));
    Request::plain(
        format!("taking interface {index} out of its master"),
        RouteNetlinkMessage::SetLink(message),
    )
}

/// Lets an interface forward packets (`forwarding`) and send no ARP replies (`arp_ignore`). A reply would
/// make an entry in the node's neighbour table, which all pods share. One pod could fill that table with
/// forged addresses. A pod asks for its gateway alone, and the program at the interface replies to that. The
/// node has a permanent entry for the pod's own address.
pub fn serve_pod_v4(index: u32) -> Request {
    /// The value for no replies to any address of the node.
    const NEVER: i32 = 8;
    let mut settings = InetDevConf::default();
    settings.forwarding = 1;
    settings.arp_ignore = NEVER;
    configure_v4(index, settings)
}

/// Lets an interface send gratuitous ARP when it goes up: the setting `arp_notify`.
pub fn notify_v4(index: u32) -> Request {
    let mut settings = InetDevConf::default();
    settings.arp_notify = 1;
    configure_v4(index, settings)
}

/// Makes the settings that are not 0. Unlike [`super::sysctl`], this needs no entry into the namespace and
/// joins a batch of requests.
fn configure_v4(index: u32, settings: InetDevConf) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    let settings = AfSpecUnspec::Inet(vec![AfSpecInet::DevConfRequest(settings)]);
    message
        .attributes
        .push(LinkAttribute::AfSpecUnspec(vec![settings]));
    Request::plain(
        format!("making IPv4 settings of interface {index}"),
        RouteNetlinkMessage::SetLink(message),
    )
}

/// Removes an interface with its other end and all objects attached to both. A missing interface is no error.
pub fn remove(socket: &mut NetlinkSocket, index: u32) -> Result<(), NetlinkError> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    let what = format!("removing interface {index}");
    match socket.ask(Request::plain(what, RouteNetlinkMessage::DelLink(message))) {
        Err(error) if errno(&error) != Some(libc::ENODEV) => Err(error),
        _ => Ok(()),
    }
}

/// The MTU of the node's uplinks: the smallest MTU of the interfaces of default routes. Without a default
/// route it is Ethernet's.
pub fn uplink_mtu(socket: &mut NetlinkSocket) -> Result<u32, NetlinkError> {
    const ETHERNET: u32 = 1500;
    let routes = RouteNetlinkMessage::GetRoute(RouteMessage::default());
    let routes = socket.ask(Request::list("listing routes", routes))?;
    let uplinks: Vec<u32> = routes.iter().filter_map(default_interface).collect();
    if uplinks.is_empty() {
        return Ok(ETHERNET);
    }
    let links = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let links = socket.ask(Request::list("listing interfaces", links))?;
    let mtus = links.iter().filter_map(read);
    let mtu = mtus
        .filter(|link| uplinks.contains(&link.index))
        .map(|link| link.mtu)
        .min();
    Ok(mtu.unwrap_or(ETHERNET))
}

fn default_interface(reply: &RouteNetlinkMessage) -> Option<u32> {
    const LOOPBACK: u32 = 1;
    let RouteNetlinkMessage::NewRoute(message) = reply else {
        return None;
    };
    let interface = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    });
    // On a node without an IPv6 default route, the kernel's unreachable default route leads to the loopback.
    interface.filter(|index| message.header.destination_prefix_length == 0 && *index != LOOPBACK)
}
