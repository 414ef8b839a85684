//! A set of new packets of pods: only the family, one side's address and one interface are known. The module
//! computes for how many of these packets a rule's condition holds.
//!
//! The module checks a chain for packets *from* pods, which enter by pods' interfaces, and for packets *to*
//! pods, which leave by them. The other side of a packet may be any address.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::bpf::links::OWN_POD;

/// How many of the packets a condition holds for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Match {
    /// The condition holds for no packet.
    No,
    /// The condition holds for some packets, or the number is unknown.
    Part,
    /// The condition may hold for all packets: it depends on a set, or on another program.
    Unsure,
    /// The condition holds for all packets.
    All,
}

impl Match {
    /// The match of the opposite condition.
    #[must_use]
    pub fn inverted(self) -> Self {
        match self {
            Self::No => Self::All,
            Self::All => Self::No,
            other => other,
        }
    }

    fn all_if(holds: bool) -> Self {
        if holds { Self::All } else { Self::No }
    }
}

/// A comparison, `NFT_CMP_…`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// `NFT_CMP_EQ`.
    Is,
    /// `NFT_CMP_NEQ`.
    IsNot,
    /// `NFT_CMP_LT`.
    Below,
    /// `NFT_CMP_LTE`.
    UpTo,
    /// `NFT_CMP_GT`.
    Above,
    /// `NFT_CMP_GTE`.
    From,
}

impl Comparison {
    /// The comparison with this number of `enum nft_cmp_ops`.
    pub const fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Is,
            1 => Self::IsNot,
            2 => Self::Below,
            3 => Self::UpTo,
            4 => Self::Above,
            5 => Self::From,
            _ => return None,
        })
    }
}

/// The interfaces by which packets of pods enter and leave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PodInterfaces {
    /// The interfaces of Millrace's own pod network, whose names all have the same prefix.
    #[default]
    Own,
    /// The interfaces of another pod network, by their names.
    Named(Vec<String>),
}

/// A set of packets.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// The range of the pods' addresses.
    pub range: IpNet,
    /// Whether pods send the packets; if not, pods receive them.
    pub from_pods: bool,
    /// The interfaces by which the packets enter, or leave.
    pub interfaces: &'a PodInterfaces,
    /// The names of all interfaces, by index.
    pub names: &'a BTreeMap<u32, String>,
}

/// The value of a register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// The value is the same in all packets.
    Known(Vec<u8>),
    /// The value holds the first bytes of the pods' address, after `& mask ^ flip`. All three are the upper
    /// bits of 128.
    Address {
        /// The bits of the address that are kept.
        mask: u128,
        /// The bits that are inverted.
        flip: u128,
    },
    /// The value is the name of the interface.
    Name,
    /// The value is the index of the interface.
    Index,
    /// The value is a mark, which another program may have written to the packet.
    Mark,
    /// The value is unknown.
    Other,
}

/// Reads bytes as the upper bits of 128.
fn upper(bytes: &[u8]) -> u128 {
    let mut word = [0; 16];
    for (to, from) in word.iter_mut().zip(bytes) {
        *to = *from;
    }
    u128::from_be_bytes(word)
}

/// A mask of this many upper bytes.
pub fn upper_mask(bytes: usize) -> u128 {
    !u128::MAX.checked_shr(bytes as u32 * 8).unwrap_or(0)
}

fn upper_address(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(ip) => upper(&ip.octets()),
        IpAddr::V6(ip) => upper(&ip.octets()),
    }
}

