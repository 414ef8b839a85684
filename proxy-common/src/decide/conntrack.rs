//! How flows are remembered, and how they end.
//!
//! A flow has an entry for either direction, see [`crate::maps::Flow`]. Its state moves with the packets that pass:
//!
//! | state | entries lie in | until |
//! |---|---|---|
//! | opening: not answered, or TCP within its handshake | `NEW_FLOWS` | both sides have spoken |
//! | confirmed | `FLOWS` | a RST, or a FIN from both sides |
//! | closed | `NEW_FLOWS` | its source port is wanted, or its lifetime ends |
//!
//! Nothing scans the tables. An entry that was idle for longer than its state allows is not believed any more, and the
//! one that was used least recently is given up where there is no room.

use super::{Tables, Work};
use crate::maps::{Config, Flow, FlowState};
use crate::packet::{Headers, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN};
use crate::protocol;

/// Finds the entry of the packet. One that has outlived its time is forgotten, and one of a connection that is over when its
/// backend answers another one: made by the same client port to the backend itself, not through a frontend.
#[inline(always)]
pub fn find<T: Tables>(tables: &T, config: &Config, work: &mut Work) -> bool {
    if !tables.flow(&work.key, &mut work.flow) {
        return false;
    }
    let is_over = work.flow.state().has(FlowState::CLOSED) && work.flow.is_reply != 0;
    if is_expired(config, &work.flow, work.key.protocol, tables.now())
        || (is_over && work.headers.is_opening_answer())
    {
        forget(tables, work);
        return false;
    }
    true
}

/// Whether an entry was idle for longer than its state allows. A lifetime of 0 has no end.
#[inline(always)]
pub fn is_expired(config: &Config, flow: &Flow, protocol: u8, now: u32) -> bool {
    let lifetime = config.lifetimes[flow.state().lifetime(protocol) as usize];
    lifetime != 0 && now.wrapping_sub(flow.seen) > lifetime
}

/// Forgets both entries of the packet's flow.
#[inline(always)]
pub fn forget<T: Tables>(tables: &T, work: &mut Work) {
    let confirmed = work.flow.state().has(FlowState::CONFIRMED);
    work.reply_key = work.flow.reply_key(&work.key);
    tables.forget_flow(&work.key, confirmed);
    tables.forget_flow(&work.reply_key, confirmed);
}

/// Takes note of a packet of a known flow.
#[inline(always)]
pub fn advance<T: Tables>(tables: &T, work: &mut Work) {
    let old = work.flow.state;
    let new = next(old, &work.headers, work.flow.is_reply != 0);
    let now = tables.now();
    if new == old && work.flow.seen == now {
        return;
    }
    let Work {
        key,
        flow,
        reply_key,
        reply,
        ..
    } = work;
    flow.seen = now;
    flow.state = new;
    *reply_key = flow.reply_key(key);
    *reply = flow.reply(key);
    if (new ^ old) & FlowState::CONFIRMED == 0 {
        // The same for both entries; one that was evicted meanwhile is written again.
        if !tables.touch_flow(key, now, new) {
            tables.replace_flow(key, flow);
        }
        if !tables.touch_flow(reply_key, now, new) {
            tables.replace_flow(reply_key, reply);
        }
        return;
    }
    // First there, then not here any more: no packet finds neither.
    tables.replace_flow(key, flow);
    tables.replace_flow(reply_key, reply);
    let confirmed = FlowState(old).has(FlowState::CONFIRMED);
    tables.forget_flow(key, confirmed);
    tables.forget_flow(reply_key, confirmed);
}

/// The state after a packet.
#[inline(always)]
const fn next(old: u8, headers: &Headers, is_reply: bool) -> u8 {
    if FlowState(old).has(FlowState::CLOSED) {
        return old;
    }
    let mut new = old;
    if is_reply {
        new |= FlowState::ANSWERED;
    }
    if headers.protocol != protocol::TCP {
        return if is_reply { new | FlowState::CONFIRMED } else { new };
    }
    if headers.detail & TCP_FIN != 0 {
        new |= if is_reply {
            FlowState::BACKEND_DONE
        } else {
            FlowState::CLIENT_DONE
        };
    }
    let both_done = FlowState::CLIENT_DONE | FlowState::BACKEND_DONE;
    if headers.detail & TCP_RST != 0 || new & both_done == both_done {
        return (new | FlowState::CLOSED) & !FlowState::CONFIRMED;
    }
    let acknowledges = headers.detail & (TCP_SYN | TCP_ACK) == TCP_ACK;
    if !is_reply && acknowledges && new & FlowState::ANSWERED != 0 {
        new |= FlowState::CONFIRMED;
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::maps::Lifetime;

    fn after(packets: &[(bool, u8)], protocol: u8) -> Lifetime {
        let mut state = 0;
        for (is_reply, flags) in packets {
            let mut headers = crate::decide::testing::packet(protocol, ("10.0.0.1", 1), ("10.0.0.2", 2));
            headers.detail = *flags;
            state = next(state, &headers, *is_reply);
        }
        FlowState(state).lifetime(protocol)
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
            (&[syn, syn_ack, client, client_fin], Lifetime::Closing),
            (
                &[syn, syn_ack, client, backend_fin, backend, client],
                Lifetime::Closing,
            ),
            (&[syn, syn_ack, client, backend_fin, client_fin], Lifetime::Closed),
            (
                &[syn, syn_ack, client, backend_fin, client_fin, backend],
                Lifetime::Closed,
            ),
            (&[syn, rst], Lifetime::Closed),
            (&[syn, syn_ack, client, (false, TCP_RST)], Lifetime::Closed),
        ] {
            assert_eq!(after(packets, protocol::TCP), lifetime, "{packets:?}");
        }
    }

    #[test]
    fn datagrams_are_confirmed_by_an_answer() {
        assert_eq!(
            after(&[(false, 0), (false, 0)], protocol::UDP),
            Lifetime::Datagram
        );
        assert_eq!(after(&[(false, 0), (true, 0)], protocol::UDP), Lifetime::Stream);
        assert_eq!(after(&[(false, 0), (true, 0)], protocol::SCTP), Lifetime::Open);
    }
}
