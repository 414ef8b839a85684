//! The limits in force: the rates of this plugin's token buckets, as the kernel reports them, and foreign
//! queueing disciplines in their place.
//!
//! A bucket is this plugin's if it has the handle [`BUCKET`]. `tc` gives another handle to a bucket that an
//! operator attaches.

use std::collections::BTreeMap;
use std::fmt;

use netlink_packet_core::Nla;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};

use super::error::NetlinkError;
use super::limit::BUCKET;
use super::socket::{NetlinkSocket, Request};

/// Attributes of `include/uapi/linux/pkt_sched.h`.
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
/// Offset of the rate in `struct tc_tbf_qopt`, whose first field is a `struct tc_ratespec`.
const RATE: usize = 8;
/// The value for a rate that does not fit into the field; an attribute of its own then holds the rate.
const ELSEWHERE: u64 = u32::MAX as u64;

/// The root queueing disciplines of all interfaces, except those that the kernel chose itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Queues {
    /// The rates of this plugin's token buckets, in bits per second, by the interface's index.
    pub rates: BTreeMap<u32, u64>,
    /// The other queueing disciplines, by the interface's index.
    pub foreign: BTreeMap<u32, Foreign>,
}

/// A queueing discipline that another program attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    kind: String,
    major: u16,
}

/// The format is that of `tc`.
impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:x}:", self.kind, self.major)
    }
}

impl Queues {
    /// Reads the queueing disciplines of all interfaces.
    pub fn read(socket: &mut NetlinkSocket) -> Result<Self, NetlinkError> {
        let all = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
        let replies = socket.ask(Request::list("listing queueing disciplines", all))?;
        Ok(Self::of(&replies))
    }

    fn of(replies: &[RouteNetlinkMessage]) -> Self {
        let mut queues = Self::default();
        for reply in replies {
            let RouteNetlinkMessage::NewQueueDiscipline(message) = reply else {
                continue;
            };
            // A queueing discipline that the kernel chooses itself has no handle.
            if message.header.parent != TcHandle::ROOT || message.header.handle == TcHandle::UNSPEC {
                continue;
            }
            let index = message.header.index.cast_unsigned();
            let kind = message.attributes.iter().find_map(|attribute| match attribute {
                TcAttribute::Kind(kind) => Some(kind.as_str()),
                _ => None,
            });
            if kind == Some("tbf") && message.header.handle == BUCKET {
                queues.rates.extend(rate(message).map(|rate| (index, rate)));
            } else {
                let kind = kind.unwrap_or("of an unknown kind,").to_owned();
                let major = message.header.handle.major;
                queues.foreign.insert(index, Foreign { kind, major });
            }
        }
        queues
    }
}

/// The rates of the interfaces that have a token bucket of this plugin, in bits per second, by the
/// interface's index.
pub fn rates(socket: &mut NetlinkSocket) -> Result<BTreeMap<u32, u64>, NetlinkError> {
    Queues::read(socket).map(|queues| queues.rates)
}

fn rate(message: &TcMessage) -> Option<u64> {
    let options = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => options.first(),
        _ => None,
    })?;
    // The crate returns an unknown kind as one attribute that contains all others.
    let TcOption::Other(all) = options else {
        return None;
    };
    let mut bytes = vec![0; all.value_len()];
    all.emit_value(&mut bytes);
    bits_per_second(&bytes)
}

/// Reads the rate from the attributes of a token bucket.
fn bits_per_second(mut attributes: &[u8]) -> Option<u64> {
    let mut rate = None;
    while let [l0, l1, k0, k1, ..] = *attributes {
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = attributes.get(4..length)?;
        match u16::from_ne_bytes([k0, k1]) {
            TCA_TBF_PARMS => {
                let short = u64::from(u32::from_ne_bytes(value.get(RATE..)?.first_chunk().copied()?));
                rate = rate.or(Some(short).filter(|short| *short != ELSEWHERE));
            }
            TCA_TBF_RATE64 => rate = Some(u64::from_ne_bytes(value.first_chunk().copied()?)),
            _ => {}
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    rate.map(|bytes| bytes.saturating_mul(8))
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_core::DefaultNla;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend((value.len() as u16 + 4).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn parameters(rate: u32) -> Vec<u8> {
        let mut bytes = vec![0; 36];
        bytes[RATE..RATE + 4].copy_from_slice(&rate.to_ne_bytes());
        attribute(TCA_TBF_PARMS, &bytes)
    }

    #[test]
    fn only_qdiscs_with_our_handle_are_ours() {
        let queue = |index: i32, kind: &str, parent, major| {
            let mut message = TcMessage::with_index(index);
            message.header.parent = parent;
            message.header.handle = TcHandle { major, minor: 0 };
            let options = DefaultNla::new(2, parameters(125_000));
            message.attributes = vec![
                TcAttribute::Kind(kind.to_owned()),
                TcAttribute::Options(vec![TcOption::Other(options)]),
            ];
            RouteNetlinkMessage::NewQueueDiscipline(message)
        };
        let (root, inside) = (TcHandle::ROOT, TcHandle { major: 1, minor: 1 });
        let queues = Queues::of(&[
            queue(3, "tbf", root, BUCKET.major),
            queue(3, "fq_codel", inside, 2),
            queue(4, "tbf", root, 0x8001),
            queue(5, "htb", root, BUCKET.major),
            queue(6, "noqueue", root, 0),
            queue(7, "clsact", TcHandle::CLSACT, 0xffff),
        ]);
        assert_eq!(queues.rates, BTreeMap::from([(3, 1_000_000)]));
        let foreign: Vec<_> = queues
            .foreign
            .iter()
            .map(|(index, queue)| (*index, queue.to_string()))
            .collect();
        assert_eq!(foreign, [(4, "tbf 8001:".to_owned()), (5, "htb 1:".to_owned())]);
    }

    #[test]
    fn the_64_bit_rate_is_used() {
        assert_eq!(bits_per_second(&parameters(125_000)), Some(1_000_000));
        let fast = [
            parameters(u32::MAX),
            attribute(TCA_TBF_RATE64, &10_000_000_000_u64.to_ne_bytes()),
        ];
        assert_eq!(bits_per_second(&fast.concat()), Some(80_000_000_000));
        assert_eq!(bits_per_second(&fast[0]), None);
        for broken in [&[][..], &[0, 0, 1, 0], &[200, 0, 1, 0], &parameters(1)[..10]] {
            assert_eq!(bits_per_second(broken), None);
        }
    }
}
