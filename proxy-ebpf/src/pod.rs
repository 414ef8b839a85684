//! The packet programs at a pod's host-side interface.

use aya_ebpf::bindings::TC_ACT_SHOT;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use proxy_common::decide::packet::{Entry, entering, leaving};

use crate::deliver::{handle, may_send};

/// What a pod sends, if it may.
#[classifier]
pub fn from_pod(context: TcContext) -> i32 {
    if !may_send(&context) {
        return TC_ACT_SHOT;
    }
    handle(&context, Entry::Pod, |tables, work, skb| {
        entering(tables, work, skb, Entry::Pod)
    })
}

/// What a pod receives.
#[classifier]
pub fn to_pod(context: TcContext) -> i32 {
    handle(&context, Entry::Pod, |tables, work, skb| {
        leaving(tables, work, skb)
    })
}
