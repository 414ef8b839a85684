//! The decision for packets that leave the node by an uplink.
//!
//! Most of them pass unchanged. Two kinds do not. The first are replies of the node itself to clients from
//! outside, whose requests its uplink translated. The second are packets of this node's pods to the world
//! outside, which has no route back to a pod. Such a packet is *masqueraded*. It leaves with the node's
//! address and a port of the masquerade range; an ICMP echo gets an identifier from that range. The flow's
//! replies are translated back where they come in, before the stack sees them. So netfilter sees both
//! directions with the pod's own address.
//!
//! The world outside is every address of a single host, except ranges of pods and ranges that the operator
//! names. Hosts outside may send to a pod's own address, as other nodes may. Such a flow leaves an entry, see
//! [`note_direct`], and its replies pass unchanged. Every other packet is masqueraded. This includes a
//! connection under way whose entry is gone: its source port is a hash, and so is the same again. No packet
//! to the world outside leaves with the address of a pod.

use super::conntrack::{advance, find, forget, forget_found, is_expired};
use super::decision::{Decision, Entry};
use super::fragment::Passage;
use super::select::Selected;
use super::translate::begin;
use super::{PacketContext, Tables, fragment, local_socket};
use crate::Ip;
use crate::maps::{Config, ConfigFlags, Deliver, Flow, FlowKey, FlowState, InUse, RangeFlags, Reason};
use crate::packet::{Headers, Packet};

/// Whether programs have to inspect packets that leave by an uplink. They do in three cases: the node sends
/// replies to clients outside, pods of ours are masqueraded, or sockets of the node may have masquerade
/// ports.
#[inline(always)]
pub fn is_watched<T: Tables>(tables: &T) -> bool {
    tables.config().is_some_and(|config| {
        config.node_replies_outside != 0
            || config.has(ConfigFlags::LOCAL_PORTS_OVERLAP)
            || masquerades(tables, config)
    })
}

#[inline(always)]
fn masquerades<T: Tables>(tables: &T, config: &Config) -> bool {
    config.has(ConfigFlags::MASQUERADE_PODS) && tables.is_in_use(InUse::PODS)
}

/// Decides about a packet that leaves by an uplink.
#[inline(always)]
pub fn leaving_node<T: Tables, P: Packet + ?Sized>(
    tables: &T,
    ctx: &mut PacketContext,
    packet: &P,
) -> Decision {
    const PASS: Decision = Decision::Pass(Reason::NotOurs);
    let Some(config) = tables.config() else {
        return PASS;
    };
    if ctx.headers.is_icmp_error() && tables.is_error_of_a_flow(ctx, packet) {
        return Decision::TranslateError;
    }
    fragment::complete(tables, ctx, Passage::Leaving);
    let headers = &ctx.headers;
    let is_midstream = headers.has_connections() && !headers.is_opening();
    // The look-ups that save others come first: most packets are the node's own, or go to another pod. If a
    // connection goes to an address that is certainly no pod's, its flow is mostly known, and no further
    // look-up is needed.
    let is_likely = is_midstream && !config.may_be_pod(&headers.dst);
    let may_be_masqueraded = masquerades(tables, config)
        && !config.is_node_address(&headers.src)
        && !config.is_tunnel_address(&headers.src)
        && !config.is_service_address(&headers.dst)
        && (is_likely || is_outside(tables, &headers.dst));
    let may_clash = local_socket::may_clash(tables, config, ctx);
    if !may_be_masqueraded && !may_clash && config.node_replies_outside == 0 {
        return PASS;
    }
    let mut reason = Reason::NewFlow;
    if headers.has_flow() && find(tables, config, ctx) {
        // A packet that opens a connection is no reply.
        let is_other = ctx.flow.backend == Flow::DIRECT && ctx.headers.is_opening();
        if ctx.flow.is_reply != 0 && !is_other {
            advance(tables, ctx);
            fragment::note(tables, ctx, Passage::Leaving);
            return if ctx.flow.backend == Flow::DIRECT {
                PASS
            } else {
                Decision::Translate(Reason::Reply)
            };
        }
        if ctx.flow.backend == Flow::MASQUERADED {
            if is_still_valid(config, ctx) {
                advance(tables, ctx);
                fragment::note(tables, ctx, Passage::Leaving);
                return Decision::Translate(Reason::Established);
            }
            forget(tables, ctx);
            reason = Reason::Moved;
        }
    }
    if may_clash {
        return local_socket::leaving(tables, config, ctx);
    }
    if !may_be_masqueraded
        || !tables.is_own_pod(&ctx.headers.src)
        || (is_likely && !is_outside(tables, &ctx.headers.dst))
    {
        return PASS;
    }
    let headers = &ctx.headers;
    if headers.is_icmp() && !headers.is_echo_request() {
        if headers.l4 == 0 && !headers.has_ports {
            return Decision::Drop(Reason::FragmentBeforeFirst);
        }
        // An error about a packet to the pod itself passes. All others would leave with the pod's address.
        return if headers.is_icmp_error() && ctx.flow.backend == Flow::DIRECT {
            PASS
        } else {
            Decision::Drop(Reason::NotMasqueraded)
        };
    }
    if !headers.has_flow() {
        // A later fragment of an unknown flow would leave with the pod's address.
        return Decision::Drop(if headers.is_balanced() || headers.is_lost_fragment() {
            Reason::FragmentBeforeFirst
        } else {
            Reason::NotMasqueraded
        });
    }
    masquerade(tables, config, ctx, reason)
}

