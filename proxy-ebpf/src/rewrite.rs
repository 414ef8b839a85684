//! Changes of addresses and ports in a packet, checksums included.
//!
//! The checksum helpers know whether a checksum is complete, left to the NIC, or absent. The caller says
//! which part of the change is also in the pseudo-header: the addresses are, the ports are not.

use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use proxy_common::maps::Flow;
use proxy_common::packet::{ECHO_ID, ETHERNET_LEN, Headers, Packet, crc32c};
use proxy_common::{Ip, Port, protocol};

use crate::kernel::{Skb, checksum_difference};

const TCP_CHECKSUM: u32 = 16;
const UDP_CHECKSUM: u32 = 6;
const IPV4_CHECKSUM: u32 = 10;
const IPV4_ADDRESSES: u32 = 12;
const IPV6_ADDRESSES: u32 = 8;
const IPV4_TTL: u32 = 8;
const IPV6_HOP_LIMIT: u32 = 7;
const IPV4_TOTAL_LEN: u32 = 2;
const IPV6_PAYLOAD_LEN: u32 = 4;
const ICMP_CHECKSUM: u32 = 2;
const SCTP_CHECKSUM: u32 = 8;
/// A flag of `include/uapi/linux/bpf.h` since Linux 6.16.
const BPF_F_IPV6: u64 = 1 << 7;

/// Translates the packet as `flow` says. `None` if the kernel refused a step; the packet must then be
/// dropped.
#[inline(always)]
pub fn rewrite(skb: &Skb<'_>, headers: &Headers, flow: &Flow) -> Option<()> {
    let difference = rewrite_addresses(skb, headers, &flow.src, &flow.dst)?;
    if headers.l4 == 0 {
        // A later fragment: the checksum is in the first one, whose translation included this difference.
        return Some(());
    }
    let (checksum, mangled) = match headers.protocol {
        protocol::TCP => (headers.l4 + TCP_CHECKSUM, 0),
        protocol::UDP => (headers.l4 + UDP_CHECKSUM, u64::from(BPF_F_MARK_MANGLED_0)),
        protocol::ICMP | protocol::ICMPV6 => return rewrite_echo(skb, headers, flow, difference),
        _ => return rewrite_sctp_ports(skb, headers, flow),
    };
    update_for_addresses(skb, headers, checksum, difference, mangled)?;
    let (old, new) = (ports(headers.sport, headers.dport), ports(flow.sport, flow.dport));
    if old == new {
        return Some(());
    }
    skb.update_transport_checksum(checksum, u64::from(old), u64::from(new), 4 | mangled)?;
    skb.store(headers.l4, &new)
}

/// Source and destination port in memory order of a header.
#[inline(always)]
fn ports(source: Port, destination: Port) -> u32 {
    u32::from(source.raw()) | u32::from(destination.raw()) << 16
}

/// Updates a transport checksum for other addresses. If the NIC has summed up the whole packet, the helper
/// has to know IPv6 from IPv4, whose own header checksum cancels the change out. Kernels before 6.16 do not
/// know the flag.
#[inline(always)]
fn update_for_addresses(
    skb: &Skb<'_>,
    headers: &Headers,
    checksum: u32,
    difference: u64,
    flags: u64,
) -> Option<()> {
    let flags = u64::from(BPF_F_PSEUDO_HDR) | flags;
    if !headers.dst.is_v4()
        && skb
            .update_transport_checksum(checksum, 0, difference, flags | BPF_F_IPV6)
            .is_some()
    {
        return Some(());
    }
    skb.update_transport_checksum(checksum, 0, difference, flags)
}

/// Translates an echo, whose identifier takes the place of the port of the side that sends the requests. The
/// checksum of `ICMPv6` includes the addresses (RFC 4443 §2.3).
#[inline(always)]
fn rewrite_echo(skb: &Skb<'_>, headers: &Headers, flow: &Flow, difference: u64) -> Option<()> {
    let checksum = headers.l4 + ICMP_CHECKSUM;
    if !headers.dst.is_v4() {
        update_for_addresses(skb, headers, checksum, difference, 0)?;
    }
    let (old, new) = (headers.echo_id(), flow.echo_id());
    if old == new {
        return Some(());
    }
    skb.update_transport_checksum(checksum, u64::from(old.raw()), u64::from(new.raw()), 2)?;
    skb.store(headers.l4 + ECHO_ID, &new.raw())
}

