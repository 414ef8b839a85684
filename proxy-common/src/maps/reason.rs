//! The reason for the verdict on a packet or a socket: one enum for the kernel, the metrics and the command
//! line.
//!
//! The number is an index into the per-CPU array `COUNTERS` and part of the layout. A new variant is only
//! ever added at the end.

use crate::Ip;

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $number:literal, $kind:ident, $name:literal;)+) => {
        /// The reason for the verdict on a packet or a socket.
        #[repr(u8)]
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        pub enum Reason {
            $($(#[doc = $doc])+ $variant = $number,)+
        }

        impl Reason {
            /// All reasons, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The number of reasons.
            pub const COUNT: u32 = Self::ALL.len() as u32;

            /// The reason with this number.
            #[inline(always)]
            pub const fn from_number(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)+ _ => None }
            }

            /// The reason's name in metrics and in the command line's output.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// A description of the reason for users.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+),)+ }
            }

            /// Whether a packet with this reason is dropped, with or without a message to its sender.
            pub const fn is_drop(self) -> bool {
                match self { $(Self::$variant => reasons!(@drop $kind),)+ }
            }

            /// Whether the sender of such a packet gets a TCP RST or an ICMP error.
            pub const fn is_reject(self) -> bool {
                match self { $(Self::$variant => reasons!(@reject $kind),)+ }
            }
        }
    };
    (@drop keep) => { false };
    (@drop $other:ident) => { true };
    (@reject reject) => { true };
    (@reject $other:ident) => { false };
}

reasons! {
    /// Not addressed to a service, left to the kernel.
    NotOurs = 0, keep, "not_ours";
    /// Neither IPv4 nor IPv6, or a protocol without ports, left to the kernel.
    NotBalanced = 1, keep, "not_balanced";
    /// Headers that contradict each other or end too early, left to the kernel, which drops them.
    Malformed = 2, keep, "malformed";
    /// A later fragment, left to the kernel.
    Fragment = 3, keep, "fragment";
    /// A new flow was given a backend.
    NewFlow = 4, keep, "new_flow";
    /// A packet of an established flow.
    Established = 5, keep, "established";
    /// A reply, translated back.
    Reply = 6, keep, "reply";
    /// The flow's backend is gone, and the flow was given another one.
    Moved = 7, keep, "moved";
    /// An ICMP echo request to a virtual address got a reply.
    EchoReply = 8, keep, "echo_reply";
    /// A socket was connected to a backend.
    SocketConnect = 9, keep, "socket_connect";
    /// A datagram of an unconnected socket was sent to a backend.
    SocketSend = 10, keep, "socket_send";
    /// The service has no usable endpoint.
    NoEndpoints = 11, reject, "no_endpoints";
    /// The traffic policy is Local and no endpoint is on this node.
    NoLocalEndpoints = 12, drop, "no_local_endpoints";
    /// No service has this port on this virtual address.
    NoSuchPort = 13, reject, "no_such_port";
    /// No service has this address, which lies in a service range.
    NoSuchService = 14, drop, "no_such_service";
    /// No source port was free for a flow that needs another one.
    NoSourcePort = 15, drop, "no_source_port";
    /// The node has no address of this family to masquerade with.
    NoNodeAddress = 16, drop, "no_node_address";
    /// The translated packet has no route.
    NoRoute = 17, drop, "no_route";
    /// The kernel refused to change the packet.
    RewriteFailed = 18, drop, "rewrite_failed";
    /// The packet's time to live ended here; its sender gets an ICMP error.
    TtlExceeded = 19, reject, "ttl_exceeded";
    /// The tables changed twice in a row while the packet was handled.
    Inconsistent = 20, drop, "inconsistent";
    /// A later fragment of a datagram to a virtual address, whose first fragment was not seen before it.
    FragmentBeforeFirst = 21, drop, "fragment_before_first";
    /// A socket's `connect()` was refused, because the service has no usable endpoint.
    SocketRefused = 22, drop, "socket_refused";
    /// The client is in none of the ranges that the load balancer's address is open to.
    SourceNotAllowed = 23, drop, "source_not_allowed";
    /// An ICMP error that belongs to a translated flow.
    RelatedError = 24, keep, "related_error";
    /// The connection's backend was removed, and its service wants such connections reset.
    BackendRemoved = 25, reject, "backend_removed";
    /// The packet is too large for its output device; its sender gets an ICMP error.
    TooBig = 26, reject, "too_big";
    /// More refusals than are sent in a second.
    RateLimited = 27, drop, "rate_limited";
    /// A process of the node was not allowed to bind a node port.
    BindRefused = 28, drop, "bind_refused";
    /// A pod sent from an address that is not its own, or from another hardware address.
    SpoofedSource = 29, drop, "spoofed_source";
    /// The source address may not enter here: it is virtual, of this node or a pod of it, or of no single
    /// host. For a client of a service, this includes link-local addresses.
    ForgedSource = 30, drop, "forged_source";
    /// A frame of a VLAN, left to that VLAN's device.
    Tagged = 31, keep, "tagged";
    /// A frame with further tags behind a priority tag, all of which the kernel would remove.
    Retagged = 32, drop, "retagged";
    /// A frame that is addressed to another host, left to the kernel.
    OtherHost = 33, keep, "other_host";
    /// A pod sends to the port of a node's tunnel, or a service leads there, or a service's replies would go
    /// there.
    TunnelPort = 34, drop, "tunnel_port";
    /// A packet for the tunnel is not from a node, or carries a packet that the node may not send.
    TunnelSource = 35, drop, "tunnel_source";
    /// The output device of the route back to the client is another interface, and this one has strict
    /// reverse-path filtering.
    ReversePath = 36, drop, "reverse_path";
    /// The client has as many flows without a reply as its share of source ports allows.
    SourcePortShare = 37, drop, "source_port_share";
    /// A datagram between ports of services at addresses of nodes, to which two servers would reply without
    /// end.
    ReplyLoop = 38, drop, "reply_loop";
    /// A pod's packet to the world outside that cannot get the node's address.
    NotMasqueraded = 39, drop, "not_masqueraded";
    /// An IPv6 packet from or to an IPv4-mapped address.
    MappedAddress = 40, drop, "mapped_address";
    /// The pod has sent to as many new neighbours of the node as its share of neighbour entries allows.
    NeighbourShare = 41, drop, "neighbour_share";
    /// A pod or a host outside sent to a loopback address.
    LoopbackDestination = 42, drop, "loopback_destination";
    /// A pod's packet whose checksum is left to the NIC, which would write it over the headers.
    OffloadedChecksum = 43, drop, "offloaded_checksum";
}

