//! The decision for one packet at each hook.

use super::conntrack::{advance, age, find, forget};
pub use super::decision::{Decision, Entry};
use super::fragment::Passage;
use super::no_frontend::without_frontend;
use super::select::select;
use super::translate::begin;
use super::{PacketContext, Tables, admission, fragment, local_socket, related, sender, tunnel};
use crate::Ip;
use crate::flow_hash::flow_hash;
use crate::maps::{
    Config, ConfigFlags, Deliver, Flow, FlowKey, FlowState, Frontend, FrontendFlags, FrontendKey, Reason,
    Scope,
};
use crate::packet::{Headers, Packet, parse_embedded_into};
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
    ctx: &mut PacketContext,
    packet: &P,
    entry: Entry,
) -> Decision {
    let Some(config) = tables.config() else {
        return Decision::Pass(Reason::NotOurs);
    };
    if let Some(reason) = tables.admit(config, packet, ctx, entry) {
        if reason.is_drop() {
            return Decision::Drop(reason);
        }
        // The stack processes the content of a frame to a group.
        if ctx.headers.is_icmp_error() {
            tables.is_error_of_a_flow(ctx, packet);
            if let Some(refused) = refused_error(tables, config, ctx, entry) {
                return Decision::Drop(refused);
            }
        }
        return Decision::Pass(reason);
    }
    if admission::fails_reverse_path(tables, config, ctx, entry) {
        return Decision::Drop(Reason::ReversePath);
    }
    let is_of_a_flow = ctx.headers.is_icmp_error() && tables.is_error_of_a_flow(ctx, packet);
    if ctx.headers.is_icmp_error() {
        if let Some(reason) = refused_error(tables, config, ctx, entry) {
            return Decision::Drop(reason);
        }
        if is_of_a_flow && !is_for_later(&ctx.flow, &ctx.reply_key, entry) {
            return Decision::TranslateError;
        }
    }
    fragment::complete(tables, ctx, Passage::Entering);
    // Node ports on loopback addresses are for the socket hooks: no such packet belongs on a wire.
    if !ctx.headers.has_ports || ctx.headers.dst.is_loopback() {
        return without_frontend(tables, config, ctx, entry);
    }
    let key = ctx.headers.frontend_key();
    let new = if let Some(frontend) = tables.frontend(&key) {
        to_frontend(tables, config, ctx, entry, key, frontend)
    } else if tables.choose_host_port(config, ctx) {
        to_host_port(tables, config, ctx, entry)
    } else {
        return without_frontend(tables, config, ctx, entry);
    };
    let decision = match new {
        Ok(_) if belongs_to_node(tables, config, ctx, entry) => Decision::Pass(Reason::NotOurs),
        Ok(reason) => match tables.may_begin(config, ctx, entry) {
            Ok(()) => begin(tables, config, ctx, entry, reason),
            Err(reason) => Decision::Drop(reason),
        },
        Err(decision) => decision,
    };
    if let Decision::Translate(_) = decision {
        fragment::note(tables, ctx, Passage::Entering);
    }
    decision
}

