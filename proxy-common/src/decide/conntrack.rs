//! The conntrack entries of flows: their lookup, their state and their end.
//!
//! A flow has an entry for either direction, see [`crate::maps::Flow`]. Its state follows the packets that
//! pass:
//!
//! | state | entries lie in | until |
//! |---|---|---|
//! | opening: TCP within its handshake, datagrams that are no stream yet | `NEW_FLOWS` | the flow is proven |
//! | confirmed | `FLOWS`, `STREAMS`; `NEW_FLOWS` beyond a client's share | a RST, a FIN from both sides, its lifetime ends |
//! | closed | `NEW_FLOWS` | its source port is wanted, or its lifetime ends |
//!
//! [`super::flow_state`] computes the next state.
//!
//! An entry that was idle for longer than its state allows is invalid. The agent removes such entries from
//! the tables that evict nothing.

use super::flow_state::{aborts, ends, is_far_ahead, next};
use super::{PacketContext, Tables};
use crate::Ip;
use crate::maps::{Config, Flow, FlowKey, FlowState};
use crate::packet::TCP_ACK;

/// Finds the entry of the packet. It removes an expired entry. It also removes the entry of a connection that
/// is over, if the backend replies to another one. The client has made that one by the same port to the
/// backend itself, not through a frontend.
#[inline(always)]
pub fn find<T: Tables>(tables: &T, config: &Config, ctx: &mut PacketContext) -> bool {
    if !tables.flow(&ctx.key, &mut ctx.flow) {
        return false;
    }
    let state = ctx.flow.state();
    if is_expired(config, &ctx.flow, ctx.key.protocol, tables.now())
        || (ctx.flow.is_reply != 0
            && ctx.headers.is_opening_reply()
            && begins_another(tables, config, ctx, state))
    {
        forget(tables, ctx);
        return false;
    }
    true
}

/// Whether a backend's SYN,ACK belongs to another connection than the flow's. A reply to a SYN that came
/// after a RST belongs to the flow. From another machine both the RST and the SYN,ACK may be forged; a pod of
/// our plugin sends its own. Beside another plugin the agent does not know which pods are on this node, so
/// every backend counts as one.
#[inline(always)]
fn begins_another<T: Tables>(tables: &T, config: &Config, ctx: &PacketContext, state: FlowState) -> bool {
    state.is_over()
        || (state.has(FlowState::RESET)
            && !state.has(FlowState::SYN_AFTER_RESET)
            && (!config.has_own_pods() || tables.is_own_pod(&ctx.headers.src)))
}

/// Whether an entry was idle for longer than its state allows. A lifetime of 0 has no end.
#[inline(always)]
pub fn is_expired(config: &Config, flow: &Flow, protocol: u8, now: u32) -> bool {
    let lifetime = config.lifetimes[flow.state().lifetime(protocol) as usize];
    lifetime != 0 && age(now, flow.seen) > lifetime
}

/// Ticks since `seen`; 0 if another CPU has stored a later tick than `now` meanwhile.
#[inline(always)]
pub const fn age(now: u32, seen: u32) -> u32 {
    let age = now.wrapping_sub(seen);
    if age > u32::MAX / 2 { 0 } else { age }
}

/// Removes both entries of the packet's flow.
#[inline(always)]
pub fn forget<T: Tables>(tables: &T, ctx: &mut PacketContext) {
    let is_protected = ctx.flow.state().is_protected();
    ctx.flow.reply_key_into(&ctx.key, &mut ctx.reply_key);
    tables.forget_flow(&ctx.key, is_protected);
    tables.forget_flow(&ctx.reply_key, is_protected);
    if is_protected {
        tables.return_share(&client_of(tables, &ctx.key, &ctx.flow), ctx.key.protocol);
    }
}

/// Removes both entries of the flow in [`PacketContext::found`]. [`PacketContext::reply_key`] is the key of
/// one of them.
#[inline(always)]
pub fn forget_found<T: Tables>(tables: &T, ctx: &PacketContext) {
    let is_protected = ctx.found.state().is_protected();
    let other = ctx.found.reply_key(&ctx.reply_key);
    tables.forget_flow(&ctx.reply_key, is_protected);
    tables.forget_flow(&other, is_protected);
    if is_protected {
        let client = client_of(tables, &ctx.reply_key, &ctx.found);
        tables.return_share(&client, ctx.reply_key.protocol);
    }
}

/// The side that began the flow, as shares are counted.
#[inline(always)]
pub fn client_of<T: Tables>(tables: &T, key: &FlowKey, flow: &Flow) -> Ip {
    let client = if flow.is_reply == 0 { key.src } else { flow.dst };
    as_counted(tables, &client)
}

/// An address as shares are counted: an IPv6 address that is not a pod's of this node counts with its /64.
#[inline(always)]
pub fn as_counted<T: Tables>(tables: &T, address: &Ip) -> Ip {
    if address.is_v4() || tables.is_own_pod(address) {
        *address
    } else {
        // An unspecified network part would be the key of all clients together.
        let site = address.site();
        if site.is_unspecified() { *address } else { site }
    }
}

/// Updates the entries of a known flow for a packet.
#[inline(always)]
pub fn advance<T: Tables>(tables: &T, ctx: &mut PacketContext) {
    ctx.unsettled = tables.note(ctx);
    if ctx.unsettled != 0 {
        tables.settle(ctx);
    }
}