/// Translates the ports of SCTP, whose checksum does not include addresses. A checksum of zero was left to
/// the NIC, and stays zero.
#[inline(always)]
fn rewrite_sctp_ports(skb: &Skb<'_>, headers: &Headers, flow: &Flow) -> Option<()> {
    let (old, new) = (ports(headers.sport, headers.dport), ports(flow.sport, flow.dport));
    if old == new {
        return Some(());
    }
    let checksum: u32 = skb.load(headers.l4 + SCTP_CHECKSUM)?;
    if checksum != 0 {
        if headers.is_fragment {
            // The checksum includes the other fragments, whose length is not known yet.
            return None;
        }
        let change = crc32c::change(u32::from_le(old ^ new), sctp_len(skb, headers)?);
        skb.store(headers.l4 + SCTP_CHECKSUM, &(checksum ^ change.to_le()))?;
    }
    skb.store(headers.l4, &new)
}

/// The length of the packet without its IP headers. The frame may be longer.
#[inline(always)]
fn sctp_len(skb: &Skb<'_>, headers: &Headers) -> Option<u32> {
    let (offset, fixed) = if headers.dst.is_v4() {
        (IPV4_TOTAL_LEN, 0)
    } else {
        (IPV6_PAYLOAD_LEN, 40)
    };
    let len: u16 = skb.load(headers.l3 + offset)?;
    (u32::from(u16::from_be(len)) + fixed).checked_sub(headers.l4 - headers.l3)
}

/// Turns an ICMP error about a translated packet into an error about that packet as its sender sent it.
///
/// The entry translates a packet in the error's direction. The packet in the error went in the other
/// direction, so it gets the entry's new destination as source and its new source as destination. The
/// transport checksum inside stays as it was on the wire: errors often end before it, and receivers do not
/// check it.
#[inline(always)]
pub fn rewrite_error(
    skb: &Skb<'_>,
    headers: &Headers,
    embedded: &Headers,
    flow: &Flow,
    source: &Ip,
) -> Option<()> {
    let checksum = headers.l4 + ICMP_CHECKSUM;
    let (old, new) = (
        ports(embedded.sport, embedded.dport),
        ports(flow.dport, flow.sport),
    );
    if embedded.is_icmp() {
        let (old, new) = (embedded.echo_id(), flow.echo_id());
        skb.update_transport_checksum(checksum, u64::from(old.raw()), u64::from(new.raw()), 2)?;
        skb.store(embedded.l4 + ECHO_ID, &new.raw())?;
    } else if old != new {
        skb.update_transport_checksum(checksum, u64::from(old), u64::from(new), 4)?;
        skb.store(embedded.l4, &new)?;
    }
    let inside = rewrite_addresses(skb, embedded, &flow.dst, &flow.src)?;
    let outside = rewrite_addresses(skb, headers, source, &flow.dst)?;
    if !headers.dst.is_v4() {
        // IPv6 has no header checksum that would cancel the change of the inner addresses, and the outer
        // addresses count as well.
        skb.update_transport_checksum(checksum, 0, inside, 0)?;
        update_for_addresses(skb, headers, checksum, outside, 0)?;
    }
    Some(())
}

/// Writes the addresses and returns the difference that they make to a checksum.
#[inline(always)]
fn rewrite_addresses(skb: &Skb<'_>, headers: &Headers, source: &Ip, destination: &Ip) -> Option<u64> {
    if headers.dst.is_v4() {
        let mut old = [headers.src.v4_word(), headers.dst.v4_word()];
        let mut new = [source.v4_word(), destination.v4_word()];
        let difference = checksum_difference(&mut old, &mut new);
        skb.update_ip_checksum(headers.l3 + IPV4_CHECKSUM, difference)?;
        skb.store(headers.l3 + IPV4_ADDRESSES, &u64_of(new))?;
        Some(difference)
    } else {
        let (src, dst) = (headers.src.v6_words(), headers.dst.v6_words());
        let mut old = [src[0], src[1], src[2], src[3], dst[0], dst[1], dst[2], dst[3]];
        let (src, dst) = (source.v6_words(), destination.v6_words());
        let mut new = [src[0], src[1], src[2], src[3], dst[0], dst[1], dst[2], dst[3]];
        let difference = checksum_difference(&mut old, &mut new);
        skb.store(headers.l3 + IPV6_ADDRESSES, &src)?;
        skb.store(headers.l3 + IPV6_ADDRESSES + 16, &dst)?;
        Some(difference)
    }
}

