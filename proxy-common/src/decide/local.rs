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
    if work.headers.ttl <= 1 || work.headers.is_icmp_error() {
        return Way::Stack;
    }
    if is_translated && !matches!(Deliver::from_number(work.flow.deliver), Deliver::Stack) {
        return Way::Stack;
    }
    let Work { headers, flow, .. } = &*work;
    let to = if is_translated { &flow.dst } else { &headers.dst };
    let (Some(receiver), Some(sender)) = (unlimited(tables, to), unlimited(tables, &headers.src)) else {
        return Way::Stack;
    };
    // A pod that sends to itself by way of the node does not expect its own frames.
    if sender.interface != interface || receiver.interface == interface {
        return Way::Stack;
    }
    work.receiver = receiver;
    let mut way = Way::Pod;
    if !is_translated {
        // The receiver's own program would see an answer to a translated flow only now.
        fragment::complete(tables, work);
        let Some(config) = tables.config() else {
            return Way::Stack;
        };
        if answers(tables, config, work) {
            way = Way::PodAnswer;
        }
    }
    // In the working memory only: the next packet of the flow may have to take the other way.
    work.flow.deliver = Deliver::Pod as u8;
    way
}

/// The pod of this node that has the address, if it can do without the stack.
#[inline(always)]
fn unlimited<T: Tables>(tables: &T, address: &Ip) -> Option<Pod> {
    const LIMITED: u32 = PodFlags::LIMITED_INGRESS | PodFlags::LIMITED_EGRESS;
    tables.pod(address).filter(|pod| pod.flags & LIMITED == 0)
}
