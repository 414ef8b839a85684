//! The packet program at the interfaces that lead to other machines.

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use proxy_common::decide::packet::{Entry, entering};

use crate::deliver::handle;

/// What comes from other machines.
#[classifier]
pub fn from_uplink(context: TcContext) -> i32 {
    handle(&context, Entry::Uplink, |tables, work| {
        entering(tables, work, Entry::Uplink)
    })
}
