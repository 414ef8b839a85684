//! SCTP's checksum over a packet whose ports change.
//!
//! `CRC32c` (RFC 9260 appendix A) covers the whole packet, which a kernel program cannot read in full. But a
//! CRC is linear: the checksum changes by the CRC of the change alone. The change is zero everywhere except
//! in the ports. The CRC of a word and the zeros behind it is that word times a power of x, modulo the
//! polynomial. Two tables contain the powers.

/// The polynomial of `CRC32c`, bits reflected, as all values here.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// The polynomial 1.
const ONE: u32 = 1 << 31;
/// x to the power of 8·n, and of 8·256·n: a packet's length has two bytes. They are tables, since the
/// verifier follows every iteration of every loop, once for each program.
static LOW: [u32; 256] = powers(ONE >> 8);
static HIGH: [u32; 256] = powers(multiply(LOW[255], ONE >> 8));

const fn powers(base: u32) -> [u32; 256] {
    let mut powers = [ONE; 256];
    let mut n = 1;
    while n < powers.len() {
        powers[n] = multiply(powers[n - 1], base);
        n += 1;
    }
    powers
}

/// The product of two polynomials. It has no branches, since the verifier would follow each.
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

/// The change (exclusive or) of the checksum of a packet of `len` bytes, less than 65536, if its first four
/// bytes change by `ports`. Both are the bytes in memory, read as little-endian words.
#[inline(always)]
pub fn change(ports: u32, len: u32) -> u32 {
    let (low, high) = (LOW[(len & 0xff) as usize], HIGH[(len >> 8 & 0xff) as usize]);
    multiply(high, multiply(low, ports))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The reference implementation, bit by bit as in the standard.
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
        // The values of RFC 3720 appendix B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    proptest! {
        #[test]
        fn the_change_leads_from_one_checksum_to_the_other(
            mut packet in prop::collection::vec(any::<u8>(), 12..65536),
            ports: u32,
        ) {
            let (before, old) = (crc32c(&packet), [packet[0], packet[1], packet[2], packet[3]]);
            packet[..4].copy_from_slice(&ports.to_le_bytes());
            let change = change(u32::from_le_bytes(old) ^ ports, packet.len() as u32);
            prop_assert_eq!(before ^ change, crc32c(&packet));
        }
    }
}
