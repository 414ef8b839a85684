//! The packet programs at the interfaces that lead to other machines.

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use proxy_common::decide::packet::{Entry, entering, leaving, node_answers_outside};

use crate::deliver::handle;
use crate::tables::Live;

/// What comes from other machines.
#[classifier]
pub fn from_uplink(context: TcContext) -> i32 {
    handle(&context, Entry::Uplink, |tables, work, skb| {
        entering(tables, work, skb, Entry::Uplink)
    })
}

/// What the node sends: answers of its own to clients from outside are among it only once there was such a client.
#[classifier]
pub fn to_uplink(context: TcContext) -> i32 {
    if !node_answers_outside(&Live::HOOK) {
        return TC_ACT_UNSPEC;
    }
    handle(&context, Entry::Uplink, |tables, work, skb| {
        leaving(tables, work, skb)
    })
}
