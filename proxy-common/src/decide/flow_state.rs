//! The state of a flow after a packet: [`crate::maps::FlowState`], a table in [`super::conntrack`].
//!
//! TCP is proven by an acknowledgement of the SYN,ACK's sequence number, which a forger of the client's
//! address has not seen. Datagrams are proven as in netfilter: a packet follows in a later tick than the
//! first reply.
//!
//! Each side of TCP is done once the other side acknowledges exactly the number behind its FIN. A forged FIN
//! is not acknowledged: its receiver repeats what it acknowledged before (RFC 9293 §3.10.7.4). Its number
//! would have to be where a later segment ends.
//!
//! A RST counts only near the sequence number that its receiver acknowledged last (RFC 5961 §3), and what
//! follows it opens the flow again. So a forged one costs an idle connection nothing. That number is noted
//! once a tick, and as soon as a direction is far ahead of it. The ends of an SCTP association are read as a
//! RST is.

use crate::maps::{Flow, FlowState};
use crate::packet::{
    Headers, SCTP_ABORT, SCTP_COOKIE_ACK, SCTP_INIT, SCTP_INIT_ACK, SCTP_SHUTDOWN_COMPLETE, TCP_ACK, TCP_FIN,
    TCP_RST, TCP_SYN,
};
use crate::protocol;

/// The state after a packet. `is_later` says that it is the first of its tick.
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
        new |= FlowState::ANSWERED;
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
        && FlowState(new).has(FlowState::ANSWERED)
        && is_completing(headers.acknowledgement, flow.sequence)
    {
        new |= FlowState::CONFIRMED;
    }
    new
}

/// What ends with a connection that goes on after a RST.
const ENDED: u8 = FlowState::CLOSED | FlowState::RESET | FlowState::SYN_AFTER_RESET | FlowState::EVICTABLE;

/// Whether a packet ends a connection at once, if it is not forged: a RST, or what stands for it in SCTP.
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

/// Whether a packet carries a FIN that its receiver may take. The other side's acknowledgement shows whether
/// it does.
#[inline(always)]
pub const fn ends(headers: &Headers) -> bool {
    const FLAGS: u8 = TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN;
    headers.protocol == protocol::TCP && headers.detail & FLAGS == TCP_ACK | TCP_FIN
}

/// Whether a direction has sent so much since its last note that a RST might stand beyond [`OF_RST`].
#[inline(always)]
pub const fn is_far_ahead(headers: &Headers, flow: &Flow) -> bool {
    headers.protocol == protocol::TCP
        && flow.sequence != 0
        && headers.sequence.wrapping_sub(flow.sequence).wrapping_sub(OF_NOTE) < (1 << 31) - OF_NOTE
}

/// The state of a connection that is closed. A RST may be forged, and a SYN behind it as well: neither ends
/// the
/// flow. What acknowledges something opens it again. The backend's SYN,ACK begins it anew, if a SYN came
/// before.
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
        return FlowState::ANSWERED;
    }
    old
}

/// Whether a chunk shows that an association goes on, or that the next one has begun: data, heartbeats, what
/// acknowledges them, and the last chunk of a handshake (RFC 9260 §3.2).
#[inline(always)]
const fn goes_on_after_end(chunk: u8) -> bool {
    const DATA: u8 = 0;
    const SACK: u8 = 3;
    const HEARTBEAT: u8 = 4;
    const HEARTBEAT_ACK: u8 = 5;
    /// Interleaved data (RFC 8260 §2.1).
    const I_DATA: u8 = 64;
    /// What is given up (RFC 3758 §3.2), and changes of addresses (RFC 5061 §4.1).
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

/// The state of an association after a packet with this chunk first. The server's COOKIE ACK proves it: only
/// a real client returns the cookie (RFC 9260 §5.1). Replies that go on prove it too. Its end may be forged,
/// and what goes on after it opens the flow again.
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
            SCTP_INIT_ACK if is_reply && state.has(FlowState::SYN_AFTER_RESET) => FlowState::ANSWERED,
            _ if goes_on_after_end(chunk) => (old & !ENDED) | FlowState::CONFIRMED,
            _ => old,
        };
    }
    let goes_on = is_later && state.has(FlowState::ANSWERED);
    if is_reply && (chunk == SCTP_COOKIE_ACK || goes_on) {
        // A forged end of the handshake is none.
        return (old & !FlowState::CLOSED) | FlowState::ANSWERED | FlowState::CONFIRMED;
    }
    old | answered(is_reply)
}

