//! ICMP errors about translated packets.
//!
//! An error carries the beginning of the packet that it is about, as that packet was on the wire: after
//! translation. With source and destination exchanged, this is a packet of the other direction. The entry of
//! that direction gives the packet before translation (RFC 5508 §4.2): from the entry's new destination to
//! its new source.

use super::{PacketContext, Tables};
use crate::maps::FlowKey;

/// Finds the flow of an ICMP error. Then [`PacketContext::flow`] translates packets in the error's direction,
/// and [`PacketContext::embedded`] is the packet that the error is about.
#[inline(always)]
pub fn find<T: Tables>(tables: &T, ctx: &mut PacketContext) -> bool {
    let embedded = &ctx.embedded;
    // An error goes to the sender of the packet that it carries. Any other error is forged, and translation
    // would send it to a host that it is not addressed to.
    if !ctx.headers.dst.same(&embedded.src) {
        return false;
    }
    let key = &mut ctx.reply_key;
    *key = FlowKey::new(
        embedded.dst,
        embedded.src,
        embedded.dport,
        embedded.sport,
        embedded.protocol,
    );
    if !tables.flow(key, &mut ctx.flow) {
        return false;
    }
    // The sender of the error is the flow's other end, which the receiver knows by another address, or a
    // router in between. A router's address is useful to the receiver and stays, unless the receiver must see
    // only this node's address.
    let from_end = ctx.headers.src.same(&embedded.dst);
    let masquerades = ctx.flow.is_reply == 0 && !ctx.flow.src.same(&key.src);
    ctx.error_source = if from_end || masquerades {
        ctx.flow.src
    } else {
        ctx.headers.src
    };
    true
}