/// Whether a flow to the selected backend may begin.
///
/// # Errors
/// The reason why the packet is dropped instead.
#[inline(always)]
pub fn may_begin<T: Tables>(
    tables: &T,
    config: &Config,
    ctx: &PacketContext,
    entry: Entry,
) -> Result<(), Reason> {
    if admission::is_martian(tables, ctx, entry) {
        return Err(Reason::ReversePath);
    }
    let backend = &ctx.selected.backend;
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
        ctx.headers.protocol,
    ) {
        return Err(Reason::TunnelPort);
    }
    if admission::is_loop(tables, config, &ctx.headers, entry) {
        return Err(Reason::ReplyLoop);
    }
    if matches!(entry, Entry::Uplink) {
        let headers = &ctx.headers;
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
fn belongs_to_node<T: Tables>(tables: &T, config: &Config, ctx: &PacketContext, entry: Entry) -> bool {
    let headers = &ctx.headers;
    matches!(entry, Entry::Uplink | Entry::Pod)
        && !headers.is_opening()
        && (config.is_node_address(&headers.dst)
            || (config.has(ConfigFlags::MORE_NODE_ADDRESSES) && tables.address(&headers.dst).is_node()))
        && tables.has_own_connection(&ctx.key)
}

/// Decides about a packet on its way to a client: into a pod, or out of the node to a client outside. It may
/// be a reply of a translated flow.
#[inline(always)]
pub fn leaving<T: Tables, P: Packet + ?Sized>(tables: &T, ctx: &mut PacketContext, packet: &P) -> Decision {
    let Some(config) = tables.config() else {
        return Decision::Pass(Reason::NotOurs);
    };
    if ctx.headers.is_icmp_error() && tables.is_error_of_a_flow(ctx, packet) {
        return Decision::TranslateError;
    }
    fragment::complete(tables, ctx, Passage::Leaving);
    if is_reply_of_flow(tables, config, ctx, Passage::Leaving) {
        return Decision::Translate(Reason::Reply);
    }
    if local_socket::may_clash(tables, config, ctx) {
        return local_socket::leaving(tables, config, ctx);
    }
    Decision::Pass(Reason::NotOurs)
}

/// Whether a packet is a reply of a translated flow; [`PacketContext::flow`] then translates it. No program
/// decides about the packet between this one and its receiver.
#[inline(always)]
pub(super) fn is_reply_of_flow<T: Tables>(
    tables: &T,
    config: &Config,
    ctx: &mut PacketContext,
    passage: Passage,
) -> bool {
    let is_reply = ctx.headers.has_ports
        && find(tables, config, ctx)
        && ctx.flow.is_reply != 0
        && ctx.flow.backend != Flow::DIRECT;
    if is_reply {
        advance(tables, ctx);
        fragment::note(tables, ctx, passage);
    }
    is_reply
}

/// Whether an ICMP error is about a flow that is translated here.
#[inline(always)]
pub fn is_error_of_a_flow<T: Tables, P: Packet + ?Sized>(
    tables: &T,
    ctx: &mut PacketContext,
    packet: &P,
) -> bool {
    // The fields about the flow and about the packet in the error belong to this packet from here on.
    ctx.flow.backend = 0;
    ctx.embedded.src = Ip::UNSPECIFIED;
    ctx.embedded.dst = Ip::UNSPECIFIED;
    if ctx.headers.is_fragment {
        return false;
    }
    parse_embedded_into(packet, &ctx.headers, &mut ctx.embedded).is_some()
        && related::find(tables, ctx)
        && ctx.flow.backend != Flow::DIRECT
}

/// The reason to drop an ICMP error; none if it may pass. The flow that it is about may be unknown here, but
/// the receiving stack acts on the error. [`is_error_of_a_flow`] has to run first, since it reads the packet
/// in the error.
#[inline(always)]
fn refused_error<T: Tables>(
    tables: &T,
    config: &Config,
    ctx: &PacketContext,
    entry: Entry,
) -> Option<Reason> {
    match entry {
        Entry::Pod => (!may_report(tables, ctx)).then_some(Reason::ForgedSource),
        Entry::Uplink => tunnel::is_error(tables, config, ctx).then_some(Reason::TunnelSource),
        _ => None,
    }
}

/// Whether a pod may send the ICMP error: an unfragmented one about a packet to the pod itself. A pod that
/// the operator lets send from any address may be a router. A pod of another plugin is that plugin's
/// responsibility.
#[inline(always)]
fn may_report<T: Tables>(tables: &T, ctx: &PacketContext) -> bool {
    ctx.headers.src.same(&ctx.embedded.dst)
        || tables
            .pod_link(ctx.interface)
            .is_none_or(|link| sender::is_exempt(&link))
}

/// Decides about a packet to a frontend. If it begins a flow, it selects the backend and returns the reason
/// for the new flow.
#[inline(always)]
fn to_frontend<T: Tables>(
    tables: &T,
    config: &Config,
    ctx: &mut PacketContext,
    entry: Entry,
    mut key: FrontendKey,
    mut frontend: Frontend,
) -> Result<Reason, Decision> {
    let reason = match established(tables, config, ctx, entry, &frontend) {
        // A connection continues even if its peer's address has become a service's.
        Ok(()) if is_for_later(&ctx.flow, &ctx.key, entry) => return Err(Decision::Pass(Reason::NotOurs)),
        Ok(()) if ctx.flow.is_reply != 0 => return Err(Decision::Translate(Reason::Reply)),
        Ok(()) => return Err(Decision::Translate(Reason::Established)),
        Err(reason) if reason.is_drop() => return Err(Decision::Drop(reason)),
        Err(reason) => reason,
    };
    let headers = &ctx.headers;
    if frontend.flags().has(FrontendFlags::SOURCE_RANGES)
        && !is_of_node_itself(entry, ctx)
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
    } = &ctx.key;
    let hash = flow_hash(src, dst, *sport, *dport, *protocol, 0);
    match select(tables, &key, frontend, src, hash) {
        Ok(selected) => {
            ctx.selected = selected;
            Ok(reason)
        }
        Err(reason) => Err(Decision::Drop(reason)),
    }
}

