//! The decision for packets that enter and are addressed to no frontend.
//!
//! Most of them pass unchanged. The others are:
//!
//! - replies to translated flows,
//! - connections that continue after their service was removed,
//! - flows from outside to a pod's own address,
//! - packets to virtual addresses that no frontend has.

use super::conntrack::{advance, age, find, forget, forget_found};
use super::decision::{Decision, Entry};
use super::fragment::Passage;
use super::packet::is_for_later;
use super::{Tables, Work, fragment};
use crate::Ip;
use crate::maps::{Config, ConfigFlags, Flow, FlowState, Reason};
use crate::packet::Headers;

/// Decides about a packet to no frontend.
#[inline(always)]
pub(super) fn elsewhere<T: Tables>(tables: &T, config: &Config, work: &mut Work, entry: Entry) -> Decision {
    let headers = &work.headers;
    let to_service = matches!(entry, Entry::Host) || config.is_service_address(&headers.dst);
    let is_direct = matches!(entry, Entry::Uplink) && is_connection_to_pod(config, headers);
    let may_be_known = to_service
        || is_direct
        || matches!(entry, Entry::Loopback)
        || may_be_answer(tables, config, &headers.dst);
    if headers.has_flow() && may_be_known && find(tables, config, work) {
        let is_reply = work.flow.is_reply != 0;
        if work.flow.is_for_egress() {
            // Such an entry does not apply to packets here. For other packets the result is as without an
            // entry.
            if work.flow.backend == Flow::DIRECT {
                go_on_direct(tables, config, work);
            }
        } else if is_for_later(&work.flow, &work.key, entry) {
            return Decision::Pass(Reason::NotOurs);
        } else if is_reply || (work.headers.has_connections() && !work.headers.is_opening()) {
            // A connection continues after its service was removed.
            advance(tables, work);
            fragment::note(tables, work, Passage::Entering);
            return Decision::Translate(if is_reply {
                Reason::Reply
            } else {
                Reason::Established
            });
        }
    } else if is_direct {
        tables.note_direct(config, work);
    }
    let is_datagram = work.headers.has_ports && !work.headers.has_connections();
    // A pod of this node sends its own SYN; one that came by an uplink may be forged.
    let begins = is_datagram || (matches!(entry, Entry::Pod) && work.headers.is_opening());
    if begins && !to_service {
        give_way(tables, work, matches!(entry, Entry::Uplink));
    }
    if (is_datagram || work.headers.is_echo_request())
        && !to_service
        && matches!(entry, Entry::Uplink)
        && config.has(ConfigFlags::MASQUERADE_PODS)
    {
        tables.note_direct(config, work);
    }
    let echo = work.headers.is_echo_request() && !work.headers.is_fragment && work.headers.src.is_one_host();
    let lost_fragment = work.headers.is_lost_fragment();
    let may_be_virtual = config.has(ConfigFlags::STRAY_ADDRESSES)
        && (work.headers.is_balanced() || lost_fragment)
        && (work.headers.is_opening() || !work.headers.has_connections());
    if !to_service && !echo && !lost_fragment && !may_be_virtual {
        return Decision::Pass(Reason::NotOurs);
    }
    let address = tables.address(&work.headers.dst);
    if address.is_virtual_only() {
        if echo {
            Decision::Echo
        } else if lost_fragment {
            Decision::Drop(Reason::FragmentBeforeFirst)
        } else {
            Decision::Drop(Reason::NoSuchPort)
        }
    } else if to_service && !address.is_node() {
        Decision::Drop(Reason::NoSuchService)
    } else if lost_fragment {
        Decision::Pass(Reason::Fragment)
    } else {
        Decision::Pass(Reason::NotOurs)
    }
}

/// Updates the entries of a flow that is not translated. A SYN by the port of a connection that is over
/// begins a new one.
#[inline(always)]
fn go_on_direct<T: Tables>(tables: &T, config: &Config, work: &mut Work) {
    if work.headers.is_opening() && work.flow.state().is_over() {
        forget(tables, work);
        tables.note_direct(config, work);
    } else {
        advance(tables, work);
    }
}

/// Whether a packet from outside belongs to a connection to a pod's own address. The replies of such a
/// connection must not be taken for the pod's own connections and be masqueraded. A connection under way is
/// looked up only if its client is certainly not a pod.
#[inline(always)]
fn is_connection_to_pod(config: &Config, headers: &Headers) -> bool {
    config.has(ConfigFlags::MASQUERADE_PODS)
        && headers.has_connections()
        && headers.has_ports
        && config.is_own_pod_address(&headers.dst)
        && (headers.is_opening() || !config.may_be_pod(&headers.src))
}

/// Ends an older flow whose replies have the same addresses and ports as the replies to this packet. This
/// packet goes to the backend itself, or another node has translated it. The newer of two flows of a client
/// port continues. A stream in use stays, since the datagram may be forged. A connection ends only if it is
/// closed.
#[cfg_attr(target_arch = "bpf", inline(never))]
#[cfg_attr(not(target_arch = "bpf"), inline(always))]
fn give_way<T: Tables>(tables: &T, work: &mut Work, may_be_forged: bool) {
    /// The ticks of silence after which a stream may have ended.
    const IN_USE: u32 = 10;
    work.reply_key = work.key.reversed();
    let is_known = tables.flow(&work.reply_key, &mut work.found);
    if is_known && work.found.is_reply != 0 && work.found.backend != Flow::DIRECT {
        let state = work.found.state();
        if work.headers.has_connections() && !state.has(FlowState::CLOSED) {
            return;
        }
        let is_in_use = state.has(FlowState::CONFIRMED) && age(tables.now(), work.found.seen) < IN_USE;
        if may_be_forged && is_in_use {
            return;
        }
        forget_found(tables, work);
    }
}

/// Whether replies of translated flows may be addressed to `dst`. That holds for the node's addresses, which
/// masqueraded flows and the node's own flows have as source. Once the uplink has translated a flow without
/// masquerading, it holds for all addresses.
#[inline(always)]
fn may_be_answer<T: Tables>(tables: &T, config: &Config, dst: &Ip) -> bool {
    config.pods_answer_outside != 0
        || config.is_node_address(dst)
        || config.is_tunnel_address(dst)
        || (config.has(ConfigFlags::MORE_NODE_ADDRESSES) && tables.address(dst).is_node())
}
