//! Packets of the node's own sockets, whose source port a masqueraded flow may have.
//!
//! A socket gets a port of the masquerade range where `net.ipv4.ip_local_port_range` overlaps it, or where it
//! binds one. A masqueraded flow to the same peer may have that port already. Then the replies of both have
//! the same addresses and ports. The flow of the socket is the later one, so it gets another port of the
//! range, as in netfilter.

use super::conntrack::{advance, find, is_expired};
use super::decision::Decision;
use super::egress::{is_still_valid, masquerade};
use super::fragment::Passage;
use super::{PacketContext, Tables, fragment};
use crate::maps::{Config, ConfigFlags, Flow, Reason};

/// Whether the packet comes from a socket of the node and has a source that masqueraded flows may have, too.
#[inline(always)]
pub fn may_clash<T: Tables>(tables: &T, config: &Config, ctx: &PacketContext) -> bool {
    let headers = &ctx.headers;
    ctx.arrived_by == 0
        && headers.has_ports
        && config.is_masquerade_port(headers.sport)
        && (config.is_node_address(&headers.src)
            || config.is_tunnel_address(&headers.src)
            || (config.has(ConfigFlags::MORE_UPLINKS) && tables.address(&headers.src).is_node()))
}

/// Decides about such a packet on its way out of the node or into a pod.
// The kernel gets this as a function of its own, whose stack does not add to that of the stages.
#[cfg_attr(target_arch = "bpf", inline(never))]
#[cfg_attr(not(target_arch = "bpf"), inline(always))]
pub fn leaving<T: Tables>(tables: &T, config: &Config, ctx: &mut PacketContext) -> Decision {
    let mut reason = Reason::NewFlow;
    if find(tables, config, ctx) {
        if ctx.flow.is_reply != 0 || ctx.flow.backend != Flow::MASQUERADED {
            return Decision::Pass(Reason::NotOurs);
        }
        if is_still_valid(config, ctx) {
            advance(tables, ctx);
            fragment::note(tables, ctx, Passage::Leaving);
            return Decision::Translate(Reason::Established);
        }
        reason = Reason::Moved;
    }
    let headers = &ctx.headers;
    let is_midstream = headers.has_connections() && !headers.is_opening();
    if is_midstream || !is_taken(tables, config, ctx) {
        return Decision::Pass(Reason::NotOurs);
    }
    masquerade(tables, config, ctx, reason)
}

/// Whether replies to this packet would be taken for those of a masqueraded flow. The node's own flows to
/// services have entries with the same addresses, and those entries belong to these packets.
#[inline(always)]
fn is_taken<T: Tables>(tables: &T, config: &Config, ctx: &mut PacketContext) -> bool {
    ctx.reply_key = ctx.key.reversed();
    tables.flow(&ctx.reply_key, &mut ctx.found)
        && ctx.found.is_reply != 0
        && ctx.found.backend != Flow::DIRECT
        && !is_expired(config, &ctx.found, ctx.key.protocol, tables.now())
        && !tables.address(&ctx.found.dst).is_node()
}
