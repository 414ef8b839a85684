//! Header layouts, as fields of plain integers in network order.

/// The IPv4 header (RFC 791), without options.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Ipv4Header {
    /// Version and header length in words.
    pub version_ihl: u8,
    /// Type of service.
    pub tos: u8,
    /// Total length.
    pub total_len: u16,
    /// Identification.
    pub id: u16,
    /// Flags and fragment offset.
    pub fragment: u16,
    /// Time to live.
    pub ttl: u8,
    /// Protocol.
    pub protocol: u8,
    /// Header checksum.
    pub checksum: u16,
    /// Source.
    pub src: u32,
    /// Destination.
    pub dst: u32,
}

/// The IPv6 header (RFC 8200 §3).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Ipv6Header {
    /// Version, traffic class, flow label.
    pub version_class_label: u32,
    /// Payload length.
    pub payload_len: u16,
    /// Next header.
    pub next_header: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source.
    pub src: [u32; 4],
    /// Destination.
    pub dst: [u32; 4],
}

/// The first fields of an IPv6 extension header (RFC 8200 §4). They are not the whole header.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Ipv6Extension {
    /// Next header.
    pub next_header: u8,
    /// Length in units that depend on the header's kind.
    pub len: u8,
    /// Fragment offset and the more-fragments bit, in a fragment header.
    pub fragment: u16,
}

/// The ports that TCP, UDP and SCTP start with.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
}

/// The start of a TCP header (RFC 9293 §3.1), the window included.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TcpHead {
    /// Source and destination port.
    pub ports: Ports,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledgement: u32,
    /// Length of the header in words, in the upper half.
    pub offset: u8,
    /// Flags.
    pub flags: u8,
    /// Window.
    pub window: u16,
}

const _: () = assert!(size_of::<TcpHead>() == 16);

/// The start of an ICMP or `ICMPv6` message.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct IcmpHead {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// Checksum.
    pub checksum: u16,
}

const _: () = assert!(size_of::<Ipv4Header>() == 20);
const _: () = assert!(size_of::<Ipv6Header>() == 40);
const _: () = assert!(size_of::<Ipv6Extension>() == 4);
