//! ICMP errors about translated packets.
//!
//! An error carries the beginning of the packet that it is about, as that packet was on the wire: after
//! translation. With source and destination exchanged, this is a packet of the other direction. The entry of
//! that direction gives the packet before translation (RFC 5508 §4.2): from the entry's new destination to
//! its new source.

use super::{Tables, Work};
use crate::maps::FlowKey;

/// Finds the flow of an ICMP error. Then [`Work::flow`] translates packets in the error's direction, and
/// [`Work::carried`] is the packet that the error is about.
#[inline(always)]
pub fn find<T: Tables>(tables: &T, work: &mut Work) -> bool {
    let carried = &work.carried;
    // An error goes to the sender of the packet that it carries. Any other error is forged, and translation
    // would send it to a host that it is not addressed to.
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
    // The sender of the error is the flow's other end, which the receiver knows by another address, or a
    // router in between. A router's address is useful to the receiver and stays, unless the receiver must see
    // only this node's address.
    let from_end = work.headers.src.same(&carried.dst);
    let masquerades = work.flow.is_reply == 0 && !work.flow.src.same(&key.src);
    work.error_source = if from_end || masquerades {
        work.flow.src
    } else {
        work.headers.src
    };
    true
}
