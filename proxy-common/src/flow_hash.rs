//! The hash by which the packet path chooses a backend.
//!
//! The choice is a pure function of the 5-tuple. So a flow whose conntrack entry was evicted finds the same
//! backend again, and `millrace trace` can predict it. Clients differ mostly in the low bits of the source
//! port, so every word is mixed fully. The block mix and the finaliser are those of `MurmurHash3` by Austin
//! Appleby (public domain).

use crate::{Ip, Port};

#[inline(always)]
const fn mix(hash: u32, word: u32) -> u32 {
    let word = word
        .wrapping_mul(0xcc9e_2d51)
        .rotate_left(15)
        .wrapping_mul(0x1b87_3593);
    (hash ^ word)
        .rotate_left(13)
        .wrapping_mul(5)
        .wrapping_add(0xe654_6b64)
}

#[inline(always)]
const fn finish(mut hash: u32) -> u32 {
    hash ^= hash >> 16;
    hash = hash.wrapping_mul(0x85eb_ca6b);
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(0xc2b2_ae35);
    hash ^ (hash >> 16)
}

/// The first three words of an address; the same for all of IPv4.
#[inline(always)]
const fn prefix(words: [u32; 4]) -> u32 {
    words[0] ^ words[1].rotate_left(7) ^ words[2].rotate_left(19)
}

/// Hashes a flow. The seed separates independent choices for one flow (which backend, which source port).
#[inline(always)]
pub const fn flow_hash(src: &Ip, dst: &Ip, sport: Port, dport: Port, protocol: u8, seed: u32) -> u32 {
    let (src, dst) = (src.v6_words(), dst.v6_words());
    let mut hash = mix(seed, prefix(src));
    hash = mix(hash, src[3]);
    hash = mix(hash, prefix(dst));
    hash = mix(hash, dst[3]);
    hash = mix(hash, (sport.raw() as u32) << 16 | dport.raw() as u32);
    finish(mix(hash, protocol as u32))
}

/// Scales a 32-bit hash to `0..count` without a division.
#[inline(always)]
pub const fn pick(hash: u32, count: u32) -> u32 {
    ((hash as u64 * count as u64) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consecutive_source_ports_spread_evenly() {
        let (src, dst) = (Ip::from_v4_word(0x0501_a8c0), Ip::from_v4_word(0x0100_600a));
        for count in [2_u32, 3, 7, 10, 100] {
            let mut hits = vec![0_u32; count as usize];
            for sport in 20_000..60_000 {
                let hash = flow_hash(&src, &dst, Port::new(sport), Port::new(80), 6, 0);
                hits[pick(hash, count) as usize] += 1;
            }
            let expected = 40_000.0 / f64::from(count);
            let chi2: f64 = hits
                .iter()
                .map(|&n| (f64::from(n) - expected).powi(2) / expected)
                .sum();
            // The mean is count-1 and the variance 2(count-1). Five standard deviations above is far beyond p
            // = 0.001.
            let limit = f64::from(count - 1) + 5.0 * (2.0 * f64::from(count - 1)).sqrt();
            assert!(chi2 < limit, "{count} backends: chi2 {chi2} over {limit}");
        }
    }

    #[test]
    fn pick_stays_below_count() {
        assert_eq!(pick(u32::MAX, 3), 2);
        assert_eq!(pick(0, 3), 0);
    }
}
