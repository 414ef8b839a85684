//! Conntrack: the entries of flows, for packets that are translated one by one.
//!
//! A flow has two entries of one type: one for the packets of the client, and one for the replies of the
//! backend. Each entry holds the complete translation of such a packet. So an established packet takes one
//! look-up and one rewrite in either direction. Neither entry refers to the other. If one is lost, the
//! programs write it again from the other one when the coarse clock next ticks.
//!
//! A flow begins in `NEW_FLOWS`, where the kernel evicts the entry that was used least recently. Once the
//! flow is proven, it moves to a table that evicts nothing. That is `FLOWS` for a connection past its
//! handshake, and `STREAMS` for datagrams in both directions that go on after a question and its reply. The
//! agent removes the expired entries of these tables. A client has a share of them. A flow beyond that share,
//! or one that finds its table full, stays in `NEW_FLOWS`. A flow that is over moves back there too.

use super::Lifetime;
use crate::{Ip, Port};

/// Where a translated packet goes next.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Deliver {
    /// On through the kernel's stack, which forwards it.
    Stack = 0,
    /// Back out of the interface by which it came in: a pod that sends to itself.
    SameInterface = 1,
    /// Into the node's own stack, by the device that holds the routes of the virtual addresses.
    Host = 2,
    /// Out by the output device of the route. Most of these packets have the node's own address as source.
    /// The stack would take them for spoofed if it saw them come in.
    Route = 3,
    /// Into the node's own stack by the loopback. These packets go from one of the node's addresses to
    /// another, and the stack takes them from there only.
    Loopback = 4,
    /// Straight into a pod of this node. No conntrack entry stores this value: it is decided for each packet.
    Pod = 5,
}

impl Deliver {
    /// From the number in [`Flow::deliver`].
    #[inline(always)]
    pub const fn from_number(number: u8) -> Self {
        match number {
            1 => Self::SameInterface,
            2 => Self::Host,
            3 => Self::Route,
            4 => Self::Loopback,
            5 => Self::Pod,
            _ => Self::Stack,
        }
    }
}

/// A packet's addresses, ports and protocol before translation.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FlowKey {
    /// Source address.
    pub src: Ip,
    /// Destination address.
    pub dst: Ip,
    /// Source port.
    pub sport: Port,
    /// Destination port.
    pub dport: Port,
    /// IP protocol number.
    pub protocol: u8,
    /// Zero. There are two fields, because LLVM clears an array of three bytes by a function call.
    pub reserved: u8,
    /// Zero.
    pub reserved2: u16,
}

impl FlowKey {
    /// The key of a packet.
    #[inline(always)]
    pub const fn new(src: Ip, dst: Ip, sport: Port, dport: Port, protocol: u8) -> Self {
        Self {
            src,
            dst,
            sport,
            dport,
            protocol,
            reserved: 0,
            reserved2: 0,
        }
    }

    /// The key of a packet from the receiver to the sender, if neither is translated.
    #[inline(always)]
    #[must_use]
    pub const fn reversed(&self) -> Self {
        Self::new(self.dst, self.src, self.dport, self.sport, self.protocol)
    }
}

/// The translation of a packet: DNAT, SNAT or both.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flow {
    /// New source address.
    pub src: Ip,
    /// New destination address.
    pub dst: Ip,
    /// New source port.
    pub sport: Port,
    /// New destination port.
    pub dport: Port,
    /// The id of the backend, or one of the numbers that no backend has: [`Flow::MASQUERADED`],
    /// [`Flow::DIRECT`], [`Flow::TO_HOST_PORT`].
    pub backend: u32,
    /// The generation of the backend, or of the host port, when it was chosen.
    pub generation: u32,
    /// The service port.
    pub service: u32,
    /// Coarse time of last use, see [`crate::Tables::now`].
    pub seen: u32,
    /// TCP, in host order; 0 if unknown. Before the flow is confirmed, both entries hold the acknowledgement
    /// number that completes the handshake. After that it is the last number that the other side has
    /// acknowledged. A RST of this direction has to stand there.
    pub sequence: u32,
    /// TCP, in host order: the number by which packets of this entry acknowledge the other side's FIN. 0 if
    /// there was none.
    pub fin: u32,
    /// [`Deliver`] as a number.
    pub deliver: u8,
    /// [`Deliver`] of the packets in the other direction.
    pub reply_deliver: u8,
    /// 1 if this is the entry of the backend's replies, 0 if it is the client's.
    pub is_reply: u8,
    /// [`FlowState`].
    pub state: u8,
}

