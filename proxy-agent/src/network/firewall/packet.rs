//! A new packet of pods, of which only the family, one side's address and one interface are known: how much of what a
//! rule asks holds for all such packets.
//!
//! Two questions are asked of a chain: what becomes of packets *from* pods, which come in by pods' interfaces, and of those
//! *to* pods, which go out by them. The other side of a packet may be anybody.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::bpf::links::OWN_POD;

/// How many of the packets a condition holds for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Match {
    /// None.
    No,
    /// Some, or nothing says which.
    Part,
    /// Perhaps all: it depends on a set, or on what another program does.
    Unsure,
    /// All.
    All,
}

impl Match {
    /// Of the opposite condition.
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
    /// Equal.
    Is,
    /// Not equal.
    IsNot,
    /// Less.
    Below,
    /// Less or equal.
    UpTo,
    /// Greater.
    Above,
    /// Greater or equal.
    From,
}

impl Comparison {
    /// By its number.
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

/// By which interfaces packets of pods come and go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PodInterfaces {
    /// The pod network is ours: all their names begin alike.
    #[default]
    Own,
    /// Another network's, by their names.
    Named(Vec<String>),
}

/// The packets.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// Where the pods' addresses are from.
    pub range: IpNet,
    /// Whether pods send them, or are sent them.
    pub from_pods: bool,
    /// By which interfaces they come, or go.
    pub interfaces: &'a PodInterfaces,
    /// The names of all interfaces.
    pub names: &'a BTreeMap<u32, String>,
}

/// What a register holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// The same in all packets.
    Known(Vec<u8>),
    /// The first bytes of the pods' address, after `& mask ^ flip`. All are the upper bits of 128.
    Address {
        /// What is left of it.
        mask: u128,
        /// What is inverted.
        flip: u128,
    },
    /// The name of the interface.
    Name,
    /// Its index.
    Index,
    /// What another program may have written to the packet.
    Mark,
    /// Something else.
    Other,
}

/// Bytes as the upper bits of 128.
fn upper(bytes: &[u8]) -> u128 {
    let mut word = [0; 16];
    for (to, from) in word.iter_mut().zip(bytes) {
        *to = *from;
    }
    u128::from_be_bytes(word)
}

/// So many upper bytes.
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
    /// What `meta` loads.
    pub fn meta(&self, key: u32) -> Value {
        let is_v4 = self.range.addr().is_ipv4();
        // `NFT_META_…`
        match (key, self.from_pods) {
            (1, _) => Value::Known(if is_v4 { vec![0x08, 0x00] } else { vec![0x86, 0xdd] }),
            (3, _) => Value::Mark,
            (4, true) | (5, false) => Value::Index,
            (6, true) | (7, false) => Value::Name,
            (15, _) => Value::Known(vec![if is_v4 { 2 } else { 10 }]),
            _ => Value::Other,
        }
    }

    /// What `ct` loads.
    pub fn conntrack(key: u32) -> Value {
        // `NFT_CT_STATE`, `NFT_CT_DIRECTION`.
        match key {
            0 => Value::Known(u32::from(NEW).to_ne_bytes().to_vec()),
            1 => Value::Known(vec![0]),
            _ => Value::Other,
        }
    }

    /// What is loaded from the IP header.
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

    /// How often a value compares so with some bytes.
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

    /// How often a value lies in a range.
    pub fn lies_in(&self, value: &Value, from: &[u8], to: &[u8]) -> Match {
        let from = self.compare(value, Comparison::From, from);
        from.min(self.compare(value, Comparison::UpTo, to))
    }

    /// A condition about a mark. Our data plane sets none that netfilter sees; another pod network may accept so what it allows.
    pub fn mark(&self) -> Match {
        match self.interfaces {
            PodInterfaces::Own => Match::Part,
            PodInterfaces::Named(_) => Match::Unsure,
        }
    }

    /// Whether a value is about the pods' side, so that a set of such values may have all of them.
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

    /// How many of the pods' interfaces have a name: the bytes up to a zero, or those that a name begins with.
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

/// The bit of a flow's first packet, for `ct state` and for iptables.
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
    /// `& mask ^ flip`, as bytes.
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
