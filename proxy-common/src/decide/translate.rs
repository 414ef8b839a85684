//! Translating a new flow: which source it gets, where it is delivered, and the two conntrack entries.
//!
//! The source is kept wherever the answer is sure to come back through this node's programs. It is exchanged
//! (masqueraded) in exactly these cases:
//! - a pod that reaches itself: the node's address, and straight back into the pod;
//! - a backend that is the node itself, reached by the node or from outside: the virtual address, whose route leads the answer
//!   back to our own device. The node's own address would have its answer go over the loopback, out of sight;
//! - a client that is neither a pod of this cluster nor this node: the node's address.

use super::Tables;
use super::packet::{Decision, Entry};
use super::select::Selected;
use crate::Port;
use crate::flow_hash::{flow_hash, pick};
use crate::maps::{Config, Deliver, Flow, FlowKey, Reason};
use crate::packet::Headers;

/// How many source ports are tried before a flow is refused.
pub const PORT_ATTEMPTS: u32 = 16;

/// Remembers a new flow to `selected` and says what its packets become.
#[inline(always)]
pub fn new_flow<T: Tables>(
    tables: &T,
    config: &Config,
    headers: &Headers,
    entry: Entry,
    selected: &Selected,
    reason: Reason,
) -> Decision {
    let key = headers.flow_key();
    let mut flow = Flow {
        src: headers.src,
        dst: selected.backend.address,
        sport: headers.sport,
        dport: selected.backend.port,
        backend: selected.id,
        generation: selected.backend.generation,
        service: selected.service,
        seen: tables.now(),
        deliver: Deliver::Stack as u8,
        reply_deliver: Deliver::Stack as u8,
        is_reply: 0,
        reserved: 0,
    };
    let node = config.node_address(&headers.dst);
    let mut keeps_port = true;
    match entry {
        Entry::Pod if flow.dst.same(&headers.src) => {
            flow.src = node;
            flow.deliver = Deliver::SameInterface as u8;
            flow.reply_deliver = Deliver::SameInterface as u8;
            keeps_port = false;
        }
        Entry::Pod => {}
        Entry::Uplink | Entry::Host => {
            let from_node = matches!(entry, Entry::Host) && tables.address(&headers.src).is_node();
            flow.reply_deliver = if from_node {
                Deliver::Host as u8
            } else {
                Deliver::Route as u8
            };
            if tables.address(&flow.dst).is_node() {
                flow.src = headers.dst;
                flow.deliver = Deliver::Host as u8;
            } else if from_node {
                flow.deliver = Deliver::Route as u8;
            } else if tables.is_pod(&headers.src) {
                flow.deliver = if matches!(entry, Entry::Host) {
                    Deliver::Route as u8
                } else {
                    Deliver::Stack as u8
                };
                flow.reply_deliver = Deliver::Stack as u8;
                tables.pods_answer_outside();
            } else {
                flow.src = node;
                flow.deliver = Deliver::Route as u8;
                keeps_port = false;
            }
        }
    }
    if flow.src.is_unspecified() {
        return Decision::Drop(Reason::NoNodeAddress);
    }
    if !remember(tables, config, &key, &mut flow, keeps_port) {
        return Decision::Drop(Reason::NoSourcePort);
    }
    Decision::Translate(flow, reason)
}

/// Finds a source port whose answers no other flow expects, and writes both entries.
///
/// The client's own port is the first choice, unless the packet will carry the node's address: then only ports of
/// the masquerade range are safe from the node's own sockets.
#[inline(always)]
fn remember<T: Tables>(
    tables: &T,
    config: &Config,
    key: &FlowKey,
    flow: &mut Flow,
    keeps_port: bool,
) -> bool {
    let offset = key.sport.number().wrapping_sub(config.masquerade_first);
    let keeps_port = keeps_port || offset < config.masquerade_count;
    for attempt in 0..PORT_ATTEMPTS {
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
        let reply_key = flow.reply_key(key);
        let reply = flow.reply(key);
        if tables.insert_flow(&reply_key, &reply) || may_replace(tables, &reply_key, &reply) {
            tables.replace_flow(key, flow);
            return true;
        }
    }
    false
}

/// Whether the entry in the way is this very flow's, left over from before it moved; if so, it is replaced.
#[inline(always)]
fn may_replace<T: Tables>(tables: &T, reply_key: &FlowKey, reply: &Flow) -> bool {
    let Some(found) = tables.flow(reply_key) else {
        return false;
    };
    let same_client = found.dst.same(&reply.dst) && found.dport == reply.dport;
    let same_frontend = found.src.same(&reply.src) && found.sport == reply.sport;
    if same_client && same_frontend {
        tables.replace_flow(reply_key, reply);
        return true;
    }
    false
}

/// Notes that the flow is in use, and restores the entry of the other direction if it was lost. Does anything at all
/// only once a tick and flow.
#[inline(always)]
pub fn refresh<T: Tables>(tables: &T, key: &FlowKey, flow: &mut Flow) {
    let now = tables.now();
    if flow.seen != now {
        flow.seen = now;
        tables.replace_flow(key, flow);
        tables.insert_flow(&flow.reply_key(key), &flow.reply(key));
    }
}
