//! Checksums that a sender leaves to the NIC.
//!
//! The metadata of such a packet says where the sum begins and where it is written. A sender of raw frames
//! chooses both (`PACKET_VNET_HDR` of packet(7)). The sum is written when the packet leaves the node, behind
//! all programs. A sum over the ports or the addresses would make another packet of the one that the programs
//! decided about.

use crate::packet::Headers;
use crate::protocol;

/// The position of a checksum that is left to the NIC. Offsets from the start of the frame; a negative one is
/// before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offload {
    /// The start of the bytes that are summed. The kernel takes the transport header to be there.
    pub start: i32,
    /// The position at which the sum is written.
    pub place: i32,
}

/// Whether the headers stay as the parser read them. Behind them is the payload, where a tunnel of the pod's
/// own has further headers with sums.
#[inline(always)]
pub const fn spares_headers(headers: &Headers, is_read: bool, offload: Offload) -> bool {
    // The offset of the sum's own field in the transport header, and the length of that header.
    let (field, len) = match headers.protocol {
        protocol::TCP => (16, 20),
        protocol::UDP => (6, 8),
        // The first chunk of SCTP decides about the state of a connection.
        protocol::SCTP => (8, 16),
        // The programs judge an error by the packet in it.
        _ if headers.is_icmp_error() => (2, i32::MAX),
        protocol::ICMP | protocol::ICMPV6 => (2, 8),
        _ => (0, 0),
    };
    let Offload { start, place } = offload;
    if !is_read || headers.l4 == 0 || len == 0 {
        let network_header = if headers.src.is_v4() { 20 } else { 40 };
        let end = headers.l3.cast_signed() + network_header;
        return start >= end && place >= end;
    }
    let l4 = headers.l4.cast_signed();
    start >= l4 && (place == l4 + field || place >= l4.saturating_add(len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::testing::packet;

    #[test]
    fn a_sum_goes_to_its_field_or_behind_the_headers() {
        let of = |protocol, start, place, is_read| {
            let mut headers = packet(protocol, ("10.244.1.2", 1), ("172.31.0.5", 2));
            (headers.l3, headers.l4) = (14, 34);
            spares_headers(&headers, is_read, Offload { start, place })
        };
        for (protocol, field, len) in [
            (protocol::TCP, 16, 20),
            (protocol::UDP, 6, 8),
            (protocol::SCTP, 8, 16),
            (protocol::ICMP, 2, 8),
        ] {
            for place in 0..80 {
                let is_spared = place == 34 + field || place >= 34 + len;
                assert_eq!(of(protocol, 34, place, true), is_spared, "{protocol}: {place}");
                // Segmentation writes to the bytes behind the start of the sum.
                assert!(!of(protocol, 33, place, true), "{protocol}: {place} from 33");
            }
            assert!(of(protocol, 70, 86, true), "of a header inside");
        }
        let mut error = packet(protocol::ICMP, ("10.244.1.2", 0), ("172.31.0.5", 0));
        (error.l3, error.l4, error.detail) = (14, 34, 3);
        for place in 0..80 {
            let offload = Offload { start: 34, place };
            assert_eq!(
                spares_headers(&error, true, offload),
                place == 36,
                "an error: {place}"
            );
        }
        for place in 0..80 {
            assert_eq!(of(47, 34, place, true), place >= 34, "GRE: {place}");
            assert_eq!(
                of(protocol::UDP, 34, place, false),
                place >= 34,
                "a fragment: {place}"
            );
            assert!(!of(47, -4, place, true));
        }
    }
}
