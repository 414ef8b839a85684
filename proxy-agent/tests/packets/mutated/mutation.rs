//! Mutates frames, with random numbers that are the same for the same seed and index.

use std::net::IpAddr;

use proxy_common::protocol;

use super::corpus::{Corpus, arp, discovery};
use super::layout::{L3, Layout};
use super::world::{MAC, POD};
use crate::frame::{crc32c, ether_type, sum};
use crate::node::of_family;

/// The longest frame in bytes: the limit of a test run less the bytes that a program adds.
const LONGEST: usize = 2500;
/// The shortest frame in bytes: the kernel does not run a program over an Ethernet header alone.
const SHORTEST: usize = 15;

/// `SplitMix64` (Steele, Lea, Flood: Fast splittable pseudorandom number generators).
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64, index: u64) -> Self {
        let mut dice = Self(seed);
        let seed = dice.next();
        Self(seed ^ index.wrapping_mul(0xd134_2543_de82_ef95))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number less than `end`.
    fn below(&mut self, end: usize) -> usize {
        (self.next() >> 32) as usize % end.max(1)
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    fn byte(&mut self) -> u8 {
        self.next() as u8
    }

    /// A number that is likely to cause faults.
    fn word(&mut self, near: usize) -> u16 {
        let near = near as u16;
        match self.below(6) {
            0 => 0,
            1 => u16::MAX,
            2 => near.wrapping_sub(self.below(9) as u16),
            3 => near.wrapping_add(self.below(9) as u16),
            4 => self.below(64) as u16,
            _ => self.next() as u16,
        }
    }
}

/// The frame with this seed and index.
pub fn mutated(dice: &mut Dice, corpus: &Corpus) -> Vec<u8> {
    let mut frame = corpus.frames[dice.below(corpus.frames.len())].clone();
    if dice.one_in(3) {
        decorate(dice, &mut frame);
    }
    if dice.one_in(50) {
        // The frame is addressed to another host, or to all hosts.
        frame[dice.below(6)] ^= 1 << dice.below(8);
    }
    if dice.one_in(20) {
        forge(dice, &mut frame, corpus);
    }
    let strikes = dice.of(&[0, 1, 1, 1, 2, 2, 3, 5]);
    strike_often(dice, &mut frame, corpus, strikes);
    if dice.one_in(2) {
        fix_checksums(dice, &mut frame);
    }
    frame
}

fn strike_often(dice: &mut Dice, frame: &mut Vec<u8>, corpus: &Corpus, strikes: usize) {
    for _ in 0..strikes {
        strike(dice, frame, corpus);
        frame.truncate(LONGEST);
        while frame.len() < SHORTEST {
            frame.push(dice.byte());
        }
    }
}

/// The frame that one of our pods sends in place of `frame`: the same with its own addresses, or a message of
/// its link. Sometimes the source is another's.
pub fn by_own_pod(dice: &mut Dice, frame: &[u8], corpus: &Corpus) -> Vec<u8> {
    let mut frame = match dice.below(6) {
        0 => asked(dice),
        1 => discovered(dice),
        _ => frame.to_vec(),
    };
    let is_v4 = ether_type(&frame) == 0x0800;
    let is_ip = is_v4 || ether_type(&frame) == 0x86dd;
    if is_ip && dice.one_in(2) {
        match of_family(POD, usize::from(!is_v4)) {
            IpAddr::V4(own) => put(&mut frame, L3 + 12, &own.octets()),
            IpAddr::V6(own) => put(&mut frame, L3 + 8, &own.octets()),
        }
        fix_checksums(dice, &mut frame);
    }
    if dice.one_in(16) {
        frame[6 + dice.below(6)] ^= 1 << dice.below(8);
    }
    let strikes = dice.of(&[0, 0, 0, 0, 0, 1, 1, 2]);
    strike_often(dice, &mut frame, corpus, strikes);
    frame
}

/// An ARP message, of the pod itself or of others.
fn asked(dice: &mut Dice) -> Vec<u8> {
    const OWN: [u8; 4] = [10, 244, 1, 5];
    const GATEWAY: [u8; 4] = [169, 254, 1, 1];
    let mac = dice.of(&[MAC, MAC, MAC, [2, 0, 0, 0, 0, 9]]);
    let from = dice.of(&[
        OWN,
        OWN,
        OWN,
        [0; 4],
        [10, 244, 1, 7],
        GATEWAY,
        [192, 168, 50, 11],
    ]);
    let to = dice.of(&[GATEWAY, GATEWAY, OWN, [10, 244, 1, 7], [192, 168, 50, 11]]);
    let operation = dice.of(&[1, 1, 1, 2, 3]);
    let mut frame = arp(operation, mac, from, to);
    if dice.one_in(4) {
        frame.splice(12..12, [0x81, 0, 0, dice.of(&[0, 5])]);
    }
    frame
}

/// A packet that hosts send before they have an address, from the pod itself or with another's address.
fn discovered(dice: &mut Dice) -> Vec<u8> {
    let kind = dice.of(&[128, 130, 131, 132, 133, 134, 135, 135, 136, 136, 137, 143]);
    let mut frame = discovery(kind, dice.below(9), dice.one_in(2));
    if matches!(kind, 130..=132 | 143) && !dice.one_in(4) {
        // The router alert option.
        extend_v6(&mut frame, 0, 0, 0x0502);
        set_length(&mut frame);
    }
    if dice.one_in(8) {
        decorate(dice, &mut frame);
    }
    frame
}

/// Gives the frame a source that it must not have.
fn forge(dice: &mut Dice, frame: &mut [u8], corpus: &Corpus) {
    const V4: [[u8; 4]; 9] = [
        [127, 0, 0, 1],
        [0, 0, 0, 0],
        [255, 255, 255, 255],
        [224, 0, 0, 1],
        [10, 96, 0, 1],
        [10, 244, 1, 7],
        [192, 168, 50, 11],
        [203, 0, 113, 1],
        [169, 254, 1, 1],
    ];
    let is_v4 = ether_type(frame) == 0x0800;
    let source: Vec<u8> = if is_v4 && dice.one_in(2) {
        dice.of(&V4).into()
    } else {
        let known = &corpus.addresses[usize::from(!is_v4)];
        match dice.of(known) {
            IpAddr::V4(address) => address.octets().into(),
            IpAddr::V6(_) if dice.one_in(8) => {
                [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 96, 0, 1].into()
            }
            IpAddr::V6(address) => address.octets().into(),
        }
    };
    let at = if is_v4 { L3 + 12 } else { L3 + 8 };
    if let Some(field) = frame.get_mut(at..at + source.len()) {
        field.copy_from_slice(&source);
    }
    fix_checksums(dice, frame);
}

/// Adds headers that a valid frame may have.
fn decorate(dice: &mut Dice, frame: &mut Vec<u8>) {
    let is_v4 = ether_type(frame) == 0x0800;
    match dice.below(4) {
        0 if is_v4 => {
            let words = 1 + dice.below(10);
            frame.splice(L3 + 20..L3 + 20, vec![1; words * 4]);
            frame[L3] += words as u8;
        }
        0 => {
            for _ in 0..=dice.below(7) {
                let kind = dice.of(&[0, 43, 51, 60]);
                extend_v6(frame, kind, dice.below(3) as u8, 0);
            }
        }
        1 | 2 => {
            let is_later = dice.one_in(2);
            let offset = if is_later { 1 + dice.below(100) as u16 } else { 0 };
            let more = u16::from(!is_later || dice.one_in(2));
            if is_v4 {
                frame[L3 + 6..L3 + 8].copy_from_slice(&(more << 13 | offset).to_be_bytes());
            } else {
                extend_v6(frame, 44, 0, offset << 3 | more);
            }
        }
        _ => {
            frame.splice(12..12, [0x81, 0, 0, 5]);
        }
    }
    set_length(frame);
    fix_checksums(dice, frame);
}

/// Inserts an extension header behind the IPv6 header.
fn extend_v6(frame: &mut Vec<u8>, kind: u8, units: u8, word: u16) {
    let len = 8 + usize::from(units) * if kind == 51 { 4 } else { 8 };
    let mut header = vec![0; len];
    header[0] = frame[L3 + 6];
    header[1] = if kind == 44 { 0 } else { units };
    header[2..4].copy_from_slice(&word.to_be_bytes());
    header[7] = 9;
    frame[L3 + 6] = kind;
    frame.splice(L3 + 40..L3 + 40, header);
}

/// The offset of the length field in the IP header, and the number of bytes that it counts.
fn length_at(frame: &[u8]) -> (usize, usize) {
    if ether_type(frame) == 0x0800 {
        (L3 + 2, frame.len() - L3)
    } else {
        (L3 + 4, frame.len().saturating_sub(L3 + 40))
    }
}

fn set_length(frame: &mut [u8]) {
    if matches!(ether_type(frame), 0x0800 | 0x86dd) {
        let (at, len) = length_at(frame);
        frame[at..at + 2].copy_from_slice(&(len as u16).to_be_bytes());
    }
}

fn put(frame: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = frame.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

/// Applies one mutation.
fn strike(dice: &mut Dice, frame: &mut Vec<u8>, corpus: &Corpus) {
    let len = frame.len();
    let anywhere = dice.below(len);
    match dice.below(12) {
        0 => frame[anywhere] ^= 1 << dice.below(8),
        1 => frame[anywhere] = dice.byte(),
        2 => {
            let word = dice.word(len);
            put(frame, anywhere & !1, &word.to_be_bytes());
        }
        3 => frame.truncate(anywhere),
        4 => {
            let more = dice.below(64);
            frame.extend((0..more).map(|_| dice.byte()));
        }
        5 => {
            let other = &corpus.frames[dice.below(corpus.frames.len())];
            let from = if dice.one_in(2) {
                anywhere
            } else {
                dice.below(other.len())
            };
            frame.truncate(anywhere);
            frame.extend(other.get(from..).unwrap_or_default());
        }
        6 => {
            let to = anywhere + dice.below(len - anywhere);
            if dice.one_in(2) {
                frame.drain(anywhere..to);
            } else {
                let again = frame[anywhere..to].to_vec();
                frame.splice(anywhere..anywhere, again);
            }
        }
        7 | 8 => strike_ip(dice, frame),
        9 => strike_address(dice, frame, corpus),
        _ => strike_transport(dice, frame),
    }
}

fn strike_ip(dice: &mut Dice, frame: &mut [u8]) {
    let is_v4 = ether_type(frame) == 0x0800;
    let (length, len) = length_at(frame);
    let protocol = dice.of(&[0, 1, 2, 6, 17, 43, 44, 47, 51, 58, 59, 60, 132, 255]);
    let ttl = dice.of(&[0, 1, 2, 255]);
    match dice.below(6) {
        0 => put(frame, length, &dice.word(len).to_be_bytes()),
        1 => put(frame, L3, &[dice.byte()]),
        2 => put(frame, L3 + if is_v4 { 9 } else { 6 }, &[protocol]),
        3 => put(frame, L3 + if is_v4 { 8 } else { 7 }, &[ttl]),
        4 => put(frame, L3 + 6, &dice.word(0x2000).to_be_bytes()),
        _ => {
            let kind = dice.of(&[0x0800_u16, 0x86dd, 0x8100, 0x88a8, 0x0806, 0x8847, 3, 0]);
            put(frame, 12, &kind.to_be_bytes());
        }
    }
}

fn strike_address(dice: &mut Dice, frame: &mut [u8], corpus: &Corpus) {
    let Ok(layout) = Layout::of(frame) else {
        return;
    };
    let at = layout.addresses_at();
    let half = at.len() / 2;
    if dice.one_in(4) {
        frame[L3..][at].rotate_left(half);
        return;
    }
    let address = dice.of(&corpus.addresses[usize::from(!layout.is_v4)]);
    let start = L3 + at.start + dice.of(&[0, half]);
    match address {
        IpAddr::V4(address) => put(frame, start, &address.octets()),
        IpAddr::V6(address) => put(frame, start, &address.octets()),
    }
}

fn strike_transport(dice: &mut Dice, frame: &mut [u8]) {
    let Ok(Layout { l4: Some(l4), .. }) = Layout::of(frame) else {
        return;
    };
    let port = dice.of(&[0_u16, 80, 8080, 81, 30_001, 30_002, 10_001, 61_000, u16::MAX]);
    match dice.below(5) {
        0 => put(frame, l4 + dice.of(&[0, 2]), &port.to_be_bytes()),
        // These mutate TCP's flags, ICMP's type, lengths and checksums.
        1 => put(frame, l4 + 13, &[dice.byte()]),
        2 => put(
            frame,
            l4,
            &[dice.of(&[0, 3, 4, 5, 8, 11, 12, 1, 2, 128, 129, 135])],
        ),
        3 => put(
            frame,
            l4 + dice.of(&[2, 4, 6, 8, 10, 12, 16]),
            &dice.word(0).to_be_bytes(),
        ),
        _ => put(frame, l4 + dice.below(64), &[dice.byte()]),
    }
}

/// Corrects the checksums, as far as that is possible.
fn fix_checksums(dice: &mut Dice, frame: &mut [u8]) {
    let Ok(layout) = Layout::of(frame) else {
        return;
    };
    let header = usize::from(frame[L3] & 15) * 4;
    if layout.is_v4 && L3 + header <= frame.len() {
        put(frame, L3 + 10, &[0, 0]);
        let sum = !sum(&frame[L3..L3 + header], 0);
        put(frame, L3 + 10, &sum.to_be_bytes());
    }
    let (Some(l4), false) = (layout.l4, layout.is_fragment) else {
        return;
    };
    let (at, width) = layout.checksum_at();
    let at = l4 + at;
    if at + width > frame.len() {
        return;
    }
    put(frame, at, &[0; 4][..width]);
    if layout.protocol == protocol::UDP && dice.one_in(4) {
        return;
    }
    if layout.protocol == protocol::SCTP {
        if let (Some(packet), false) = (layout.sctp(frame), dice.one_in(4)) {
            let crc = crc32c(packet);
            put(frame, at, &crc.to_le_bytes());
        }
        return;
    }
    let others = u32::from(layout.protocol) + (frame.len() - l4) as u32;
    let others = if layout.is_v4 && !layout.has_ports() {
        0
    } else {
        others
    };
    let error = sum(&[], layout.transport_error(frame) + others);
    let whole = match !error {
        0 if layout.protocol == protocol::UDP => u16::MAX,
        sum => sum,
    };
    put(frame, at, &whole.to_be_bytes());
}
