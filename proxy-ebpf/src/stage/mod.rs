//! The stages after a decision, as functions that the verifier checks one by one.
//!
//! If they were inlined into every program, the verifier would check them again for each path that leads to
//! them. That exceeds its limit of a million instructions. The verifier checks a function with global linkage
//! once, for any arguments of its types (Linux 5.6 and later, `Documentation/bpf/verifier.rst`): the context
//! and numbers. All other input of a stage is in the packet context of the CPU. A stage has no unused
//! argument: LLVM would pass an arbitrary register for it, which the verifier refuses.

#![expect(unsafe_code, reason = "functions that the verifier knows by their symbols")]

mod functions;

use aya_ebpf::bindings::{__sk_buff, TC_ACT_UNSPEC};
use proxy_common::decide::fragment::Passage;
use proxy_common::decide::local;
use proxy_common::decide::packet::{Decision, Entry};
use proxy_common::maps::Reason;

use crate::kernel::Skb;
use crate::tables::KernelMaps;
use functions::{
    stage_admit, stage_admit_packet, stage_admit_unread, stage_choose_host_port, stage_complete_fragment,
    stage_deliver, stage_echo, stage_find_route, stage_has_own_connection, stage_is_error_of_a_flow,
    stage_is_reply, stage_lacks_neighbour, stage_leads_to_pod, stage_may_begin, stage_may_send, stage_note,
    stage_note_direct, stage_note_fragment, stage_output_device, stage_parse, stage_passes_reverse_path,
    stage_prepare, stage_refuse, stage_reply_for_gateway, stage_rewrite, stage_settle, stage_spares_headers,
    stage_try_port,
};

/// The entry with a number, see [`number_of`].
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

/// Parses the packet, whose network header starts at `l3`. After this call the verifier knows no header
/// values, and so checks the code that follows only once.
#[inline(always)]
pub fn parse(skb: &Skb<'_>, l3: u32) -> Result<(), Reason> {
    match Reason::from_number(stage_parse(skb.0.skb.skb, l3)) {
        None => Ok(()),
        Some(reason) => Err(reason),
    }
}

/// The result without a reason: it is no reason's number.
const DONE: u32 = u32::MAX;

/// Prepares a flow to the selected backend.
#[inline(always)]
pub fn prepare(dry_run: bool, entry: Entry) -> Result<(), Reason> {
    match Reason::from_number(stage_prepare(u32::from(dry_run), number_of(entry))) {
        None => Ok(()),
        Some(reason) => Err(reason),
    }
}

/// Does the work that [`note`] has left.
#[inline(always)]
pub fn settle() {
    stage_settle();
}

/// Whether the output device of the route to the packet's source is this interface.
#[inline(always)]
pub fn passes_reverse_path(packet: *mut __sk_buff, interface: u32) -> bool {
    stage_passes_reverse_path(packet, interface) != 0
}

/// The output device of the route to the flow's destination; 0 if there is no route.
#[inline(always)]
pub fn output_device(packet: *mut __sk_buff) -> u32 {
    stage_output_device(packet)
}

/// The verdict on a packet that enters, or `None` if the decision about services follows.
#[inline(always)]
pub fn admit_packet(packet: *mut __sk_buff, entry: Entry) -> Option<Reason> {
    Reason::from_number(stage_admit_packet(packet, number_of(entry)))
}

/// The reason for the verdict on a packet that could not be read because of `reason`.
#[inline(always)]
pub fn admit_unread(entry: Entry, reason: Reason) -> Reason {
    match Reason::from_number(stage_admit_unread(number_of(entry), reason as u32)) {
        Some(reason) => reason,
        None => Reason::Inconsistent,
    }
}

/// Writes the packet into its flow's entries, except in a dry run.
#[inline(always)]
pub fn note(dry_run: bool) -> u32 {
    stage_note(u32::from(dry_run))
}

/// Whether an ICMP error is about a flow that is translated here.
#[inline(always)]
pub fn is_error_of_a_flow(packet: *mut __sk_buff) -> bool {
    stage_is_error_of_a_flow(packet) != 0
}

/// Whether a flow to the selected backend may begin.
#[inline(always)]
pub fn may_begin(entry: Entry) -> Result<(), Reason> {
    match Reason::from_number(stage_may_begin(number_of(entry))) {
        None => Ok(()),
        Some(reason) => Err(reason),
    }
}

/// Whether the packet belongs to a connected socket of the node.
#[inline(always)]
pub fn has_own_connection(packet: *mut __sk_buff) -> bool {
    stage_has_own_connection(packet) != 0
}

