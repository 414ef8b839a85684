//! How flows are remembered, and how they end.
//!
//! A flow has an entry for either direction, see [`crate::maps::Flow`]. Its state moves with the packets that pass:
//!
//! | state | entries lie in | until |
//! |---|---|---|
//! | opening: TCP within its handshake, datagrams that are no stream yet | `NEW_FLOWS` | the flow is proven |
//! | confirmed | `FLOWS`, `STREAMS`; `NEW_FLOWS` beyond a client's share | a RST, a FIN from both sides, its lifetime ends |
//! | closed | `NEW_FLOWS` | its source port is wanted, or its lifetime ends |
//!
//! TCP is proven by an acknowledgement of the SYN,ACK's sequence number, which a forger of the client's address has not
//! seen. Datagrams are proven as in netfilter: a packet follows in a later tick than the first reply.
//!
//! Each side of TCP is done once the other side acknowledges exactly the number behind its FIN. A forged FIN
//! is not acknowledged: its receiver repeats what it acknowledged before (RFC 9293 §3.10.7.4). Its number
//! would have to be where a later segment ends.
//!
//! A RST counts only near the sequence number that its receiver acknowledged last (RFC 5961 §3), and what
//! follows it opens the flow again. So a forged one costs an idle connection nothing. That number is noted
//! once a tick, and as soon as a direction is far ahead of it.
//!
//! An entry that was idle for longer than its state allows is not believed any more. The agent removes such entries from
//! the tables that evict nothing.

use super::{Tables, Work};
use crate::Ip;
use crate::maps::{Config, Flow, FlowKey, FlowState};
use crate::packet::{
    Headers, SCTP_ABORT, SCTP_COOKIE_ACK, SCTP_SHUTDOWN_COMPLETE, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN,
};
use crate::protocol;

/// Finds the entry of the packet. One that has outlived its time is forgotten, and one of a connection that is over when its
/// backend answers another one: made by the same client port to the backend itself, not through a frontend.
#[inline(always)]
pub fn find<T: Tables>(tables: &T, config: &Config, work: &mut Work) -> bool {
    if !tables.flow(&work.key, &mut work.flow) {
        return false;
    }
    let state = work.flow.state();
    if is_expired(config, &work.flow, work.key.protocol, tables.now())
        || (work.flow.is_reply != 0
            && work.headers.is_opening_answer()
            && begins_another(tables, work, state))
    {
        forget(tables, work);
        return false;
    }
    true
}

/// Whether a backend's SYN,ACK is one of another connection than the flow's. What replies to a SYN that came
/// after a RST belongs to the flow. From another machine both the RST and the SYN,ACK may be forged; a pod of
/// this node sends its own.
#[inline(always)]
fn begins_another<T: Tables>(tables: &T, work: &Work, state: FlowState) -> bool {
    state.is_over()
        || (state.has(FlowState::RESET)
            && !state.has(FlowState::SYN_AFTER_RESET)
            && tables.is_own_pod(&work.headers.src))
}

/// Whether an entry was idle for longer than its state allows. A lifetime of 0 has no end.
#[inline(always)]
pub fn is_expired(config: &Config, flow: &Flow, protocol: u8, now: u32) -> bool {
    let lifetime = config.lifetimes[flow.state().lifetime(protocol) as usize];
    lifetime != 0 && age(now, flow.seen) > lifetime
}

/// Ticks since `seen`; 0 if another CPU has noted a later tick than `now` meanwhile.
#[inline(always)]
pub const fn age(now: u32, seen: u32) -> u32 {
    let age = now.wrapping_sub(seen);
    if age > u32::MAX / 2 { 0 } else { age }
}

/// Forgets both entries of the packet's flow.
#[inline(always)]
pub fn forget<T: Tables>(tables: &T, work: &mut Work) {
    let is_protected = work.flow.state().is_protected();
    work.flow.reply_key_into(&work.key, &mut work.reply_key);
    tables.forget_flow(&work.key, is_protected);
    tables.forget_flow(&work.reply_key, is_protected);
    if is_protected {
        tables.return_share(&client_of(tables, &work.key, &work.flow), work.key.protocol);
    }
}

/// Forgets both entries of the flow in [`Work::found`], of which one has the key [`Work::reply_key`].
#[inline(always)]
pub fn forget_found<T: Tables>(tables: &T, work: &Work) {
    let is_protected = work.found.state().is_protected();
    let other = work.found.reply_key(&work.reply_key);
    tables.forget_flow(&work.reply_key, is_protected);
    tables.forget_flow(&other, is_protected);
    if is_protected {
        let client = client_of(tables, &work.reply_key, &work.found);
        tables.return_share(&client, work.reply_key.protocol);
    }
}

/// The side that began the flow, as shares are counted.
#[inline(always)]
pub fn client_of<T: Tables>(tables: &T, key: &FlowKey, flow: &Flow) -> Ip {
    let client = if flow.is_reply == 0 { key.src } else { flow.dst };
    as_counted(tables, &client)
}

