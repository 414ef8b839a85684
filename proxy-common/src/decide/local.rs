//! Local delivery: packets from one pod of this node to another go straight into it, past the node's stack.
//!
//! This saves a route look-up and a queue of the node. It also bypasses netfilter: the node's rules do not
//! see such packets, so the operator has to enable it (`hostRouting: redirect`). The program does the work of
//! the stack: it decrements the time to live, and it applies the translation of the receiver's own program.
//!
//! Both directions of a connection take the same path. If netfilter saw only one direction, it would call the
//! connection invalid, and rules that drop such packets are common. So all packets of a pod with a limit go
//! through the stack in both directions, because the pod's queue is on that path. Packets that come in by an
//! uplink go through the stack too, since their replies do. The stack also gets single packets that need it.
//! These are packets whose time to live ends, and ICMP errors, which may be about translated flows.

use super::fragment::Passage;
use super::packet::is_reply_of_flow;
use super::{PacketContext, Tables, fragment};
use crate::Ip;
use crate::maps::{Config, ConfigFlags, Deliver, InUse, Pod, PodFlags};

/// Whether local delivery is possible at all.
#[inline(always)]
pub fn is_enabled<T: Tables>(tables: &T) -> bool {
    let is_on = |config: &Config| config.has(ConfigFlags::REDIRECT_TO_PODS);
    tables.config().is_some_and(is_on) && tables.is_in_use(InUse::PODS)
}

/// The path of a packet after [`deliver_locally`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LocalDelivery {
    /// The packet stays on the path of its verdict.
    Stack,
    /// The packet goes to [`PacketContext::receiver`], unchanged or translated as [`PacketContext::flow`]
    /// already said.
    Pod,
    /// As `Pod`, but the packet is a reply, which [`PacketContext::flow`] now translates.
    PodReply,
}

/// Chooses local delivery, where possible, for a packet that came out of the pod at `interface`. Without it,
/// the packet would continue through the stack, unchanged or translated.
#[inline(always)]
pub fn deliver_locally<T: Tables>(
    tables: &T,
    ctx: &mut PacketContext,
    interface: u32,
    is_translated: bool,
) -> LocalDelivery {
    if !leads_to_pod(tables, ctx, interface, is_translated) {
        return LocalDelivery::Stack;
    }
    if !is_translated && is_reply(tables, ctx) {
        return LocalDelivery::PodReply;
    }
    LocalDelivery::Pod
}

/// Whether local delivery leads to a pod. If so, it sets [`PacketContext::receiver`].
#[inline(always)]
pub fn leads_to_pod<T: Tables>(
    tables: &T,
    ctx: &mut PacketContext,
    interface: u32,
    is_translated: bool,
) -> bool {
    if ctx.headers.ttl <= 1 || ctx.headers.is_icmp_error() {
        return false;
    }
    if is_translated && !matches!(Deliver::from_number(ctx.flow.deliver), Deliver::Stack) {
        return false;
    }
    let PacketContext { headers, flow, .. } = &*ctx;
    let to = if is_translated { &flow.dst } else { &headers.dst };
    // The look-ups follow each other. A pair of options would be copied before the code checks that they
    // contain values, and old verifiers refuse that.
    let Some(sender) = unlimited(tables, &headers.src) else {
        return false;
    };
    if sender.interface != interface {
        return false;
    }
    let Some(receiver) = unlimited(tables, to) else {
        return false;
    };
    // A pod that sends to itself through the node does not expect its own frames.
    if receiver.interface == interface {
        return false;
    }
    ctx.receiver = receiver;
    // Only the packet context holds this: the next packet of the flow may have to go through the stack.
    ctx.flow.deliver = Deliver::Pod as u8;
    true
}

/// Whether an unchanged packet to a pod is a reply of a translated flow. The receiver's own program would see
/// it only later.
#[inline(always)]
pub fn is_reply<T: Tables>(tables: &T, ctx: &mut PacketContext) -> bool {
    // This is the program by which the packet enters. It also sees the later fragments.
    fragment::complete(tables, ctx, Passage::Entering);
    let is_reply = tables
        .config()
        .is_some_and(|config| is_reply_of_flow(tables, config, ctx, Passage::Entering));
    ctx.flow.deliver = Deliver::Pod as u8;
    is_reply
}

/// The pod of this node that has the address, if it has no limit that needs the stack.
#[inline(always)]
fn unlimited<T: Tables>(tables: &T, address: &Ip) -> Option<Pod> {
    const LIMITED: u32 = PodFlags::LIMITED_INGRESS | PodFlags::LIMITED_EGRESS;
    tables.pod(address).filter(|pod| pod.flags & LIMITED == 0)
}
