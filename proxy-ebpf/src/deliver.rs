//! The execution of a decision: the one place where a decision becomes a verdict and a count.
//!
//! The verifier also gets the steps after a decision as functions of their own, see [`stage`].

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::programs::TcContext;
use proxy_common::Tables;
use proxy_common::decide::PacketContext;
use proxy_common::decide::packet::{Decision, Entry};
use proxy_common::maps::{Deliver, Reason};

use crate::counters::count;
use crate::dry_run;
use crate::kernel::{self, Skb, redirect_in, redirect_out, redirect_to_neighbour, redirect_to_peer};
use crate::reject;
use crate::rewrite::{self, NETWORK_HEADER};
use crate::route;
use crate::stage;
use crate::tables::KernelMaps;

/// The index of the loopback in every network namespace.
const LOOPBACK: u32 = 1;

/// The questions that a program asks about a packet. It is a trait because inlining cannot be forced for a
/// closure, and a stack frame of its own is too much for the verifier.
pub trait Program {
    /// The hook at which it sees packets.
    const ENTRY: Entry;
    /// The verdict on a packet.
    fn decide(tables: &KernelMaps, ctx: &mut PacketContext, skb: &Skb<'_>) -> Decision;
    /// The reason for the verdict on a packet whose headers could not be read because of `reason`.
    #[inline(always)]
    fn decide_unread(_tables: &KernelMaps, _ctx: &PacketContext, _skb: &Skb<'_>, reason: Reason) -> Reason {
        reason
    }
    /// Whether a packet that passes or is translated may go to its neighbour, which the node may have to
    /// resolve. The caller asks after it has matched the decision. Otherwise LLVM would copy a reason that
    /// some decisions lack.
    #[inline(always)]
    fn may_go_on(_tables: &KernelMaps, _ctx: &PacketContext, _skb: &Skb<'_>, _is_translated: bool) -> bool {
        true
    }
    /// Sets a note on a packet that passes.
    #[inline(always)]
    fn note(_skb: &Skb<'_>, _tables: &KernelMaps, _ctx: &PacketContext) {}
}

/// Parses the packet, asks the program for the verdict, and executes it.
#[inline(always)]
pub fn handle<P: Program>(tc: &TcContext) -> i32 {
    let entry = P::ENTRY;
    let Some(ctx) = kernel::packet_context() else {
        return TC_ACT_UNSPEC;
    };
    let skb = Skb(tc);
    let tables = KernelMaps::of(&skb, dry_run::is_marked(&skb));
    ctx.arrived_by = skb.arrived_by();
    ctx.interface = skb.ifindex();
    // The packet of a dry run is not addressed to an interface.
    ctx.is_for_group =
        u32::from(matches!(entry, Entry::Pod | Entry::Uplink) && !tables.dry_run && skb.is_for_group());
    if let Err(reason) = stage::parse(&skb, network_header(&skb, &tables, entry)) {
        let reason = P::decide_unread(&tables, ctx, &skb, reason);
        if reason.is_drop() && !tables.dry_run {
            return drop(&skb, reason);
        }
        P::note(&skb, &tables, ctx);
        return pass(&skb, &tables, reason);
    }
    if let Entry::Host = entry {
        ctx.socket = skb.socket_cookie();
    }
    let decision = P::decide(&tables, ctx, &skb);
    #[cfg(feature = "log")]
    crate::log::decided(tc, entry, decision);
    if tables.dry_run {
        dry_run::report(&skb, ctx, decision);
        return TC_ACT_UNSPEC;
    }
    match decision {
        Decision::Pass(_) if !P::may_go_on(&tables, ctx, &skb, false) => {
            end(&skb, entry, Reason::NeighbourShare)
        }
        Decision::Translate(_) if !P::may_go_on(&tables, ctx, &skb, true) => {
            end(&skb, entry, Reason::NeighbourShare)
        }
        Decision::Pass(reason) => {
            P::note(&skb, &tables, ctx);
            pass(&skb, &tables, reason)
        }
        Decision::Drop(reason) => end(&skb, entry, reason),
        Decision::Echo => stage::echo(&skb, entry),
        Decision::Deliver => match stage::deliver(&skb, entry, 0) {
            Ok(verdict) => verdict,
            Err(reason) => drop(&skb, reason),
        },
        Decision::Translate(reason) => translate(&skb, entry, reason),
        Decision::TranslateError => translate(&skb, entry, Reason::RelatedError),
    }
}

/// Whether the pod may send this packet. If not, the packet is counted. The packet of a dry run has no
/// interface. `strict` says that the interface is one of our own, which must have an entry.
#[inline(always)]
pub fn may_send(tc: &TcContext, strict: bool) -> bool {
    let skb = Skb(tc);
    if dry_run::is_marked(&skb) || stage::may_send(&skb, strict) {
        return true;
    }
    count(Reason::SpoofedSource, skb.len());
    false
}

/// Translates the packet and sends it on, in three stages. The route comes first, so that a packet that is
/// too big for it can be refused before it is changed.
#[inline(always)]
fn translate(skb: &Skb<'_>, entry: Entry, reason: Reason) -> i32 {
    let is_error = reason as u8 == Reason::RelatedError as u8;
    let done = stage::find_route(skb, entry)
        .and_then(|device| stage::rewrite(skb, is_error).map(|()| device))
        .and_then(|device| stage::deliver(skb, entry, device));
    match done {
        Ok(verdict) => {
            count(reason, skb.len());
            verdict
        }
        Err(reason) => end(skb, entry, reason),
    }
}

/// Drops the packet for a reason, and sends an error to its sender if the reason demands it.
#[inline(always)]
fn end(skb: &Skb<'_>, entry: Entry, reason: Reason) -> i32 {
    if reason.is_reject() {
        stage::refuse(skb, entry, reason)
    } else {
        drop(skb, reason)
    }
}

#[inline(always)]
pub fn pass(skb: &Skb<'_>, tables: &KernelMaps, reason: Reason) -> i32 {
    if tables.dry_run {
        dry_run::report_unparsed(skb, reason);
    } else if reason as u8 != Reason::NotOurs as u8 {
        count(reason, 0);
    }
    TC_ACT_UNSPEC
}

#[inline(always)]
pub fn drop(skb: &Skb<'_>, reason: Reason) -> i32 {
    count(reason, skb.len());
    TC_ACT_SHOT
}

/// The offset of a packet's network header. A packet that came in without an Ethernet header was given one
/// before. A packet that leaves by such an interface has none. The packet of a dry run always has one.
#[inline(always)]
fn network_header(skb: &Skb<'_>, tables: &KernelMaps, entry: Entry) -> u32 {
    if matches!(entry, Entry::Egress)
        && !tables.dry_run
        && tables
            .config()
            .is_some_and(|config| config.is_headerless(skb.ifindex()))
    {
        0
    } else {
        NETWORK_HEADER
    }
}

/// Parses the packet into the packet context.
#[inline(always)]
pub fn read(skb: &Skb<'_>, ctx: &mut PacketContext, l3: u32) -> Result<(), Reason> {
    ctx.start(skb, skb.ether_type(), l3)
}

/// Translates the packet, or the ICMP error.
#[inline(always)]
pub fn rewrite(skb: &Skb<'_>, ctx: &PacketContext, is_error: bool) -> Option<()> {
    let PacketContext {
        headers,
        flow,
        embedded,
        error_source,
        ..
    } = ctx;
    if is_error {
        rewrite::rewrite_error(skb, headers, embedded, flow, error_source)
    } else {
        rewrite::rewrite(skb, headers, flow)
    }
}

/// Turns an echo request into the reply and sends it to the client.
#[inline(always)]
pub fn echo(skb: &Skb<'_>, ctx: &PacketContext, entry: Entry) -> i32 {
    let replied = rewrite::reply_to_echo(skb, &ctx.headers).ok_or(Reason::RewriteFailed);
    match replied.and_then(|()| send_back(skb, entry)) {
        Ok(verdict) => {
            count(Reason::EchoReply, skb.len());
            verdict
        }
        Err(reason) => drop(skb, reason),
    }
}

/// Sends an error to the sender: no server listens there, or the packet is too big or has no time to live
/// left.
#[inline(always)]
pub fn refuse(skb: &Skb<'_>, ctx: &mut PacketContext, entry: Entry, reason: Reason) -> i32 {
    count(reason, skb.len());
    let mtu = ctx.mtu;
    ctx.error_source = ctx.headers.dst;
    if reason as u8 == Reason::TtlExceeded as u8 {
        // A router uses its own address as source (RFC 1812 §4.3.2.4).
        note_own_address(skb.ifindex(), ctx);
    }
    reject::refuse(
        skb,
        &ctx.headers,
        reason,
        mtu,
        &ctx.error_source,
        &mut ctx.scratch,
    )
    .and_then(|()| send_back(skb, entry).ok())
    .unwrap_or(TC_ACT_SHOT)
}

/// Sets the source of an error to the node's address at an interface, if there is one of the packet's family.
#[inline(always)]
fn note_own_address(interface: u32, ctx: &mut PacketContext) {
    if let Some(config) = KernelMaps::HOOK.config() {
        let own = config.address_at(interface, &ctx.headers.dst);
        if !own.is_unspecified() {
            ctx.error_source = own;
        }
    }
}

/// Sends a packet that was turned into a reply back to its sender.
#[inline(always)]
fn send_back(skb: &Skb<'_>, entry: Entry) -> Result<i32, Reason> {
    if skb.has_tag() {
        skb.take_tag().ok_or(Reason::RewriteFailed)?;
    }
    match entry {
        Entry::Host => to_host(skb),
        Entry::Loopback => to_loopback(skb),
        Entry::Pod | Entry::Uplink | Entry::Egress => back(skb),
    }
}

/// The output device of a translated packet; 0 if the kernel's stack chooses it. If the packet is too big,
/// this sets `PacketContext::mtu` to the size that would fit.
#[inline(always)]
pub fn find_route(skb: &Skb<'_>, ctx: &mut PacketContext, entry: Entry) -> Result<u32, Reason> {
    match Deliver::from_number(ctx.flow.deliver) {
        Deliver::Route => {}
        // A packet that was routed to our own device has left the stack already.
        Deliver::Stack if matches!(entry, Entry::Host) => {}
        _ => return Ok(0),
    }
    if is_forwarded(entry) && ctx.headers.ttl <= 1 {
        return Err(Reason::TtlExceeded);
    }
    route::look_up(skb, ctx)
}

/// Sends a translated packet on.
#[inline(always)]
pub fn deliver(skb: &Skb<'_>, ctx: &PacketContext, entry: Entry, out: u32) -> Result<i32, Reason> {
    let PacketContext { headers, flow, .. } = ctx;
    // The stack would remove a priority tag. A packet that bypasses the stack must not leave the node with
    // one.
    if skb.has_tag() {
        skb.take_tag().ok_or(Reason::RewriteFailed)?;
    }
    match Deliver::from_number(flow.deliver) {
        Deliver::Stack if !matches!(entry, Entry::Host) => Ok(TC_ACT_UNSPEC),
        Deliver::SameInterface => back(skb),
        Deliver::Host => to_host(skb),
        Deliver::Loopback => to_loopback(skb),
        Deliver::Pod => to_pod(skb, ctx),
        Deliver::Route | Deliver::Stack => {
            if is_forwarded(entry) {
                rewrite::decrement_ttl(skb, headers).ok_or(Reason::TtlExceeded)?;
            }
            Ok(redirect_to_neighbour(out, ctx.next_hop_family, ctx.next_hop))
        }
    }
}

/// Whether the node forwards a packet that enters here, and does not send it itself.
#[inline(always)]
const fn is_forwarded(entry: Entry) -> bool {
    matches!(entry, Entry::Pod | Entry::Uplink)
}

/// Sends a packet out of the interface by which it came in.
#[inline(always)]
fn back(skb: &Skb<'_>) -> Result<i32, Reason> {
    rewrite::swap_macs(skb).ok_or(Reason::RewriteFailed)?;
    Ok(redirect_out(skb.ifindex()))
}

/// Sends a packet into the node's stack by our own device. The routes of virtual addresses name that device,
/// so strict reverse-path filtering accepts the packet.
#[inline(always)]
fn to_host(skb: &Skb<'_>) -> Result<i32, Reason> {
    let config = KernelMaps::HOOK.config().ok_or(Reason::NoRoute)?;
    let (device, mac) = (config.host_device, config.host_mac);
    rewrite::set_destination_mac(skb, &mac).ok_or(Reason::RewriteFailed)?;
    Ok(redirect_in(device))
}

/// Sends a packet into the node's stack by the loopback, from where the stack accepts packets between the
/// node's own addresses.
#[inline(always)]
fn to_loopback(skb: &Skb<'_>) -> Result<i32, Reason> {
    rewrite::set_destination_mac(skb, &[0; 6]).ok_or(Reason::RewriteFailed)?;
    Ok(redirect_in(LOOPBACK))
}

/// Sends a packet into a pod by the pod's side of the pair, as if the node had forwarded it.
#[inline(always)]
fn to_pod(skb: &Skb<'_>, ctx: &PacketContext) -> Result<i32, Reason> {
    let PacketContext {
        headers, receiver, ..
    } = ctx;
    rewrite::decrement_ttl(skb, headers).ok_or(Reason::TtlExceeded)?;
    rewrite::forward_to_mac(skb, &receiver.mac).ok_or(Reason::RewriteFailed)?;
    Ok(redirect_to_peer(receiver.interface))
}