/// Bits of [`Flow::state`]: the progress of the flow. Both entries have the same bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FlowState(pub u8);

impl FlowState {
    /// The backend has replied.
    pub const SEEN_REPLY: u8 = 1;
    /// The flow is proven: the handshake is complete, or datagrams went both ways for some time.
    pub const CONFIRMED: u8 = 2;
    /// The client has sent its last byte.
    pub const CLIENT_DONE: u8 = 4;
    /// The backend has sent its last byte.
    pub const BACKEND_DONE: u8 = 8;
    /// The connection was reset, or both sides are done.
    pub const CLOSED: u8 = 16;
    /// Only a RST has closed the connection. A later segment opens it again.
    pub const RESET: u8 = 32;
    /// The entries are in `NEW_FLOWS` although the flow is confirmed: its client's share is used up, or the
    /// table is full.
    pub const EVICTABLE: u8 = 64;
    /// After the RST, the client has sent a SYN.
    pub const SYN_AFTER_RESET: u8 = 128;

    /// Whether a bit is set.
    #[inline(always)]
    pub const fn has(self, bit: u8) -> bool {
        self.0 & bit != 0
    }

    /// Whether the connection is over for certain. A RST alone may be forged.
    #[inline(always)]
    pub const fn is_over(self) -> bool {
        self.0 & (Self::CLOSED | Self::RESET) == Self::CLOSED
    }

    /// Whether the entries are in a table that evicts nothing, `FLOWS` or `STREAMS`.
    #[inline(always)]
    pub const fn is_protected(self) -> bool {
        self.0 & (Self::CONFIRMED | Self::EVICTABLE) == Self::CONFIRMED
    }

    /// The lifetime of an idle flow in this state.
    #[inline(always)]
    pub const fn lifetime(self, protocol: u8) -> Lifetime {
        if self.has(Self::RESET) {
            // A forged RST must not shorten the life of an idle connection.
            Lifetime::Open
        } else if self.has(Self::CLOSED) {
            Lifetime::Closed
        } else if matches!(
            protocol,
            crate::protocol::UDP | crate::protocol::ICMP | crate::protocol::ICMPV6
        ) {
            if self.has(Self::CONFIRMED) {
                Lifetime::Stream
            } else {
                Lifetime::Datagram
            }
        } else if self.has(Self::CLIENT_DONE | Self::BACKEND_DONE) {
            Lifetime::Closing
        } else if self.has(Self::CONFIRMED) {
            Lifetime::Open
        } else {
            Lifetime::Opening
        }
    }
}

const _: () = assert!(size_of::<FlowKey>() == 40);
const _: () = assert!(size_of::<Flow>() == 64);

impl Flow {
    /// In place of a backend: a pod's flow to the world outside, which carries the node's address.
    pub const MASQUERADED: u32 = u32::MAX;
    /// In place of a backend: a flow from outside to a pod's own address. It is not translated. Its entry
    /// tells its replies from a flow of the pod's own.
    pub const DIRECT: u32 = u32::MAX - 1;
    /// In place of a backend: a flow to a host port.
    pub const TO_HOST_PORT: u32 = u32::MAX - 2;

    /// Whether the entry applies only to packets that leave the node.
    #[inline(always)]
    pub const fn is_for_egress(&self) -> bool {
        self.backend == Self::DIRECT || (self.backend == Self::MASQUERADED && self.is_reply == 0)
    }

