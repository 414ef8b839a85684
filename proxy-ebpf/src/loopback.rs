//! The packet program at the loopback, for packets from the node to itself.
//!
//! It sees packets of the node's own processes to a node port at one of the node's addresses, and the replies
//! to them. It is attached only while a frontend has an address of the node.

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use proxy_common::decide::PacketContext;
use proxy_common::decide::packet::{Decision, Entry, entering};

use crate::deliver::{Program, handle};
use crate::kernel::Skb;
use crate::tables::KernelMaps;

/// Handles packets that the node sends to itself.
#[classifier]
#[inline(always)]
pub fn from_loopback(tc: TcContext) -> i32 {
    handle::<FromLoopback>(&tc)
}

struct FromLoopback;

impl Program for FromLoopback {
    const ENTRY: Entry = Entry::Loopback;

    #[inline(always)]
    fn decide(tables: &KernelMaps, ctx: &mut PacketContext, skb: &Skb<'_>) -> Decision {
        entering(tables, ctx, skb, Entry::Loopback)
    }
}
