//! The decision for one packet at each hook.

use super::conntrack::{advance, age, find, forget};
pub use super::decision::{Decision, Entry};
use super::elsewhere::elsewhere;
use super::fragment::Passage;
use super::select::select;
use super::translate::begin;
use super::{Tables, Work, admission, fragment, local_socket, related, sender, tunnel};
use crate::Ip;
use crate::flow_hash::flow_hash;
use crate::maps::{
    Config, ConfigFlags, Deliver, Flow, FlowKey, FlowState, Frontend, FrontendFlags, FrontendKey, Reason,
    Scope,
};
use crate::packet::{Headers, Packet, parse_carried_into};
use crate::protocol;

impl Headers {
    /// The conntrack key of the packet.
    #[inline(always)]
    pub const fn flow_key(&self) -> FlowKey {
        FlowKey::new(self.src, self.dst, self.sport, self.dport, self.protocol)
    }

    #[inline(always)]
    const fn frontend_key(&self) -> FrontendKey {
        FrontendKey::new(self.dst, self.dport, self.protocol)
    }
}

/// Decides about a packet that enters at `entry`.
#[inline(always)]
pub fn entering<T: Tables, P: Packet + ?Sized>(
    tables: &T,
    work: &mut Work,
    packet: &P,
    entry: Entry,
) -> Decision {
    let Some(config) = tables.config() else {
        return Decision::Pass(Reason::NotOurs);
    };
    if let Some(reason) = tables.admit(config, packet, work, entry) {
        if reason.is_drop() {
            return Decision::Drop(reason);
        }
        // The stack processes the content of a frame to a group.
        if work.headers.is_icmp_error() {
            tables.is_error_of_a_flow(work, packet);
            if let Some(refused) = refused_error(tables, config, work, entry) {
                return Decision::Drop(refused);
            }
        }
        return Decision::Pass(reason);
    }
    if admission::is_against_route(tables, config, work, entry) {
        return Decision::Drop(Reason::ReversePath);
    }
    let is_of_a_flow = work.headers.is_icmp_error() && tables.is_error_of_a_flow(work, packet);
    if work.headers.is_icmp_error() {
        if let Some(reason) = refused_error(tables, config, work, entry) {
            return Decision::Drop(reason);
        }
        if is_of_a_flow && !is_for_later(&work.flow, &work.reply_key, entry) {
            return Decision::TranslateError;
        }
    }
    fragment::complete(tables, work, Passage::Entering);
    // Node ports on loopback addresses are for the socket hooks: no such packet belongs on a wire.
    if !work.headers.has_ports || work.headers.dst.is_loopback() {
        return elsewhere(tables, config, work, entry);
    }
    let key = work.headers.frontend_key();
    let new = if let Some(frontend) = tables.frontend(&key) {
        to_frontend(tables, config, work, entry, key, frontend)
    } else if tables.choose_host_port(config, work) {
        to_host_port(tables, config, work, entry)
    } else {
        return elsewhere(tables, config, work, entry);
    };
    let decision = match new {
        Ok(_) if belongs_to_node(tables, config, work, entry) => Decision::Pass(Reason::NotOurs),
        Ok(reason) => match tables.may_begin(config, work, entry) {
            Ok(()) => begin(tables, config, work, entry, reason),
            Err(reason) => Decision::Drop(reason),
        },
        Err(decision) => decision,
    };
    if let Decision::Translate(_) = decision {
        fragment::note(tables, work, Passage::Entering);
    }
    decision
}

