//! The translation of a new flow: its source, its delivery, and its two conntrack entries.
//!
//! A flow keeps its source wherever the reply certainly comes back through this node's programs. The source
//! is exchanged (SNAT, masqueraded) in exactly these cases:
//!
//! - A pod that sends to itself gets the node's address, and the packet goes straight back into the pod.
//! - The node that sends to itself through a virtual address gets that address. Its route leads the reply
//!   back to our own device. With the node's own address as source, the reply would go over the loopback,
//!   where our device's program does not see it.
//! - A client from outside gets the node's address at a node port, a load balancer's or an external address.
//!   The exception is a frontend that keeps clients' addresses. At a cluster IP it gets the node's address if
//!   it is not a pod of this cluster.
//! - Every client gets the node's address where the operator configures it.
//! - A pod that sends to the world outside gets the node's address, see [`super::egress`].
//!
//! A client has half of the source ports towards a backend, see [`side`]. A client that waits for more
//! replies than its share allows begins no flow that needs a source port. If a port's flow is over, or has
//! waited in vain for some seconds, the next flow gets the port.
//!
//! Masqueraded packets through the tunnel to another node carry the node's address within the tunnel instead,
//! so that the reply comes back through the tunnel.
//!
//! A backend on the node itself sees the address of a client from outside. Its reply leaves by an uplink,
//! where the program translates it.

use super::conntrack::{age, client_of, is_expired};
use super::decision::{Decision, Entry};
use super::{PacketContext, Tables};
use crate::flow_hash::{flow_hash, pick};
use crate::maps::{
    Config, ConfigFlags, Deliver, Direction, Flow, FlowState, FrontendFlags, RangeFlags, Reason, SocketKey,
};
use crate::{Ip, Port};

/// The number of source ports that are tried before a flow is refused.
pub const PORT_ATTEMPTS: u32 = 16;

/// Stores a new flow to the selected backend and says how its packets are translated.
#[inline(always)]
pub fn begin<T: Tables>(
    tables: &T,
    config: &Config,
    ctx: &mut PacketContext,
    entry: Entry,
    reason: Reason,
) -> Decision {
    ctx.out = if matches!(entry, Entry::Egress) {
        ctx.interface
    } else if config.has(ConfigFlags::MORE_UPLINKS) {
        tables.output_device(ctx)
    } else {
        0
    };
    if let Err(reason) = tables.prepare(config, ctx, entry) {
        return Decision::Drop(reason);
    }
    // The loop counts at its end. Older kernels (6.1) accept a loop only if its back edge is a jump. The back
    // edge of a loop that counts at its start may be a fall-through.
    let mut attempt = 0;
    loop {
        if tables.try_port(config, ctx, attempt) {
            return Decision::Translate(reason);
        }
        attempt += 1;
        if attempt > PORT_ATTEMPTS {
            return Decision::Drop(Reason::NoSourcePort);
        }
    }
}

/// Determines the translation of a new flow, except for a source port that no other flow has.
///
/// # Errors
/// The node lacks an address that the flow needs, or the client waits for too many replies already.
#[inline(always)]
pub fn prepare<T: Tables>(
    tables: &T,
    config: &Config,
    ctx: &mut PacketContext,
    entry: Entry,
) -> Result<(), Reason> {
    let PacketContext {
        headers,
        flow,
        selected,
        ..
    } = ctx;
    flow.src = headers.src;
    flow.dst = selected.backend.address;
    flow.sport = headers.sport;
    flow.dport = selected.backend.port;
    flow.backend = selected.id;
    flow.generation = selected.backend.generation;
    flow.service = selected.service;
    flow.seen = tables.now();
    flow.sequence = 0;
    flow.fin = 0;
    flow.deliver = Deliver::Stack as u8;
    flow.reply_deliver = Deliver::Stack as u8;
    flow.is_reply = 0;
    flow.state = 0;
    let flags = selected.flags;
    let is_safe = choose_source(tables, config, ctx, entry, flags);
    ctx.client = client_of(tables, &ctx.key, &ctx.flow);
    ctx.keeps_port = u32::from(is_safe || has_port(config, ctx, ctx.key.sport));
    ctx.reuse_port = Port::new(0);
    ctx.reuse_rank = 0;
    if ctx.flow.src.is_unspecified() {
        return Err(Reason::NoNodeAddress);
    }
    let is_masqueraded = !ctx.flow.src.same(&ctx.headers.src);
    if is_masqueraded && !tables.note_unreplied(config, &ctx.client) {
        return Err(Reason::SourcePortShare);
    }
    Ok(())
}

