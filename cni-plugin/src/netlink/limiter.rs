//! The limit of what a pod sends: a device of its own (ifb) whose queue what the pod has sent goes through.
//!
//! ```text
//! pod's eth0 ─► host side: our program (translates) ─► filter ─► limiter: token bucket ─► on from the host side, as received
//! ```
//!
//! A queue meets only what leaves by an interface, and what a pod sends enters the node by its. So a filter leads it out by
//! the limiter, which lets it in again at the pod's interface; the kernel asks no program and no filter there a second time.
//! The filter comes after our program: on one qdisc the priority decides, and tcx runs before clsact. It is `cls_u32` that
//! matches everything, for not every kernel has `cls_matchall`. A queue at the pod's end of the cable would need no device, but
//! who is root in a pod could remove it.

use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoKind, LinkAttribute, LinkInfo, LinkMessage,
};
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirror, TcActionMirrorOption, TcActionOption, TcActionType,
    TcAttribute, TcFilterU32, TcFilterU32Option, TcHandle, TcMessage, TcMirror, TcMirrorActionType, TcOption,
    TcU32Key, TcU32Selector, TcU32SelectorFlags,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::conversation::{Conversation, Request, errno};
use super::error::NetlinkError;
use super::{limit, link};
use crate::config::runtime::Limit;

/// Behind whatever programs hang on the qdisc, ours (77) and those that let the kernel choose (49152 at the most).
const PRIORITY: u16 = 65_000;
/// `ETH_P_ALL`, as `tcm_info` has it.
const ALL_PROTOCOLS: u32 = (libc::ETH_P_ALL as u16).to_be() as u32;

/// Makes a limiter and gives its index. Nothing leads to it yet.
pub fn make(node: &mut Conversation, name: &str, limit: Limit, mtu: u32) -> Result<u32, NetlinkError> {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Ifb)]),
    ];
    let what = format!("making the limiter {name} (an ifb device)");
    let request = Request::make(what, RouteNetlinkMessage::NewLink(message));
    let made = link::make(node, name, request)?;
    let mut requests = Vec::from(limit::limit(made.index, limit, mtu));
    requests.extend([without_addresses(made.index), link::up(made.index)]);
    node.batch(requests)?;
    Ok(made.index)
}

/// Leads what comes in by a pod's interface through its limiter. Programs, and with them a clsact qdisc, have to hang there
/// before.
pub fn lead(node: &mut Conversation, interface: u32, limiter: u32) -> Result<(), NetlinkError> {
    let filter = Request::replace(
        format!("leading what interface {interface} takes in through {limiter} (cls_u32 and act_mirred)"),
        RouteNetlinkMessage::NewTrafficFilter(redirect(interface, limiter)),
    );
    node.ask(filter).map(drop)
}

/// Leads nothing through a limiter any more.
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
        // Without an interface ENODEV, without a qdisc EINVAL, without a filter ENOENT.
        Err(error) if matches!(errno(&error), Some(libc::ENODEV | libc::EINVAL | libc::ENOENT)) => Ok(()),
        removed => removed.map(drop),
    }
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

fn redirect(interface: u32, limiter: u32) -> TcMessage {
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    // A mask of nothing, which every packet has.
    selector.nkeys = 1;
    selector.keys = vec![TcU32Key::default()];
    let mut mirror = TcMirror::default();
    mirror.generic.action = TcActionType::Stolen;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = limiter;
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
