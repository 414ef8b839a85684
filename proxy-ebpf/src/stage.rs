//! The stages behind a decision, as functions that the verifier proves one by one.
//!
//! Inlined into every program, they would be walked anew for each way that leads to them, which is more than
//! a verifier has patience for (a million instructions). A function with global linkage is verified once, for
//! any arguments that have its types (Linux 5.6 and later, `Documentation/bpf/verifier.rst`): the context and
//! numbers. What else a stage needs lies in the working memory of the CPU. A stage takes no argument that it
//! does not use: LLVM passes anything for it, which the verifier refuses.

#![expect(unsafe_code, reason = "functions that the verifier knows by their symbols")]

use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::programs::TcContext;
use proxy_common::Tables;
use proxy_common::decide::admission::{self, by_uplink};
use proxy_common::decide::conntrack;
use proxy_common::decide::fragment::{self, Passage};
use proxy_common::decide::local;
use proxy_common::decide::offload;
use proxy_common::decide::packet::{self, Decision, Entry};
use proxy_common::decide::sender;
use proxy_common::decide::tunnel;
use proxy_common::decide::{self, Work};
use proxy_common::maps::{Reason, SkbLayout};

use crate::deliver;
use crate::gateway;
use crate::kernel::{self, Skb};
use crate::maps::SKB_LAYOUT;
use crate::rewrite::NETWORK_HEADER;
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

/// Parses the packet, whose network header starts at `l3`. Behind this the verifier knows nothing of the
/// headers, and so walks what follows but once.
#[inline(always)]
pub fn parse(skb: &Skb<'_>, l3: u32) -> Result<(), Reason> {
    match Reason::from_number(stage_parse(skb.0.skb.skb, l3)) {
        None => Ok(()),
        Some(reason) => Err(reason),
    }
}

/// No reason's number: nothing went wrong.
const DONE: u32 = u32::MAX;

/// Prepares a flow to the backend that was selected.
#[inline(always)]
pub fn prepare(dry_run: bool, entry: Entry) -> Result<(), Reason> {
    match Reason::from_number(stage_prepare(u32::from(dry_run), number_of(entry))) {
        None => Ok(()),
        Some(reason) => Err(reason),
    }
}

/// Does what the notes of a packet have left.
#[inline(always)]
pub fn settle() {
    stage_settle();
}

/// Whether the route to the packet's source leads out by this interface.
#[inline(always)]
pub fn leads_back(packet: *mut __sk_buff, interface: u32) -> bool {
    stage_leads_back(packet, interface) != 0
}

/// The interface that the route to where the flow goes leads out by; 0 if there is none.
#[inline(always)]
pub fn way_out(packet: *mut __sk_buff) -> u32 {
    stage_way_out(packet)
}

/// Why a packet that enters ends here or is none of the services' business, if so.
#[inline(always)]
pub fn admit_packet(packet: *mut __sk_buff, entry: Entry) -> Option<Reason> {
    Reason::from_number(stage_admit_packet(packet, number_of(entry)))
}

/// Why a packet passes or ends here that was not read for a reason.
#[inline(always)]
pub fn admit_unread(entry: Entry, reason: Reason) -> Reason {
    match Reason::from_number(stage_admit_unread(number_of(entry), reason as u32)) {
        Some(reason) => reason,
        None => Reason::Inconsistent,
    }
}

/// Writes the packet into its flow's entries, unless it is one of a dry run.
#[inline(always)]
pub fn note(dry_run: bool) -> u32 {
    stage_note(u32::from(dry_run))
}

/// Whether an ICMP error is about a flow that is translated here.
#[inline(always)]
pub fn is_error_of_a_flow(packet: *mut __sk_buff) -> bool {
    stage_is_error_of_a_flow(packet) != 0
}

/// Whether a flow to the backend that was selected may begin.
#[inline(always)]
pub fn may_begin(entry: Entry) -> Result<(), Reason> {
    match Reason::from_number(stage_may_begin(number_of(entry))) {
        None => Ok(()),
        Some(reason) => Err(reason),
    }
}

