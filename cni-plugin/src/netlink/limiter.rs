//! The limit of what a pod sends: a pair of devices of its own, and a queue that what the pod sends goes through before anything
//! is decided about it.
//!
//! ```text
//! pod's eth0 ─► mr…: from_pod redirects ─► ml…: token bucket ═ mk…: filter ─► mr…, again: from_pod decides and translates
//! ```
//!
//! A queue meets only what leaves by an interface, and what a pod sends enters the node by its. A filter behind our program, as
//! older versions had it with an ifb device, meets only what the program leaves to the stack: answers that it redirects went
//! without a limit. So the program sends everything through the pair first, marked, and the far end hands it back to the pod's
//! interface, where the mark says that it has been there. The mark survives the pair, whose ends are in one namespace, and not
//! the way out of the pod (`skb_scrub_packet()` of net/core/skbuff.c): no pod can set it.
//!
//! The far end has the Ethernet address of the pod's interface, so that packets for that count as addressed to the node
//! (`eth_type_trans()`). The filter is `cls_u32` that matches everything, for not every kernel has `cls_matchall`. A queue at the
//! pod's end of the cable would need no devices, but who is root in a pod could remove it.

use netlink_packet_route::link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkMessage};
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirror, TcActionMirrorOption, TcActionOption, TcActionType,
    TcAttribute, TcFilterU32, TcFilterU32Option, TcHandle, TcMessage, TcMirror, TcMirrorActionType, TcOption,
    TcU32Key, TcU32Selector, TcU32SelectorFlags,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::conversation::{Conversation, Request, errno};
use super::error::NetlinkError;
use super::limit;
use super::link::{self, End, Link, Pair};
use crate::config::runtime::Limit;

/// The largest that a pair takes: the pod's own interface decides what is too large.
const MTU: u32 = 65_535;
/// Of the filter. Those of older versions stood behind whatever programs hang on a pod's interface, ours (77) and those that
/// let the kernel choose (49152 at the most).
const PRIORITY: u16 = 65_000;
/// `ETH_P_ALL`, as `tcm_info` has it.
const ALL_PROTOCOLS: u32 = (libc::ETH_P_ALL as u16).to_be() as u32;

/// A limiter that is to be made.
pub struct Limiter<'a> {
    /// The name of the end with the queue.
    pub name: &'a str,
    /// The name of the far end.
    pub end: &'a str,
    /// The pod's interface on the node's side.
    pub interface: u32,
    /// The Ethernet address of that interface.
    pub mac: [u8; 6],
    /// The largest packet of the pod.
    pub mtu: u32,
    /// The limit.
    pub limit: Limit,
}

impl Limiter<'_> {
    /// Makes it and gives its index. Nothing is sent there yet; what is comes back.
    pub fn make(&self, node: &mut Conversation) -> Result<u32, NetlinkError> {
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
        // The end that is switched on last carries packets at once, and only that sends any.
        requests.extend([link::up(peer), link::up(index)]);
        node.batch(requests)?;
        Ok(index)
    }
}

/// Whether what comes in by the far end of a limiter goes on to an interface, and to nothing else before.
pub fn leads_to(node: &mut Conversation, end: u32, interface: u32) -> Result<bool, NetlinkError> {
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
        filters.iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewTrafficFilter(filter) => Some(filter),
            _ => None,
        })
    };
    Ok(filters().any(|filter| redirects_to(filter) == Some(interface)))
}

/// The interface that a filter leads packets to.
fn redirects_to(filter: &TcMessage) -> Option<u32> {
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

/// Without an interface ENODEV, without a qdisc EINVAL, without a filter ENOENT.
fn is_gone(error: &NetlinkError) -> bool {
    matches!(errno(error), Some(libc::ENODEV | libc::EINVAL | libc::ENOENT))
}

/// Leads nothing through a limiter of an older version any more: an ifb device, to which a filter at the pod's interface leads.
pub fn release(node: &mut Conversation, interface: u32) -> Result<(), NetlinkError> {
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

/// A device that nobody talks to needs no address.
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

/// Has everything that comes in by an interface come in by another.
fn redirect(interface: u32, to: u32) -> TcMessage {
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    // A mask of nothing, which every packet has.
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
