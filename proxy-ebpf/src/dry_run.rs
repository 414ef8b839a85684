//! Dry runs: `millrace trace` runs the live program over a packet that does not exist.
//!
//! The agent arms the cell `TRACE` with a random nonce, and `BPF_PROG_TEST_RUN` writes the same nonce into
//! the packet's control block. Only a packet with both is a dry run. It changes no map and sends no packet.
//! It returns the decision in the rest of its control block. No packet from the network can set a value in
//! the control block.

use proxy_common::decide::PacketContext;
use proxy_common::decide::packet::Decision;
use proxy_common::maps::Reason;

use crate::kernel::{Skb, read};
use crate::maps::TRACE;

/// The value of `cb[2]`: the kind of the decision in the low byte, and the reason in the next one. The third
/// byte is 1 if the source is exchanged.
#[inline(always)]
fn outcome(kind: u32, reason: Reason, masquerade: bool) -> u32 {
    kind | (reason as u32) << 8 | u32::from(masquerade) << 16
}

/// Whether the packet is a dry run.
#[inline(always)]
pub fn is_marked(skb: &Skb<'_>) -> bool {
    let nonce = TRACE.get_ptr(0).map_or(0, |cell| read(cell).nonce);
    nonce != 0 && skb.control::<0>() == nonce as u32 && skb.control::<1>() == (nonce >> 32) as u32
}

/// Reports a decision: `cb[2]` is [`outcome`], `cb[3]` the backend's id, `cb[4]` the service's.
#[inline(always)]
pub fn report(skb: &Skb<'_>, ctx: &PacketContext, decision: Decision) {
    match decision {
        Decision::Deliver => skb.set_control::<2>(outcome(1, Reason::NotOurs, false)),
        Decision::Pass(reason) => skb.set_control::<2>(outcome(1, reason, false)),
        Decision::Drop(reason) => skb.set_control::<2>(outcome(2, reason, false)),
        Decision::Echo => skb.set_control::<2>(outcome(3, Reason::EchoReply, false)),
        Decision::TranslateError => skb.set_control::<2>(outcome(1, Reason::RelatedError, false)),
        Decision::Translate(reason) => {
            let masquerade = !ctx.flow.src.same(&ctx.headers.src);
            skb.set_control::<2>(outcome(4, reason, masquerade));
            skb.set_control::<3>(ctx.flow.backend);
            skb.set_control::<4>(ctx.flow.service);
        }
    }
}

/// Reports that the packet passed before any decision.
#[inline(always)]
pub fn report_unparsed(skb: &Skb<'_>, reason: Reason) {
    skb.set_control::<2>(outcome(1, reason, false));
}
