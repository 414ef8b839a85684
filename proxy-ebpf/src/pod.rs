//! The packet programs at a pod's host-side interface.

use aya_ebpf::bindings::TC_ACT_SHOT;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use proxy_common::decide::Work;
use proxy_common::decide::packet::{Decision, Entry, entering, leaving};

use crate::deliver::{Program, handle, may_send};
use crate::kernel::Skb;
use crate::stage;
use crate::tables::Live;

/// What a pod sends by an interface that somebody else made, if it may.
#[classifier]
#[inline(always)]
pub fn from_pod(context: TcContext) -> i32 {
    if !may_send(&context, false) {
        return TC_ACT_SHOT;
    }
    handle::<FromPod>(&context)
}

/// What a pod sends by an interface that our plugin made, if it may: without its entry it may not.
#[classifier]
#[inline(always)]
pub fn from_own_pod(context: TcContext) -> i32 {
    if !may_send(&context, true) {
        return TC_ACT_SHOT;
    }
    handle::<FromPod>(&context)
}

/// What a pod receives.
#[classifier]
#[inline(always)]
pub fn to_pod(context: TcContext) -> i32 {
    handle::<ToPod>(&context)
}

struct FromPod;

impl Program for FromPod {
    const ENTRY: Entry = Entry::Pod;

    #[inline(always)]
    fn decide(tables: &Live, work: &mut Work, skb: &Skb<'_>) -> Decision {
        let decision = entering(tables, work, skb, Entry::Pod);
        stage::shorten(skb, tables, decision)
    }
}

struct ToPod;

impl Program for ToPod {
    const ENTRY: Entry = Entry::Pod;

    #[inline(always)]
    fn decide(tables: &Live, work: &mut Work, skb: &Skb<'_>) -> Decision {
        leaving(tables, work, skb)
    }
}
