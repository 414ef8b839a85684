//! The packet programs at a pod's host-side interface.

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use proxy_common::decide::packet::{Entry, entering, leaving};

use crate::deliver::handle;

/// What a pod sends.
#[classifier]
pub fn from_pod(context: TcContext) -> i32 {
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
