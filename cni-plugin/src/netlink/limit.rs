//! A limit of what leaves by an interface, which is a token bucket (tc-tbf(8)): what a pod receives leaves by the node's side
//! of its cable, and what it sends by its [limiter](super::limiter).
//!
//! What is queued waits, and what waits is latency; but TCP needs some of it to keep a link busy if nothing marks its packets.
//! So the queue holds what the rate carries in 5 ms, at low rates 10 ms, and the bucket no more: runtimes ask for bursts of
//! half a gigabyte, which would let seconds of traffic through unlimited. Both hold some whole packets, without which TCP
//! stalls.
//!
//! The kernel passes many segments as one packet of up to 64 KiB. What fits into the bucket is passed whole, and dropped whole
//! where it does not fit into the queue, which ends flows; what does not fit into the bucket is taken apart first. So the
//! bucket is too small for such packets until the queue holds several of them.

use netlink_packet_core::DefaultNla;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};

use super::conversation::Request;
use crate::config::runtime::Limit;

/// What the queue holds, in time at the full rate.
const QUEUE_MS: u64 = 5;
/// The same where that is not much, and the largest burst.
const LONG_MS: u64 = 10;
/// The largest packet, and a bucket that it does not fit into.
const LARGEST: u64 = 65_536;
const SMALL: u64 = 60_000;
/// What both hold at least, in packets of full size.
const PACKETS: u64 = 10;
/// The Ethernet header, which the MTU does not count.
const HEADER: u64 = 14;

/// The rate, the limit and what they are for: `include/uapi/linux/pkt_sched.h`.
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
const TC_LINKLAYER_ETHERNET: u8 = 1;

/// The numbers of a token bucket, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bucket {
    rate: u64,
    burst: u32,
    queue: u32,
}

impl Bucket {
    fn new(limit: Limit, mtu: u32) -> Self {
        let rate = limit.rate / 8;
        let packets = PACKETS * (u64::from(mtu) + HEADER);
        let carried = |ms: u64| (rate / 1000).saturating_mul(ms);
        let asked = limit.burst.map_or(u64::MAX, |bits| bits / 8);
        let bytes = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        let queue = carried(QUEUE_MS).max(carried(LONG_MS).min(SMALL)).max(packets);
        let burst = if queue >= 3 * LARGEST {
            carried(LONG_MS)
        } else {
            queue.min(SMALL.max(packets))
        };
        Self {
            rate,
            burst: bytes(burst.min(asked.max(packets))),
            queue: bytes(queue),
        }
    }

    /// `struct tc_tbf_qopt`: two rates, the limit, and two lengths that newer attributes replace.
    fn parameters(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(36);
        // struct tc_ratespec: cell_log, linklayer, overhead, cell_align, mpu, rate.
        bytes.extend([0, TC_LINKLAYER_ETHERNET, 0, 0, 0, 0, 0, 0]);
        bytes.extend(u32::try_from(self.rate).unwrap_or(u32::MAX).to_ne_bytes());
        bytes.extend([0; 12]);
        bytes.extend(self.queue.to_ne_bytes());
        bytes.extend([0; 8]);
        bytes
    }
}

/// Limits what leaves by an interface, or changes the limit.
pub fn limit(interface: u32, limit: Limit, mtu: u32) -> Request {
    let bucket = Bucket::new(limit, mtu);
    let mut message = TcMessage::with_index(interface.cast_signed());
    message.header.parent = TcHandle::ROOT;
    message.header.handle = TcHandle { major: 1, minor: 0 };
    let option = |kind, value| TcOption::Other(DefaultNla::new(kind, value));
    message.attributes = vec![
        TcAttribute::Kind("tbf".to_owned()),
        TcAttribute::Options(vec![
            option(TCA_TBF_PARMS, bucket.parameters()),
            option(TCA_TBF_BURST, bucket.burst.to_ne_bytes().to_vec()),
            option(TCA_TBF_RATE64, bucket.rate.to_ne_bytes().to_vec()),
        ]),
    ];
    Request::replace(
        format!(
            "limiting interface {interface} to {} bit/s by a token bucket",
            limit.rate
        ),
        RouteNetlinkMessage::NewQueueDiscipline(message),
    )
}

/// Lets everything leave by an interface again.
pub fn unlimit(interface: u32) -> Request {
    let mut message = TcMessage::with_index(interface.cast_signed());
    message.header.parent = TcHandle::ROOT;
    message.header.handle = TcHandle { major: 1, minor: 0 };
    message.attributes = vec![TcAttribute::Kind("tbf".to_owned())];
    Request::plain(
        format!("taking the limit from interface {interface}"),
        RouteNetlinkMessage::DelQueueDiscipline(message),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(rate: u64, burst: Option<u64>) -> (u64, u32, u32) {
        let bucket = Bucket::new(Limit { rate, burst }, 1486);
        (bucket.rate, bucket.burst, bucket.queue)
    }

    #[test]
    fn bursts_and_queues_are_short() {
        assert_eq!(bucket(1_000, None), (125, 15_000, 15_000));
        assert_eq!(bucket(20_000_000, Some(4 << 30)), (2_500_000, 25_000, 25_000));
        assert_eq!(bucket(100_000_000, Some(4 << 30)), (12_500_000, 60_000, 62_500));
        assert_eq!(bucket(100_000_000, Some(8)), (12_500_000, 15_000, 62_500));
        assert_eq!(bucket(1_000_000_000, None), (125_000_000, 1_250_000, 625_000));
        assert_eq!(
            bucket(1_000_000_000, Some(800_000 * 8)),
            (125_000_000, 800_000, 625_000)
        );
        assert_eq!(bucket(1_000_000_000_000_000, None).1, u32::MAX);
    }

    #[test]
    fn parameters_have_the_kernels_size() {
        assert_eq!(
            Bucket::new(Limit { rate: 8, burst: None }, 1500)
                .parameters()
                .len(),
            36
        );
    }
}