/// Sets the flow's source address and its delivery. Returns false if the packet will carry the node's
/// address, because the client's port may then be one of the node's own.
#[inline(always)]
fn choose_source<T: Tables>(
    tables: &T,
    config: &Config,
    ctx: &mut PacketContext,
    entry: Entry,
    flags: FrontendFlags,
) -> bool {
    let PacketContext {
        headers, flow, out, ..
    } = ctx;
    let out = *out;
    if matches!(entry, Entry::Egress) {
        flow.src = address_towards(tables, config, &flow.dst, out);
        return false;
    }
    let masquerade_all = config.has(ConfigFlags::MASQUERADE_ALL);
    if matches!(entry, Entry::Pod) {
        if flow.dst.same(&headers.src) {
            flow.src = config.node_address(&headers.dst);
            flow.deliver = Deliver::SameInterface as u8;
            flow.reply_deliver = Deliver::SameInterface as u8;
            return false;
        }
        if !masquerade_all || tables.address(&flow.dst).is_node() {
            return true;
        }
        flow.src = address_towards(tables, config, &flow.dst, out);
        flow.deliver = Deliver::Route as u8;
        flow.reply_deliver = Deliver::Route as u8;
        return false;
    }
    let to_node = tables.address(&flow.dst).is_node();
    if matches!(entry, Entry::Loopback) {
        if !to_node {
            flow.deliver = Deliver::Route as u8;
            flow.reply_deliver = Deliver::Loopback as u8;
            return !follow_route(tables, config, flow, out);
        }
        return true;
    }
    let by_host = matches!(entry, Entry::Host);
    if by_host && tables.address(&headers.src).is_node() {
        flow.deliver = Deliver::Route as u8;
        flow.reply_deliver = Deliver::Host as u8;
        if to_node {
            flow.src = headers.dst;
            flow.deliver = Deliver::Host as u8;
        } else if follow_route(tables, config, flow, out) {
            return false;
        }
        // The socket hooks may have bound this socket to the backend already, and no conntrack entry shows
        // that.
        let peer = SocketKey::new(ctx.socket, flow.dst, flow.dport, Direction::FromBackend);
        return ctx.socket == 0 || tables.socket_peer(&peer).is_none();
    }
    if to_node && !by_host {
        tables.node_replies_outside();
        return true;
    }
    flow.deliver = Deliver::Route as u8;
    flow.reply_deliver = Deliver::Route as u8;
    if to_node {
        flow.src = headers.dst;
        flow.deliver = Deliver::Host as u8;
        return true;
    }
    if flags.has(FrontendFlags::KEEP_SOURCE) {
        tables.pods_reply_outside();
        return true;
    }
    if !flags.is_external() && !masquerade_all && tables.is_pod(&headers.src) {
        tables.pods_reply_outside();
        return true;
    }
    flow.src = address_towards(tables, config, &flow.dst, out);
    false
}

/// Gives a flow of the node itself the node's address at its output device, if it has the primary one. The
/// kernel chose the primary one by the route to services, before the backend was known. Returns true if the
/// source changes.
#[inline(always)]
fn follow_route<T: Tables>(tables: &T, config: &Config, flow: &mut Flow, out: u32) -> bool {
    if !config.is_node_address(&flow.src) {
        return false;
    }
    let own = address_towards(tables, config, &flow.dst, out);
    if own.same(&flow.src) {
        return false;
    }
    flow.src = own;
    true
}

/// The node's address for masqueraded packets to `to`, with the output device `out`.
#[inline(always)]
fn address_towards<T: Tables>(tables: &T, config: &Config, to: &Ip, out: u32) -> Ip {
    let tunnel = config.tunnel_address(to);
    if !tunnel.is_unspecified() && tables.range(to).has(RangeFlags::TUNNEL) {
        tunnel
    } else {
        config.address_at(out, to)
    }
}

/// Tries a source port for a new flow: writes both entries if no other flow expects replies there.
///
/// The client's own port is the first choice, unless the packet will carry the node's address. Then only
/// ports of the masquerade range may be used, except those where a socket of the node waits for such replies.
/// A free port comes first. The last attempt takes the port of a flow that is over. Of several such flows, it
/// takes the one that has been over for the longest.
#[inline(always)]
pub fn try_port<T: Tables>(tables: &T, config: &Config, ctx: &mut PacketContext, attempt: u32) -> bool {
    if attempt == PORT_ATTEMPTS {
        return reuse_port(tables, ctx);
    }
    if attempt > 0 || ctx.keeps_port == 0 {
        ctx.flow.sport = masquerade_port(config, ctx, attempt);
    }
    set_reply(ctx);
    let is_snat = !ctx.flow.src.same(&ctx.headers.src) || ctx.flow.sport != ctx.headers.sport;
    if is_snat && tables.has_own_socket(&ctx.reply_key) {
        return false;
    }
    if tables.insert_flow(&ctx.reply_key, &ctx.reply) {
        tables.replace_flow(&ctx.key, &ctx.flow);
        return true;
    }
    if !tables.flow(&ctx.reply_key, &mut ctx.found) {
        return false;
    }
    if is_same_flow(ctx) {
        take_over(tables, ctx);
        return true;
    }
    let reuse_rank = reuse_rank(config, ctx);
    if reuse_rank > ctx.reuse_rank {
        ctx.reuse_port = ctx.flow.sport;
        ctx.reuse_rank = reuse_rank;
    }
    false
}