/// Whether a flow to the selected backend may begin.
///
/// # Errors
/// The reason why the packet is dropped instead.
#[inline(always)]
pub fn may_begin<T: Tables>(tables: &T, config: &Config, work: &Work, entry: Entry) -> Result<(), Reason> {
    if admission::is_astray(tables, work, entry) {
        return Err(Reason::ReversePath);
    }
    let backend = &work.selected.backend;
    // The agent refuses such endpoints. With `route_localnet`, the stack would take one for the node's own
    // address.
    if backend.address.is_loopback() {
        return Err(Reason::LoopbackDestination);
    }
    if tunnel::is_end(
        tables,
        config,
        &backend.address,
        backend.port,
        work.headers.protocol,
    ) {
        return Err(Reason::TunnelPort);
    }
    if admission::is_loop(tables, config, &work.headers, entry) {
        return Err(Reason::ReplyLoop);
    }
    if matches!(entry, Entry::Uplink) {
        let headers = &work.headers;
        // The replies would go from this node to the port of another node's tunnel.
        if headers.protocol == protocol::UDP
            && tunnel::is_port(config, headers.sport)
            && tables.address(&headers.src).is_peer()
        {
            return Err(Reason::TunnelPort);
        }
        // RFC 4291 §2.5.6: no router forwards it.
        if !headers.src.is_v4() && headers.src.is_link_local() && !tables.address(&backend.address).is_node()
        {
            return Err(Reason::ForgedSource);
        }
    }
    Ok(())
}

/// Whether a packet to a port of the node belongs to a connection that the node itself made from that port.
/// That connection was first: a service or a host port with its port gets only new connections.
#[inline(always)]
fn belongs_to_node<T: Tables>(tables: &T, config: &Config, work: &Work, entry: Entry) -> bool {
    let headers = &work.headers;
    matches!(entry, Entry::Uplink | Entry::Pod)
        && !headers.is_opening()
        && (config.is_node_address(&headers.dst)
            || (config.has(ConfigFlags::MORE_NODE_ADDRESSES) && tables.address(&headers.dst).is_node()))
        && tables.has_own_connection(&work.key)
}

/// Decides about a packet on its way to a client: into a pod, or out of the node to a client outside. It may
/// be a reply of a translated flow.
#[inline(always)]
pub fn leaving<T: Tables, P: Packet + ?Sized>(tables: &T, work: &mut Work, packet: &P) -> Decision {
    let Some(config) = tables.config() else {
        return Decision::Pass(Reason::NotOurs);
    };
    if work.headers.is_icmp_error() && tables.is_error_of_a_flow(work, packet) {
        return Decision::TranslateError;
    }
    fragment::complete(tables, work, Passage::Leaving);
    if answers(tables, config, work, Passage::Leaving) {
        return Decision::Translate(Reason::Reply);
    }
    if local_socket::may_clash(tables, config, work) {
        return local_socket::leaving(tables, config, work);
    }
    Decision::Pass(Reason::NotOurs)
}

/// Whether a packet is a reply of a translated flow; [`Work::flow`] then translates it. No program decides
/// about the packet between this one and its receiver.
#[inline(always)]
pub(super) fn answers<T: Tables>(tables: &T, config: &Config, work: &mut Work, passage: Passage) -> bool {
    let is_answer = work.headers.has_ports
        && find(tables, config, work)
        && work.flow.is_reply != 0
        && work.flow.backend != Flow::DIRECT;
    if is_answer {
        advance(tables, work);
        fragment::note(tables, work, passage);
    }
    is_answer
}

/// Whether an ICMP error is about a flow that is translated here.
#[inline(always)]
pub fn is_error_of_a_flow<T: Tables, P: Packet + ?Sized>(tables: &T, work: &mut Work, packet: &P) -> bool {
    // The fields about the flow and about the packet in the error belong to this packet from here on.
    work.flow.backend = 0;
    work.carried.src = Ip::UNSPECIFIED;
    work.carried.dst = Ip::UNSPECIFIED;
    if work.headers.is_fragment {
        return false;
    }
    parse_carried_into(packet, &work.headers, &mut work.carried).is_some()
        && related::find(tables, work)
        && work.flow.backend != Flow::DIRECT
}

/// The reason to drop an ICMP error; none if it may pass. The flow that it is about may be unknown here, but
/// the receiving stack acts on the error. [`is_error_of_a_flow`] has to run first, since it reads the packet
/// in the error.
#[inline(always)]
fn refused_error<T: Tables>(tables: &T, config: &Config, work: &Work, entry: Entry) -> Option<Reason> {
    match entry {
        Entry::Pod => (!may_report(tables, work)).then_some(Reason::ForgedSource),
        Entry::Uplink => tunnel::is_error(tables, config, work).then_some(Reason::TunnelSource),
        _ => None,
    }
}