/// As netfilter has it (`nf_conntrack_udp_packet`): what goes on after the exchange of a question and its
/// reply is a stream.
#[inline(always)]
const fn next_of_datagrams(old: u8, is_reply: bool, is_later: bool) -> u8 {
    let goes_on = is_later && FlowState(old).has(FlowState::ANSWERED);
    let confirmed = if goes_on { FlowState::CONFIRMED } else { 0 };
    old | answered(is_reply) | confirmed
}

#[inline(always)]
const fn answered(is_reply: bool) -> u8 {
    if is_reply { FlowState::ANSWERED } else { 0 }
}

/// Whether a number acknowledges a SYN,ACK. A server may send data with it (RFC 7413), whose length is not
/// known here. Of a connection that was under way when its flow began no SYN,ACK is known.
#[inline(always)]
const fn is_completing(acknowledgement: u32, expected: u32) -> bool {
    const DATA_AT_MOST: u32 = 1 << 16;
    expected == 0 || acknowledgement.wrapping_sub(expected) < DATA_AT_MOST
}

/// How far a RST may stand ahead of the last note: 32 MiB.
const OF_RST: u32 = 1 << 25;
/// How far a direction may be ahead of the last note until a new one is due: 8 MiB. What is under way comes
/// on top.
const OF_NOTE: u32 = 1 << 23;