/// Whether the node sends to itself by an address that it does not hold, and has that address as source too.
#[inline(always)]
fn is_of_node_itself(entry: Entry, ctx: &PacketContext) -> bool {
    let is_sender = match entry {
        Entry::Host => ctx.arrived_by == 0,
        Entry::Loopback => true,
        _ => false,
    };
    is_sender && ctx.headers.src.same(&ctx.headers.dst)
}

/// Decides about a packet to a host port, whose pod is selected. As with a frontend, an established
/// connection keeps its pod, and datagrams go to the pod that has the port now.
#[inline(always)]
fn to_host_port<T: Tables>(
    tables: &T,
    config: &Config,
    ctx: &mut PacketContext,
    entry: Entry,
) -> Result<Reason, Decision> {
    if !find(tables, config, ctx) {
        return Ok(Reason::NewFlow);
    }
    let opens = ctx.headers.is_opening();
    if ctx.flow.is_reply != 0 {
        if opens || ctx.flow.backend == Flow::DIRECT {
            return Ok(Reason::Moved);
        }
        return Err(reply(tables, ctx, entry));
    }
    let is_current = ctx.flow.backend == ctx.selected.id
        && ctx.flow.generation == ctx.selected.backend.generation
        && !(opens && is_over(ctx.flow.state(), is_outside(tables, entry, &ctx.headers.src)));
    if !is_current && (opens || !ctx.headers.has_connections()) {
        forget(tables, ctx);
        return Ok(Reason::Moved);
    }
    if is_for_later(&ctx.flow, &ctx.key, entry) {
        return Err(Decision::Pass(Reason::NotOurs));
    }
    advance(tables, ctx);
    Err(Decision::Translate(Reason::Established))
}

/// A reply of a flow whose source port is also a port of the node that leads to a service or a pod. The flow
/// was first.
#[inline(always)]
fn reply<T: Tables>(tables: &T, ctx: &mut PacketContext, entry: Entry) -> Decision {
    if is_for_later(&ctx.flow, &ctx.key, entry) {
        return Decision::Pass(Reason::NotOurs);
    }
    advance(tables, ctx);
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
fn outlives_syn<T: Tables>(tables: &T, ctx: &PacketContext) -> bool {
    /// The silence after which a SYN may end a connection, in ticks.
    const SILENCE: u32 = 60;
    let state = ctx.flow.state();
    state.has(FlowState::CONFIRMED) && age(tables.now(), ctx.flow.seen) < SILENCE
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
    ctx: &mut PacketContext,
    entry: Entry,
    frontend: &Frontend,
) -> Result<(), Reason> {
    if !find(tables, config, ctx) {
        return Err(Reason::NewFlow);
    }
    let opens = ctx.headers.is_opening();
    if ctx.flow.is_reply != 0 {
        if opens || ctx.flow.backend == Flow::DIRECT {
            return Err(Reason::Moved);
        }
        // A reply to a flow whose source is the frontend's address and port: the flow was first.
        advance(tables, ctx);
        return Ok(());
    }
    let from_outside = is_outside(tables, entry, &ctx.headers.src);
    let resets = frontend.flags().has(FrontendFlags::RESET_REMOVED);
    if !ctx.headers.has_connections() || opens || resets {
        let is_still_valid = match tables.backend(ctx.flow.backend) {
            Some(backend) if backend.generation == ctx.flow.generation => {
                if opens {
                    // A SYN within a connection may be forged. The backend's reply shows whether it is (RFC
                    // 5961 §4).
                    let state = ctx.flow.state();
                    let was_confirmed = state.has(FlowState::CONFIRMED | FlowState::RESET);
                    !is_over(state, from_outside)
                        && (backend.is_active() || (was_confirmed && backend.is_alive()))
                } else {
                    backend.is_alive()
                }
            }
            _ => false,
        };
        let is_kept = opens && from_outside && !resets && outlives_syn(tables, ctx);
        if !is_still_valid && !is_kept {
            forget(tables, ctx);
            return Err(if opens || !ctx.headers.has_connections() {
                Reason::Moved
            } else {
                Reason::BackendRemoved
            });
        }
    }
    advance(tables, ctx);
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