/// Whether a pod may send the ICMP error: an unfragmented one about a packet to the pod itself. A pod that
/// the operator lets send from any address may be a router. A pod of another plugin is that plugin's
/// responsibility.
#[inline(always)]
fn may_report<T: Tables>(tables: &T, work: &Work) -> bool {
    work.headers.src.same(&work.carried.dst)
        || tables
            .pod_link(work.interface)
            .is_none_or(|link| sender::is_exempt(&link))
}

/// Decides about a packet to a frontend. If it begins a flow, it selects the backend and returns the reason
/// for the new flow.
#[inline(always)]
fn to_frontend<T: Tables>(
    tables: &T,
    config: &Config,
    work: &mut Work,
    entry: Entry,
    mut key: FrontendKey,
    mut frontend: Frontend,
) -> Result<Reason, Decision> {
    let reason = match established(tables, config, work, entry, &frontend) {
        // A connection continues even if its peer's address has become a service's.
        Ok(()) if is_for_later(&work.flow, &work.key, entry) => return Err(Decision::Pass(Reason::NotOurs)),
        Ok(()) if work.flow.is_reply != 0 => return Err(Decision::Translate(Reason::Reply)),
        Ok(()) => return Err(Decision::Translate(Reason::Established)),
        Err(reason) if reason.is_drop() => return Err(Decision::Drop(reason)),
        Err(reason) => reason,
    };
    let headers = &work.headers;
    if frontend.flags().has(FrontendFlags::SOURCE_RANGES)
        && !is_of_node_itself(entry, work)
        && !tables.is_allowed(frontend.service, &headers.src)
    {
        return Err(Decision::Drop(Reason::SourceNotAllowed));
    }
    if frontend.flags().has(FrontendFlags::OUTSIDE_DIFFERS) && is_outside(tables, entry, &headers.src) {
        key.scope = Scope::Outside as u8;
        match tables.frontend(&key) {
            Some(outside) => frontend = outside,
            None => return Err(Decision::Drop(Reason::Inconsistent)),
        }
    }
    let FlowKey {
        src,
        dst,
        sport,
        dport,
        protocol,
        ..
    } = &work.key;
    let hash = flow_hash(src, dst, *sport, *dport, *protocol, 0);
    match select(tables, &key, frontend, src, hash) {
        Ok(selected) => {
            work.selected = selected;
            Ok(reason)
        }
        Err(reason) => Err(Decision::Drop(reason)),
    }
}

/// Whether the node sends to itself by an address that it does not hold, and has that address as source too.
#[inline(always)]
fn is_of_node_itself(entry: Entry, work: &Work) -> bool {
    let is_sender = match entry {
        Entry::Host => work.arrived_by == 0,
        Entry::Loopback => true,
        _ => false,
    };
    is_sender && work.headers.src.same(&work.headers.dst)
}

/// Decides about a packet to a host port, whose pod is selected. As with a frontend, an established
/// connection keeps its pod, and datagrams go to the pod that has the port now.
#[inline(always)]
fn to_host_port<T: Tables>(
    tables: &T,
    config: &Config,
    work: &mut Work,
    entry: Entry,
) -> Result<Reason, Decision> {
    if !find(tables, config, work) {
        return Ok(Reason::NewFlow);
    }
    let opens = work.headers.is_opening();
    if work.flow.is_reply != 0 {
        if opens || work.flow.backend == Flow::DIRECT {
            return Ok(Reason::Moved);
        }
        return Err(reply(tables, work, entry));
    }
    let is_current = work.flow.backend == work.selected.id
        && work.flow.generation == work.selected.backend.generation
        && !(opens && is_over(work.flow.state(), is_outside(tables, entry, &work.headers.src)));
    if !is_current && (opens || !work.headers.has_connections()) {
        forget(tables, work);
        return Ok(Reason::Moved);
    }
    if is_for_later(&work.flow, &work.key, entry) {
        return Err(Decision::Pass(Reason::NotOurs));
    }
    advance(tables, work);
    Err(Decision::Translate(Reason::Established))
}

