//! The limit of packets from a pod: a veth pair for each limited pod. The packets pass its token bucket
//! before any decision about them.
//!
//! ```text
//! pod's eth0 ─► mr…: from_pod redirects ─► ml…: token bucket ═ mk…: filter ─► mr…, again: from_pod decides and translates
//! ```
//!
//! A queue limits only packets that leave by an interface, and a packet from a pod enters the node by its
//! interface. Older versions had a filter behind the program that led to an ifb device. That filter saw only
//! packets that the program passes to the stack, so replies that the program redirects had no limit.
//!
//! So the program first redirects each packet through the pair, with a mark. The far end returns the packet
//! to the pod's interface, where the mark shows that the packet has passed the bucket. The mark survives the
//! pair, whose ends are in one namespace. A mark that the pod sets does not survive the pod's veth pair
//! (`skb_scrub_packet()` of net/core/skbuff.c): so no pod can forge it.
//!
//! The far end has the Ethernet address of the node's side of the pod's interface. So packets to that address
//! count as addressed to the node (`eth_type_trans()`). The filter is a `cls_u32` that matches all packets,
//! since some kernels lack `cls_matchall`. A queue at the pod's end of its veth pair would need no devices,
//! but root in a pod could remove it.

use netlink_packet_route::link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkMessage};
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirror, TcActionMirrorOption, TcActionOption, TcActionType,
    TcAttribute, TcFilterU32, TcFilterU32Option, TcHandle, TcMessage, TcMirror, TcMirrorActionType, TcOption,
    TcU32Key, TcU32Selector, TcU32SelectorFlags,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::error::NetlinkError;
use super::limit;
use super::link::{self, End, Link, Pair};
use super::socket::{NetlinkSocket, Request, errno};
use crate::config::runtime::Limit;

/// The largest MTU of a pair: the pod's own interface decides which packets are too large.
const MTU: u32 = 65_535;
/// The priority of the filter. Filters of older versions came after all programs that are attached to a pod's
/// interface. The programs of the agent have priority 77, and a priority that the kernel chooses is 49152 at
/// the most.
const PRIORITY: u16 = 65_000;
/// `ETH_P_ALL` in the byte order of `tcm_info`.
const ALL_PROTOCOLS: u32 = (libc::ETH_P_ALL as u16).to_be() as u32;

/// The parameters of a limiter that the plugin makes.
pub struct Limiter<'a> {
    /// The name of the end with the queue.
    pub name: &'a str,
    /// The name of the far end.
    pub end: &'a str,
    /// The pod's interface on the node's side.
    pub interface: u32,
    /// The Ethernet address of that interface.
    pub mac: [u8; 6],
    /// The MTU of the pod in bytes.
    pub mtu: u32,
    /// The limit of the token bucket.
    pub limit: Limit,
}

impl Limiter<'_> {
    /// Makes the limiter and returns the index of the end with the queue. No packet enters it yet, and it
    /// returns each packet that enters.
    pub fn make(&self, node: &mut NetlinkSocket) -> Result<u32, NetlinkError> {
        let end = |name| End { name, mac: self.mac };
        let pair = Pair {
            host: end(self.name),
            pod: end(self.end),
            mtu: MTU,
            namespace: None,
        };
        let Link { index, peer, .. } = pair.make(node)?;
        let mut requests = Vec::from(limit::limit(index, self.limit, self.mtu));
        requests.extend([without_addresses(index), without_addresses(peer)]);
        requests.push(Request::make(
            format!("giving interface {peer} a place for filters (clsact)"),
            RouteNetlinkMessage::NewQueueDiscipline(place_for_filters(peer)),
        ));
        requests.push(Request::make(
            format!(
                "leading what interface {peer} takes in to {} (cls_u32 and act_mirred)",
                self.interface
            ),
            RouteNetlinkMessage::NewTrafficFilter(redirect(peer, self.interface)),
        ));
        // The end that goes up last carries packets at once, and only that end sends any.
        requests.extend([link::up(peer), link::up(index)]);
        node.batch(requests)?;
        Ok(index)
    }
}

