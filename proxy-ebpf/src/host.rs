//! The packet program at our own device, which holds the routes of the virtual addresses.
//!
//! Only packets to virtual addresses are routed here: those of the node's own processes that no socket hook
//! translated, and those of interfaces that no other program watches. What is not translated ends here.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use proxy_common::decide::packet::{Entry, entering};

use crate::deliver::handle;
use crate::dry_run;
use crate::kernel::Skb;

/// What was routed to a virtual address.
#[classifier]
pub fn from_host(context: TcContext) -> i32 {
    let verdict = handle(&context, Entry::Host, |tables, work, skb| {
        entering(tables, work, skb, Entry::Host)
    });
    if verdict == TC_ACT_UNSPEC && !dry_run::is_marked(&Skb(&context)) {
        TC_ACT_SHOT
    } else {
        verdict
    }
}
