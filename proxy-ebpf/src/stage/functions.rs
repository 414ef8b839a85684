//! The functions of the stages, with global linkage. Arguments and results are numbers.

use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::programs::TcContext;
use proxy_common::Tables;
use proxy_common::decide::admission::{self, by_uplink};
use proxy_common::decide::conntrack;
use proxy_common::decide::fragment::{self, Passage};
use proxy_common::decide::local;
use proxy_common::decide::offload;
use proxy_common::decide::packet;
use proxy_common::decide::sender;
use proxy_common::decide::tunnel;
use proxy_common::decide::{self, PacketContext};
use proxy_common::maps::{Reason, SkbLayout};

use super::{DONE, entry_of, number_of_result};
use crate::deliver;
use crate::gateway;
use crate::kernel::{self, Skb};
use crate::maps::SKB_LAYOUT;
use crate::rewrite::NETWORK_HEADER;
use crate::route;
use crate::tables::KernelMaps;

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_parse(skb: *mut __sk_buff, l3: u32) -> u32 {
    let tc = TcContext::new(skb);
    match kernel::packet_context().map(|ctx| deliver::read(&Skb(&tc), ctx, l3)) {
        Some(Ok(())) => DONE,
        Some(Err(reason)) => reason as u32,
        None => Reason::NotBalanced as u32,
    }
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_spares_headers(skb: *mut __sk_buff, is_read: u32) -> u32 {
    let tc = TcContext::new(skb);
    let Some(offload) = Skb(&tc).offload(SkbLayout::from_words(SKB_LAYOUT.load())) else {
        return 1;
    };
    let spares = |ctx: &mut PacketContext| offload::spares_headers(&ctx.headers, is_read != 0, offload);
    u32::from(kernel::packet_context().is_some_and(spares))
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_prepare(dry_run: u32, entry: u32) -> u32 {
    let tables = KernelMaps::HOOK.dry_run(dry_run != 0);
    let (Some(ctx), Some(config)) = (kernel::packet_context(), tables.config()) else {
        return Reason::Inconsistent as u32;
    };
    match decide::prepare(&tables, config, ctx, entry_of(entry)) {
        Ok(()) => DONE,
        Err(reason) => reason as u32,
    }
}

/// It always returns 0: a function for the verifier has to return a number.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_settle() -> u32 {
    let tables = KernelMaps::HOOK;
    if let (Some(ctx), Some(config)) = (kernel::packet_context(), tables.config()) {
        decide::settle(&tables, config, ctx);
    }
    0
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_passes_reverse_path(skb: *mut __sk_buff, interface: u32) -> u32 {
    let tc = TcContext::new(skb);
    u32::from(
        kernel::packet_context().is_some_and(|ctx| route::passes_reverse_path(&Skb(&tc), ctx, interface)),
    )
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_output_device(skb: *mut __sk_buff) -> u32 {
    let tc = TcContext::new(skb);
    kernel::packet_context().map_or(0, |ctx| route::output_device(&Skb(&tc), ctx))
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_admit_packet(skb: *mut __sk_buff, entry: u32) -> u32 {
    let tc = TcContext::new(skb);
    let skb = Skb(&tc);
    let tables = KernelMaps::of(&skb, false);
    let (Some(ctx), Some(config)) = (kernel::packet_context(), tables.config()) else {
        return Reason::Inconsistent as u32;
    };
    match admission::admit(&tables, config, &skb, ctx, entry_of(entry)) {
        None => DONE,
        Some(reason) => reason as u32,
    }
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_admit_unread(entry: u32, reason: u32) -> u32 {
    let tables = KernelMaps::HOOK;
    match (kernel::packet_context(), Reason::from_number(reason)) {
        (Some(ctx), Some(reason)) => admission::unread(&tables, ctx, entry_of(entry), reason) as u32,
        _ => Reason::Inconsistent as u32,
    }
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_note(dry_run: u32) -> u32 {
    kernel::packet_context().map_or(0, |ctx| {
        conntrack::note(&KernelMaps::HOOK.dry_run(dry_run != 0), ctx)
    })
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_is_error_of_a_flow(skb: *mut __sk_buff) -> u32 {
    let tc = TcContext::new(skb);
    let is_of_a_flow = |ctx| packet::is_error_of_a_flow(&KernelMaps::HOOK, ctx, &Skb(&tc));
    u32::from(kernel::packet_context().is_some_and(is_of_a_flow))
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_may_begin(entry: u32) -> u32 {
    let tables = KernelMaps::HOOK;
    let (Some(ctx), Some(config)) = (kernel::packet_context(), tables.config()) else {
        return Reason::Inconsistent as u32;
    };
    match packet::may_begin(&tables, config, ctx, entry_of(entry)) {
        Ok(()) => DONE,
        Err(reason) => reason as u32,
    }
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_has_own_connection(skb: *mut __sk_buff) -> u32 {
    let tc = TcContext::new(skb);
    u32::from(kernel::packet_context().is_some_and(|ctx| Skb(&tc).finds_connection(&ctx.key)))
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_lacks_neighbour(skb: *mut __sk_buff, is_translated: u32) -> u32 {
    let tc = TcContext::new(skb);
    let lacks = |ctx| route::lacks_neighbour(&Skb(&tc), ctx, is_translated != 0);
    u32::from(kernel::packet_context().is_some_and(|ctx| lacks(ctx)))
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_try_port(skb: *mut __sk_buff, dry_run: u32, attempt: u32) -> u32 {
    let tc = TcContext::new(skb);
    let tables = KernelMaps::of(&Skb(&tc), dry_run != 0);
    let (Some(ctx), Some(config)) = (kernel::packet_context(), tables.config()) else {
        return 0;
    };
    u32::from(decide::try_port(&tables, config, ctx, attempt))
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_choose_host_port() -> u32 {
    let tables = KernelMaps::HOOK;
    let (Some(ctx), Some(config)) = (kernel::packet_context(), tables.config()) else {
        return 0;
    };
    u32::from(decide::choose_host_port(&tables, config, ctx))
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_leads_to_pod(skb: *mut __sk_buff, is_translated: u32) -> u32 {
    let tc = TcContext::new(skb);
    let interface = Skb(&tc).ifindex();
    let leads = |ctx| local::leads_to_pod(&KernelMaps::HOOK, ctx, interface, is_translated != 0);
    u32::from(kernel::packet_context().is_some_and(leads))
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_is_reply(dry_run: u32) -> u32 {
    let tables = KernelMaps::HOOK.dry_run(dry_run != 0).settling_later();
    u32::from(kernel::packet_context().is_some_and(|ctx| {
        ctx.unsettled = 0;
        local::is_reply(&tables, ctx)
    }))
}

/// It always returns 0: a function for the verifier has to return a number.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_note_direct() -> u32 {
    let tables = KernelMaps::HOOK;
    if let (Some(ctx), Some(config)) = (kernel::packet_context(), tables.config()) {
        decide::note_direct(&tables, config, ctx);
    }
    0
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_complete_fragment(is_leaving: u32) -> u32 {
    if let Some(ctx) = kernel::packet_context() {
        fragment::fill_in(&KernelMaps::HOOK, ctx, Passage::from_leaving(is_leaving != 0));
    }
    0
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_note_fragment(is_leaving: u32) -> u32 {
    if let Some(ctx) = kernel::packet_context() {
        fragment::keep(&KernelMaps::HOOK, ctx, Passage::from_leaving(is_leaving != 0));
    }
    0
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_may_send(skb: *mut __sk_buff, strict: u32) -> u32 {
    let tc = TcContext::new(skb);
    let skb = Skb(&tc);
    u32::from(sender::may_send(
        &KernelMaps::HOOK,
        &skb,
        skb.frame(),
        skb.ifindex(),
        strict != 0,
    ))
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_admit(skb: *mut __sk_buff) -> u32 {
    let tc = TcContext::new(skb);
    let skb = Skb(&tc);
    if let Err(reason) = by_uplink(skb.frame()) {
        return reason as u32;
    }
    let Some(config) = KernelMaps::HOOK.config() else {
        return Reason::TunnelSource as u32;
    };
    if !tunnel::was_admitted(config, skb.ifindex(), skb.note()) {
        return Reason::TunnelSource as u32;
    }
    if config.is_headerless(skb.ifindex()) && skb.add_ethernet_header(NETWORK_HEADER).is_none() {
        return Reason::RewriteFailed as u32;
    }
    // The note has no further use, and it belongs to this packet only.
    skb.set_note(0);
    DONE
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_reply_for_gateway(skb: *mut __sk_buff) -> i32 {
    let tc = TcContext::new(skb);
    gateway::reply(&Skb(&tc)).unwrap_or(TC_ACT_UNSPEC)
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_find_route(skb: *mut __sk_buff, entry: u32) -> i32 {
    let tc = TcContext::new(skb);
    number_of_result(match kernel::packet_context() {
        Some(ctx) => deliver::find_route(&Skb(&tc), ctx, entry_of(entry)).map(|device| device as i32),
        None => Err(Reason::NoRoute),
    })
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_rewrite(skb: *mut __sk_buff, is_error: u32) -> i32 {
    let tc = TcContext::new(skb);
    number_of_result(
        match kernel::packet_context().and_then(|ctx| deliver::rewrite(&Skb(&tc), ctx, is_error != 0)) {
            Some(()) => Ok(0),
            None => Err(Reason::RewriteFailed),
        },
    )
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_deliver(skb: *mut __sk_buff, entry: u32, device: u32) -> i32 {
    let tc = TcContext::new(skb);
    number_of_result(match kernel::packet_context() {
        Some(ctx) => deliver::deliver(&Skb(&tc), ctx, entry_of(entry), device),
        None => Err(Reason::NoRoute),
    })
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_echo(skb: *mut __sk_buff, entry: u32) -> i32 {
    let tc = TcContext::new(skb);
    match kernel::packet_context() {
        Some(ctx) => deliver::echo(&Skb(&tc), ctx, entry_of(entry)),
        None => TC_ACT_SHOT,
    }
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_refuse(skb: *mut __sk_buff, entry: u32, reason: u32) -> i32 {
    let tc = TcContext::new(skb);
    match (kernel::packet_context(), Reason::from_number(reason)) {
        (Some(ctx), Some(reason)) => deliver::refuse(&Skb(&tc), ctx, entry_of(entry), reason),
        _ => TC_ACT_SHOT,
    }
}