/// Two words in memory order.
#[inline(always)]
const fn u64_of(words: [u32; 2]) -> [u8; 8] {
    let ([a, b, c, d], [e, f, g, h]) = (words[0].to_ne_bytes(), words[1].to_ne_bytes());
    [a, b, c, d, e, f, g, h]
}

/// Turns an echo request into its reply. Swapped addresses do not change a checksum, but the new type does.
#[inline(always)]
pub fn reply_to_echo(skb: &Skb<'_>, headers: &Headers) -> Option<()> {
    let (old, new) = if headers.dst.is_v4() {
        (8_u8, 0_u8)
    } else {
        (128, 129)
    };
    if headers.dst.is_v4() {
        let swapped = [headers.dst.v4_word(), headers.src.v4_word()];
        skb.store(headers.l3 + IPV4_ADDRESSES, &u64_of(swapped))?;
    } else {
        skb.store(headers.l3 + IPV6_ADDRESSES, &headers.dst.v6_words())?;
        skb.store(headers.l3 + IPV6_ADDRESSES + 16, &headers.src.v6_words())?;
    }
    let word = |kind: u8| u64::from(u16::from_ne_bytes([kind, 0]));
    skb.update_transport_checksum(headers.l4 + ICMP_CHECKSUM, word(old), word(new), 2)?;
    skb.store(headers.l4, &new)
}

/// Exchanges source and destination address, which does not change any checksum.
#[inline(always)]
pub fn swap_addresses(skb: &Skb<'_>, headers: &Headers) -> Option<()> {
    if headers.dst.is_v4() {
        let swapped = [headers.dst.v4_word(), headers.src.v4_word()];
        skb.store(headers.l3 + IPV4_ADDRESSES, &u64_of(swapped))
    } else {
        skb.store(headers.l3 + IPV6_ADDRESSES, &headers.dst.v6_words())?;
        skb.store(headers.l3 + IPV6_ADDRESSES + 16, &headers.src.v6_words())
    }
}

/// Decrements the time to live; `None` if that ends it.
#[inline(always)]
pub fn decrement_ttl(skb: &Skb<'_>, headers: &Headers) -> Option<()> {
    if headers.ttl <= 1 {
        return None;
    }
    set_ttl(skb, headers, headers.ttl - 1)
}

/// Sets the time to live.
#[inline(always)]
pub fn set_ttl(skb: &Skb<'_>, headers: &Headers, ttl: u8) -> Option<()> {
    if headers.dst.is_v4() {
        let mut old = [u32::from(headers.ttl)];
        let mut new = [u32::from(ttl)];
        let difference = checksum_difference(&mut old, &mut new);
        skb.update_ip_checksum(headers.l3 + IPV4_CHECKSUM, difference)?;
        skb.store(headers.l3 + IPV4_TTL, &ttl)
    } else {
        skb.store(headers.l3 + IPV6_HOP_LIMIT, &ttl)
    }
}

/// Exchanges the hardware addresses, so that the frame goes back to its sender.
#[inline(always)]
pub fn swap_macs(skb: &Skb<'_>) -> Option<()> {
    let dst: [u8; 6] = skb.load(0)?;
    let src: [u8; 6] = skb.load(6)?;
    skb.store(0, &src)?;
    skb.store(6, &dst)
}

/// Sets the destination address of the frame.
#[inline(always)]
pub fn set_destination_mac(skb: &Skb<'_>, mac: &[u8; 6]) -> Option<()> {
    skb.store(0, mac)
}

/// Sets the destination address of the frame, and its old destination address as source.
#[inline(always)]
pub fn forward_to_mac(skb: &Skb<'_>, mac: &[u8; 6]) -> Option<()> {
    let here: [u8; 6] = skb.load(0)?;
    let [a, b, c, d, e, f] = *mac;
    let [g, h, i, j, k, l] = here;
    skb.store(0, &[a, b, c, d, e, f, g, h, i, j, k, l])
}

/// Offset of the network header on every interface that the programs are attached to.
pub const NETWORK_HEADER: u32 = ETHERNET_LEN;