    /// The identifier of an ICMP echo after translation. It is one of the two ports, and the other one is 0.
    #[inline(always)]
    pub const fn echo_id(&self) -> Port {
        Port::from_raw(self.sport.raw() | self.dport.raw())
    }

    /// The state.
    #[inline(always)]
    pub const fn state(&self) -> FlowState {
        FlowState(self.state)
    }

    /// An entry that translates nothing.
    pub const EMPTY: Self = Self {
        src: Ip::UNSPECIFIED,
        dst: Ip::UNSPECIFIED,
        sport: Port::new(0),
        dport: Port::new(0),
        backend: 0,
        generation: 0,
        service: 0,
        seen: 0,
        sequence: 0,
        fin: 0,
        deliver: 0,
        reply_deliver: 0,
        is_reply: 0,
        state: 0,
    };

    /// As [`Self::reply_key`] and [`Self::reply`], but field by field into memory of the caller: a program's
    /// stack is too small.
    #[inline(always)]
    pub const fn reply_into(&self, key: &FlowKey, reply_key: &mut FlowKey, reply: &mut Self) {
        self.reply_key_into(key, reply_key);
        reply.src = key.dst;
        reply.dst = key.src;
        reply.sport = key.dport;
        reply.dport = key.sport;
        reply.backend = self.backend;
        reply.generation = self.generation;
        reply.service = self.service;
        reply.seen = self.seen;
        reply.sequence = self.sequence;
        reply.fin = 0;
        reply.deliver = self.reply_deliver;
        reply.reply_deliver = self.deliver;
        reply.is_reply = self.is_reply ^ 1;
        reply.state = self.state;
    }

    /// As [`Self::reply_key`], but into memory of the caller.
    #[inline(always)]
    pub const fn reply_key_into(&self, key: &FlowKey, reply_key: &mut FlowKey) {
        reply_key.src = self.dst;
        reply_key.dst = self.src;
        reply_key.sport = self.dport;
        reply_key.dport = self.sport;
        reply_key.protocol = key.protocol;
        reply_key.reserved = 0;
        reply_key.reserved2 = 0;
    }

    /// The key of the packets in the other direction. `key` is the key of this entry.
    #[inline(always)]
    pub const fn reply_key(&self, key: &FlowKey) -> FlowKey {
        FlowKey::new(self.dst, self.src, self.dport, self.sport, key.protocol)
    }

    /// The entry of those packets. Applied twice, it returns the first key and entry.
    #[inline(always)]
    #[must_use]
    pub const fn reply(&self, key: &FlowKey) -> Self {
        Self {
            src: key.dst,
            dst: key.src,
            sport: key.dport,
            dport: key.sport,
            deliver: self.reply_deliver,
            reply_deliver: self.deliver,
            is_reply: self.is_reply ^ 1,
            fin: 0,
            ..*self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reply_of_the_reply_is_the_flow() {
        let ip = |n| Ip::from_v4_word(n);
        let key = FlowKey::new(ip(1), ip(2), Port::new(1000), Port::new(80), 6);
        let flow = Flow {
            src: ip(3),
            dst: ip(4),
            sport: Port::new(61_000),
            dport: Port::new(8080),
            backend: 7,
            generation: 8,
            service: 9,
            seen: 10,
            sequence: 11,
            fin: 0,
            deliver: Deliver::Route as u8,
            reply_deliver: Deliver::Host as u8,
            is_reply: 0,
            state: 0,
        };
        let (reply_key, reply) = (flow.reply_key(&key), flow.reply(&key));
        assert_eq!((reply_key.src, reply_key.dport), (ip(4), Port::new(61_000)));
        assert_eq!(
            (reply.src, reply.dst, reply.dport),
            (ip(2), ip(1), Port::new(1000))
        );
        let (mut key_there, mut there) = (key, Flow::EMPTY);
        flow.reply_into(&key, &mut key_there, &mut there);
        assert_eq!((key_there, there), (reply_key, reply));
        assert_eq!(
            (reply.reply_key(&reply_key), reply.reply(&reply_key)),
            (key, flow)
        );
    }
}