/// Whether the packet belongs to a connected socket of the node's.
#[inline(always)]
pub fn has_own_connection(packet: *mut __sk_buff) -> bool {
    stage_has_own_connection(packet) != 0
}

/// Whether the node would have to look for the neighbour that the packet goes to, as it is or translated.
#[inline(always)]
pub fn lacks_neighbour(packet: *mut __sk_buff, is_translated: bool) -> bool {
    stage_lacks_neighbour(packet, u32::from(is_translated)) != 0
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

/// Fills in the ports of a later fragment.
#[inline(always)]
pub fn complete_fragment(passage: Passage) {
    stage_complete_fragment(u32::from(passage.is_leaving()));
}

/// Notes the ports of a first fragment.
#[inline(always)]
pub fn note_fragment(passage: Passage) {
    stage_note_fragment(u32::from(passage.is_leaving()));
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
    if stage_leads_to_pod(skb.0.skb.skb, u32::from(is_translated)) == 0 {
        return decision;
    }
    if is_translated {
        return decision;
    }
    let is_answer = stage_is_answer(dry_run) != 0;
    if is_answer && !tables.dry_run {
        stage_settle();
    }
    if is_answer {
        Decision::Translate(Reason::Reply)
    } else {
        Decision::Deliver
    }
}

/// Whether the pod at this interface may send the packet.
#[inline(always)]
pub fn may_send(skb: &Skb<'_>, strict: bool) -> bool {
    stage_may_send(skb.0.skb.skb, u32::from(strict)) != 0
}

/// What becomes of a frame that comes in by an uplink, before its headers are read.
#[inline(always)]
pub fn admit(skb: &Skb<'_>) -> Result<(), Reason> {
    match Reason::from_number(stage_admit(skb.0.skb.skb)) {
        None => Ok(()),
        Some(reason) => Err(reason),
    }
}

/// Answers for the address of the pods' gateway.
#[inline(always)]
pub fn answer_for_gateway(skb: &Skb<'_>) -> Option<i32> {
    match stage_answer_for_gateway(skb.0.skb.skb) {
        TC_ACT_UNSPEC => None,
        verdict => Some(verdict),
    }
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

/// Whether the headers that were read stay as they are, wherever a checksum goes that is left to the NIC.
#[inline(always)]
pub fn spares_headers(skb: &Skb<'_>, is_read: bool) -> bool {
    stage_spares_headers(skb.0.skb.skb, u32::from(is_read)) != 0
}

/// Refuses the packet.
#[inline(always)]
pub fn refuse(skb: &Skb<'_>, entry: Entry, reason: Reason) -> i32 {
    stage_refuse(skb.0.skb.skb, number_of(entry), reason as u32)
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn stage_parse(skb: *mut __sk_buff, l3: u32) -> u32 {
    let context = TcContext::new(skb);
    match kernel::work().map(|work| deliver::read(&Skb(&context), work, l3)) {
        Some(Ok(())) => DONE,
        Some(Err(reason)) => reason as u32,
        None => Reason::NotBalanced as u32,
    }
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn stage_spares_headers(skb: *mut __sk_buff, is_read: u32) -> u32 {
    let context = TcContext::new(skb);
    let Some(offload) = Skb(&context).offload(SkbLayout::from_words(SKB_LAYOUT.load())) else {
        return 1;
    };
    let spares = |work: &mut Work| offload::spares_headers(&work.headers, is_read != 0, offload);
    u32::from(kernel::work().is_some_and(spares))
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn stage_prepare(dry_run: u32, entry: u32) -> u32 {
    let tables = Live::HOOK.dry_run(dry_run != 0);
    let (Some(work), Some(config)) = (kernel::work(), tables.config()) else {
        return Reason::Inconsistent as u32;
    };
    match decide::prepare(&tables, config, work, entry_of(entry)) {
        Ok(()) => DONE,
        Err(reason) => reason as u32,
    }
}

/// The result is nothing: functions of the verifier give a number.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn stage_settle() -> u32 {
    let tables = Live::HOOK;
    if let (Some(work), Some(config)) = (kernel::work(), tables.config()) {
        decide::settle(&tables, config, work);
    }
    0
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn stage_leads_back(skb: *mut __sk_buff, interface: u32) -> u32 {
    let context = TcContext::new(skb);
    u32::from(kernel::work().is_some_and(|work| deliver::leads_back(&Skb(&context), work, interface)))
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn stage_way_out(skb: *mut __sk_buff) -> u32 {
    let context = TcContext::new(skb);
    kernel::work().map_or(0, |work| deliver::way_out(&Skb(&context), work))
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn stage_admit_packet(skb: *mut __sk_buff, entry: u32) -> u32 {
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
extern "C" fn stage_admit_unread(entry: u32, reason: u32) -> u32 {
    let tables = Live::HOOK;
    match (kernel::work(), Reason::from_number(reason)) {
        (Some(work), Some(reason)) => admission::unread(&tables, work, entry_of(entry), reason) as u32,
        _ => Reason::Inconsistent as u32,
    }
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn stage_note(dry_run: u32) -> u32 {
    kernel::work().map_or(0, |work| conntrack::note(&Live::HOOK.dry_run(dry_run != 0), work))
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn stage_is_error_of_a_flow(skb: *mut __sk_buff) -> u32 {
    let context = TcContext::new(skb);
    let is_of_a_flow = |work| packet::is_error_of_a_flow(&Live::HOOK, work, &Skb(&context));
    u32::from(kernel::work().is_some_and(is_of_a_flow))
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn stage_may_begin(entry: u32) -> u32 {
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
extern "C" fn stage_has_own_connection(skb: *mut __sk_buff) -> u32 {
    let context = TcContext::new(skb);
    u32::from(kernel::work().is_some_and(|work| Skb(&context).finds_connection(&work.key)))
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn stage_lacks_neighbour(skb: *mut __sk_buff, is_translated: u32) -> u32 {
    let context = TcContext::new(skb);
    let lacks = |work| deliver::lacks_neighbour(&Skb(&context), work, is_translated != 0);
    u32::from(kernel::work().is_some_and(|work| lacks(work)))
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
extern "C" fn stage_leads_to_pod(skb: *mut __sk_buff, is_translated: u32) -> u32 {
    let context = TcContext::new(skb);
    let interface = Skb(&context).ifindex();
    let leads = |work| local::leads_to_pod(&Live::HOOK, work, interface, is_translated != 0);
    u32::from(kernel::work().is_some_and(leads))
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn stage_is_answer(dry_run: u32) -> u32 {
    let tables = Live::HOOK.dry_run(dry_run != 0).settling_later();
    u32::from(kernel::work().is_some_and(|work| {
        work.unsettled = 0;
        local::is_answer(&tables, work)
    }))
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
extern "C" fn stage_complete_fragment(is_leaving: u32) -> u32 {
    if let Some(work) = kernel::work() {
        fragment::fill_in(&Live::HOOK, work, Passage::from_leaving(is_leaving != 0));
    }
    0
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn stage_note_fragment(is_leaving: u32) -> u32 {
    if let Some(work) = kernel::work() {
        fragment::keep(&Live::HOOK, work, Passage::from_leaving(is_leaving != 0));
    }
    0
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn stage_may_send(skb: *mut __sk_buff, strict: u32) -> u32 {
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
extern "C" fn stage_admit(skb: *mut __sk_buff) -> u32 {
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
    // It is of no use any more, and belongs to this packet alone.
    skb.set_note(0);
    DONE
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn stage_answer_for_gateway(skb: *mut __sk_buff) -> i32 {
    let context = TcContext::new(skb);
    gateway::answer(&Skb(&context)).unwrap_or(TC_ACT_UNSPEC)
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