/// An address as shares are counted: an IPv6 address of no pod of this node counts with its /64.
#[inline(always)]
pub fn as_counted<T: Tables>(tables: &T, address: &Ip) -> Ip {
    if address.is_v4() || tables.is_own_pod(address) {
        *address
    } else {
        // Without a network part it would count as all clients together.
        let site = address.site();
        if site.is_unspecified() { *address } else { site }
    }
}

/// Takes note of a packet of a known flow.
#[inline(always)]
pub fn advance<T: Tables>(tables: &T, work: &mut Work) {
    work.unsettled = tables.note(work);
    if work.unsettled != 0 {
        tables.settle(work);
    }
}

/// Writes the packet into the flow's entries; gives what is left to [`settle`], see [`Work::unsettled`].
#[inline(always)]
pub fn note<T: Tables>(tables: &T, work: &mut Work) -> u32 {
    let now = tables.now();
    let is_later = work.flow.seen != now;
    let Work {
        headers,
        key,
        flow,
        reply_key,
        reply,
        ..
    } = work;
    let old = flow.state;
    let new = next(flow, headers, is_later);
    let is_confirmed = FlowState(new).has(FlowState::CONFIRMED);
    let mut sequence = flow.sequence;
    let is_opening_reply = headers.is_opening_answer() && flow.is_reply != 0 && !is_confirmed;
    if is_opening_reply {
        sequence = headers.sequence.wrapping_add(1);
    }
    // A server repeats its SYN,ACK to a silent client, which must not keep the source port by that. A SYN in a
    // connection may be forged, and keeps nothing alive either.
    let is_repeated = (is_opening_reply && FlowState(old).has(FlowState::ANSWERED))
        || (headers.is_opening() && FlowState(old).has(FlowState::CONFIRMED | FlowState::RESET));
    let ends = ends(headers);
    if is_confirmed && is_far_ahead(headers, flow) {
        // The next acknowledgement seems the first one of its tick, and is noted.
        flow.reply_key_into(key, reply_key);
        let _ = tables.touch_flow(reply_key, now.wrapping_sub(1), 0, 0, 0);
    }
    if new == old && (!is_later || is_repeated) && sequence == flow.sequence && !ends {
        return 0;
    }
    if !is_repeated {
        flow.seen = now;
    }
    flow.state = new;
    flow.sequence = sequence;
    flow.reply_into(key, reply_key, reply);
    let acknowledges = headers.has_tcp_flag(TCP_ACK);
    if is_confirmed {
        reply.sequence = if acknowledges { headers.acknowledgement } else { 0 };
    }
    if ends {
        reply.fin = headers.sequence.wrapping_add(headers.payload).wrapping_add(1);
    }
    let moves = (new ^ old) & (FlowState::CONFIRMED | FlowState::CLOSED) != 0;
    if moves || FlowState(new).has(FlowState::EVICTABLE) {
        if is_confirmed && moves && acknowledges {
            flow.sequence = headers.sequence;
        }
        return u32::from(old) | Work::MOVES;
    }
    // The same for both entries, but for the sequence; one that was lost meanwhile is written again.
    let noted = reply.sequence;
    if !tables.touch_flow(key, flow.seen, new, 0, 0) {
        tables.replace_flow(key, flow);
    }
    if !tables.touch_flow(reply_key, flow.seen, new, noted, reply.fin) {
        tables.replace_flow(reply_key, reply);
    }
    // An exchange of datagrams keeps its port for some seconds, so it goes on counting.
    if (new & !old) & FlowState::ANSWERED != 0 && headers.has_connections() && !reply.src.same(&reply_key.src)
    {
        return Work::ANSWERED;
    }
    0
}

/// Does what [`advance`] has left: moves a flow to the table of its state, or notes that its client has a reply.
#[inline(always)]
pub fn settle<T: Tables>(tables: &T, config: &Config, work: &mut Work) {
    if work.unsettled & Work::MOVES != 0 {
        relocate(tables, config, work);
    } else if work.unsettled & Work::ANSWERED != 0 {
        let client = client_of(tables, &work.key, &work.flow);
        tables.note_answered(&client);
    }
    work.unsettled = 0;
}

