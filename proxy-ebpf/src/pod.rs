//! The packet programs at a pod's host-side interface.

use aya_ebpf::bindings::TC_ACT_SHOT;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use proxy_common::decide::PacketContext;
use proxy_common::decide::limit::{self, Step};
use proxy_common::decide::neighbour;
use proxy_common::decide::packet::{Decision, Entry, entering, leaving};
use proxy_common::maps::{LIMITED_MARK, Reason};
use proxy_common::packet::ether_type;

use crate::deliver::{Program, handle, may_send, pass};
use crate::dry_run;
use crate::kernel::{Skb, redirect_out};
use crate::stage;
use crate::tables::KernelMaps;

/// Handles packets that a pod sends by an interface that another plugin made.
#[classifier]
#[inline(always)]
pub fn from_pod(tc: TcContext) -> i32 {
    receive::<false>(&tc)
}

/// Handles packets that a pod sends by an interface that our plugin made. Without its entry the pod may not
/// send.
#[classifier]
#[inline(always)]
pub fn from_own_pod(tc: TcContext) -> i32 {
    receive::<true>(&tc)
}

/// Checks and handles a packet that a pod sends: at once, or when it comes back from the pod's limiter.
#[inline(always)]
fn receive<const IS_OWN: bool>(tc: &TcContext) -> i32 {
    let skb = Skb(tc);
    let mark = skb.mark();
    let step = limit::step(&KernelMaps::HOOK, skb.ifindex(), mark);
    if mark == LIMITED_MARK {
        // The mark may also come back after the limit was removed.
        skb.set_mark(0);
    }
    if step != Step::LIMITED && !may_send(tc, IS_OWN) {
        return TC_ACT_SHOT;
    }
    if !dry_run::is_marked(&skb) {
        // The packet of a dry run does not go through the limiter.
        if step.device() != 0 {
            skb.set_mark(LIMITED_MARK);
            return redirect_out(step.device());
        }
        if skb.ether_type() == ether_type::ARP
            && let Some(verdict) = stage::reply_for_gateway(&skb)
        {
            return verdict;
        }
        // The frame is for a VLAN's device or a VLAN of the bridge. A pod of our plugin sends no tags.
        if !IS_OWN && skb.frame().belongs_to_vlan() {
            return pass(&skb, &KernelMaps::HOOK, Reason::Tagged);
        }
        // On a bridge of another plugin, frames between two pods are for other interfaces too.
        if IS_OWN && skb.frame().is_for_other {
            return pass(&skb, &KernelMaps::HOOK, Reason::OtherHost);
        }
    }
    handle::<FromPod>(tc)
}

/// Handles packets that a pod receives.
#[classifier]
#[inline(always)]
pub fn to_pod(tc: TcContext) -> i32 {
    handle::<ToPod>(&tc)
}

struct FromPod;

impl Program for FromPod {
    const ENTRY: Entry = Entry::Pod;

    #[inline(always)]
    fn decide(tables: &KernelMaps, ctx: &mut PacketContext, skb: &Skb<'_>) -> Decision {
        if !tables.dry_run && !stage::spares_headers(skb, true) {
            return Decision::Drop(Reason::OffloadedChecksum);
        }
        let decision = entering(tables, ctx, skb, Entry::Pod);
        stage::deliver_locally(skb, tables, decision)
    }

    #[inline(always)]
    fn may_go_on(tables: &KernelMaps, ctx: &PacketContext, skb: &Skb<'_>, is_translated: bool) -> bool {
        // On a bridge, frames between two pods are for other interfaces.
        !skb.is_for_interface() || neighbour::may_resolve(tables, ctx, is_translated)
    }

    #[inline(always)]
    fn decide_unread(tables: &KernelMaps, ctx: &PacketContext, skb: &Skb<'_>, reason: Reason) -> Reason {
        // The parser reads no addresses of a packet that is not IP.
        let has_addresses = !ctx.headers.src.is_unspecified();
        if has_addresses && !tables.dry_run && !stage::spares_headers(skb, false) {
            return Reason::OffloadedChecksum;
        }
        let reason = stage::admit_unread(Entry::Pod, reason);
        if has_addresses && !reason.is_drop() && !tables.dry_run && !Self::may_go_on(tables, ctx, skb, false)
        {
            return Reason::NeighbourShare;
        }
        reason
    }
}

struct ToPod;

impl Program for ToPod {
    const ENTRY: Entry = Entry::Pod;

    #[inline(always)]
    fn decide(tables: &KernelMaps, ctx: &mut PacketContext, skb: &Skb<'_>) -> Decision {
        leaving(tables, ctx, skb)
    }
}
