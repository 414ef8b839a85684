//! ICMP errors about translated packets.
//!
//! An error carries the beginning of the packet that it is about, as that packet was on the wire: after translation. Its
//! ends exchanged, this is a packet of the other direction, whose entry says what the packet in the error was before
//! (RFC 5508 §4.2): from that entry's new destination to that entry's new source.

use super::{Tables, Work};
use crate::maps::FlowKey;

/// Finds the flow that an ICMP error belongs to. Then [`Work::flow`] says what packets become that go the error's way,
/// and [`Work::carried`] which packet the error is about.
#[inline(always)]
pub fn find<T: Tables>(tables: &T, work: &mut Work) -> bool {
    let carried = &work.carried;
    // An error goes to the sender of the packet that it carries; any other is forged, and would be sent where it is not
    // addressed to.
    if !work.headers.dst.same(&carried.src) {
        return false;
    }
    let key = &mut work.reply_key;
    *key = FlowKey::new(
        carried.dst,
        carried.src,
        carried.dport,
        carried.sport,
        carried.protocol,
    );
    if !tables.flow(key, &mut work.flow) {
        return false;
    }
    // Who sent it: the flow's other end, which its peer knows by another address; or a router on the way, whose
    // address tells the receiver something, unless the receiver shall see nobody but this node.
    let from_end = work.headers.src.same(&carried.dst);
    let masquerades = work.flow.is_reply == 0 && !work.flow.src.same(&key.src);
    work.error_source = if from_end || masquerades {
        work.flow.src
    } else {
        work.headers.src
    };
    true
}
