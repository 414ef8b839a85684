//! Translating a new flow: which source it gets, where it is delivered, and the two conntrack entries.
//!
//! The source is kept wherever the answer is sure to come back through this node's programs. It is exchanged
//! (masqueraded) in exactly these cases:
//! - a pod that reaches itself: the node's address, and straight back into the pod;
//! - the node that reaches itself through a virtual address: that address, whose route leads the answer back to our own
//!   device. The node's own address would have its answer go over the loopback, out of sight;
//! - a client from outside that comes to a node port, a load balancer's or an external address, unless that keeps
//!   clients' addresses; and one to a cluster IP that is no pod of this cluster either: the node's address;
//! - everybody, where the operator wants it so: the node's address;
//! - a pod that speaks with the world outside, see [`super::egress`]: the node's address.
//!
//! A client has half of the source ports towards a backend, see [`side`]. One that waits for more replies
//! than its share allows begins no flow that needs a source port. A port whose flow is over, or has waited in
//! vain for some seconds, is given to the next.
//!
//! What goes through the tunnel to another node carries the node's address within the tunnel instead, so that the answer
//! comes back by it.
//!
//! A backend that is the node itself keeps the address of a client from outside: its answer leaves by an uplink, and is
//! translated there.

use super::conntrack::{age, client_of, is_expired};
use super::decision::{Decision, Entry};
use super::{Tables, Work};
use crate::flow_hash::{flow_hash, pick};
use crate::maps::{
    Config, ConfigFlags, Deliver, Direction, Flow, FlowState, FrontendFlags, RangeFlags, Reason, SocketKey,
};
use crate::{Ip, Port};

/// How many source ports are tried before a flow is refused.
pub const PORT_ATTEMPTS: u32 = 16;

/// Remembers a new flow to the backend that was selected and says what its packets become.
#[inline(always)]
pub fn begin<T: Tables>(
    tables: &T,
    config: &Config,
    work: &mut Work,
    entry: Entry,
    reason: Reason,
) -> Decision {
    work.out = if matches!(entry, Entry::Egress) {
        work.interface
    } else if config.has(ConfigFlags::MORE_UPLINKS) {
        tables.way_out(work)
    } else {
        0
    };
    if let Err(reason) = tables.prepare(config, work, entry) {
        return Decision::Drop(reason);
    }
    // Counted at the end: older kernels (6.1) take a loop only if the way back is a jump, and a loop that counts at
    // its start may come to fall through into it.
    let mut attempt = 0;
    loop {
        if tables.try_port(config, work, attempt) {
            return Decision::Translate(reason);
        }
        attempt += 1;
        if attempt > PORT_ATTEMPTS {
            return Decision::Drop(Reason::NoSourcePort);
        }
    }
}

/// Works out what the packets of the new flow become, but for a source port that no other flow has.
///
/// # Errors
/// The node has no address that they would need, or the client waits for too many replies already.
#[inline(always)]
pub fn prepare<T: Tables>(tables: &T, config: &Config, work: &mut Work, entry: Entry) -> Result<(), Reason> {
    let Work {
        headers,
        flow,
        selected,
        ..
    } = work;
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
    let is_safe = choose_source(tables, config, work, entry, flags);
    work.client = client_of(tables, &work.key, &work.flow);
    work.keeps_port = u32::from(is_safe || has_port(config, work, work.key.sport));
    work.over = Port::new(0);
    work.over_for = 0;
    if work.flow.src.is_unspecified() {
        return Err(Reason::NoNodeAddress);
    }
    let is_masqueraded = !work.flow.src.same(&work.headers.src);
    if is_masqueraded && !tables.note_unanswered(config, &work.client) {
        return Err(Reason::SourcePortShare);
    }
    Ok(())
}

/// Sets the flow's source address and its ways of delivery; false if the packet will carry the node's address, so
/// that the client's port may be one of the node's own.
#[inline(always)]
fn choose_source<T: Tables>(
    tables: &T,
    config: &Config,
    work: &mut Work,
    entry: Entry,
    flags: FrontendFlags,
) -> bool {
    let Work {
        headers, flow, out, ..
    } = work;
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
            return !follow_way(tables, config, flow, out);
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
        } else if follow_way(tables, config, flow, out) {
            return false;
        }
        // The socket may be in a conversation with this backend already, by its hooks, which no entry tells of.
        let peer = SocketKey::new(work.socket, flow.dst, flow.dport, Direction::FromBackend);
        return work.socket == 0 || tables.socket_peer(&peer).is_none();
    }
    if to_node && !by_host {
        tables.node_answers_outside();
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
        tables.pods_answer_outside();
        return true;
    }
    if !flags.is_external() && !masquerade_all && tables.is_pod(&headers.src) {
        tables.pods_answer_outside();
        return true;
    }
    flow.src = address_towards(tables, config, &flow.dst, out);
    false
}

