//! Which limits are in force: the rates of all token buckets, as the kernel tells them.

use std::collections::BTreeMap;

use netlink_packet_core::Nla;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};

use super::conversation::{Conversation, Request};
use super::error::NetlinkError;

/// `include/uapi/linux/pkt_sched.h`.
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
/// Where the rate stands in `struct tc_tbf_qopt`, whose first field is a `struct tc_ratespec`.
const RATE: usize = 8;
/// A rate that does not fit there is in an attribute of its own.
const ELSEWHERE: u64 = u32::MAX as u64;

/// The rates of interfaces whose packets leave by a token bucket, in bits per second, by index.
pub fn rates(conversation: &mut Conversation) -> Result<BTreeMap<u32, u64>, NetlinkError> {
    let all = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
    let answers = conversation.ask(Request::list("listing queueing disciplines", all))?;
    Ok(answers.iter().filter_map(rate).collect())
}

fn rate(answer: &RouteNetlinkMessage) -> Option<(u32, u64)> {
    let RouteNetlinkMessage::NewQueueDiscipline(message) = answer else {
        return None;
    };
    let is_bucket = |attribute: &TcAttribute| matches!(attribute, TcAttribute::Kind(kind) if kind == "tbf");
    if message.header.parent != TcHandle::ROOT || !message.attributes.iter().any(is_bucket) {
        return None;
    }
    let options = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => options.first(),
        _ => None,
    })?;
    // A kind that the crate does not know is given as one attribute with all others in it.
    let TcOption::Other(all) = options else {
        return None;
    };
    let mut bytes = vec![0; all.value_len()];
    all.emit_value(&mut bytes);
    Some((message.header.index.cast_unsigned(), bits_per_second(&bytes)?))
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
    fn the_longer_rate_counts() {
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