impl Packet<'_> {
    /// The value that the expression `meta` loads.
    pub fn meta(&self, key: u32) -> Value {
        let is_v4 = self.range.addr().is_ipv4();
        // The keys are `NFT_META_…`.
        match (key, self.from_pods) {
            (1, _) => Value::Known(if is_v4 { vec![0x08, 0x00] } else { vec![0x86, 0xdd] }),
            (3, _) => Value::Mark,
            (4, true) | (5, false) => Value::Index,
            (6, true) | (7, false) => Value::Name,
            (15, _) => Value::Known(vec![if is_v4 { 2 } else { 10 }]),
            _ => Value::Other,
        }
    }

    /// The value that the expression `ct` loads.
    pub fn conntrack(key: u32) -> Value {
        // The keys are `NFT_CT_STATE` and `NFT_CT_DIRECTION`.
        match key {
            0 => Value::Known(u32::from(NEW).to_ne_bytes().to_vec()),
            1 => Value::Known(vec![0]),
            _ => Value::Other,
        }
    }

    /// The value that `payload` loads from the IP header; offset and length are in bytes.
    pub fn header(&self, offset: u32, length: u32) -> Value {
        let (at, size) = match (self.range.addr().is_ipv4(), self.from_pods) {
            (true, true) => (12, 4),
            (true, false) => (16, 4),
            (false, true) => (8, 16),
            (false, false) => (24, 16),
        };
        if offset == at && (1..=size).contains(&length) {
            let mask = upper_mask(length as usize);
            return Value::Address { mask, flip: 0 };
        }
        Value::Other
    }

    /// For how many packets the comparison of a value with some bytes holds.
    pub fn compare(&self, value: &Value, comparison: Comparison, with: &[u8]) -> Match {
        match value {
            Value::Known(bytes) => known(bytes, comparison, with),
            Value::Address { mask, flip } => {
                let limit = upper_mask(with.len());
                self.address(mask & limit, flip & limit, comparison, upper(with))
            }
            Value::Name => equality(comparison, self.name(with)),
            Value::Index => {
                let index = with.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
                let name = index.and_then(|index| self.names.get(&index));
                let named = name.map_or(Match::No, |name| self.name(&[name.as_bytes(), &[0]].concat()));
                equality(comparison, named)
            }
            Value::Mark => self.mark(),
            Value::Other => Match::Part,
        }
    }

    /// For how many packets a value lies in a range.
    pub fn lies_in(&self, value: &Value, from: &[u8], to: &[u8]) -> Match {
        let from = self.compare(value, Comparison::From, from);
        from.min(self.compare(value, Comparison::UpTo, to))
    }

    /// The match of a condition on a mark. Our data plane sets no mark that netfilter sees. Another pod
    /// network may mark the packets that it accepts.
    pub fn mark(&self) -> Match {
        match self.interfaces {
            PodInterfaces::Own => Match::Part,
            PodInterfaces::Named(_) => Match::Unsure,
        }
    }

    /// Whether a value describes the pods' side, so that a set of such values may contain all of them.
    pub fn is_of_pods(value: &Value) -> bool {
        matches!(value, Value::Address { .. } | Value::Name | Value::Index)
    }

    fn address(&self, mask: u128, flip: u128, comparison: Comparison, with: u128) -> Match {
        let first = upper_address(self.range.network());
        let last = upper_address(self.range.broadcast());
        let free = first ^ last;
        let is_prefix = mask.leading_ones() + mask.trailing_zeros() == u128::BITS;
        let (low, high) = (first & mask, last & mask);
        let ordered = |all: bool, none: bool| match (all, none) {
            _ if flip != 0 || !is_prefix => Match::Part,
            (true, _) => Match::All,
            (_, true) => Match::No,
            _ => Match::Part,
        };
        match comparison {
            Comparison::Is | Comparison::IsNot => {
                let wanted = with ^ flip;
                let is = if wanted & !mask != 0 || (first ^ wanted) & mask & !free != 0 {
                    Match::No
                } else if mask & free == 0 {
                    Match::All
                } else {
                    Match::Part
                };
                equality(comparison, is)
            }
            Comparison::Below => ordered(high < with, low >= with),
            Comparison::UpTo => ordered(high <= with, low > with),
            Comparison::Above => ordered(low > with, high <= with),
            Comparison::From => ordered(low >= with, high < with),
        }
    }

    /// How many of the pods' interfaces have a name: the bytes up to a zero. Without a zero the bytes are a
    /// prefix of the name.
    fn name(&self, bytes: &[u8]) -> Match {
        let (wanted, is_whole) = match bytes.iter().position(|byte| *byte == 0) {
            Some(end) => (&bytes[..end], true),
            None => (bytes, false),
        };
        match self.interfaces {
            PodInterfaces::Own => {
                if !is_whole && OWN_POD.as_bytes().starts_with(wanted) {
                    Match::All
                } else if wanted.starts_with(OWN_POD.as_bytes()) {
                    Match::Part
                } else {
                    Match::No
                }
            }
            PodInterfaces::Named(names) => {
                let has = |name: &&String| {
                    let name = name.as_bytes();
                    name == wanted || (!is_whole && name.starts_with(wanted))
                };
                match names.iter().filter(has).count() {
                    _ if names.is_empty() => Match::Unsure,
                    0 => Match::No,
                    count if count == names.len() => Match::All,
                    _ => Match::Part,
                }
            }
        }
    }
}

/// The bit of a flow's first packet, for `ct state` and for the iptables match `conntrack`.
pub const NEW: u16 = 8;

fn known(bytes: &[u8], comparison: Comparison, with: &[u8]) -> Match {
    let bytes = bytes.get(..with.len()).unwrap_or(bytes);
    Match::all_if(match comparison {
        Comparison::Is => bytes == with,
        Comparison::IsNot => bytes != with,
        Comparison::Below => bytes < with,
        Comparison::UpTo => bytes <= with,
        Comparison::Above => bytes > with,
        Comparison::From => bytes >= with,
    })
}

fn equality(comparison: Comparison, is: Match) -> Match {
    match comparison {
        Comparison::Is => is,
        Comparison::IsNot => is.inverted(),
        _ => Match::Part,
    }
}

impl Value {
    /// Applies `& mask ^ flip`, with both as bytes.
    #[must_use]
    pub fn masked(self, mask: &[u8], flip: &[u8]) -> Self {
        match self {
            Self::Known(bytes) if bytes.len() == mask.len() && bytes.len() == flip.len() => {
                let pairs = bytes.iter().zip(mask.iter().zip(flip));
                Self::Known(pairs.map(|(byte, (mask, flip))| (byte & mask) ^ flip).collect())
            }
            Self::Address {
                mask: old,
                flip: flipped,
            } => Self::Address {
                mask: old & upper(mask),
                flip: (flipped & upper(mask)) ^ upper(flip),
            },
            Self::Mark => Self::Mark,
            _ => Self::Other,
        }
    }
}
