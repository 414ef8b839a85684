//! Local delivery: packets from one pod of this node to another go straight into it, past the node's stack.
//!
//! That saves a look at the routing table and a queue of the node's, and it leaves netfilter out: the node's rules see
//! nothing of such packets, which is why the operator has to want it (`hostRouting: redirect`). What the stack would have
//! done is done here: the time to live is one less, and what the receiver's own program would have translated is translated
//! on the spot.
//!
//! Both directions of a conversation take the same way: netfilter, seeing one of them only, would call it invalid, and rules
//! that drop such packets are common. So a pod with a limit, whose queue is on the way through the stack, has all its
//! packets there, both ways, and what comes in by an uplink goes through the stack, since what leaves by it does. The
//! stack also gets single packets that need it: those whose time to live ends, and ICMP errors, which may be about
//! translated flows.

use super::fragment::Passage;
use super::packet::answers;
use super::{Tables, Work, fragment};
use crate::Ip;
use crate::maps::{Config, ConfigFlags, Deliver, InUse, Pod, PodFlags};

/// Whether there may be a short way at all.
#[inline(always)]
pub fn is_wanted<T: Tables>(tables: &T) -> bool {
    let is_on = |config: &Config| config.has(ConfigFlags::REDIRECT_TO_PODS);
    tables.config().is_some_and(is_on) && tables.is_in_use(InUse::PODS)
}

/// What [`shorten`] made of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// As it was decided.
    Stack,
    /// It goes to [`Work::receiver`], untouched or as [`Work::flow`] said before.
    Pod,
    /// The same, but it is an answer, which becomes what [`Work::flow`] says now.
    PodAnswer,
}

/// Takes the short way, if there is one, for a packet that goes on through the stack, as it is or translated, and that came
/// out of the pod at `interface`.
#[inline(always)]
pub fn shorten<T: Tables>(tables: &T, work: &mut Work, interface: u32, is_translated: bool) -> Way {
    if !leads_to_pod(tables, work, interface, is_translated) {
        return Way::Stack;
    }
    if !is_translated && is_answer(tables, work) {
        return Way::PodAnswer;
    }
    Way::Pod
}

/// Whether the short way leads to a pod, which [`Work::receiver`] is then.
#[inline(always)]
pub fn leads_to_pod<T: Tables>(tables: &T, work: &mut Work, interface: u32, is_translated: bool) -> bool {
    if work.headers.ttl <= 1 || work.headers.is_icmp_error() {
        return false;
    }
    if is_translated && !matches!(Deliver::from_number(work.flow.deliver), Deliver::Stack) {
        return false;
    }
    let Work { headers, flow, .. } = &*work;
    let to = if is_translated { &flow.dst } else { &headers.dst };
    // One after the other: a pair of options is copied before it is known that there is something in them, which old
    // verifiers refuse.
    let Some(sender) = unlimited(tables, &headers.src) else {
        return false;
    };
    if sender.interface != interface {
        return false;
    }
    let Some(receiver) = unlimited(tables, to) else {
        return false;
    };
    // A pod that sends to itself by way of the node does not expect its own frames.
    if receiver.interface == interface {
        return false;
    }
    work.receiver = receiver;
    // In the working memory only: the next packet of the flow may have to take the other way.
    work.flow.deliver = Deliver::Pod as u8;
    true
}

/// Whether a packet that goes to a pod as it is answers to a translated flow, which the receiver's own program would see only
/// later.
#[inline(always)]
pub fn is_answer<T: Tables>(tables: &T, work: &mut Work) -> bool {
    // This is the program by which the packet enters. The later fragments meet it too.
    fragment::complete(tables, work, Passage::Entering);
    let is_answer = tables
        .config()
        .is_some_and(|config| answers(tables, config, work, Passage::Entering));
    work.flow.deliver = Deliver::Pod as u8;
    is_answer
}

/// The pod of this node that has the address, if it can do without the stack.
#[inline(always)]
fn unlimited<T: Tables>(tables: &T, address: &Ip) -> Option<Pod> {
    const LIMITED: u32 = PodFlags::LIMITED_INGRESS | PodFlags::LIMITED_EGRESS;
    tables.pod(address).filter(|pod| pod.flags & LIMITED == 0)
}