/// Whether the end of a connection stands where its receiver may expect it: at what it acknowledged last or,
/// since that is not noted each time, not much further. What is not known counts as near.
#[inline(always)]
const fn is_within(sequence: u32, expected: u32, reach: u32) -> bool {
    expected == 0 || sequence.wrapping_sub(expected) < reach
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::maps::Lifetime;

    /// The state of a flow after packets, one in each tick. Each side acknowledges what the other one has
    /// sent.
    fn state_after(packets: &[(bool, u8)], protocol: u8) -> FlowState {
        let mut flow = Flow::EMPTY;
        let mut fins = [0; 2];
        for (is_reply, flags) in packets {
            let mut headers = crate::decide::testing::packet(protocol, ("10.0.0.1", 1), ("10.0.0.2", 2));
            headers.detail = *flags;
            headers.sequence = 500;
            flow.is_reply = u8::from(*is_reply);
            flow.fin = fins[usize::from(!is_reply)];
            headers.acknowledgement = if flow.fin == 0 { 1 } else { flow.fin };
            if ends(&headers) {
                fins[usize::from(*is_reply)] = headers.sequence + 1;
            }
            flow.state = next(&flow, &headers, true);
        }
        flow.state()
    }

    fn after(packets: &[(bool, u8)], protocol: u8) -> Lifetime {
        state_after(packets, protocol).lifetime(protocol)
    }

    #[test]
    fn a_connection_is_open_after_its_handshake_and_closed_after_both_fins_or_a_rst() {
        const ACK: u8 = TCP_ACK;
        const FIN: u8 = TCP_FIN | TCP_ACK;
        let (syn, syn_ack) = ((false, TCP_SYN), (true, TCP_SYN | TCP_ACK));
        let (client, backend) = ((false, ACK), (true, ACK));
        let (client_fin, backend_fin, rst) = ((false, FIN), (true, FIN), (true, TCP_RST));
        for (packets, lifetime) in [
            (&[syn][..], Lifetime::Opening),
            (&[syn, syn, syn_ack], Lifetime::Opening),
            (&[syn, client, client], Lifetime::Opening),
            (&[syn, syn_ack, client], Lifetime::Open),
            (&[client, backend, client], Lifetime::Open),
            (&[syn, syn_ack, client, client_fin], Lifetime::Open),
            (&[syn, syn_ack, client, client_fin, client], Lifetime::Open),
            (&[syn, syn_ack, client, client_fin, backend], Lifetime::Closing),
            (&[syn, client_fin], Lifetime::Opening),
            (&[client_fin, syn, syn_ack, client], Lifetime::Open),
            (
                &[syn, syn_ack, client, backend_fin, backend, client],
                Lifetime::Closing,
            ),
            (
                &[syn, syn_ack, client, backend_fin, client_fin],
                Lifetime::Closing,
            ),
            (
                &[syn, syn_ack, client, backend_fin, client_fin, backend],
                Lifetime::Closed,
            ),
            (
                &[
                    syn,
                    syn_ack,
                    client,
                    client_fin,
                    backend,
                    backend_fin,
                    client,
                    backend,
                ],
                Lifetime::Closed,
            ),
            (&[syn, rst], Lifetime::Closed),
            (&[syn, syn_ack, client, (false, TCP_RST)], Lifetime::Open),
            (
                &[syn, syn_ack, client, client_fin, (false, TCP_RST)],
                Lifetime::Open,
            ),
        ] {
            assert_eq!(after(packets, protocol::TCP), lifetime, "{packets:?}");
        }
    }

    #[test]
    fn a_rst_ends_a_connection_until_something_follows() {
        let (syn, syn_ack, ack) = ((false, TCP_SYN), (true, TCP_SYN | TCP_ACK), (false, TCP_ACK));
        let reset = [syn, syn_ack, ack, (true, TCP_RST)];
        let state = state_after(&reset, protocol::TCP);
        assert!(state.has(FlowState::CLOSED) && state.has(FlowState::RESET) && !state.is_protected());
        for follows in [(false, TCP_ACK), (true, TCP_ACK)] {
            let state = state_after(&[&reset[..], &[follows]].concat(), protocol::TCP);
            assert!(state.is_protected() && !state.has(FlowState::CLOSED | FlowState::RESET));
        }
        for follows in [
            (false, TCP_SYN),
            (true, TCP_RST),
            (true, TCP_RST | TCP_ACK),
            (true, TCP_SYN | TCP_ACK),
        ] {
            let state = state_after(&[&reset[..], &[follows]].concat(), protocol::TCP);
            assert!(state.has(FlowState::CLOSED), "{follows:?}");
        }
    }

    #[test]
    fn a_handshake_behind_a_rst_ends_a_connection_only_if_the_backend_takes_part() {
        let (syn, syn_ack, ack) = ((false, TCP_SYN), (true, TCP_SYN | TCP_ACK), (false, TCP_ACK));
        let reset = [syn, syn_ack, ack, (true, TCP_RST), syn];
        let state = |more: &[(bool, u8)]| state_after(&[&reset[..], more].concat(), protocol::TCP);
        assert!(state(&[]).has(FlowState::RESET) && !state(&[]).is_over());
        // The SYN was forged: the backend sends its last acknowledgement (RFC 5961 §4).
        assert!(state(&[(true, TCP_ACK)]).is_protected());
        let begun = state(&[syn_ack]);
        assert_eq!(begun.lifetime(protocol::TCP), Lifetime::Opening);
        assert!(state(&[syn_ack, ack]).is_protected());
        // A further RST counts again.
        let again = state(&[(true, TCP_ACK), (true, TCP_RST), syn_ack]);
        assert!(again.has(FlowState::RESET) && !again.has(FlowState::SYN_AFTER_RESET));
    }

    #[test]
    fn numbers_of_tcp_prove_a_handshake_and_a_rst() {
        for (acknowledged, proven) in [
            (101, true),
            (101 + 14_600, true),
            (100, false),
            (0, false),
            (1 << 31, false),
        ] {
            assert_eq!(is_completing(acknowledged, 101), proven, "{acknowledged}");
        }
        assert!(is_completing(5, 0), "of a connection under way");
        for (sequence, is_taken) in [
            (500, true),
            (500 + (1 << 20), true),
            (500 + (1 << 25), false),
            (499, false),
            (0x1234_5678, false),
        ] {
            assert_eq!(is_within(sequence, 500, OF_RST), is_taken, "{sequence}");
        }
        assert!(is_within(7, u32::MAX - 7, OF_RST), "numbers begin again at 0");
    }

    #[test]
    fn a_direction_that_is_far_ahead_of_its_note_is_noted_again() {
        let mut headers = crate::decide::testing::packet(protocol::TCP, ("10.0.0.1", 1), ("10.0.0.2", 2));
        let mut flow = Flow::EMPTY;
        flow.sequence = u32::MAX - 5;
        for (ahead, is_far) in [
            (0, false),
            (OF_NOTE - 1, false),
            (OF_NOTE, true),
            (1 << 30, true),
            // Behind it: an old segment.
            (u32::MAX - 1000, false),
        ] {
            headers.sequence = flow.sequence.wrapping_add(ahead);
            assert_eq!(is_far_ahead(&headers, &flow), is_far, "{ahead}");
        }
        flow.sequence = 0;
        assert!(!is_far_ahead(&headers, &flow), "nothing is known");
    }

    #[test]
    fn what_contradicts_itself_ends_nothing() {
        let mut headers = crate::decide::testing::packet(protocol::TCP, ("10.0.0.1", 1), ("10.0.0.2", 2));
        for (flags, is_end) in [
            (TCP_FIN | TCP_ACK, true),
            (TCP_FIN, false),
            (TCP_FIN | TCP_SYN | TCP_ACK, false),
            (TCP_FIN | TCP_RST | TCP_ACK, false),
            (TCP_ACK, false),
        ] {
            headers.detail = flags;
            assert_eq!(ends(&headers), is_end, "{flags:#x}");
        }
    }

    #[test]
    fn datagrams_are_a_stream_once_they_go_on_after_a_reply() {
        let datagram = (false, 0);
        let reply = (true, 0);
        for (packets, lifetime) in [
            (&[datagram, datagram][..], Lifetime::Datagram),
            (&[datagram, reply], Lifetime::Datagram),
            (&[datagram, reply, datagram], Lifetime::Stream),
            (&[datagram, reply, reply], Lifetime::Stream),
        ] {
            assert_eq!(after(packets, protocol::UDP), lifetime, "{packets:?}");
        }
        let cookie_ack = (true, SCTP_COOKIE_ACK);
        for (packets, lifetime) in [
            (&[datagram, reply, datagram][..], Lifetime::Opening),
            (&[datagram, reply, datagram, cookie_ack], Lifetime::Open),
            (&[datagram, reply, reply], Lifetime::Open),
        ] {
            assert_eq!(after(packets, protocol::SCTP), lifetime, "{packets:?}");
        }
        // Both within one tick: a question and its reply.
        let once = next_of_datagrams(FlowState::ANSWERED, true, false);
        assert!(!FlowState(once).has(FlowState::CONFIRMED));
    }

    #[test]
    fn an_association_ends_until_something_follows() {
        const INIT: u8 = SCTP_INIT;
        const INIT_ACK: u8 = SCTP_INIT_ACK;
        const SHUTDOWN: u8 = 7;
        let open = [(false, INIT), (true, INIT_ACK), (true, SCTP_COOKIE_ACK)];
        let state = |more: &[(bool, u8)]| state_after(&[&open[..], more].concat(), protocol::SCTP);
        assert!(state(&[(false, SHUTDOWN)]).is_protected());
        for end in [SCTP_ABORT, SCTP_SHUTDOWN_COMPLETE] {
            for is_reply in [true, false] {
                let ended = state(&[(is_reply, end)]);
                assert!(ended.has(FlowState::RESET) && !ended.is_protected(), "{end}");
                assert!(state(&[(is_reply, end), (false, INIT)]).has(FlowState::SYN_AFTER_RESET));
                let begun = [(is_reply, end), (false, INIT), (true, INIT_ACK)];
                assert_eq!(state(&begun).lifetime(protocol::SCTP), Lifetime::Opening);
                let proven = state(&[&begun[..], &[(true, SCTP_COOKIE_ACK)]].concat());
                assert!(proven.is_protected() && !proven.has(FlowState::CLOSED), "{end}");
            }
            // DATA, SACK, HEARTBEAT and what acknowledges it, and the next association.
            for follows in [0, 3, 4, 5, SCTP_COOKIE_ACK] {
                let goes_on = state(&[(true, end), (true, follows)]);
                assert!(
                    goes_on.is_protected() && !goes_on.has(FlowState::RESET),
                    "{end}, {follows}"
                );
            }
            let unproven = state_after(&[(false, INIT), (true, end)], protocol::SCTP);
            assert!(unproven.is_over(), "{end}");
            let forged = [open[0], open[1], (true, end), open[2]];
            assert!(
                !state_after(&forged, protocol::SCTP).has(FlowState::CLOSED),
                "{end}"
            );
        }
    }
}