/// Whether the node would have to resolve the neighbour that the packet goes to, before or after translation.
#[inline(always)]
pub fn lacks_neighbour(packet: *mut __sk_buff, is_translated: bool) -> bool {
    stage_lacks_neighbour(packet, u32::from(is_translated)) != 0
}

/// Tries a source port for a new flow.
#[inline(always)]
pub fn try_port(packet: *mut __sk_buff, dry_run: bool, attempt: u32) -> bool {
    stage_try_port(packet, u32::from(dry_run), attempt) != 0
}

/// Selects the pod behind a host port as the packet's destination.
#[inline(always)]
pub fn choose_host_port() -> bool {
    stage_choose_host_port() != 0
}

/// Stores a flow from outside to a pod's own address.
#[inline(always)]
pub fn note_direct() {
    stage_note_direct();
}

/// Fills in the ports of a later fragment.
#[inline(always)]
pub fn complete_fragment(passage: Passage) {
    stage_complete_fragment(u32::from(passage.is_leaving()));
}

/// Stores the ports of a first fragment.
#[inline(always)]
pub fn note_fragment(passage: Passage) {
    stage_note_fragment(u32::from(passage.is_leaving()));
}

/// Changes the verdict on a pod's packet to local delivery, if it goes to a pod of this node and does not
/// need the stack.
#[inline(always)]
pub fn deliver_locally(skb: &Skb<'_>, tables: &KernelMaps, decision: Decision) -> Decision {
    let is_translated = match decision {
        Decision::Pass(Reason::NotOurs) => false,
        Decision::Translate(_) => true,
        _ => return decision,
    };
    // The packet of a dry run is not addressed to an interface.
    if !local::is_enabled(tables) || !(tables.dry_run || skb.is_for_interface()) {
        return decision;
    }
    let dry_run = u32::from(tables.dry_run);
    if stage_leads_to_pod(skb.0.skb.skb, u32::from(is_translated)) == 0 {
        return decision;
    }
    if is_translated {
        return decision;
    }
    let is_reply = stage_is_reply(dry_run) != 0;
    if is_reply && !tables.dry_run {
        stage_settle();
    }
    if is_reply {
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

/// The first check of a frame that comes in by an uplink, before its headers are read.
#[inline(always)]
pub fn admit(skb: &Skb<'_>) -> Result<(), Reason> {
    match Reason::from_number(stage_admit(skb.0.skb.skb)) {
        None => Ok(()),
        Some(reason) => Err(reason),
    }
}

/// Replies to an ARP request for the address of the pods' gateway. `None` if the packet is no such request.
#[inline(always)]
pub fn reply_for_gateway(skb: &Skb<'_>) -> Option<i32> {
    match stage_reply_for_gateway(skb.0.skb.skb) {
        TC_ACT_UNSPEC => None,
        verdict => Some(verdict),
    }
}

/// Finds the output device of a translated packet.
#[inline(always)]
pub fn find_route(skb: &Skb<'_>, entry: Entry) -> Result<u32, Reason> {
    result_of(stage_find_route(skb.0.skb.skb, number_of(entry))).map(|device| device as u32)
}

/// Translates the packet, or the ICMP error.
#[inline(always)]
pub fn rewrite(skb: &Skb<'_>, is_error: bool) -> Result<(), Reason> {
    result_of(stage_rewrite(skb.0.skb.skb, u32::from(is_error))).map(|_| ())
}

/// Sends the packet on.
#[inline(always)]
pub fn deliver(skb: &Skb<'_>, entry: Entry, device: u32) -> Result<i32, Reason> {
    result_of(stage_deliver(skb.0.skb.skb, number_of(entry), device))
}

/// A stage's result as a number. A reason is less than all verdicts and interfaces.
const fn number_of_result(result: Result<i32, Reason>) -> i32 {
    match result {
        Ok(found) => found,
        Err(reason) => FAILED - reason as i32,
    }
}

/// The result with a number, see [`number_of_result`].
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

/// A number below tc's lowest verdict, which is -1.
const FAILED: i32 = -100;

/// Turns an echo request into the reply.
#[inline(always)]
pub fn echo(skb: &Skb<'_>, entry: Entry) -> i32 {
    stage_echo(skb.0.skb.skb, number_of(entry))
}

/// Whether a checksum that is left to the NIC leaves the headers as the parser read them.
#[inline(always)]
pub fn spares_headers(skb: &Skb<'_>, is_read: bool) -> bool {
    stage_spares_headers(skb.0.skb.skb, u32::from(is_read)) != 0
}

/// Sends an error for the packet that is dropped.
#[inline(always)]
pub fn refuse(skb: &Skb<'_>, entry: Entry, reason: Reason) -> i32 {
    stage_refuse(skb.0.skb.skb, number_of(entry), reason as u32)
}
