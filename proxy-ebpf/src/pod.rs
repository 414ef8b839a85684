//! The packet programs at a pod's host-side interface.

use aya_ebpf::bindings::TC_ACT_SHOT;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use proxy_common::decide::Work;
use proxy_common::decide::limit::{self, Step};
use proxy_common::decide::packet::{Decision, Entry, entering, leaving};
use proxy_common::maps::LIMITED_MARK;
use proxy_common::packet::ether_type;

use crate::deliver::{Program, handle, may_send};
use crate::dry_run;
use crate::kernel::{Skb, redirect_out};
use crate::stage;
use crate::tables::Live;

/// What a pod sends, if it may: at once, or when it comes back from the pod's limiter.
#[classifier]
#[inline(always)]
pub fn from_pod(context: TcContext) -> i32 {
    let skb = Skb(&context);
    let step = limit::step(&Live::HOOK, skb.ifindex(), skb.mark());
    if let Step::Limited = step {
        skb.set_mark(0);
    } else if !may_send(&context) {
        return TC_ACT_SHOT;
    }
    // A packet that does not exist is decided about at once.
    if let Step::Limit(limiter) = step
        && !dry_run::is_marked(&skb)
    {
        skb.set_mark(LIMITED_MARK);
        return redirect_out(limiter);
    }
    if skb.ether_type() == ether_type::ARP
        && let Some(verdict) = stage::answer_for_gateway(&skb)
    {
        return verdict;
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