/// Gives a flow of the node itself the node's address for its way out, if it has the primary one: the kernel
/// chose that one by the route to services, before the backend was known. True if the source changes.
#[inline(always)]
fn follow_way<T: Tables>(tables: &T, config: &Config, flow: &mut Flow, out: u32) -> bool {
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

/// The node's address for what is masqueraded and goes to `to`, by the interface `out`.
#[inline(always)]
fn address_towards<T: Tables>(tables: &T, config: &Config, to: &Ip, out: u32) -> Ip {
    let tunnel = config.tunnel_address(to);
    if !tunnel.is_unspecified() && tables.range(to).has(RangeFlags::TUNNEL) {
        tunnel
    } else {
        config.address_at(out, to)
    }
}

/// Tries a source port for a new flow: writes both entries if no other flow expects answers there.
///
/// The client's own port is the first choice, unless the packet will carry the node's address: then only ports of
/// the masquerade range are, and of those no port where a socket of the node's waits for just such answers. A port that is free comes first; behind the last attempt comes
/// the one of a flow that is over, and of those the one that has been longest.
#[inline(always)]
pub fn try_port<T: Tables>(tables: &T, config: &Config, work: &mut Work, attempt: u32) -> bool {
    if attempt == PORT_ATTEMPTS {
        return succeed(tables, work);
    }
    if attempt > 0 || work.keeps_port == 0 {
        work.flow.sport = masquerade_port(config, work, attempt);
    }
    answer(work);
    let is_exchanged = !work.flow.src.same(&work.headers.src) || work.flow.sport != work.headers.sport;
    if is_exchanged && tables.has_own_socket(&work.reply_key) {
        return false;
    }
    if tables.insert_flow(&work.reply_key, &work.reply) {
        tables.replace_flow(&work.key, &work.flow);
        return true;
    }
    if !tables.flow(&work.reply_key, &mut work.found) {
        return false;
    }
    if is_same_flow(work) {
        take_over(tables, work);
        return true;
    }
    let standing = standing(config, work);
    if standing > work.over_for {
        work.over = work.flow.sport;
        work.over_for = standing;
    }
    false
}

/// How readily the flow in the way gives up its port: not at all for 0, and the more readily the higher. One
/// that is over comes before one that is not proven: that waits for a reply or the end of its handshake, or
/// had one question and its reply. Then come one that only a RST ended, since a RST may be forged, and a
/// stream of datagrams that has been silent for half a minute: two datagrams of a client that does not exist
/// make one. Of each kind the one goes that has been silent for the longest.
#[inline(always)]
fn standing(config: &Config, work: &Work) -> u32 {
    /// More ticks than a year has.
    const KIND: u32 = 1 << 26;
    /// How long a flow may be silent before it is proven, while others want its port.
    const PATIENCE: u32 = 2;
    /// The same of a stream: longer than what keeps one alive takes, 20 to 30 s.
    const STREAM: u32 = 32;
    let (now, found) = (work.flow.seen, &work.found);
    let idle = age(now, found.seen);
    let silent = if idle < KIND { idle } else { KIND - 1 };
    let state = found.state();
    if is_expired(config, found, work.key.protocol, now) {
        4 * KIND + silent
    } else if state.has(FlowState::RESET) {
        // One of this very tick has no rank, and keeps its port.
        if silent == 0 { 0 } else { KIND + silent }
    } else if state.has(FlowState::CLOSED) {
        3 * KIND + silent
    } else if !state.has(FlowState::CONFIRMED) && idle >= PATIENCE {
        2 * KIND + silent
    } else if !work.headers.has_connections() && idle >= STREAM {
        silent
    } else {
        0
    }
}

/// Gives the new flow the source port of one that is over.
#[inline(always)]
fn succeed<T: Tables>(tables: &T, work: &mut Work) -> bool {
    if work.over_for == 0 {
        return false;
    }
    work.flow.sport = work.over;
    answer(work);
    if !tables.flow(&work.reply_key, &mut work.found) {
        // It has gone meanwhile.
        work.found.state = 0;
        take_over(tables, work);
        return true;
    }
    // Its key is not needed any more; the new one stands in its own place.
    let other = work.found.reply_key(&work.reply_key);
    tables.forget_flow(&other, work.found.state().is_protected());
    take_over(tables, work);
    true
}

#[inline(always)]
fn masquerade_port(config: &Config, work: &Work, attempt: u32) -> Port {
    // The frontend is part of it, so that flows of one client port to one backend do not all try the same ports.
    let key = &work.key;
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
        2 * pair + side(work, pair)
    };
    Port::new(config.masquerade_first.wrapping_add(offset as u16))
}

/// A range with fewer ports than this is not divided among clients.
const LEAST_DIVIDED: u32 = 64;

/// Which port of a pair a client has towards a backend, 0 or 1.
///
/// So one client holds at most half of the ports towards a backend. Another client has half of those as well.
#[inline(always)]
const fn side(work: &Work, pair: u32) -> u32 {
    let flow = &work.flow;
    flow_hash(
        &work.client,
        &flow.dst,
        Port::new(0),
        flow.dport,
        work.key.protocol,
        pair,
    ) & 1
}

/// Whether a client may have this port of the masquerade range.
#[inline(always)]
fn has_port(config: &Config, work: &Work, port: Port) -> bool {
    let offset = port.number().wrapping_sub(config.masquerade_first);
    if offset >= config.masquerade_count {
        return false;
    }
    let offset = u32::from(offset);
    u32::from(config.masquerade_count) < LEAST_DIVIDED || side(work, offset / 2) == offset & 1
}

/// Works out the entry of the flow's answers.
#[inline(always)]
const fn answer(work: &mut Work) {
    work.flow
        .reply_into(&work.key, &mut work.reply_key, &mut work.reply);
}

/// Whether the entry in the way is this very flow's, left over from before it moved.
#[inline(always)]
fn is_same_flow(work: &Work) -> bool {
    let (found, reply) = (&work.found, &work.reply);
    let same_client = found.dst.same(&reply.dst) && found.dport == reply.dport;
    let same_frontend = found.src.same(&reply.src) && found.sport == reply.sport;
    same_client && same_frontend
}

/// Writes both entries over the one in the way, which may lie among the confirmed ones.
#[inline(always)]
fn take_over<T: Tables>(tables: &T, work: &Work) {
    tables.replace_flow(&work.reply_key, &work.reply);
    if work.found.state().is_protected() {
        tables.forget_flow(&work.reply_key, true);
        let client = client_of(tables, &work.reply_key, &work.found);
        tables.return_share(&client, work.reply_key.protocol);
    }
    tables.replace_flow(&work.key, &work.flow);
}
