//! The state of a flow after a packet: [`crate::maps::FlowState`], with a table in [`super::conntrack`].
//!
//! An acknowledgement of the SYN,ACK's sequence number proves a TCP connection: a sender that forges the
//! client's address has not seen that number. Datagrams are proven as in netfilter: a packet follows in a
//! later tick than the first reply.
//!
//! A side of a TCP connection is done when the other side acknowledges exactly the number after its FIN. The
//! receiver does not acknowledge a forged FIN: it repeats its last acknowledgement (RFC 9293 §3.10.7.4). For
//! an effect, the number of the forged FIN would have to be the end of a later segment.
//!
//! A RST counts only near the sequence number that its receiver acknowledged last (RFC 5961 §3). A packet
//! that follows it opens the flow again. So a forged RST costs an idle connection nothing. The programs store
//! that number once a tick, and as soon as a direction is far ahead of it. They handle the end of an SCTP
//! association like a RST.

use crate::maps::{Flow, FlowState};
use crate::packet::{
    Headers, SCTP_ABORT, SCTP_COOKIE_ACK, SCTP_INIT, SCTP_INIT_ACK, SCTP_SHUTDOWN_COMPLETE, TCP_ACK, TCP_FIN,
    TCP_RST, TCP_SYN,
};
use crate::protocol;

/// The state after a packet. `is_later` says that the packet is the first of its tick.
#[inline(always)]
pub const fn next(flow: &Flow, headers: &Headers, is_later: bool) -> u8 {
    let old = flow.state;
    let is_reply = flow.is_reply != 0;
    match headers.protocol {
        protocol::TCP => {}
        protocol::SCTP => return next_of_associations(old, headers.detail, is_reply, is_later),
        _ => return next_of_datagrams(old, is_reply, is_later),
    }
    let acknowledges = headers.detail & (TCP_SYN | TCP_ACK | TCP_RST) == TCP_ACK;
    if FlowState(old).has(FlowState::CLOSED) {
        return next_of_closed(old, headers, is_reply);
    }
    if headers.detail & TCP_RST != 0 {
        if !FlowState(old).has(FlowState::CONFIRMED) {
            return old | FlowState::CLOSED;
        }
        if !is_within(headers.sequence, flow.sequence, OF_RST) {
            return old;
        }
        return (old | FlowState::CLOSED | FlowState::RESET) & !(FlowState::CONFIRMED | FlowState::EVICTABLE);
    }
    let mut new = old;
    if is_reply {
        new |= FlowState::SEEN_REPLY;
    }
    if acknowledges && flow.fin != 0 && headers.acknowledgement == flow.fin {
        new |= done(!is_reply);
    }
    let both_done = FlowState::CLIENT_DONE | FlowState::BACKEND_DONE;
    if new & both_done == both_done {
        return (new | FlowState::CLOSED) & !(FlowState::CONFIRMED | FlowState::EVICTABLE);
    }
    if !is_reply
        && acknowledges
        && FlowState(new).has(FlowState::SEEN_REPLY)
        && is_completing(headers.acknowledgement, flow.sequence)
    {
        new |= FlowState::CONFIRMED;
    }
    new
}

/// The bits that a connection loses when it continues after a RST.
const ENDED: u8 = FlowState::CLOSED | FlowState::RESET | FlowState::SYN_AFTER_RESET | FlowState::EVICTABLE;

/// Whether a packet ends a connection at once, if it is not forged: a RST, or the SCTP chunks with the same
/// effect.
#[inline(always)]
pub const fn aborts(headers: &Headers) -> bool {
    headers.has_tcp_flag(TCP_RST)
        || (headers.protocol == protocol::SCTP
            && matches!(headers.detail, SCTP_ABORT | SCTP_SHUTDOWN_COMPLETE))
}

/// The bit of a side that has sent its last byte.
#[inline(always)]
const fn done(is_backend: bool) -> u8 {
    if is_backend {
        FlowState::BACKEND_DONE
    } else {
        FlowState::CLIENT_DONE
    }
}

/// Whether a packet carries a FIN that its receiver may accept. The other side's acknowledgement shows
/// whether it does.
#[inline(always)]
pub const fn ends(headers: &Headers) -> bool {
    const FLAGS: u8 = TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN;
    headers.protocol == protocol::TCP && headers.detail & FLAGS == TCP_ACK | TCP_FIN
}

/// Whether a direction has sent so much since its number was stored that a RST might be beyond [`OF_RST`].
#[inline(always)]
pub const fn is_far_ahead(headers: &Headers, flow: &Flow) -> bool {
    headers.protocol == protocol::TCP
        && flow.sequence != 0
        && headers.sequence.wrapping_sub(flow.sequence).wrapping_sub(OF_NOTE) < (1 << 31) - OF_NOTE
}