/// Begins a flow that leaves with the node's address and a port of the masquerade range.
#[inline(always)]
pub(super) fn masquerade<T: Tables>(
    tables: &T,
    config: &Config,
    ctx: &mut PacketContext,
    reason: Reason,
) -> Decision {
    let headers = &ctx.headers;
    ctx.selected = Selected::synthetic(Flow::MASQUERADED, 0, headers.dst, headers.dport, 0);
    let decision = begin(tables, config, ctx, Entry::Egress, reason);
    if let Decision::Translate(_) = decision {
        fragment::note(tables, ctx, Passage::Leaving);
    }
    decision
}

/// The verdict on a packet that leaves by an uplink and has no headers that could be translated. A pod's own
/// address must not leave in it either.
#[inline(always)]
pub fn leaving_unread<T: Tables>(tables: &T, headers: &Headers, reason: Reason) -> Reason {
    let is_refused = tables
        .config()
        .is_some_and(|config| masquerades(tables, config) && !config.is_service_address(&headers.dst))
        && !headers.src.is_unspecified()
        && tables.is_own_pod(&headers.src)
        && is_outside(tables, &headers.dst);
    if is_refused && !reason.is_drop() {
        Reason::NotMasqueraded
    } else {
        reason
    }
}

/// Whether an address belongs to the world outside, where pods are not known by their own addresses.
#[inline(always)]
fn is_outside<T: Tables>(tables: &T, address: &Ip) -> bool {
    address.is_one_host()
        && (address.is_v4() || !address.is_link_local())
        && !tables
            .range(address)
            .has(RangeFlags::PODS | RangeFlags::NO_MASQUERADE)
}

/// Whether a masqueraded flow continues unchanged. A flow without connections follows a change of the node's
/// address and of the output device, as in netfilter (`nf_nat_oif_changed`). A connection that is over leaves
/// its entry to the next one.
#[inline(always)]
pub(super) fn is_still_valid(config: &Config, ctx: &PacketContext) -> bool {
    let PacketContext { headers, flow, .. } = ctx;
    if headers.has_connections() {
        return !(headers.is_opening() && flow.state().has(FlowState::CLOSED));
    }
    config.address_at(ctx.interface, &flow.src).same(&flow.src) || config.is_tunnel_address(&flow.src)
}

/// Stores a flow from outside to a pod's own address: a datagram, an echo request or a connection. Otherwise
/// the reply would be taken for the first packet of a flow of the pod, and be masqueraded. A connection gets
/// both entries, since the programs follow its handshake.
#[inline(always)]
pub fn note_direct<T: Tables>(tables: &T, config: &Config, ctx: &mut PacketContext) {
    let headers = &ctx.headers;
    if !(headers.is_balanced() && headers.has_ports || headers.is_echo_request())
        || !masquerades(tables, config)
        || config.is_node_address(&headers.dst)
        || !is_outside(tables, &headers.src)
    {
        return;
    }
    ctx.reply_key = FlowKey::new(
        headers.dst,
        headers.src,
        headers.dport,
        headers.sport,
        headers.protocol,
    );
    let now = tables.now();
    if tables.flow(&ctx.reply_key, &mut ctx.found) {
        if !is_expired(config, &ctx.found, ctx.reply_key.protocol, now) {
            if ctx.found.backend == Flow::DIRECT && ctx.found.seen != now {
                let _ = tables.touch_flow(&ctx.reply_key, now, 0, 0, 0);
            }
            return;
        }
        forget_found(tables, ctx);
    }
    if !tables.is_own_pod(&ctx.headers.dst) {
        return;
    }
    let PacketContext { headers, flow, .. } = ctx;
    flow.src = headers.dst;
    flow.dst = headers.src;
    flow.sport = headers.dport;
    flow.dport = headers.sport;
    flow.backend = Flow::DIRECT;
    flow.generation = 0;
    flow.service = 0;
    flow.seen = now;
    flow.sequence = 0;
    flow.fin = 0;
    flow.deliver = Deliver::Stack as u8;
    flow.reply_deliver = Deliver::Stack as u8;
    flow.is_reply = 1;
    flow.state = 0;
    if tables.insert_flow(&ctx.reply_key, &ctx.flow) && ctx.headers.has_connections() {
        ctx.reply = ctx.flow.reply(&ctx.reply_key);
        tables.replace_flow(&ctx.key, &ctx.reply);
    }
}
