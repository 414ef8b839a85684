//! A limit of the packets that leave by an interface, as a token bucket (tc-tbf(8)). Packets to a pod leave
//! by the node's side of its veth pair, and packets from it by its [limiter](super::limiter).
//!
//! Queued packets wait, and waiting is latency. Where the kernel has `fq_codel` (tc-fq_codel(8)), that is the
//! bucket's queue. It gives each flow a queue of its own, so a flow that sends little never waits for one
//! that sends much. It marks (ECN) or drops early the packets of a flow whose queue grows.
//!
//! Other kernels have one queue for all flows, and TCP needs some of it to keep a link busy. So the queue
//! holds the bytes of 5 ms at the rate, at low rates those of 10 ms. The bucket holds those of 10 ms at most.
//! Runtimes ask for bursts of half a gigabyte, which would let seconds of traffic through without a limit.
//! Both hold at least some whole packets, without which TCP stalls.
//!
//! The kernel passes many segments as one packet of up to 64 KiB. Such a packet passes whole if it fits into
//! the bucket. It is then also dropped whole if it does not fit into the queue, which ends flows. A packet
//! that does not fit into the bucket is segmented first. So the bucket is too small for such packets until
//! the queue holds several of them.

use netlink_packet_core::DefaultNla;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};

use super::socket::Request;
use crate::config::runtime::Limit;

/// The length of the queue in milliseconds at the full rate.
const QUEUE_MS: u64 = 5;
/// The length of the queue at low rates, and the largest burst, in milliseconds at the full rate.
const LONG_MS: u64 = 10;
/// The largest packet, and the size of a bucket that it does not fit into, both in bytes.
const LARGEST: u64 = 65_536;
const SMALL: u64 = 60_000;
/// The minimum of queue and bucket, in packets of full size.
const PACKETS: u64 = 10;
/// The length of the Ethernet header, which the MTU does not include.
const HEADER: u64 = 14;

/// `fq_codel`'s target for the waiting time, and the interval in which a flow has to reach it, in
/// microseconds. At low rates both grow with the time that one packet takes.
const TARGET_US: u64 = 5_000;
const INTERVAL_US: u64 = 100_000;
/// `fq_codel`'s limits for flows that ignore marks and losses: packets, and bytes of memory.
const FAIR_PACKETS: u32 = 1_024;
const FAIR_MEMORY: u32 = 4 << 20;
/// The bytes that each flow may send in turn. A packet of full size takes several turns, so that small
/// packets do not wait for a whole packet of every other flow.
const FQ_CODEL_QUANTUM: u32 = 300;

/// Attributes of `include/uapi/linux/pkt_sched.h`.
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
const TC_LINKLAYER_ETHERNET: u8 = 1;
const TCA_FQ_CODEL_TARGET: u16 = 1;
const TCA_FQ_CODEL_LIMIT: u16 = 2;
const TCA_FQ_CODEL_INTERVAL: u16 = 3;
const TCA_FQ_CODEL_ECN: u16 = 4;
const TCA_FQ_CODEL_QUANTUM: u16 = 6;
const TCA_FQ_CODEL_MEMORY_LIMIT: u16 = 9;

/// The handle of the bucket, of the only class in it, and of its queue.
pub(super) const BUCKET: TcHandle = TcHandle { major: 1, minor: 0 };
const INSIDE: TcHandle = TcHandle { major: 1, minor: 1 };
const FAIR: TcHandle = TcHandle { major: 2, minor: 0 };

/// The parameters of a token bucket, in bytes; the rate in bytes per second.
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

/// Limits the packets that leave by an interface, or changes the limit.
pub fn limit(interface: u32, limit: Limit, mtu: u32) -> [Request; 2] {
    let bucket = Bucket::new(limit, mtu);
    let bits = limit.rate;
    let mut message = discipline(interface, "tbf", TcHandle::ROOT, BUCKET);
    message.attributes.push(TcAttribute::Options(vec![
        option(TCA_TBF_PARMS, bucket.parameters()),
        option(TCA_TBF_BURST, bucket.burst.to_ne_bytes()),
        option(TCA_TBF_RATE64, bucket.rate.to_ne_bytes()),
    ]));
    let limiting = format!("limiting interface {interface} to {bits} bit/s by a token bucket");
    let mut fair = discipline(interface, "fq_codel", INSIDE, FAIR);
    let [target, interval] = patience(bucket.rate, mtu);
    fair.attributes.push(TcAttribute::Options(vec![
        option(TCA_FQ_CODEL_TARGET, target.to_ne_bytes()),
        option(TCA_FQ_CODEL_INTERVAL, interval.to_ne_bytes()),
        option(TCA_FQ_CODEL_LIMIT, FAIR_PACKETS.to_ne_bytes()),
        option(TCA_FQ_CODEL_MEMORY_LIMIT, FAIR_MEMORY.to_ne_bytes()),
        option(TCA_FQ_CODEL_QUANTUM, FQ_CODEL_QUANTUM.to_ne_bytes()),
        option(TCA_FQ_CODEL_ECN, 1_u32.to_ne_bytes()),
    ]));
    let sharing = format!("sharing the {bits} bit/s of interface {interface} among its flows (fq_codel)");
    [
        Request::replace(limiting, RouteNetlinkMessage::NewQueueDiscipline(message)),
        Request::replace(sharing, RouteNetlinkMessage::NewQueueDiscipline(fair)).if_known(),
    ]
}

/// `fq_codel`'s target and interval in microseconds. The target exceeds the time of one packet at the rate,
/// which is in bytes per second.
fn patience(rate: u64, mtu: u32) -> [u32; 2] {
    let packet = (u64::from(mtu) + HEADER) * 1_000_000 / rate.max(1);
    let target = TARGET_US.max(packet * 3 / 2);
    [target, INTERVAL_US.max(target * 2)].map(|us| u32::try_from(us).unwrap_or(u32::MAX))
}

fn discipline(interface: u32, kind: &str, parent: TcHandle, handle: TcHandle) -> TcMessage {
    let mut message = TcMessage::with_index(interface.cast_signed());
    message.header.parent = parent;
    message.header.handle = handle;
    message.attributes = vec![TcAttribute::Kind(kind.to_owned())];
    message
}

fn option(kind: u16, value: impl Into<Vec<u8>>) -> TcOption {
    TcOption::Other(DefaultNla::new(kind, value.into()))
}

/// Removes the limit of an interface.
pub fn unlimit(interface: u32) -> Request {
    let message = discipline(interface, "tbf", TcHandle::ROOT, BUCKET);
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
    fn packets_wait_longer_where_one_takes_long() {
        assert_eq!(patience(125_000_000, 1486), [5_000, 100_000]);
        assert_eq!(patience(125_000, 1486), [18_000, 100_000]);
        assert_eq!(patience(12_500, 1486), [180_000, 360_000]);
        assert_eq!(patience(0, 1486), [2_250_000_000, u32::MAX]);
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
