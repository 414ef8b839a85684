//! The stages behind a decision, as functions that the verifier proves one by one.
//!
//! Inlined into every program, they would be walked anew for each way that leads to them, which is more than a verifier
//! has patience for (a million instructions). A function with global linkage is verified once, for any arguments that
//! have its types (Linux 5.6 and later, `Documentation/bpf/verifier.rst`): the context and numbers. What else a stage
//! needs lies in the working memory of the CPU.

#![expect(unsafe_code, reason = "functions that the verifier knows by their symbols")]

use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT};
use aya_ebpf::programs::TcContext;
use proxy_common::Tables;
use proxy_common::decide;
use proxy_common::decide::local::{self, Way};
use proxy_common::decide::packet::{Decision, Entry};
use proxy_common::decide::sender;
use proxy_common::maps::Reason;

use crate::deliver;
use crate::kernel::{self, Skb};
use crate::tables::Live;

/// An entry as a number, and back.
const fn entry_of(number: u32) -> Entry {
    match number {
        0 => Entry::Pod,
        1 => Entry::Uplink,
        2 => Entry::Host,
        3 => Entry::Loopback,
        _ => Entry::Egress,
    }
}

const fn number_of(entry: Entry) -> u32 {
    match entry {
        Entry::Pod => 0,
        Entry::Uplink => 1,
        Entry::Host => 2,
        Entry::Loopback => 3,
        Entry::Egress => 4,
    }
}

/// Parses the packet. Behind this the verifier knows nothing of the headers, and so walks what follows but once.
#[inline(always)]
pub fn parse(skb: &Skb<'_>) -> Result<(), Reason> {
    match Reason::from_number(stage_parse(skb.0.skb.skb)) {
        None => Ok(()),
        Some(reason) => Err(reason),
    }
}

/// No reason's number: nothing went wrong.
const PARSED: u32 = u32::MAX;

/// Prepares a flow to the backend that was selected.
#[inline(always)]
pub fn prepare(dry_run: bool, entry: Entry) -> bool {
    stage_prepare(u32::from(dry_run), number_of(entry)) != 0
}

/// Tries a source port for the flow that begins.
#[inline(always)]
pub fn try_port(packet: *mut __sk_buff, dry_run: bool, attempt: u32) -> bool {
    stage_try_port(packet, u32::from(dry_run), attempt) != 0
}

/// Selects the pod that the packet goes to by a host port.
#[inline(always)]
pub fn choose_host_port() -> bool {
    stage_choose_host_port() != 0
}

/// Notes datagrams from outside to a pod itself.
#[inline(always)]
pub fn note_direct() {
    stage_note_direct();
}

/// Leads a pod's packet that was decided about past the stack, if it goes to a pod of this node and nothing needs the stack.
#[inline(always)]
pub fn shorten(skb: &Skb<'_>, tables: &Live, decision: Decision) -> Decision {
    let is_translated = match decision {
        Decision::Pass(Reason::NotOurs) => false,
        Decision::Translate(_) => true,
        _ => return decision,
    };
    // A packet that does not exist is addressed to no interface.
    if !local::is_wanted(tables) || !(tables.dry_run || skb.is_for_interface()) {
        return decision;
    }
    let dry_run = u32::from(tables.dry_run);
    match stage_shorten(skb.0.skb.skb, dry_run, u32::from(is_translated)) {
        TO_POD if is_translated => decision,
        TO_POD => Decision::Deliver,
        ANSWER_TO_POD => Decision::Translate(Reason::Reply),
        _ => decision,
    }
}

const TO_STACK: u32 = 0;
const TO_POD: u32 = 1;
const ANSWER_TO_POD: u32 = 2;

/// Whether the pod at this interface may send the packet.
#[inline(always)]
pub fn may_send(skb: &Skb<'_>, strict: bool) -> bool {
    stage_may_send(skb.0.skb.skb, u32::from(strict)) != 0
}

/// Finds the interface by which a translated packet leaves.
#[inline(always)]
pub fn find_way(skb: &Skb<'_>, entry: Entry) -> Result<u32, Reason> {
    result_of(stage_find_way(skb.0.skb.skb, number_of(entry))).map(|way| way as u32)
}

/// Translates the packet, or the ICMP error.
#[inline(always)]
pub fn rewrite(skb: &Skb<'_>, is_error: bool) -> Result<(), Reason> {
    result_of(stage_rewrite(skb.0.skb.skb, u32::from(is_error))).map(|_| ())
}

/// Sends the packet on.
#[inline(always)]
pub fn deliver(skb: &Skb<'_>, entry: Entry, way: u32) -> Result<i32, Reason> {
    result_of(stage_deliver(skb.0.skb.skb, number_of(entry), way))
}

