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
use super::{Tables, Work, fragment, local_socket};
use crate::Ip;
use crate::maps::{Config, ConfigFlags, Deliver, Flow, FlowKey, FlowState, InUse, RangeFlags, Reason};
use crate::packet::{Headers, Packet};

/// Whether programs have to inspect packets that leave by an uplink. They do in three cases: the node sends
/// replies to clients outside, pods of ours are masqueraded, or sockets of the node may have masquerade
/// ports.
#[inline(always)]
pub fn is_watched<T: Tables>(tables: &T) -> bool {
    tables.config().is_some_and(|config| {
        config.node_answers_outside != 0
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
pub fn leaving_node<T: Tables, P: Packet + ?Sized>(tables: &T, work: &mut Work, packet: &P) -> Decision {
    const PASS: Decision = Decision::Pass(Reason::NotOurs);
    let Some(config) = tables.config() else {
        return PASS;
    };
    if work.headers.is_icmp_error() && tables.is_error_of_a_flow(work, packet) {
        return Decision::TranslateError;
    }
    fragment::complete(tables, work, Passage::Leaving);
    let headers = &work.headers;
    let is_under_way = headers.has_connections() && !headers.is_opening();
    // The look-ups that save others come first: most packets are the node's own, or go to another pod. If a
    // connection goes to an address that is certainly no pod's, its flow is mostly known, and no further
    // look-up is needed.
    let is_likely = is_under_way && !config.may_be_pod(&headers.dst);
    let may_be_masqueraded = masquerades(tables, config)
        && !config.is_node_address(&headers.src)
        && !config.is_tunnel_address(&headers.src)
        && !config.is_service_address(&headers.dst)
        && (is_likely || is_outside(tables, &headers.dst));
    let may_clash = local_socket::may_clash(tables, config, work);
    if !may_be_masqueraded && !may_clash && config.node_answers_outside == 0 {
        return PASS;
    }
    let mut reason = Reason::NewFlow;
    if headers.has_flow() && find(tables, config, work) {
        // A packet that opens a connection is no reply.
        let is_other = work.flow.backend == Flow::DIRECT && work.headers.is_opening();
        if work.flow.is_reply != 0 && !is_other {
            advance(tables, work);
            fragment::note(tables, work, Passage::Leaving);
            return if work.flow.backend == Flow::DIRECT {
                PASS
            } else {
                Decision::Translate(Reason::Reply)
            };
        }
        if work.flow.backend == Flow::MASQUERADED {
            if stands(config, work) {
                advance(tables, work);
                fragment::note(tables, work, Passage::Leaving);
                return Decision::Translate(Reason::Established);
            }
            forget(tables, work);
            reason = Reason::Moved;
        }
    }
    if may_clash {
        return local_socket::leaving(tables, config, work);
    }
    if !may_be_masqueraded
        || !tables.is_own_pod(&work.headers.src)
        || (is_likely && !is_outside(tables, &work.headers.dst))
    {
        return PASS;
    }
    let headers = &work.headers;
    if headers.is_icmp() && !headers.is_echo_request() {
        if headers.l4 == 0 && !headers.has_ports {
            return Decision::Drop(Reason::FragmentBeforeFirst);
        }
        // An error about a packet to the pod itself passes. All others would leave with the pod's address.
        return if headers.is_icmp_error() && work.flow.backend == Flow::DIRECT {
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
    masquerade(tables, config, work, reason)
}

/// Begins a flow that leaves with the node's address and a port of the masquerade range.
#[inline(always)]
pub(super) fn masquerade<T: Tables>(
    tables: &T,
    config: &Config,
    work: &mut Work,
    reason: Reason,
) -> Decision {
    let headers = &work.headers;
    work.selected = Selected::stand_in(Flow::MASQUERADED, 0, headers.dst, headers.dport, 0);
    let decision = begin(tables, config, work, Entry::Egress, reason);
    if let Decision::Translate(_) = decision {
        fragment::note(tables, work, Passage::Leaving);
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
pub(super) fn stands(config: &Config, work: &Work) -> bool {
    let Work { headers, flow, .. } = work;
    if headers.has_connections() {
        return !(headers.is_opening() && flow.state().has(FlowState::CLOSED));
    }
    config.address_at(work.interface, &flow.src).same(&flow.src) || config.is_tunnel_address(&flow.src)
}

/// Stores a flow from outside to a pod's own address: a datagram, an echo request or a connection. Otherwise
/// the reply would be taken for the first packet of a flow of the pod, and be masqueraded. A connection gets
/// both entries, since the programs follow its handshake.
#[inline(always)]
pub fn note_direct<T: Tables>(tables: &T, config: &Config, work: &mut Work) {
    let headers = &work.headers;
    if !(headers.is_balanced() && headers.has_ports || headers.is_echo_request())
        || !masquerades(tables, config)
        || config.is_node_address(&headers.dst)
        || !is_outside(tables, &headers.src)
    {
        return;
    }
    work.reply_key = FlowKey::new(
        headers.dst,
        headers.src,
        headers.dport,
        headers.sport,
        headers.protocol,
    );
    let now = tables.now();
    if tables.flow(&work.reply_key, &mut work.found) {
        if !is_expired(config, &work.found, work.reply_key.protocol, now) {
            if work.found.backend == Flow::DIRECT && work.found.seen != now {
                let _ = tables.touch_flow(&work.reply_key, now, 0, 0, 0);
            }
            return;
        }
        forget_found(tables, work);
    }
    if !tables.is_own_pod(&work.headers.dst) {
        return;
    }
    let Work { headers, flow, .. } = work;
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
    if tables.insert_flow(&work.reply_key, &work.flow) && work.headers.has_connections() {
        work.reply = work.flow.reply(&work.reply_key);
        tables.replace_flow(&work.key, &work.reply);
    }
}