/// A reply of a flow whose source port is also a port of the node that leads to a service or a pod. The flow
/// was first.
#[inline(always)]
fn reply<T: Tables>(tables: &T, work: &mut Work, entry: Entry) -> Decision {
    if is_for_later(&work.flow, &work.key, entry) {
        return Decision::Pass(Reason::NotOurs);
    }
    advance(tables, work);
    Decision::Translate(Reason::Reply)
}

/// Whether a client that enters by `entry` is neither a pod of this node nor the node itself.
#[inline(always)]
fn is_outside<T: Tables>(tables: &T, entry: Entry, client: &Ip) -> bool {
    match entry {
        Entry::Pod | Entry::Loopback | Entry::Egress => false,
        Entry::Uplink => true,
        Entry::Host => !tables.address(client).is_node(),
    }
}

/// Whether a SYN begins a new connection in place of the flow. If it comes from outside, both the earlier RST
/// and the SYN may be forged.
#[inline(always)]
const fn is_over(state: FlowState, from_outside: bool) -> bool {
    state.is_over() || (state.has(FlowState::CLOSED) && !from_outside)
}

/// Whether a connection continues in spite of a SYN from outside, which may be forged, even if its backend
/// takes no new ones. A client may begin a new connection by the same port without a RST for its old one. It
/// then waits until the old one has been silent for a minute. Netfilter leaves it to the old backend for the
/// whole lifetime.
#[inline(always)]
fn outlives_syn<T: Tables>(tables: &T, work: &Work) -> bool {
    /// The silence after which a SYN may end a connection, in ticks.
    const SILENCE: u32 = 60;
    let state = work.flow.state();
    state.has(FlowState::CONFIRMED) && age(tables.now(), work.flow.seen) < SILENCE
}

/// Finds the valid entry of a packet to a frontend. If there is none, it returns the reason for a new flow or
/// for the flow's end.
///
/// An established connection keeps its backend even if that is removed. It continues if the endpoint still
/// replies, and times out if not, unless its service wants it reset. Datagrams have no connection to lose and
/// move to a live backend at once.
#[inline(always)]
fn established<T: Tables>(
    tables: &T,
    config: &Config,
    work: &mut Work,
    entry: Entry,
    frontend: &Frontend,
) -> Result<(), Reason> {
    if !find(tables, config, work) {
        return Err(Reason::NewFlow);
    }
    let opens = work.headers.is_opening();
    if work.flow.is_reply != 0 {
        if opens || work.flow.backend == Flow::DIRECT {
            return Err(Reason::Moved);
        }
        // A reply to a flow whose source is the frontend's address and port: the flow was first.
        advance(tables, work);
        return Ok(());
    }
    let from_outside = is_outside(tables, entry, &work.headers.src);
    let resets = frontend.flags().has(FrontendFlags::RESET_REMOVED);
    if !work.headers.has_connections() || opens || resets {
        let stands = match tables.backend(work.flow.backend) {
            Some(backend) if backend.generation == work.flow.generation => {
                if opens {
                    // A SYN within a connection may be forged. The backend's reply shows whether it is (RFC
                    // 5961 §4).
                    let state = work.flow.state();
                    let was_confirmed = state.has(FlowState::CONFIRMED | FlowState::RESET);
                    !is_over(state, from_outside)
                        && (backend.is_active() || (was_confirmed && backend.is_alive()))
                } else {
                    backend.is_alive()
                }
            }
            _ => false,
        };
        let is_kept = opens && from_outside && !resets && outlives_syn(tables, work);
        if !stands && !is_kept {
            forget(tables, work);
            return Err(if opens || !work.headers.has_connections() {
                Reason::Moved
            } else {
                Reason::BackendRemoved
            });
        }
    }
    advance(tables, work);
    Ok(())
}

/// Whether a packet continues unchanged through the stack, and a later hook translates it, if any.
/// Translation would set a virtual address or one of the node's own as source. The stack takes a packet with
/// such a source for spoofed if it comes in by a pod's interface or the uplink.
#[inline(always)]
pub(super) fn is_for_later(flow: &Flow, key: &FlowKey, entry: Entry) -> bool {
    flow.is_for_egress()
        || (matches!(entry, Entry::Pod | Entry::Uplink)
            && matches!(Deliver::from_number(flow.deliver), Deliver::Stack)
            && !flow.src.same(&key.src))
}
