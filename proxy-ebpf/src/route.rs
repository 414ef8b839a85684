//! The kernel's routing tables, asked about a packet (`bpf_fib_lookup`).

use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NO_NEIGH,
    BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup as FibLookup,
};
use proxy_common::Ip;
use proxy_common::decide::PacketContext;
use proxy_common::maps::{Flow, Reason};
use proxy_common::packet::{Headers, Packet as _};
use proxy_common::protocol;

use crate::kernel::{self, Skb};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const TCP_DATA_OFFSET: u32 = 12;
const UDP_HEADER: u32 = 8;
/// The MTU that every IPv6 link has at least (RFC 8200 §5), for kernels that do not return a route's MTU.
const LEAST_MTU: u32 = 1280;

/// The output device of the route. Fails if the packet is too big for it. Stores the next hop.
#[inline(always)]
pub fn look_up(skb: &Skb<'_>, ctx: &mut PacketContext) -> Result<u32, Reason> {
    let PacketContext { headers, flow, .. } = ctx;
    let mut lookup = FibLookup::zeroed();
    lookup.set_packet(headers, flow, skb.ifindex());
    let len = packet_len(skb, headers);
    kernel::set_len(&mut lookup, len);
    let result = skb.route(&mut lookup);
    if result == i64::from(BPF_FIB_LKUP_RET_SUCCESS) || result == i64::from(BPF_FIB_LKUP_RET_NO_NEIGH) {
        ctx.next_hop = kernel::next_hop_of(&lookup);
        ctx.next_hop_family = u32::from(lookup.family);
        Ok(lookup.ifindex)
    } else if result == i64::from(BPF_FIB_LKUP_RET_FRAG_NEEDED) {
        ctx.mtu = match kernel::mtu_of(&lookup) {
            mtu if mtu < len => u32::from(mtu),
            _ => LEAST_MTU,
        };
        Err(Reason::TooBig)
    } else {
        Err(Reason::NoRoute)
    }
}

/// Whether the route to the packet's source has this interface as output device, as strict reverse-path
/// filtering demands (RFC 3704 §2.2; `__fib_validate_source` in `net/ipv4/fib_frontend.c`). IPv6 has no such
/// setting.
#[inline(always)]
pub fn passes_reverse_path(skb: &Skb<'_>, ctx: &PacketContext, interface: u32) -> bool {
    let headers = &ctx.headers;
    if !headers.src.is_v4() {
        return true;
    }
    let mut lookup = FibLookup::zeroed();
    lookup.family = AF_INET;
    lookup.ifindex = interface;
    lookup.__bindgen_anon_3.ipv4_src = headers.dst.v4_word();
    lookup.__bindgen_anon_4.ipv4_dst = headers.src.v4_word();
    let result = skb.route(&mut lookup);
    // A frame that is too long for the route's device has come by another one, or by this one.
    if result == i64::from(BPF_FIB_LKUP_RET_SUCCESS)
        || result == i64::from(BPF_FIB_LKUP_RET_NO_NEIGH)
        || result == i64::from(BPF_FIB_LKUP_RET_FRAG_NEEDED)
    {
        return lookup.ifindex == interface;
    }
    // If the interface does not forward, the stack has to decide.
    result == i64::from(BPF_FIB_LKUP_RET_FWD_DISABLED)
}

/// The output device of the route to the selected backend; 0 if there is no route.
#[inline(always)]
pub fn output_device(skb: &Skb<'_>, ctx: &PacketContext) -> u32 {
    let mut lookup = FibLookup::zeroed();
    lookup.set_addresses(&ctx.headers.src, ctx.destination(), ctx.interface);
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

/// Whether the packet, before or after translation, goes to a neighbour whose hardware address the node does
/// not know.
#[inline(always)]
pub fn lacks_neighbour(skb: &Skb<'_>, ctx: &PacketContext, is_translated: bool) -> bool {
    let to = if is_translated {
        &ctx.flow.dst
    } else {
        &ctx.headers.dst
    };
    let mut lookup = FibLookup::zeroed();
    lookup.set_addresses(&ctx.headers.src, to, ctx.interface);
    skb.route(&mut lookup) == i64::from(BPF_FIB_LKUP_RET_NO_NEIGH)
}

/// The length of the packet without its Ethernet header. For a buffer of several segments it is the length of
/// the largest one.
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
        kernel::zeroed_fib_lookup()
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
