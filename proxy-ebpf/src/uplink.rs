//! The packet programs at the interfaces that lead to other machines.

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use proxy_common::decide::egress::{is_watched, leaving_node};
use proxy_common::decide::packet::{Entry, entering};

use crate::deliver::handle;
use crate::tables::Live;

/// What comes from other machines.
#[classifier]
pub fn from_uplink(context: TcContext) -> i32 {
    handle(&context, Entry::Uplink, |tables, work, skb| {
        entering(tables, work, skb, Entry::Uplink)
    })
}

/// What the node and its pods send. There is nothing to be done before there are pods, or clients from outside that the node
/// itself answers.
#[classifier]
pub fn to_uplink(context: TcContext) -> i32 {
    if !is_watched(&Live::HOOK) {
        return TC_ACT_UNSPEC;
    }
    handle(&context, Entry::Egress, |tables, work, skb| {
        leaving_node(tables, work, skb)
    })
}
