//! Fragments: only the first one of a datagram carries the ports, and the others follow it.
//!
//! A first fragment that is translated leaves its ports for the others, so a later one finds the same flow.
//! If a later fragment arrives before its first, its flow is unknown. The program leaves it alone, or drops
//! it with a reason of its own if it goes to a virtual address.
//!
//! A source has a fixed number of places, see [`FragmentKey::PLACES`]. A newer datagram overwrites only an
//! older one of the same source. So a flood of first fragments from one source does not affect the later
//! fragments of another.

use super::conntrack::as_counted;
use super::{PacketContext, Tables};
use crate::maps::{FragmentKey, FragmentPorts};
use crate::packet::is_extension;

/// The direction in which a datagram passes a program.
///
/// A datagram that is translated in both directions has the same source and identification there, but another
/// destination. Each direction therefore has its own places.
#[derive(Clone, Copy)]
pub enum Passage {
    /// It enters the node's part of the network.
    Entering,
    /// It leaves the node, or goes into a pod.
    Leaving,
}

impl Passage {
    /// Whether the datagram leaves.
    #[inline(always)]
    pub const fn is_leaving(self) -> bool {
        matches!(self, Self::Leaving)
    }

    /// The passage for a result of [`Self::is_leaving`].
    #[inline(always)]
    pub const fn from_leaving(is_leaving: bool) -> Self {
        if is_leaving { Self::Leaving } else { Self::Entering }
    }
}

/// Fills in the ports of a later fragment, if its first was seen.
#[inline(always)]
pub fn complete<T: Tables>(tables: &T, ctx: &mut PacketContext, passage: Passage) {
    if ctx.headers.is_fragment && ctx.headers.l4 == 0 {
        tables.complete_fragment(ctx, passage);
    }
}

/// As [`complete`], for a packet that is known to be a later fragment.
#[inline(always)]
pub fn fill_in<T: Tables>(tables: &T, ctx: &mut PacketContext, passage: Passage) {
    let headers = &ctx.headers;
    // Behind an IPv6 fragment header, a later fragment names the next extension header, if there is one.
    if headers.is_balanced() || headers.is_icmp() || is_extension(headers.protocol) {
        identify(tables, ctx, passage);
        if let Some(ports) = tables.fragment(&ctx.fragment_key, &ctx.first_fragment.datagram)
            && (ports.protocol == ctx.headers.protocol || is_extension(ctx.headers.protocol))
        {
            set_ports(ctx, &ports);
        }
    }
}

/// Stores the ports of a first fragment that is translated.
#[inline(always)]
pub fn note<T: Tables>(tables: &T, ctx: &mut PacketContext, passage: Passage) {
    if ctx.headers.is_fragment && ctx.headers.l4 != 0 {
        tables.note_fragment(ctx, passage);
    }
}

/// As [`note`], for a packet that is known to be a first fragment.
#[inline(always)]
pub fn keep<T: Tables>(tables: &T, ctx: &mut PacketContext, passage: Passage) {
    identify(tables, ctx, passage);
    let PacketContext {
        headers,
        fragment_key,
        first_fragment,
        ..
    } = ctx;
    let ports = &mut first_fragment.ports;
    ports.sport = headers.sport;
    ports.dport = headers.dport;
    ports.protocol = headers.protocol;
    ports.reserved = 0;
    ports.reserved2 = 0;
    tables.replace_fragment(fragment_key, first_fragment);
}

#[inline(always)]
const fn set_ports(ctx: &mut PacketContext, ports: &FragmentPorts) {
    ctx.headers.sport = ports.sport;
    ctx.headers.dport = ports.dport;
    ctx.headers.protocol = ports.protocol;
    ctx.headers.has_ports = true;
    ctx.key.sport = ports.sport;
    ctx.key.dport = ports.dport;
    ctx.key.protocol = ports.protocol;
}

/// Determines the datagram of a fragment, and its place. Both are in the packet context, because the stack of
/// a kernel program is too small for them.
#[inline(always)]
fn identify<T: Tables>(tables: &T, ctx: &mut PacketContext, passage: Passage) {
    let PacketContext {
        headers,
        fragment_key: key,
        first_fragment,
        ..
    } = ctx;
    let is_v4 = headers.src.is_v4();
    let number = if is_v4 {
        u32::from(u16::from_be(headers.fragment_id as u16))
    } else {
        u32::from_be(headers.fragment_id)
    };
    key.source = as_counted(tables, &headers.src);
    key.place = FragmentKey::place(number, passage.is_leaving());
    key.reserved = 0;
    let datagram = &mut first_fragment.datagram;
    datagram.src = headers.src;
    datagram.dst = headers.dst;
    datagram.id = headers.fragment_id;
    datagram.protocol = if is_v4 { headers.protocol } else { 0 };
    datagram.reserved = 0;
    datagram.reserved2 = 0;
}