/// Value of `COUNTERS`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counter {
    /// Packets, or socket calls.
    pub packets: u64,
    /// Bytes; 0 for socket calls.
    pub bytes: u64,
}

const _: () = assert!(size_of::<Counter>() == 16);

/// Value of `REFUSALS`: the number of refusals that one group of senders got in a tick.
///
/// The last byte of a pod's address is the group of a pod of this node. All other senders are in a group by a
/// hash, from [`Refusals::OTHERS`] on. So a flood takes the refusals of few other senders.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Refusals {
    /// The window of the count: a tick, see [`crate::Tables::now`].
    pub window: u32,
    /// The number of refusals.
    pub count: u32,
}

impl Refusals {
    /// The most that a group gets in a tick on each CPU. The kernel's own limit for all senders is 1000 a
    /// second (`net.ipv4.icmp_msgs_per_sec`).
    pub const MOST: u32 = 250;
    /// The first group of senders that are not pods of this node.
    pub const OTHERS: u32 = 256;
    /// The group that counts all senders of [`Refusals::OTHERS`] together.
    pub const ALL_OTHERS: u32 = 512;
    /// The most that these get together in a tick on each CPU: any of them may have forged its address.
    pub const MOST_OF_OTHERS: u32 = 1000;
    /// The number of groups.
    pub const GROUPS: u32 = 513;

    /// The group of a sender.
    #[inline(always)]
    pub const fn group(sender: &Ip, is_own_pod: bool) -> u32 {
        if is_own_pod {
            return u32::from_be(sender.v4_word()) & 0xff;
        }
        let folded = if sender.is_v4() {
            sender.v4_word()
        } else {
            let [high, low, ..] = sender.site().v6_words();
            high ^ low.rotate_left(16)
        };
        Self::OTHERS + (folded.wrapping_mul(0x9e37_79b1) >> 24)
    }

    /// Counts one more refusal; false if that exceeds `most`.
    #[inline(always)]
    pub const fn another(&mut self, now: u32, most: u32) -> bool {
        if self.window != now {
            self.window = now;
            self.count = 0;
        }
        self.count += 1;
        self.count <= most
    }
}

const _: () = assert!(size_of::<Refusals>() == 8);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::testing::ip;

    #[test]
    fn pods_get_refusals_of_their_own() {
        let of = |text: &str, is_own_pod| Refusals::group(&ip(text), is_own_pod);
        assert_eq!(of("10.244.1.2", true), 2);
        assert_eq!(of("fd00:244:1::3", true), 3);
        for sender in [
            "10.244.1.2",
            "203.0.113.9",
            "2001:db8::1",
            "::",
            "255.255.255.255",
        ] {
            let group = of(sender, false);
            assert!(
                (Refusals::OTHERS..Refusals::ALL_OTHERS).contains(&group),
                "{sender}: {group}"
            );
        }
        assert_eq!(of("2001:db8::1", false), of("2001:db8::2", false), "one client");
        assert_ne!(of("203.0.113.9", false), of("203.0.113.10", false));
    }

    #[test]
    fn numbers_are_indices() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
        }
    }

    #[test]
    fn refusals_are_limited_by_tick() {
        let mut refusals = Refusals::default();
        let sent = |refusals: &mut Refusals, now| (0..2000).filter(|_| refusals.another(now, 250)).count();
        assert_eq!(sent(&mut refusals, 7), 250);
        assert_eq!(sent(&mut refusals, 7), 0);
        assert_eq!(sent(&mut refusals, 8), 250);
    }
}
