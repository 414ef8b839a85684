//! Why a packet or a socket went where it went: one enum for the kernel, the metrics and the command line.
//!
//! The number is an index into the per-CPU array `COUNTERS` and part of the layout: variants are only ever added at
//! the end.

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $number:literal, $kind:ident, $name:literal;)+) => {
        /// Why a packet or a socket went where it went.
        #[repr(u8)]
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        pub enum Reason {
            $($(#[doc = $doc])+ $variant = $number,)+
        }

        impl Reason {
            /// All reasons, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// How many there are.
            pub const COUNT: u32 = Self::ALL.len() as u32;

            /// The reason's name in metrics and in the command line's output.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// What the reason means, for people.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+),)+ }
            }

            /// Whether a packet with this reason ends here, with an answer or without one.
            pub const fn is_drop(self) -> bool {
                match self { $(Self::$variant => reasons!(@drop $kind),)+ }
            }

            /// Whether the sender of such a packet is told: by a TCP RST, or an ICMP port unreachable.
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
    /// An answer, translated back.
    Reply = 6, keep, "reply";
    /// The flow's backend is gone, and it was given another.
    Moved = 7, keep, "moved";
    /// An ICMP echo request to a virtual address was answered.
    EchoReply = 8, keep, "echo_reply";
    /// A socket was connected to a backend.
    SocketConnect = 9, keep, "socket_connect";
    /// A datagram of an unconnected socket was addressed to a backend.
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
    /// The packet's time to live ended here.
    TtlExceeded = 19, drop, "ttl_exceeded";
    /// The tables changed under the packet twice in a row.
    Inconsistent = 20, drop, "inconsistent";
    /// A fragment of a datagram to a virtual address.
    FragmentToService = 21, drop, "fragment_to_service";
    /// A socket's `connect()` was refused, because the service has no usable endpoint.
    SocketRefused = 22, drop, "socket_refused";
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_indices() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
        }
    }
}
