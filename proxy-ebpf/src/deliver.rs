//! Acting on a decision: the one place where a decision becomes a verdict and a count.

use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, TC_ACT_SHOT, TC_ACT_UNSPEC,
    bpf_fib_lookup as FibLookup,
};
use aya_ebpf::programs::TcContext;
use proxy_common::Tables;
use proxy_common::decide::Work;
use proxy_common::decide::packet::{Decision, Entry};
use proxy_common::maps::{Deliver, Flow, Reason};
use proxy_common::packet::{Headers, parse};

use crate::dry_run;
use crate::kernel::{self, Skb, redirect_in, redirect_out, redirect_to_neighbour};
use crate::reject;
use crate::rewrite::{self, NETWORK_HEADER};
use crate::tables::{Live, count};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Parses the packet, asks `decide`, and does what it says.
#[inline(always)]
pub fn handle(context: &TcContext, entry: Entry, decide: impl FnOnce(&Live, &mut Work) -> Decision) -> i32 {
    let Some(work) = kernel::work() else {
        return TC_ACT_UNSPEC;
    };
    let skb = Skb(context);
    let tables = Live {
        dry_run: dry_run::is_marked(&skb),
    };
    match parse(&skb, skb.ether_type(), NETWORK_HEADER) {
        Ok(headers) => work.start(headers),
        Err(reason) => return pass(&skb, &tables, reason),
    }
    let decision = decide(&tables, work);
    if tables.dry_run {
        dry_run::report(&skb, work, decision);
        return TC_ACT_UNSPEC;
    }
    let Work { headers, flow, .. } = work;
    match decision {
        Decision::Pass(reason) => pass(&skb, &tables, reason),
        Decision::Drop(reason) if reason.is_reject() => {
            finish(context, refuse(&skb, headers, entry).map_err(|()| reason), reason)
        }
        Decision::Drop(reason) => drop(context, reason),
        Decision::Echo => finish(context, echo(&skb, headers, entry), Reason::EchoReply),
        Decision::Translate(reason) => finish(context, translate(&skb, headers, flow, entry), reason),
    }
}

#[inline(always)]
fn pass(skb: &Skb<'_>, tables: &Live, reason: Reason) -> i32 {
    if tables.dry_run {
        dry_run::report_unparsed(skb, reason);
    } else if reason as u8 != Reason::NotOurs as u8 {
        count(reason, 0);
    }
    TC_ACT_UNSPEC
}

#[inline(always)]
fn drop(context: &TcContext, reason: Reason) -> i32 {
    count(reason, context.len());
    TC_ACT_SHOT
}

#[inline(always)]
fn finish(context: &TcContext, verdict: Result<i32, Reason>, reason: Reason) -> i32 {
    match verdict {
        Ok(verdict) => {
            count(reason, context.len());
            verdict
        }
        Err(reason) => drop(context, reason),
    }
}

/// Answers an echo request in the client's direction.
#[inline(always)]
fn echo(skb: &Skb<'_>, headers: &Headers, entry: Entry) -> Result<i32, Reason> {
    rewrite::answer_echo(skb, headers).ok_or(Reason::RewriteFailed)?;
    answer(skb, entry)
}

/// Sends a packet that was turned into an answer to where it came from.
#[inline(always)]
fn answer(skb: &Skb<'_>, entry: Entry) -> Result<i32, Reason> {
    match entry {
        Entry::Host => to_host(skb),
        Entry::Pod | Entry::Uplink => back(skb),
    }
}

/// Tells the sender that nobody is there.
#[inline(always)]
fn refuse(skb: &Skb<'_>, headers: &Headers, entry: Entry) -> Result<i32, ()> {
    reject::refuse(skb, headers).ok_or(())?;
    answer(skb, entry).map_err(|_| ())
}

#[inline(always)]
fn translate(skb: &Skb<'_>, headers: &Headers, flow: &Flow, entry: Entry) -> Result<i32, Reason> {
    rewrite::rewrite(skb, headers, flow).ok_or(Reason::RewriteFailed)?;
    match Deliver::from_number(flow.deliver) {
        // What was routed to our own device has left the stack already.
        Deliver::Stack if matches!(entry, Entry::Host) => route(skb, headers, flow),
        Deliver::Stack => Ok(TC_ACT_UNSPEC),
        Deliver::SameInterface => back(skb),
        Deliver::Host => to_host(skb),
        Deliver::Route => {
            if !matches!(entry, Entry::Host) {
                rewrite::decrement_ttl(skb, headers).ok_or(Reason::TtlExceeded)?;
            }
            route(skb, headers, flow)
        }
    }
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
    let tables = Live { dry_run: false };
    let config = tables.config().ok_or(Reason::NoRoute)?;
    let (device, mac) = (config.host_device, config.host_mac);
    rewrite::set_destination_mac(skb, &mac).ok_or(Reason::RewriteFailed)?;
    Ok(redirect_in(device))
}

/// Out by the interface and to the neighbour that the routing table names.
#[inline(always)]
fn route(skb: &Skb<'_>, headers: &Headers, flow: &Flow) -> Result<i32, Reason> {
    let mut lookup = FibLookup::zeroed();
    lookup.set_packet(headers, flow, skb.ifindex());
    let result = skb.route(&mut lookup);
    if result == i64::from(BPF_FIB_LKUP_RET_SUCCESS) || result == i64::from(BPF_FIB_LKUP_RET_NO_NEIGH) {
        Ok(redirect_to_neighbour(lookup.ifindex))
    } else {
        Err(Reason::NoRoute)
    }
}

/// The parameters of a route look-up.
trait RouteLookup {
    fn zeroed() -> Self;
    fn set_packet(&mut self, headers: &Headers, flow: &Flow, ifindex: u32);
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
        self.ifindex = ifindex;
        if flow.dst.is_v4() {
            self.family = AF_INET;
            self.__bindgen_anon_3.ipv4_src = flow.src.v4_word();
            self.__bindgen_anon_4.ipv4_dst = flow.dst.v4_word();
        } else {
            self.family = AF_INET6;
            self.__bindgen_anon_3.ipv6_src = flow.src.v6_words();
            self.__bindgen_anon_4.ipv6_dst = flow.dst.v6_words();
        }
    }
}