/// A stage's result as a number: what it found, or a reason below all verdicts and interfaces.
const fn number_of_result(result: Result<i32, Reason>) -> i32 {
    match result {
        Ok(found) => found,
        Err(reason) => FAILED - reason as i32,
    }
}

/// And back.
#[inline(always)]
const fn result_of(number: i32) -> Result<i32, Reason> {
    if number > FAILED {
        return Ok(number);
    }
    match Reason::from_number(FAILED.wrapping_sub(number) as u32) {
        Some(reason) => Err(reason),
        None => Err(Reason::Inconsistent),
    }
}

/// The least of tc's verdicts is -1.
const FAILED: i32 = -100;

/// Answers an echo request.
#[inline(always)]
pub fn echo(skb: &Skb<'_>, entry: Entry) -> i32 {
    stage_echo(skb.0.skb.skb, number_of(entry))
}

/// Refuses the packet.
#[inline(always)]
pub fn refuse(skb: &Skb<'_>, entry: Entry, reason: Reason) -> i32 {
    stage_refuse(skb.0.skb.skb, number_of(entry), reason as u32)
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn stage_parse(skb: *mut __sk_buff) -> u32 {
    let context = TcContext::new(skb);
    match kernel::work().map(|work| deliver::read(&Skb(&context), work)) {
        Some(Ok(())) => PARSED,
        Some(Err(reason)) => reason as u32,
        None => Reason::NotBalanced as u32,
    }
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn stage_prepare(dry_run: u32, entry: u32) -> u32 {
    let tables = Live::HOOK.dry_run(dry_run != 0);
    let (Some(work), Some(config)) = (kernel::work(), tables.config()) else {
        return 0;
    };
    u32::from(decide::prepare(&tables, config, work, entry_of(entry)))
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn stage_try_port(skb: *mut __sk_buff, dry_run: u32, attempt: u32) -> u32 {
    let context = TcContext::new(skb);
    let tables = Live::of(&Skb(&context), dry_run != 0);
    let (Some(work), Some(config)) = (kernel::work(), tables.config()) else {
        return 0;
    };
    u32::from(decide::try_port(&tables, config, work, attempt))
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn stage_choose_host_port() -> u32 {
    let tables = Live::HOOK;
    let (Some(work), Some(config)) = (kernel::work(), tables.config()) else {
        return 0;
    };
    u32::from(decide::choose_host_port(&tables, config, work))
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn stage_shorten(skb: *mut __sk_buff, dry_run: u32, is_translated: u32) -> u32 {
    let context = TcContext::new(skb);
    let interface = Skb(&context).ifindex();
    let tables = Live::HOOK.dry_run(dry_run != 0);
    let Some(work) = kernel::work() else {
        return TO_STACK;
    };
    match local::shorten(&tables, work, interface, is_translated != 0) {
        Way::Stack => TO_STACK,
        Way::Pod => TO_POD,
        Way::PodAnswer => ANSWER_TO_POD,
    }
}

/// The result is nothing: functions of the verifier give a number.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn stage_note_direct() -> u32 {
    let tables = Live::HOOK;
    if let (Some(work), Some(config)) = (kernel::work(), tables.config()) {
        decide::note_direct(&tables, config, work);
    }
    0
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn stage_may_send(skb: *mut __sk_buff, strict: u32) -> u32 {
    let context = TcContext::new(skb);
    let skb = Skb(&context);
    let (kind, interface) = (skb.ether_type(), skb.ifindex());
    u32::from(sender::may_send(&Live::HOOK, &skb, kind, interface, strict != 0))
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn stage_find_way(skb: *mut __sk_buff, entry: u32) -> i32 {
    let context = TcContext::new(skb);
    number_of_result(match kernel::work() {
        Some(work) => deliver::find_way(&Skb(&context), work, entry_of(entry)).map(|way| way as i32),
        None => Err(Reason::NoRoute),
    })
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn stage_rewrite(skb: *mut __sk_buff, is_error: u32) -> i32 {
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
extern "C" fn stage_deliver(skb: *mut __sk_buff, entry: u32, way: u32) -> i32 {
    let context = TcContext::new(skb);
    number_of_result(match kernel::work() {
        Some(work) => deliver::deliver(&Skb(&context), work, entry_of(entry), way),
        None => Err(Reason::NoRoute),
    })
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn stage_echo(skb: *mut __sk_buff, entry: u32) -> i32 {
    let context = TcContext::new(skb);
    match kernel::work() {
        Some(work) => deliver::echo(&Skb(&context), work, entry_of(entry)),
        None => TC_ACT_SHOT,
    }
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn stage_refuse(skb: *mut __sk_buff, entry: u32, reason: u32) -> i32 {
    let context = TcContext::new(skb);
    match (kernel::work(), Reason::from_number(reason)) {
        (Some(work), Some(reason)) => deliver::refuse(&Skb(&context), work, entry_of(entry), reason),
        _ => TC_ACT_SHOT,
    }
}
