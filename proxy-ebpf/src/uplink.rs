//! The packet programs at the interfaces that lead to other machines.

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use proxy_common::decide::PacketContext;
use proxy_common::decide::egress::{is_watched, leaving_node, leaving_unread};
use proxy_common::decide::neighbour;
use proxy_common::decide::packet::{Decision, Entry, entering};
use proxy_common::decide::tunnel;
use proxy_common::maps::Reason;

use crate::deliver::{Program, drop, handle, pass};
use crate::dry_run;
use crate::kernel::Skb;
use crate::stage;
use crate::tables::KernelMaps;

/// Handles packets from other machines.
#[classifier]
#[inline(always)]
pub fn from_uplink(tc: TcContext) -> i32 {
    let skb = Skb(&tc);
    // The packet of a dry run is not addressed to an interface.
    if !dry_run::is_marked(&skb)
        && let Err(reason) = stage::admit(&skb)
    {
        return if reason.is_drop() {
            drop(&skb, reason)
        } else {
            pass(&skb, &KernelMaps::HOOK, reason)
        };
    }
    handle::<FromUplink>(&tc)
}

/// Handles packets that the node and its pods send. It has no work until there are pods, or clients from
/// outside to which the node itself replies.
#[classifier]
#[inline(always)]
pub fn to_uplink(tc: TcContext) -> i32 {
    // A packet with a tag has passed the program at the VLAN's own device, unless `--uplink` omits that
    // device.
    if !is_watched(&KernelMaps::HOOK) || Skb(&tc).has_tag() {
        return TC_ACT_UNSPEC;
    }
    handle::<ToUplink>(&tc)
}

struct FromUplink;

impl Program for FromUplink {
    const ENTRY: Entry = Entry::Uplink;

    #[inline(always)]
    fn decide(tables: &KernelMaps, ctx: &mut PacketContext, skb: &Skb<'_>) -> Decision {
        entering(tables, ctx, skb, Entry::Uplink)
    }

    #[inline(always)]
    fn decide_unread(_tables: &KernelMaps, _ctx: &PacketContext, _skb: &Skb<'_>, reason: Reason) -> Reason {
        stage::admit_unread(Entry::Uplink, reason)
    }

    #[inline(always)]
    fn may_go_on(tables: &KernelMaps, ctx: &PacketContext, _skb: &Skb<'_>, is_translated: bool) -> bool {
        !is_translated || neighbour::may_reach_backend(tables, ctx)
    }

    #[inline(always)]
    fn note(skb: &Skb<'_>, tables: &KernelMaps, ctx: &PacketContext) {
        if ctx.is_for_tunnel != 0 || tunnel::is_protected(tables, &ctx.headers) {
            skb.set_note(tunnel::ADMITTED);
        }
    }
}

struct ToUplink;

impl Program for ToUplink {
    const ENTRY: Entry = Entry::Egress;

    #[inline(always)]
    fn decide(tables: &KernelMaps, ctx: &mut PacketContext, skb: &Skb<'_>) -> Decision {
        leaving_node(tables, ctx, skb)
    }

    #[inline(always)]
    fn decide_unread(tables: &KernelMaps, ctx: &PacketContext, _skb: &Skb<'_>, reason: Reason) -> Reason {
        leaving_unread(tables, &ctx.headers, reason)
    }
}
