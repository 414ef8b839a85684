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
use proxy_common::decide::{self, Work};
use proxy_common::maps::{Reason, SkbLayout};

use super::{DONE, entry_of, number_of_result};
use crate::deliver;
use crate::gateway;
use crate::kernel::{self, Skb};
use crate::maps::SKB_LAYOUT;
use crate::rewrite::NETWORK_HEADER;
use crate::route;
use crate::tables::Live;

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_parse(skb: *mut __sk_buff, l3: u32) -> u32 {
    let context = TcContext::new(skb);
    match kernel::work().map(|work| deliver::read(&Skb(&context), work, l3)) {
        Some(Ok(())) => DONE,
        Some(Err(reason)) => reason as u32,
        None => Reason::NotBalanced as u32,
    }
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_spares_headers(skb: *mut __sk_buff, is_read: u32) -> u32 {
    let context = TcContext::new(skb);
    let Some(offload) = Skb(&context).offload(SkbLayout::from_words(SKB_LAYOUT.load())) else {
        return 1;
    };
    let spares = |work: &mut Work| offload::spares_headers(&work.headers, is_read != 0, offload);
    u32::from(kernel::work().is_some_and(spares))
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_prepare(dry_run: u32, entry: u32) -> u32 {
    let tables = Live::HOOK.dry_run(dry_run != 0);
    let (Some(work), Some(config)) = (kernel::work(), tables.config()) else {
        return Reason::Inconsistent as u32;
    };
    match decide::prepare(&tables, config, work, entry_of(entry)) {
        Ok(()) => DONE,
        Err(reason) => reason as u32,
    }
}

/// It always returns 0: a function for the verifier has to return a number.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_settle() -> u32 {
    let tables = Live::HOOK;
    if let (Some(work), Some(config)) = (kernel::work(), tables.config()) {
        decide::settle(&tables, config, work);
    }
    0
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_leads_back(skb: *mut __sk_buff, interface: u32) -> u32 {
    let context = TcContext::new(skb);
    u32::from(kernel::work().is_some_and(|work| route::leads_back(&Skb(&context), work, interface)))
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_way_out(skb: *mut __sk_buff) -> u32 {
    let context = TcContext::new(skb);
    kernel::work().map_or(0, |work| route::way_out(&Skb(&context), work))
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_admit_packet(skb: *mut __sk_buff, entry: u32) -> u32 {
    let context = TcContext::new(skb);
    let skb = Skb(&context);
    let tables = Live::of(&skb, false);
    let (Some(work), Some(config)) = (kernel::work(), tables.config()) else {
        return Reason::Inconsistent as u32;
    };
    match admission::admit(&tables, config, &skb, work, entry_of(entry)) {
        None => DONE,
        Some(reason) => reason as u32,
    }
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_admit_unread(entry: u32, reason: u32) -> u32 {
    let tables = Live::HOOK;
    match (kernel::work(), Reason::from_number(reason)) {
        (Some(work), Some(reason)) => admission::unread(&tables, work, entry_of(entry), reason) as u32,
        _ => Reason::Inconsistent as u32,
    }
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_note(dry_run: u32) -> u32 {
    kernel::work().map_or(0, |work| conntrack::note(&Live::HOOK.dry_run(dry_run != 0), work))
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_is_error_of_a_flow(skb: *mut __sk_buff) -> u32 {
    let context = TcContext::new(skb);
    let is_of_a_flow = |work| packet::is_error_of_a_flow(&Live::HOOK, work, &Skb(&context));
    u32::from(kernel::work().is_some_and(is_of_a_flow))
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_may_begin(entry: u32) -> u32 {
    let tables = Live::HOOK;
    let (Some(work), Some(config)) = (kernel::work(), tables.config()) else {
        return Reason::Inconsistent as u32;
    };
    match packet::may_begin(&tables, config, work, entry_of(entry)) {
        Ok(()) => DONE,
        Err(reason) => reason as u32,
    }
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_has_own_connection(skb: *mut __sk_buff) -> u32 {
    let context = TcContext::new(skb);
    u32::from(kernel::work().is_some_and(|work| Skb(&context).finds_connection(&work.key)))
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_lacks_neighbour(skb: *mut __sk_buff, is_translated: u32) -> u32 {
    let context = TcContext::new(skb);
    let lacks = |work| route::lacks_neighbour(&Skb(&context), work, is_translated != 0);
    u32::from(kernel::work().is_some_and(|work| lacks(work)))
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_try_port(skb: *mut __sk_buff, dry_run: u32, attempt: u32) -> u32 {
    let context = TcContext::new(skb);
    let tables = Live::of(&Skb(&context), dry_run != 0);
    let (Some(work), Some(config)) = (kernel::work(), tables.config()) else {
        return 0;
    };
    u32::from(decide::try_port(&tables, config, work, attempt))
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_choose_host_port() -> u32 {
    let tables = Live::HOOK;
    let (Some(work), Some(config)) = (kernel::work(), tables.config()) else {
        return 0;
    };
    u32::from(decide::choose_host_port(&tables, config, work))
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_leads_to_pod(skb: *mut __sk_buff, is_translated: u32) -> u32 {
    let context = TcContext::new(skb);
    let interface = Skb(&context).ifindex();
    let leads = |work| local::leads_to_pod(&Live::HOOK, work, interface, is_translated != 0);
    u32::from(kernel::work().is_some_and(leads))
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_is_answer(dry_run: u32) -> u32 {
    let tables = Live::HOOK.dry_run(dry_run != 0).settling_later();
    u32::from(kernel::work().is_some_and(|work| {
        work.unsettled = 0;
        local::is_answer(&tables, work)
    }))
}

/// It always returns 0: a function for the verifier has to return a number.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_note_direct() -> u32 {
    let tables = Live::HOOK;
    if let (Some(work), Some(config)) = (kernel::work(), tables.config()) {
        decide::note_direct(&tables, config, work);
    }
    0
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_complete_fragment(is_leaving: u32) -> u32 {
    if let Some(work) = kernel::work() {
        fragment::fill_in(&Live::HOOK, work, Passage::from_leaving(is_leaving != 0));
    }
    0
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_note_fragment(is_leaving: u32) -> u32 {
    if let Some(work) = kernel::work() {
        fragment::keep(&Live::HOOK, work, Passage::from_leaving(is_leaving != 0));
    }
    0
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_may_send(skb: *mut __sk_buff, strict: u32) -> u32 {
    let context = TcContext::new(skb);
    let skb = Skb(&context);
    u32::from(sender::may_send(
        &Live::HOOK,
        &skb,
        skb.frame(),
        skb.ifindex(),
        strict != 0,
    ))
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_admit(skb: *mut __sk_buff) -> u32 {
    let context = TcContext::new(skb);
    let skb = Skb(&context);
    if let Err(reason) = by_uplink(skb.frame()) {
        return reason as u32;
    }
    let Some(config) = Live::HOOK.config() else {
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
pub extern "C" fn stage_answer_for_gateway(skb: *mut __sk_buff) -> i32 {
    let context = TcContext::new(skb);
    gateway::answer(&Skb(&context)).unwrap_or(TC_ACT_UNSPEC)
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_find_way(skb: *mut __sk_buff, entry: u32) -> i32 {
    let context = TcContext::new(skb);
    number_of_result(match kernel::work() {
        Some(work) => deliver::find_way(&Skb(&context), work, entry_of(entry)).map(|way| way as i32),
        None => Err(Reason::NoRoute),
    })
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_rewrite(skb: *mut __sk_buff, is_error: u32) -> i32 {
    let context = TcContext::new(skb);
    number_of_result(
        match kernel::work().and_then(|work| deliver::rewrite(&Skb(&context), work, is_error != 0)) {
            Some(()) => Ok(0),
            None => Err(Reason::RewriteFailed),
        },
    )
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_deliver(skb: *mut __sk_buff, entry: u32, way: u32) -> i32 {
    let context = TcContext::new(skb);
    number_of_result(match kernel::work() {
        Some(work) => deliver::deliver(&Skb(&context), work, entry_of(entry), way),
        None => Err(Reason::NoRoute),
    })
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_echo(skb: *mut __sk_buff, entry: u32) -> i32 {
    let context = TcContext::new(skb);
    match kernel::work() {
        Some(work) => deliver::echo(&Skb(&context), work, entry_of(entry)),
        None => TC_ACT_SHOT,
    }
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stage_refuse(skb: *mut __sk_buff, entry: u32, reason: u32) -> i32 {
    let context = TcContext::new(skb);
    match (kernel::work(), Reason::from_number(reason)) {
        (Some(work), Some(reason)) => deliver::refuse(&Skb(&context), work, entry_of(entry), reason),
        _ => TC_ACT_SHOT,
    }
}
