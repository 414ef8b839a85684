//! Tests of `flow_state`.

use super::*;
use crate::maps::Lifetime;

/// The state of a flow after packets, one in each tick. Each side acknowledges all bytes that the other
/// side has sent.
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
        // Behind the expected number: an old segment.
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
    let once = next_of_datagrams(FlowState::SEEN_REPLY, true, false);
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
        // DATA, SACK, HEARTBEAT and its acknowledgement, and the next association.
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
