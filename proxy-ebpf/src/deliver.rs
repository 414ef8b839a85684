//! Acting on a decision: the one place where a decision becomes a verdict and a count.
//!
//! What is done once a packet has been decided about is in functions of their own for the verifier too, see [`stage`].

use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NO_NEIGH,
    BPF_FIB_LKUP_RET_SUCCESS, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_fib_lookup as FibLookup,
};
use aya_ebpf::programs::TcContext;
use proxy_common::Ip;
use proxy_common::Tables;
use proxy_common::decide::Work;
use proxy_common::decide::packet::{Decision, Entry};
use proxy_common::maps::{Deliver, Flow, Reason};
use proxy_common::packet::{Headers, Packet as _};
use proxy_common::protocol;

use crate::dry_run;
use crate::kernel::{self, Skb, redirect_in, redirect_out, redirect_to_neighbour, redirect_to_peer};
use crate::reject;
use crate::rewrite::{self, NETWORK_HEADER};
use crate::stage;
use crate::tables::{Live, count};

/// The loopback has this index in every network namespace.
const LOOPBACK: u32 = 1;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const TCP_DATA_OFFSET: u32 = 12;
const UDP_HEADER: u32 = 8;
/// The size that every link has (RFC 8200 §5), for kernels that do not tell a route's.
const LEAST_MTU: u32 = 1280;

