//! Translating a new flow: which source it gets, where it is delivered, and the two conntrack entries.
//!
//! The source is kept wherever the answer is sure to come back through this node's programs. It is exchanged
//! (masqueraded) in exactly these cases:
//! - a pod that reaches itself: the node's address, and straight back into the pod;
//! - a backend that is the node itself, reached by the node or from outside: the virtual address, whose route leads the answer
//!   back to our own device. The node's own address would have its answer go over the loopback, out of sight;
//! - a client that is neither a pod of this cluster nor this node: the node's address.

use super::decision::{Decision, Entry};
use super::select::Selected;
use super::{Tables, Work};
use crate::Port;
use crate::flow_hash::{flow_hash, pick};
use crate::maps::{Config, Deliver, Reason};

/// How many source ports are tried before a flow is refused.
pub const PORT_ATTEMPTS: u32 = 16;

/// Remembers a new flow to `selected` and says what its packets become.
#[inline(always)]
pub fn new_flow<T: Tables>(
    tables: &T,
    config: &Config,
    work: &mut Work,
    entry: Entry,
    selected: &Selected,
    reason: Reason,
) -> Decision {
    let Work { headers, flow, .. } = work;
    flow.src = headers.src;
    flow.dst = selected.backend.address;
    flow.sport = headers.sport;
    flow.dport = selected.backend.port;
    flow.backend = selected.id;
    flow.generation = selected.backend.generation;
    flow.service = selected.service;
    flow.seen = tables.now();
    flow.deliver = Deliver::Stack as u8;
    flow.reply_deliver = Deliver::Stack as u8;
    flow.is_reply = 0;
    flow.reserved = 0;
    let keeps_port = choose_source(tables, config, work, entry);
    if work.flow.src.is_unspecified() {
        return Decision::Drop(Reason::NoNodeAddress);
    }
    if !remember(tables, config, work, keeps_port) {
        return Decision::Drop(Reason::NoSourcePort);
    }
    Decision::Translate(reason)
}

/// Sets the flow's source address and its ways of delivery; false if the packet will carry the node's address, so
/// that the client's port may be one of the node's own.
#[inline(always)]
fn choose_source<T: Tables>(tables: &T, config: &Config, work: &mut Work, entry: Entry) -> bool {
    let Work { headers, flow, .. } = work;
    let node = config.node_address(&headers.dst);
    if matches!(entry, Entry::Pod) {
        if !flow.dst.same(&headers.src) {
            return true;
        }
        flow.src = node;
        flow.deliver = Deliver::SameInterface as u8;
        flow.reply_deliver = Deliver::SameInterface as u8;
        return false;
    }
    let by_host = matches!(entry, Entry::Host);
    let from_node = by_host && tables.address(&headers.src).is_node();
    flow.reply_deliver = if from_node {
        Deliver::Host as u8
    } else {
        Deliver::Route as u8
    };
    if tables.address(&flow.dst).is_node() {
        flow.src = headers.dst;
        flow.deliver = Deliver::Host as u8;
        return true;
    }
    flow.deliver = Deliver::Route as u8;
    if from_node {
        return true;
    }
    if tables.is_pod(&headers.src) {
        if !by_host {
            flow.deliver = Deliver::Stack as u8;
        }
        flow.reply_deliver = Deliver::Stack as u8;
        tables.pods_answer_outside();
        return true;
    }
    flow.src = node;
    false
}

/// Finds a source port whose answers no other flow expects, and writes both entries.
///
/// The client's own port is the first choice, unless the packet will carry the node's address: then only ports of
/// the masquerade range are safe from the node's own sockets.
#[inline(always)]
fn remember<T: Tables>(tables: &T, config: &Config, work: &mut Work, keeps_port: bool) -> bool {
    let offset = work.key.sport.number().wrapping_sub(config.masquerade_first);
    let keeps_port = keeps_port || offset < config.masquerade_count;
    for attempt in 0..PORT_ATTEMPTS {
        let Work {
            key,
            flow,
            reply_key,
            reply,
            ..
        } = work;
        if attempt > 0 || !keeps_port {
            let hash = flow_hash(
                &key.src,
                &flow.dst,
                key.sport,
                flow.dport,
                key.protocol,
                attempt + 1,
            );
            let offset = pick(hash, u32::from(config.masquerade_count)) as u16;
            flow.sport = Port::new(config.masquerade_first.wrapping_add(offset));
        }
        *reply_key = flow.reply_key(key);
        *reply = flow.reply(key);
        if tables.insert_flow(reply_key, reply) || may_replace(tables, work) {
            tables.replace_flow(&work.key, &work.flow);
            return true;
        }
    }
    false
}

/// Whether the entry in the way is this very flow's, left over from before it moved; if so, it is replaced.
#[inline(always)]
fn may_replace<T: Tables>(tables: &T, work: &mut Work) -> bool {
    if !tables.flow(&work.reply_key, &mut work.found) {
        return false;
    }
    let (found, reply) = (&work.found, &work.reply);
    let same_client = found.dst.same(&reply.dst) && found.dport == reply.dport;
    let same_frontend = found.src.same(&reply.src) && found.sport == reply.sport;
    if same_client && same_frontend {
        tables.replace_flow(&work.reply_key, reply);
        return true;
    }
    false
}

/// Notes that the flow is in use, and restores the entry of the other direction if it was lost. Does anything at all
/// only once a tick and flow.
#[inline(always)]
pub fn refresh<T: Tables>(tables: &T, work: &mut Work) {
    let now = tables.now();
    if work.flow.seen != now {
        let Work {
            key,
            flow,
            reply_key,
            reply,
            ..
        } = work;
        flow.seen = now;
        tables.replace_flow(key, flow);
        *reply_key = flow.reply_key(key);
        *reply = flow.reply(key);
        tables.insert_flow(reply_key, reply);
    }
}