/// The state of a closed connection. A RST may be forged, and a SYN after it as well, so neither ends the
/// flow. A segment that acknowledges data opens the flow again. The backend's SYN,ACK begins a new connection
/// if a SYN came before.
#[inline(always)]
const fn next_of_closed(old: u8, headers: &Headers, is_reply: bool) -> u8 {
    if !FlowState(old).has(FlowState::RESET) {
        return old;
    }
    let flags = headers.detail & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN);
    if flags == TCP_ACK {
        return (old & !ENDED) | FlowState::CONFIRMED;
    }
    if flags == TCP_SYN && !is_reply {
        return old | FlowState::SYN_AFTER_RESET;
    }
    if flags == TCP_SYN | TCP_ACK && is_reply && FlowState(old).has(FlowState::SYN_AFTER_RESET) {
        return FlowState::SEEN_REPLY;
    }
    old
}

/// Whether a chunk shows that an association continues, or that the next one has begun. These are data,
/// heartbeats, their acknowledgements, and the last chunk of a handshake (RFC 9260 §3.2).
#[inline(always)]
const fn goes_on_after_end(chunk: u8) -> bool {
    const DATA: u8 = 0;
    const SACK: u8 = 3;
    const HEARTBEAT: u8 = 4;
    const HEARTBEAT_ACK: u8 = 5;
    /// Interleaved data (RFC 8260 §2.1).
    const I_DATA: u8 = 64;
    /// Data that the sender abandons (RFC 3758 §3.2), and changes of addresses (RFC 5061 §4.1).
    const FORWARD_TSN: u8 = 192;
    const ASCONF: u8 = 193;
    const ASCONF_ACK: u8 = 128;
    matches!(
        chunk,
        DATA | SACK
            | HEARTBEAT
            | HEARTBEAT_ACK
            | I_DATA
            | FORWARD_TSN
            | ASCONF
            | ASCONF_ACK
            | SCTP_COOKIE_ACK
    )
}

/// The state of an association after a packet with this first chunk. The server's COOKIE ACK proves it: only
/// a real client returns the cookie (RFC 9260 §5.1). Replies in a later tick prove it too. Its end may be
/// forged, and a chunk that follows opens the flow again.
#[inline(always)]
const fn next_of_associations(old: u8, chunk: u8, is_reply: bool, is_later: bool) -> u8 {
    let state = FlowState(old);
    if matches!(chunk, SCTP_ABORT | SCTP_SHUTDOWN_COMPLETE) && !state.has(FlowState::CLOSED) {
        let reset = if state.has(FlowState::CONFIRMED) {
            FlowState::RESET
        } else {
            0
        };
        return (old | FlowState::CLOSED | reset) & !(FlowState::CONFIRMED | FlowState::EVICTABLE);
    }
    if state.has(FlowState::RESET) {
        return match chunk {
            SCTP_INIT if !is_reply => old | FlowState::SYN_AFTER_RESET,
            SCTP_INIT_ACK if is_reply && state.has(FlowState::SYN_AFTER_RESET) => FlowState::SEEN_REPLY,
            _ if goes_on_after_end(chunk) => (old & !ENDED) | FlowState::CONFIRMED,
            _ => old,
        };
    }
    let goes_on = is_later && state.has(FlowState::SEEN_REPLY);
    if is_reply && (chunk == SCTP_COOKIE_ACK || goes_on) {
        // If the association closed before it was proven, that chunk was forged.
        return (old & !FlowState::CLOSED) | FlowState::SEEN_REPLY | FlowState::CONFIRMED;
    }
    old | seen_reply(is_reply)
}

/// As in netfilter (`nf_conntrack_udp_packet`): datagrams that go on after a question and its reply are a
/// stream.
#[inline(always)]
const fn next_of_datagrams(old: u8, is_reply: bool, is_later: bool) -> u8 {
    let goes_on = is_later && FlowState(old).has(FlowState::SEEN_REPLY);
    let confirmed = if goes_on { FlowState::CONFIRMED } else { 0 };
    old | seen_reply(is_reply) | confirmed
}

#[inline(always)]
const fn seen_reply(is_reply: bool) -> u8 {
    if is_reply { FlowState::SEEN_REPLY } else { 0 }
}

/// Whether a number acknowledges a SYN,ACK. A server may send data with it (RFC 7413), whose length the
/// programs do not know. If a connection was under way when its flow began, its SYN,ACK is unknown.
#[inline(always)]
const fn is_completing(acknowledgement: u32, expected: u32) -> bool {
    const DATA_AT_MOST: u32 = 1 << 16;
    expected == 0 || acknowledgement.wrapping_sub(expected) < DATA_AT_MOST
}

/// How far a RST may be ahead of the stored number: 32 MiB.
const OF_RST: u32 = 1 << 25;
/// How far a direction may be ahead of the stored number until a new one is due: 8 MiB. Data in flight come
/// on top.
const OF_NOTE: u32 = 1 << 23;

/// Whether the end of a connection is at a sequence number that its receiver expects. That is its last
/// acknowledgement or, since not each one is stored, a number not much beyond it. If the expected number is
/// unknown, every number is near.
#[inline(always)]
const fn is_within(sequence: u32, expected: u32, reach: u32) -> bool {
    expected == 0 || sequence.wrapping_sub(expected) < reach
}

#[cfg(test)]
mod tests;
