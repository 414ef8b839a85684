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
use super::{PacketContext, Tables, fragment};
use crate::Ip;
use crate::maps::{Config, ConfigFlags, Flow, FlowState, Reason};
use crate::packet::Headers;

/// Decides about a packet to no frontend.
#[inline(always)]
pub(super) fn without_frontend<T: Tables>(
    tables: &T,
    config: &Config,
    ctx: &mut PacketContext,
    entry: Entry,
) -> Decision {
    let headers = &ctx.headers;
    let to_service = matches!(entry, Entry::Host) || config.is_service_address(&headers.dst);
    let is_direct = matches!(entry, Entry::Uplink) && is_connection_to_pod(config, headers);
    let may_be_known = to_service
        || is_direct
        || matches!(entry, Entry::Loopback)
        || may_be_reply(tables, config, &headers.dst);
    if headers.has_flow() && may_be_known && find(tables, config, ctx) {
        let is_reply = ctx.flow.is_reply != 0;
        if ctx.flow.is_for_egress() {
            // Such an entry does not apply to packets here. For other packets the result is as without an
            // entry.
            if ctx.flow.backend == Flow::DIRECT {
                go_on_direct(tables, config, ctx);
            }
        } else if is_for_later(&ctx.flow, &ctx.key, entry) {
            return Decision::Pass(Reason::NotOurs);
        } else if is_reply || (ctx.headers.has_connections() && !ctx.headers.is_opening()) {
            // A connection continues after its service was removed.
            advance(tables, ctx);
            fragment::note(tables, ctx, Passage::Entering);
            return Decision::Translate(if is_reply {
                Reason::Reply
            } else {
                Reason::Established
            });
        }
    } else if is_direct {
        tables.note_direct(config, ctx);
    }
    let is_datagram = ctx.headers.has_ports && !ctx.headers.has_connections();
    // A pod of this node sends its own SYN; one that came by an uplink may be forged.
    let begins = is_datagram || (matches!(entry, Entry::Pod) && ctx.headers.is_opening());
    if begins && !to_service {
        end_older_flow(tables, ctx, matches!(entry, Entry::Uplink));
    }
    if (is_datagram || ctx.headers.is_echo_request())
        && !to_service
        && matches!(entry, Entry::Uplink)
        && config.has(ConfigFlags::MASQUERADE_PODS)
    {
        tables.note_direct(config, ctx);
    }
    let echo = ctx.headers.is_echo_request() && !ctx.headers.is_fragment && ctx.headers.src.is_one_host();
    let lost_fragment = ctx.headers.is_lost_fragment();
    let may_be_virtual = config.has(ConfigFlags::VIPS_OUTSIDE_RANGES)
        && (ctx.headers.is_balanced() || lost_fragment)
        && (ctx.headers.is_opening() || !ctx.headers.has_connections());
    if !to_service && !echo && !lost_fragment && !may_be_virtual {
        return Decision::Pass(Reason::NotOurs);
    }
    let address = tables.address(&ctx.headers.dst);
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
fn go_on_direct<T: Tables>(tables: &T, config: &Config, ctx: &mut PacketContext) {
    if ctx.headers.is_opening() && ctx.flow.state().is_over() {
        forget(tables, ctx);
        tables.note_direct(config, ctx);
    } else {
        advance(tables, ctx);
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
fn end_older_flow<T: Tables>(tables: &T, ctx: &mut PacketContext, may_be_forged: bool) {
    /// The ticks of silence after which a stream may have ended.
    const IN_USE: u32 = 10;
    ctx.reply_key = ctx.key.reversed();
    let is_known = tables.flow(&ctx.reply_key, &mut ctx.found);
    if is_known && ctx.found.is_reply != 0 && ctx.found.backend != Flow::DIRECT {
        let state = ctx.found.state();
        if ctx.headers.has_connections() && !state.has(FlowState::CLOSED) {
            return;
        }
        let is_in_use = state.has(FlowState::CONFIRMED) && age(tables.now(), ctx.found.seen) < IN_USE;
        if may_be_forged && is_in_use {
            return;
        }
        forget_found(tables, ctx);
    }
}

/// Whether replies of translated flows may be addressed to `dst`. That holds for the node's addresses, which
/// masqueraded flows and the node's own flows have as source. Once the uplink has translated a flow without
/// masquerading, it holds for all addresses.
#[inline(always)]
fn may_be_reply<T: Tables>(tables: &T, config: &Config, dst: &Ip) -> bool {
    config.pods_reply_outside != 0
        || config.is_node_address(dst)
        || config.is_tunnel_address(dst)
        || (config.has(ConfigFlags::MORE_NODE_ADDRESSES) && tables.address(dst).is_node())
}
