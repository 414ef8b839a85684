//! SCTP's checksum over a packet whose ports change.
//!
//! `CRC32c` (RFC 9260 appendix A) covers the whole packet, which a kernel program cannot walk. But a CRC is linear: what
//! the checksum changes by is the CRC of the change alone, and all of the change but the ports is zeros. The CRC of zeros
//! behind a word is that word times a power of x, modulo the polynomial, and powers of x are found by squaring. So the cost
//! grows with the logarithm of the packet's length.

/// The polynomial of `CRC32c`, bits reflected, as everything here.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// The polynomial 1.
const ONE: u32 = 1 << 31;
/// The bits of a packet's length that count.
const LENGTH_BITS: usize = 16;

/// x to the power of 8·2ⁿ.
const POWERS: [u32; LENGTH_BITS] = {
    let mut powers = [0; LENGTH_BITS];
    // x⁸
    let mut power = ONE >> 8;
    let mut n = 0;
    while n < LENGTH_BITS {
        powers[n] = power;
        power = multiply(power, power);
        n += 1;
    }
    powers
};

/// The product of two polynomials; without branches, which a verifier would follow each.
#[inline(always)]
const fn multiply(one: u32, mut other: u32) -> u32 {
    let mut product = 0;
    let mut bit = 0;
    while bit < 32 {
        product ^= other & 0_u32.wrapping_sub(one >> (31 - bit) & 1);
        other = (other >> 1) ^ (POLYNOMIAL & 0_u32.wrapping_sub(other & 1));
        bit += 1;
    }
    product
}

/// What the checksum of a packet of `len` bytes changes by (exclusive or) where its first four bytes change by `ports`;
/// both as they lie in memory, read as little-endian words.
#[inline(always)]
pub const fn change(ports: u32, len: u32) -> u32 {
    let mut change = ports;
    let mut bit = 0;
    while bit < LENGTH_BITS {
        let counts = 0_u32.wrapping_sub(len >> bit & 1);
        change = multiply(POWERS[bit] & counts | ONE & !counts, change);
        bit += 1;
    }
    change
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bit by bit, as the standard has it.
    fn crc32c(bytes: &[u8]) -> u32 {
        let mut crc = u32::MAX;
        for byte in bytes {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = (crc >> 1) ^ if crc & 1 == 1 { POLYNOMIAL } else { 0 };
            }
        }
        !crc
    }

    #[test]
    fn the_reference_is_crc32c() {
        // RFC 3720 appendix B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    proptest! {
        #[test]
        fn the_change_leads_from_one_checksum_to_the_other(
            mut packet in prop::collection::vec(any::<u8>(), 12..3000),
            ports: u32,
        ) {
            let (before, old) = (crc32c(&packet), [packet[0], packet[1], packet[2], packet[3]]);
            packet[..4].copy_from_slice(&ports.to_le_bytes());
            let change = change(u32::from_le_bytes(old) ^ ports, packet.len() as u32);
            prop_assert_eq!(before ^ change, crc32c(&packet));
        }
    }
}
