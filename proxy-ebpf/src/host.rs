//! The packet program at our own device, which holds the routes of the virtual addresses.
//!
//! The kernel routes only packets to virtual addresses here. These are packets of the node's own processes
//! that no socket hook translated, and packets from interfaces that no other program watches. A packet that
//! is not translated is dropped.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use proxy_common::decide::PacketContext;
use proxy_common::decide::packet::{Decision, Entry, entering};

use crate::deliver::{Program, handle};
use crate::dry_run;
use crate::kernel::Skb;
use crate::tables::KernelMaps;

/// Handles packets that were routed to a virtual address.
#[classifier]
#[inline(always)]
pub fn from_host(tc: TcContext) -> i32 {
    let verdict = handle::<FromHost>(&tc);
    if verdict == TC_ACT_UNSPEC && !dry_run::is_marked(&Skb(&tc)) {
        TC_ACT_SHOT
    } else {
        verdict
    }
}

struct FromHost;

impl Program for FromHost {
    const ENTRY: Entry = Entry::Host;

    #[inline(always)]
    fn decide(tables: &KernelMaps, ctx: &mut PacketContext, skb: &Skb<'_>) -> Decision {
        entering(tables, ctx, skb, Entry::Host)
    }
}
