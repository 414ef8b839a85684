//! The packet program at the loopback, where the node speaks with itself.
//!
//! Packets of the node's own processes to a node port at one of its addresses go this way, and answers of its own
//! processes to them. It hangs there only while some frontend has an address of the node's.

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use proxy_common::decide::packet::{Entry, entering};

use crate::deliver::handle;

/// What the node sends to itself.
#[classifier]
pub fn from_loopback(context: TcContext) -> i32 {
    handle(&context, Entry::Loopback, |tables, work, skb| {
        entering(tables, work, skb, Entry::Loopback)
    })
}