/// The rank by which a flow that has the port gives it up: 0 is not at all, and a higher rank is taken first.
/// The order is:
///
/// - a flow that is over;
/// - a flow that is not proven: it waits for a reply or the end of its handshake, or had one question and its
///   reply;
/// - a flow that only a RST ended, since a RST may be forged;
/// - a stream of datagrams that has been silent for half a minute: two datagrams of a client that does not
///   exist make one.
///
/// Within a kind, the flow that has been silent for the longest gives up its port first.
#[inline(always)]
fn reuse_rank(config: &Config, ctx: &PacketContext) -> u32 {
    /// More ticks than a year has.
    const KIND: u32 = 1 << 26;
    /// The silence in ticks after which a flow that is not proven gives up its port.
    const PATIENCE: u32 = 2;
    /// The same for a stream. It is longer than the interval of keepalives, 20 to 30 s.
    const STREAM: u32 = 32;
    let (now, found) = (ctx.flow.seen, &ctx.found);
    let idle = age(now, found.seen);
    let silent = if idle < KIND { idle } else { KIND - 1 };
    let state = found.state();
    if is_expired(config, found, ctx.key.protocol, now) {
        4 * KIND + silent
    } else if state.has(FlowState::RESET) {
        // A RST of this very tick has no rank, so the flow keeps its port.
        if silent == 0 { 0 } else { KIND + silent }
    } else if state.has(FlowState::CLOSED) {
        3 * KIND + silent
    } else if !state.has(FlowState::CONFIRMED) && idle >= PATIENCE {
        2 * KIND + silent
    } else if !ctx.headers.has_connections() && idle >= STREAM {
        silent
    } else {
        0
    }
}

/// Gives the new flow the source port of a flow that is over.
#[inline(always)]
fn reuse_port<T: Tables>(tables: &T, ctx: &mut PacketContext) -> bool {
    if ctx.reuse_rank == 0 {
        return false;
    }
    ctx.flow.sport = ctx.reuse_port;
    set_reply(ctx);
    if !tables.flow(&ctx.reply_key, &mut ctx.found) {
        // The entry was removed meanwhile.
        ctx.found.state = 0;
        take_over(tables, ctx);
        return true;
    }
    // The old flow's other entry is not needed any more. The new flow's entries have their own keys.
    let other = ctx.found.reply_key(&ctx.reply_key);
    tables.forget_flow(&other, ctx.found.state().is_protected());
    take_over(tables, ctx);
    true
}

#[inline(always)]
fn masquerade_port(config: &Config, ctx: &PacketContext, attempt: u32) -> Port {
    // The hash includes the frontend, so that flows of one client port to one backend do not all try the same
    // ports.
    let key = &ctx.key;
    let hash = flow_hash(
        &key.src,
        &key.dst,
        key.sport,
        key.dport,
        key.protocol,
        attempt + 1,
    );
    let count = u32::from(config.masquerade_count);
    let offset = if count < LEAST_DIVIDED {
        pick(hash, count)
    } else {
        let pair = pick(hash, count / 2);
        2 * pair + side(ctx, pair)
    };
    Port::new(config.masquerade_first.wrapping_add(offset as u16))
}

/// The smallest range of ports that is divided among clients.
const LEAST_DIVIDED: u32 = 64;

/// The port of a pair that a client has towards a backend, 0 or 1.
///
/// So one client holds at most half of the ports towards a backend. Another client has half of those as well.
#[inline(always)]
const fn side(ctx: &PacketContext, pair: u32) -> u32 {
    let flow = &ctx.flow;
    flow_hash(
        &ctx.client,
        &flow.dst,
        Port::new(0),
        flow.dport,
        ctx.key.protocol,
        pair,
    ) & 1
}

/// Whether a client may have this port of the masquerade range.
#[inline(always)]
fn has_port(config: &Config, ctx: &PacketContext, port: Port) -> bool {
    let offset = port.number().wrapping_sub(config.masquerade_first);
    if offset >= config.masquerade_count {
        return false;
    }
    let offset = u32::from(offset);
    u32::from(config.masquerade_count) < LEAST_DIVIDED || side(ctx, offset / 2) == offset & 1
}

/// Computes the entry of the flow's replies.
#[inline(always)]
const fn set_reply(ctx: &mut PacketContext) {
    ctx.flow.reply_into(&ctx.key, &mut ctx.reply_key, &mut ctx.reply);
}

/// Whether the entry that has the port belongs to this same flow, left over from before it moved.
#[inline(always)]
fn is_same_flow(ctx: &PacketContext) -> bool {
    let (found, reply) = (&ctx.found, &ctx.reply);
    let same_client = found.dst.same(&reply.dst) && found.dport == reply.dport;
    let same_frontend = found.src.same(&reply.src) && found.sport == reply.sport;
    same_client && same_frontend
}

/// Writes both entries over the entry that has the port, which may be among the confirmed ones.
#[inline(always)]
fn take_over<T: Tables>(tables: &T, ctx: &PacketContext) {
    tables.replace_flow(&ctx.reply_key, &ctx.reply);
    if ctx.found.state().is_protected() {
        tables.forget_flow(&ctx.reply_key, true);
        let client = client_of(tables, &ctx.reply_key, &ctx.found);
        tables.return_share(&client, ctx.reply_key.protocol);
    }
    tables.replace_flow(&ctx.key, &ctx.flow);
}