/// Moves both entries of a flow to the table that its new state belongs to.
///
/// They are first there, then no more here: no packet finds neither. What is confirmed and finds no room, or whose client
/// has used up its share, stays where the kernel may evict it.
#[inline(always)]
fn relocate<T: Tables>(tables: &T, config: &Config, work: &mut Work) {
    let was_protected = FlowState(work.unsettled as u8).is_protected();
    let client = client_of(tables, &work.key, &work.flow);
    let Work {
        key,
        flow,
        reply_key,
        reply,
        ..
    } = work;
    flow.state &= !FlowState::EVICTABLE;
    reply.state = flow.state;
    let mut is_protected = flow.state().is_protected();
    if is_protected && !was_protected {
        is_protected = tables.take_share(config, &client, key.protocol);
        if is_protected && !(tables.replace_flow(key, flow) && tables.replace_flow(reply_key, reply)) {
            tables.forget_flow(key, true);
            tables.forget_flow(reply_key, true);
            tables.return_share(&client, key.protocol);
            is_protected = false;
        }
        if !is_protected {
            flow.state |= FlowState::EVICTABLE;
            reply.state = flow.state;
        }
    }
    if !is_protected {
        let was_evictable = FlowState(work.unsettled as u8).has(FlowState::EVICTABLE);
        let stays = was_evictable && flow.state().has(FlowState::EVICTABLE);
        // What the other direction has noted stays.
        if !(stays && tables.touch_flow(key, flow.seen, flow.state, 0, 0)) {
            tables.replace_flow(key, flow);
        }
        if !(stays && tables.touch_flow(reply_key, flow.seen, flow.state, reply.sequence, reply.fin)) {
            tables.replace_flow(reply_key, reply);
        }
    }
    if is_protected != was_protected {
        tables.forget_flow(key, was_protected);
        tables.forget_flow(reply_key, was_protected);
        if was_protected {
            tables.return_share(&client, key.protocol);
        }
    }
}

/// The state after a packet. `is_later` says that it is the first of its tick.
#[inline(always)]
const fn next(flow: &Flow, headers: &Headers, is_later: bool) -> u8 {
    let old = flow.state;
    let is_reply = flow.is_reply != 0;
    if headers.protocol != protocol::TCP {
        return next_of_datagrams(old, headers, is_reply, is_later);
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
const fn ends(headers: &Headers) -> bool {
    const FLAGS: u8 = TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN;
    headers.protocol == protocol::TCP && headers.detail & FLAGS == TCP_ACK | TCP_FIN
}

/// Whether a direction has sent so much since its last note that a RST might stand beyond [`OF_RST`].
#[inline(always)]
const fn is_far_ahead(headers: &Headers, flow: &Flow) -> bool {
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
        let ended = FlowState::CLOSED | FlowState::RESET | FlowState::SYN_AFTER_RESET | FlowState::EVICTABLE;
        return (old & !ended) | FlowState::CONFIRMED;
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
    matches!(chunk, DATA | SACK | HEARTBEAT | HEARTBEAT_ACK | SCTP_COOKIE_ACK)
}

/// As netfilter has it (`nf_conntrack_udp_packet`): what goes on after the exchange of a question and its
/// reply is a stream. The server's COOKIE ACK proves an SCTP association: only a real client returns the
/// cookie (RFC 9260 §5.1). Replies that go on prove it too.
#[inline(always)]
const fn next_of_datagrams(old: u8, headers: &Headers, is_reply: bool, is_later: bool) -> u8 {
    if headers.protocol == protocol::SCTP {
        // An end may be forged; what goes on after it opens the flow again.
        let is_end = matches!(headers.detail, SCTP_ABORT | SCTP_SHUTDOWN_COMPLETE);
        if is_end && !FlowState(old).has(FlowState::CLOSED) {
            let reset = if FlowState(old).has(FlowState::CONFIRMED) {
                FlowState::RESET
            } else {
                0
            };
            return (old | FlowState::CLOSED | reset) & !(FlowState::CONFIRMED | FlowState::EVICTABLE);
        }
        if FlowState(old).has(FlowState::RESET) {
            return if goes_on_after_end(headers.detail) {
                (old & !(FlowState::CLOSED | FlowState::RESET | FlowState::EVICTABLE)) | FlowState::CONFIRMED
            } else {
                old
            };
        }
    }
    let mut new = old;
    if is_reply {
        new |= FlowState::ANSWERED;
    }
    let goes_on = is_later && FlowState(old).has(FlowState::ANSWERED);
    let is_proven = if headers.protocol == protocol::SCTP {
        is_reply && (headers.detail == SCTP_COOKIE_ACK || goes_on)
    } else {
        goes_on
    };
    if is_proven {
        new | FlowState::CONFIRMED
    } else {
        new
    }
}

/// Whether a number acknowledges a SYN,ACK. A server may send data with it (RFC 7413), whose length is not known here. Of a
/// connection that was under way when its flow began no SYN,ACK is known.
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
        let question = crate::decide::testing::packet(protocol::UDP, ("10.0.0.1", 1), ("10.0.0.2", 2));
        let once = next_of_datagrams(FlowState::ANSWERED, &question, true, false);
        assert!(!FlowState(once).has(FlowState::CONFIRMED));
    }

    #[test]
    fn a_clock_that_another_cpu_reads_earlier_ages_nothing() {
        assert_eq!((age(7, 5), age(5, 5), age(5, 6)), (2, 0, 0));
        assert_eq!(age(3, u32::MAX), 4);
    }
}