/// Writes the packet into the flow's entries. Returns the work that is left to [`settle`], see
/// [`PacketContext::unsettled`].
#[inline(always)]
pub fn note<T: Tables>(tables: &T, ctx: &mut PacketContext) -> u32 {
    let now = tables.now();
    let is_later = ctx.flow.seen != now;
    let PacketContext {
        headers,
        key,
        flow,
        reply_key,
        reply,
        ..
    } = ctx;
    let old = flow.state;
    let new = next(flow, headers, is_later);
    let is_confirmed = FlowState(new).has(FlowState::CONFIRMED);
    let mut sequence = flow.sequence;
    let is_opening_reply = headers.is_opening_reply() && flow.is_reply != 0 && !is_confirmed;
    if is_opening_reply {
        sequence = headers.sequence.wrapping_add(1);
    }
    // A server repeats its SYN,ACK to a silent client, and that must not keep the source port in use. A SYN
    // in a connection may be forged, as may a RST that does not count, so neither keeps the entries alive.
    let is_repeated = (is_opening_reply && FlowState(old).has(FlowState::SEEN_REPLY))
        || (headers.is_opening() && FlowState(old).has(FlowState::CONFIRMED | FlowState::RESET))
        || (new == old && aborts(headers));
    let ends = ends(headers);
    if is_confirmed && is_far_ahead(headers, flow) {
        // With this, the next acknowledgement looks like the first one of its tick, and is stored.
        flow.reply_key_into(key, reply_key);
        let _ = tables.touch_flow(reply_key, now.wrapping_sub(1), 0, 0, 0);
    }
    if new == old && (!is_later || is_repeated) && sequence == flow.sequence && !ends {
        return 0;
    }
    if !is_repeated {
        flow.seen = now;
    }
    flow.state = new;
    flow.sequence = sequence;
    flow.reply_into(key, reply_key, reply);
    let acknowledges = headers.has_tcp_flag(TCP_ACK);
    if is_confirmed {
        reply.sequence = if acknowledges { headers.acknowledgement } else { 0 };
    }
    if ends {
        reply.fin = headers.sequence.wrapping_add(headers.payload).wrapping_add(1);
    }
    let moves = (new ^ old) & (FlowState::CONFIRMED | FlowState::CLOSED) != 0;
    if moves || FlowState(new).has(FlowState::EVICTABLE) {
        if is_confirmed && moves && acknowledges {
            flow.sequence = headers.sequence;
        }
        return u32::from(old) | PacketContext::MOVES;
    }
    // Both entries get the same values, except for the sequence numbers. An entry that was lost meanwhile is
    // written again.
    let noted = reply.sequence;
    if !tables.touch_flow(key, flow.seen, new, 0, 0) {
        tables.replace_flow(key, flow);
    }
    if !tables.touch_flow(reply_key, flow.seen, new, noted, reply.fin) {
        tables.replace_flow(reply_key, reply);
    }
    // An exchange of datagrams keeps its port for some seconds, so it still counts.
    if (new & !old) & FlowState::SEEN_REPLY != 0
        && headers.has_connections()
        && !reply.src.same(&reply_key.src)
    {
        return PacketContext::FIRST_REPLY;
    }
    0
}

/// Does the work that [`advance`] has left. It moves a flow to the table of its state, or counts that its
/// client has a reply.
#[inline(always)]
pub fn settle<T: Tables>(tables: &T, config: &Config, ctx: &mut PacketContext) {
    if ctx.unsettled & PacketContext::MOVES != 0 {
        relocate(tables, config, ctx);
    } else if ctx.unsettled & PacketContext::FIRST_REPLY != 0 {
        let client = client_of(tables, &ctx.key, &ctx.flow);
        tables.note_replied(&client);
    }
    ctx.unsettled = 0;
}

/// Moves both entries of a flow to the table of its new state.
///
/// The entries are written to the new table first and then removed from the old one, so a packet always finds
/// one. If the table is full or the client's share is used up, a confirmed flow stays where the kernel may
/// evict it.
#[inline(always)]
fn relocate<T: Tables>(tables: &T, config: &Config, ctx: &mut PacketContext) {
    let was_protected = FlowState(ctx.unsettled as u8).is_protected();
    let client = client_of(tables, &ctx.key, &ctx.flow);
    let PacketContext {
        key,
        flow,
        reply_key,
        reply,
        ..
    } = ctx;
    flow.state &= !FlowState::EVICTABLE;
    reply.state = flow.state;
    let mut is_protected = flow.state().is_protected();
    if is_protected && !was_protected {
        is_protected = tables.take_share(config, &client, key.protocol);
        if is_protected && !(tables.replace_flow(key, flow) && tables.replace_flow(reply_key, reply)) {
            tables.forget_flow(key, true);
            tables.forget_flow(reply_key, true);
            tables.return_share(&client, key.protocol);
            is_protected = false;
        }
        if !is_protected {
            flow.state |= FlowState::EVICTABLE;
            reply.state = flow.state;
        }
    }
    if !is_protected {
        let was_evictable = FlowState(ctx.unsettled as u8).has(FlowState::EVICTABLE);
        let stays = was_evictable && flow.state().has(FlowState::EVICTABLE);
        // The values that the other direction has stored stay as they are.
        if !(stays && tables.touch_flow(key, flow.seen, flow.state, 0, 0)) {
            tables.replace_flow(key, flow);
        }
        if !(stays && tables.touch_flow(reply_key, flow.seen, flow.state, reply.sequence, reply.fin)) {
            tables.replace_flow(reply_key, reply);
        }
    }
    if is_protected != was_protected {
        tables.forget_flow(key, was_protected);
        tables.forget_flow(reply_key, was_protected);
        if was_protected {
            tables.return_share(&client, key.protocol);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_another_cpu_reads_earlier_ages_nothing() {
        assert_eq!((age(7, 5), age(5, 5), age(5, 6)), (2, 0, 0));
        assert_eq!(age(3, u32::MAX), 4);
    }
}