/// Whether a filter at the far end of a limiter redirects packets to an interface.
pub fn redirects_into(node: &mut NetlinkSocket, end: u32, interface: u32) -> Result<bool, NetlinkError> {
    let mut message = TcMessage::with_index(end.cast_signed());
    message.header.parent = TcHandle {
        major: TcHandle::CLSACT.major,
        minor: TcHandle::MIN_INGRESS,
    };
    let what = format!("listing the filters of interface {end}");
    let filters = match node.ask(Request::list(
        what,
        RouteNetlinkMessage::GetTrafficFilter(message),
    )) {
        Err(error) if is_gone(&error) => return Ok(false),
        found => found?,
    };
    let filters = || {
        filters.iter().filter_map(|reply| match reply {
            RouteNetlinkMessage::NewTrafficFilter(filter) => Some(filter),
            _ => None,
        })
    };
    Ok(filters().any(|filter| redirect_target(filter) == Some(interface)))
}

/// The interface that a filter redirects packets to.
fn redirect_target(filter: &TcMessage) -> Option<u32> {
    let options = filter.attributes.iter().filter_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    });
    let actions = options.flatten().filter_map(|option| match option {
        TcOption::U32(TcFilterU32Option::Action(actions)) => Some(actions),
        _ => None,
    });
    let attributes = actions.flatten().flat_map(|action| &action.attributes);
    let mut mirrors = attributes.filter_map(|attribute| match attribute {
        TcActionAttribute::Options(options) => options.iter().find_map(|option| match option {
            TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror)) => Some(mirror),
            _ => None,
        }),
        _ => None,
    });
    let redirects = |mirror: &&TcMirror| mirror.eaction == TcMirrorActionType::IngressRedir;
    mirrors.find(redirects).map(|mirror| mirror.ifindex)
}

/// The kernel reports ENODEV without the interface, EINVAL without the qdisc, ENOENT without the filter.
fn is_gone(error: &NetlinkError) -> bool {
    matches!(errno(error), Some(libc::ENODEV | libc::EINVAL | libc::ENOENT))
}

/// Removes the filter at the pod's interface with which an older version led packets through an ifb device.
pub fn release(node: &mut NetlinkSocket, interface: u32) -> Result<(), NetlinkError> {
    let mut message = filter(interface);
    message
        .attributes
        .push(TcAttribute::Kind(TcFilterU32::KIND.to_owned()));
    let what = format!("leading what interface {interface} takes in through no limiter");
    let removed = node.ask(Request::plain(
        what,
        RouteNetlinkMessage::DelTrafficFilter(message),
    ));
    match removed {
        Err(error) if is_gone(&error) => Ok(()),
        removed => removed.map(drop),
    }
}

fn place_for_filters(interface: u32) -> TcMessage {
    let mut message = TcMessage::with_index(interface.cast_signed());
    message.header.parent = TcHandle::CLSACT;
    message.header.handle = TcHandle {
        major: TcHandle::CLSACT.major,
        minor: 0,
    };
    message.attributes = vec![TcAttribute::Kind("clsact".to_owned())];
    message
}

/// Gives a device of the pair no IPv6 link-local address, since no peer communicates with it.
fn without_addresses(interface: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = interface;
    message
        .attributes
        .push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![
            AfSpecInet6::AddrGenMode(In6AddrGenMode::None),
        ])]));
    Request::plain(
        format!("keeping addresses from interface {interface}"),
        RouteNetlinkMessage::SetLink(message),
    )
}

fn filter(interface: u32) -> TcMessage {
    let mut message = TcMessage::with_index(interface.cast_signed());
    message.header.family = AddressFamily::Unspec;
    message.header.parent = TcHandle {
        major: TcHandle::CLSACT.major,
        minor: TcHandle::MIN_INGRESS,
    };
    message.header.info = u32::from(PRIORITY) << 16 | ALL_PROTOCOLS;
    message
}

/// Redirects all packets that come in by `interface`, as if they came in by `to`.
fn redirect(interface: u32, to: u32) -> TcMessage {
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    // An empty mask, which matches every packet.
    selector.nkeys = 1;
    selector.keys = vec![TcU32Key::default()];
    let mut mirror = TcMirror::default();
    mirror.generic.action = TcActionType::Stolen;
    mirror.eaction = TcMirrorActionType::IngressRedir;
    mirror.ifindex = to;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))]),
    ];
    let mut message = filter(interface);
    message.attributes = vec![
        TcAttribute::Kind(TcFilterU32::KIND.to_owned()),
        TcAttribute::Options(vec![
            TcOption::U32(TcFilterU32Option::Selector(selector)),
            TcOption::U32(TcFilterU32Option::Action(vec![action])),
        ]),
    ];
    message
}