/// What a program asks about a packet. (A closure would do, but that it is inlined cannot be said of one, and a frame of its
/// own is too much for the verifier.)
pub trait Program {
    /// Where it meets packets.
    const ENTRY: Entry;
    /// Decides.
    fn decide(tables: &Live, work: &mut Work, skb: &Skb<'_>) -> Decision;
    /// Why a packet passes or ends here whose headers could not be read for a reason.
    #[inline(always)]
    fn decide_unread(_tables: &Live, _work: &Work, _skb: &Skb<'_>, reason: Reason) -> Reason {
        reason
    }
    /// Whether a packet that passes or is translated may make the node look for a neighbour, if it has to.
    /// The
    /// programs ask where the decision is told apart: LLVM would copy a reason that some decisions lack.
    #[inline(always)]
    fn may_go_on(_tables: &Live, _work: &Work, _skb: &Skb<'_>, _is_translated: bool) -> bool {
        true
    }
    /// Notes something beside a packet that passes.
    #[inline(always)]
    fn note(_skb: &Skb<'_>, _tables: &Live, _work: &Work) {}
}

/// Parses the packet, asks the program, and does what it says.
#[inline(always)]
pub fn handle<P: Program>(context: &TcContext) -> i32 {
    let entry = P::ENTRY;
    let Some(work) = kernel::work() else {
        return TC_ACT_UNSPEC;
    };
    let skb = Skb(context);
    let tables = Live::of(&skb, dry_run::is_marked(&skb));
    work.arrived_by = skb.arrived_by();
    work.interface = skb.ifindex();
    // A packet that does not exist is addressed to no interface.
    work.is_for_group =
        u32::from(matches!(entry, Entry::Pod | Entry::Uplink) && !tables.dry_run && skb.is_for_group());
    if let Err(reason) = stage::parse(&skb, network_header(&skb, &tables, entry)) {
        let reason = P::decide_unread(&tables, work, &skb, reason);
        if reason.is_drop() && !tables.dry_run {
            return drop(&skb, reason);
        }
        P::note(&skb, &tables, work);
        return pass(&skb, &tables, reason);
    }
    if let Entry::Host = entry {
        work.socket = skb.socket_cookie();
    }
    let decision = P::decide(&tables, work, &skb);
    if tables.dry_run {
        dry_run::report(&skb, work, decision);
        return TC_ACT_UNSPEC;
    }
    match decision {
        Decision::Pass(_) if !P::may_go_on(&tables, work, &skb, false) => {
            end(&skb, entry, Reason::NeighbourShare)
        }
        Decision::Translate(_) if !P::may_go_on(&tables, work, &skb, true) => {
            end(&skb, entry, Reason::NeighbourShare)
        }
        Decision::Pass(reason) => {
            P::note(&skb, &tables, work);
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

/// Whether the pod may send this packet; one that it may not is counted. A packet that does not exist has no interface.
/// `strict` is an interface of our own, which has an entry.
#[inline(always)]
pub fn may_send(context: &TcContext, strict: bool) -> bool {
    let skb = Skb(context);
    if dry_run::is_marked(&skb) || stage::may_send(&skb, strict) {
        return true;
    }
    count(Reason::SpoofedSource, skb.len());
    false
}

/// Translates the packet and sends it on, in three stages: the way first, so that a packet that is too big for it can be
/// refused as it came.
#[inline(always)]
fn translate(skb: &Skb<'_>, entry: Entry, reason: Reason) -> i32 {
    let is_error = reason as u8 == Reason::RelatedError as u8;
    let done = stage::find_way(skb, entry)
        .and_then(|way| stage::rewrite(skb, is_error).map(|()| way))
        .and_then(|way| stage::deliver(skb, entry, way));
    match done {
        Ok(verdict) => {
            count(reason, skb.len());
            verdict
        }
        Err(reason) => end(skb, entry, reason),
    }
}

/// Ends the packet's way for a reason, which its sender is told if the reason is one of those.
#[inline(always)]
fn end(skb: &Skb<'_>, entry: Entry, reason: Reason) -> i32 {
    if reason.is_reject() {
        stage::refuse(skb, entry, reason)
    } else {
        drop(skb, reason)
    }
}

#[inline(always)]
pub fn pass(skb: &Skb<'_>, tables: &Live, reason: Reason) -> i32 {
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

/// Where a packet's network header starts. What comes in without an Ethernet header was given one; what
/// leaves by such an interface has none. A packet that does not exist always has one.
#[inline(always)]
fn network_header(skb: &Skb<'_>, tables: &Live, entry: Entry) -> u32 {
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

/// Parses the packet into the working memory.
#[inline(always)]
pub fn read(skb: &Skb<'_>, work: &mut Work, l3: u32) -> Result<(), Reason> {
    work.start(skb, skb.ether_type(), l3)
}

/// Makes the packet what it becomes, or the ICMP error what it becomes.
#[inline(always)]
pub fn rewrite(skb: &Skb<'_>, work: &Work, is_error: bool) -> Option<()> {
    let Work {
        headers,
        flow,
        carried,
        error_source,
        ..
    } = work;
    if is_error {
        rewrite::rewrite_error(skb, headers, carried, flow, error_source)
    } else {
        rewrite::rewrite(skb, headers, flow)
    }
}

/// Answers an echo request in the client's direction.
#[inline(always)]
pub fn echo(skb: &Skb<'_>, work: &Work, entry: Entry) -> i32 {
    let answered = rewrite::answer_echo(skb, &work.headers).ok_or(Reason::RewriteFailed);
    match answered.and_then(|()| answer(skb, entry)) {
        Ok(verdict) => {
            count(Reason::EchoReply, skb.len());
            verdict
        }
        Err(reason) => drop(skb, reason),
    }
}

/// Tells the sender that nothing listens there, or that its packet is too big or has no time to live.
#[inline(always)]
pub fn refuse(skb: &Skb<'_>, work: &mut Work, entry: Entry, reason: Reason) -> i32 {
    count(reason, skb.len());
    let mtu = work.mtu;
    work.error_source = work.headers.dst;
    if reason as u8 == Reason::TtlExceeded as u8 {
        // A hop is known by its own address (RFC 1812 §4.3.2.4).
        note_own_address(skb.ifindex(), work);
    }
    reject::refuse(
        skb,
        &work.headers,
        reason,
        mtu,
        &work.error_source,
        &mut work.scratch,
    )
    .and_then(|()| answer(skb, entry).ok())
    .unwrap_or(TC_ACT_SHOT)
}

/// Notes the node's address at an interface, if it has one of the packet's family, as the source of an error.
#[inline(always)]
fn note_own_address(interface: u32, work: &mut Work) {
    if let Some(config) = Live::HOOK.config() {
        let own = config.address_at(interface, &work.headers.dst);
        if !own.is_unspecified() {
            work.error_source = own;
        }
    }
}

/// Sends a packet that was turned into an answer to where it came from.
#[inline(always)]
fn answer(skb: &Skb<'_>, entry: Entry) -> Result<i32, Reason> {
    if skb.has_tag() {
        skb.take_tag().ok_or(Reason::RewriteFailed)?;
    }
    match entry {
        Entry::Host => to_host(skb),
        Entry::Loopback => to_loopback(skb),
        Entry::Pod | Entry::Uplink | Entry::Egress => back(skb),
    }
}

/// The interface by which a translated packet leaves, if it is for us to say; 0 if not. If the packet is too big for it,
/// `Work::mtu` is then what would have been small enough.
#[inline(always)]
pub fn find_way(skb: &Skb<'_>, work: &mut Work, entry: Entry) -> Result<u32, Reason> {
    match Deliver::from_number(work.flow.deliver) {
        Deliver::Route => {}
        // What was routed to our own device has left the stack already.
        Deliver::Stack if matches!(entry, Entry::Host) => {}
        _ => return Ok(0),
    }
    if is_forwarded(entry) && work.headers.ttl <= 1 {
        return Err(Reason::TtlExceeded);
    }
    route(skb, work)
}

/// Sends a translated packet on.
#[inline(always)]
pub fn deliver(skb: &Skb<'_>, work: &Work, entry: Entry, out: u32) -> Result<i32, Reason> {
    let Work { headers, flow, .. } = work;
    // The stack would take a priority tag off; what it does not see must not carry one out of the node.
    if skb.has_tag() {
        skb.take_tag().ok_or(Reason::RewriteFailed)?;
    }
    match Deliver::from_number(flow.deliver) {
        Deliver::Stack if !matches!(entry, Entry::Host) => Ok(TC_ACT_UNSPEC),
        Deliver::SameInterface => back(skb),
        Deliver::Host => to_host(skb),
        Deliver::Loopback => to_loopback(skb),
        Deliver::Pod => to_pod(skb, work),
        Deliver::Route | Deliver::Stack => {
            if is_forwarded(entry) {
                rewrite::decrement_ttl(skb, headers).ok_or(Reason::TtlExceeded)?;
            }
            Ok(redirect_to_neighbour(out, work.next_hop_family, work.next_hop))
        }
    }
}

/// Whether a packet that enters here is forwarded by the node rather than sent by it.
#[inline(always)]
const fn is_forwarded(entry: Entry) -> bool {
    matches!(entry, Entry::Pod | Entry::Uplink)
}

/// Out of the interface it came in by.
#[inline(always)]
fn back(skb: &Skb<'_>) -> Result<i32, Reason> {
    rewrite::swap_macs(skb).ok_or(Reason::RewriteFailed)?;
    Ok(redirect_out(skb.ifindex()))
}

/// Into the node's stack by our own device, which the routes of virtual addresses name: strict reverse-path
/// filtering agrees.
#[inline(always)]
fn to_host(skb: &Skb<'_>) -> Result<i32, Reason> {
    let config = Live::HOOK.config().ok_or(Reason::NoRoute)?;
    let (device, mac) = (config.host_device, config.host_mac);
    rewrite::set_destination_mac(skb, &mac).ok_or(Reason::RewriteFailed)?;
    Ok(redirect_in(device))
}

/// Into the node's stack by the loopback, from where it takes packets between its own addresses.
#[inline(always)]
fn to_loopback(skb: &Skb<'_>) -> Result<i32, Reason> {
    rewrite::set_destination_mac(skb, &[0; 6]).ok_or(Reason::RewriteFailed)?;
    Ok(redirect_in(LOOPBACK))
}

/// Into a pod by its side of the pair, as if the node had forwarded the packet.
#[inline(always)]
fn to_pod(skb: &Skb<'_>, work: &Work) -> Result<i32, Reason> {
    let Work {
        headers, receiver, ..
    } = work;
    rewrite::decrement_ttl(skb, headers).ok_or(Reason::TtlExceeded)?;
    rewrite::forward_to_mac(skb, &receiver.mac).ok_or(Reason::RewriteFailed)?;
    Ok(redirect_to_peer(receiver.interface))
}

/// The interface that the routing table names, and that takes packets of this size. Notes the next hop.
#[inline(always)]
fn route(skb: &Skb<'_>, work: &mut Work) -> Result<u32, Reason> {
    let Work { headers, flow, .. } = work;
    let mut lookup = FibLookup::zeroed();
    lookup.set_packet(headers, flow, skb.ifindex());
    let len = packet_len(skb, headers);
    kernel::set_len(&mut lookup, len);
    let result = skb.route(&mut lookup);
    if result == i64::from(BPF_FIB_LKUP_RET_SUCCESS) || result == i64::from(BPF_FIB_LKUP_RET_NO_NEIGH) {
        work.next_hop = kernel::next_hop_of(&lookup);
        work.next_hop_family = u32::from(lookup.family);
        Ok(lookup.ifindex)
    } else if result == i64::from(BPF_FIB_LKUP_RET_FRAG_NEEDED) {
        work.mtu = match kernel::mtu_of(&lookup) {
            told if told < len => u32::from(told),
            _ => LEAST_MTU,
        };
        Err(Reason::TooBig)
    } else {
        Err(Reason::NoRoute)
    }
}

/// Whether the route to the packet's source leads out by this interface, as strict reverse-path filtering asks
/// (RFC 3704 §2.2; `__fib_validate_source` in `net/ipv4/fib_frontend.c`). IPv6 has no such setting.
#[inline(always)]
pub fn leads_back(skb: &Skb<'_>, work: &Work, interface: u32) -> bool {
    let headers = &work.headers;
    if !headers.src.is_v4() {
        return true;
    }
    let mut lookup = FibLookup::zeroed();
    lookup.family = AF_INET;
    lookup.ifindex = interface;
    lookup.__bindgen_anon_3.ipv4_src = headers.dst.v4_word();
    lookup.__bindgen_anon_4.ipv4_dst = headers.src.v4_word();
    let result = skb.route(&mut lookup);
    if result == i64::from(BPF_FIB_LKUP_RET_SUCCESS) || result == i64::from(BPF_FIB_LKUP_RET_NO_NEIGH) {
        return lookup.ifindex == interface;
    }
    // Where the interface does not forward, or the frame is too long for it, the stack has to tell.
    result == i64::from(BPF_FIB_LKUP_RET_FWD_DISABLED) || result == i64::from(BPF_FIB_LKUP_RET_FRAG_NEEDED)
}

/// The interface that the route to the backend that was selected leads out by; 0 if there is none.
#[inline(always)]
pub fn way_out(skb: &Skb<'_>, work: &Work) -> u32 {
    let mut lookup = FibLookup::zeroed();
    lookup.set_addresses(&work.headers.src, work.destination(), work.interface);
    let result = skb.route(&mut lookup);
    if result == i64::from(BPF_FIB_LKUP_RET_SUCCESS)
        || result == i64::from(BPF_FIB_LKUP_RET_NO_NEIGH)
        || result == i64::from(BPF_FIB_LKUP_RET_FRAG_NEEDED)
    {
        lookup.ifindex
    } else {
        0
    }
}

/// Whether the packet, as it is or translated, goes to a neighbour whose hardware address the node does not know.
#[inline(always)]
pub fn lacks_neighbour(skb: &Skb<'_>, work: &Work, is_translated: bool) -> bool {
    let to = if is_translated {
        &work.flow.dst
    } else {
        &work.headers.dst
    };
    let mut lookup = FibLookup::zeroed();
    lookup.set_addresses(&work.headers.src, to, work.interface);
    skb.route(&mut lookup) == i64::from(BPF_FIB_LKUP_RET_NO_NEIGH)
}

/// The length of the packet without its Ethernet header; of a buffer with several segments, that of the largest one.
#[inline(always)]
fn packet_len(skb: &Skb<'_>, headers: &Headers) -> u16 {
    let segment = skb.gso_size();
    if segment == 0 {
        return skb.len().wrapping_sub(headers.l3) as u16;
    }
    let transport = if headers.protocol == protocol::TCP {
        u32::from(skb.load::<u8>(headers.l4 + TCP_DATA_OFFSET).unwrap_or(0x50) >> 4) * 4
    } else {
        UDP_HEADER
    };
    (headers.l4.wrapping_sub(headers.l3) + transport + segment) as u16
}

/// The parameters of a route look-up.
trait RouteLookup {
    fn zeroed() -> Self;
    fn set_packet(&mut self, headers: &Headers, flow: &Flow, ifindex: u32);
    fn set_addresses(&mut self, src: &Ip, dst: &Ip, ifindex: u32);
}

impl RouteLookup for FibLookup {
    #[inline(always)]
    fn zeroed() -> Self {
        crate::kernel::zeroed_fib_lookup()
    }

    #[inline(always)]
    fn set_packet(&mut self, headers: &Headers, flow: &Flow, ifindex: u32) {
        self.l4_protocol = headers.protocol;
        self.sport = flow.sport.raw();
        self.dport = flow.dport.raw();
        self.set_addresses(&flow.src, &flow.dst, ifindex);
    }

    #[inline(always)]
    fn set_addresses(&mut self, src: &Ip, dst: &Ip, ifindex: u32) {
        self.ifindex = ifindex;
        if dst.is_v4() {
            self.family = AF_INET;
            self.__bindgen_anon_3.ipv4_src = src.v4_word();
            self.__bindgen_anon_4.ipv4_dst = dst.v4_word();
        } else {
            self.family = AF_INET6;
            self.__bindgen_anon_3.ipv6_src = src.v6_words();
            self.__bindgen_anon_4.ipv6_dst = dst.v6_words();
        }
    }
}
