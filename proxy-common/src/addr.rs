//! Addresses and ports as they are in the maps: sixteen bytes and two bytes, in network order.
//!
//! IPv4 and IPv6 share every table and every decision: an IPv4 address is stored as its IPv4-mapped IPv6
//! address (RFC 4291 §2.5.5.2). One set of maps and one code path cost a few nanoseconds of hashing per
//! look-up and save half of the programs. Sockets that use IPv4 through `AF_INET6` need no special case.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The third word of an IPv4-mapped address, `0x0000ffff`, in memory order.
const MAPPED: u32 = 0x0000_ffff_u32.to_be();

/// An IP address, IPv4 in its IPv4-mapped form.
///
/// The words are in network order, so that a header's bytes are copied and never swapped.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Ip([u32; 4]);

impl Ip {
    /// The unspecified IPv6 address, which stands for "none".
    pub const UNSPECIFIED: Self = Self([0; 4]);

    /// The IPv4 loopback address `127.0.0.1`.
    pub const LOOPBACK_V4: Self = Self([0, 0, MAPPED, 0x7f00_0001_u32.to_be()]);

    /// The IPv6 loopback address `::1`.
    pub const LOOPBACK_V6: Self = Self([0, 0, 0, 1_u32.to_be()]);

    /// From an IPv4 header field of four bytes, read as one native word.
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        Self([0, 0, MAPPED, word])
    }

    /// From an IPv6 header field of sixteen bytes, read as four native words.
    #[inline(always)]
    pub const fn from_v6_words(words: [u32; 4]) -> Self {
        Self(words)
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == MAPPED
    }

    /// The IPv4 header field, as one native word; meaningful only if [`Self::is_v4`].
    #[inline(always)]
    pub const fn v4_word(&self) -> u32 {
        self.0[3]
    }

    /// The IPv6 header field, as four native words.
    #[inline(always)]
    pub const fn v6_words(&self) -> [u32; 4] {
        self.0
    }

    /// Whether this is `::`, which stands for no address.
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0 && self.0[3] == 0
    }

    /// Whether this is `0.0.0.0`, for which [`Self::is_unspecified`] is false.
    #[inline(always)]
    pub const fn is_v4_unspecified(&self) -> bool {
        self.is_v4() && self.0[3] == 0
    }

    /// Whether this is an address of the loopback.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        if self.is_v4() {
            u32::from_be(self.0[3]) >> 24 == 127
        } else {
            self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0 && self.0[3] == 1_u32.to_be()
        }
    }

    /// Whether this may be the address of one host: not unspecified, multicast, broadcast or reserved (RFC
    /// 1122 §3.2.1.3; RFC 4291 §2.4).
    #[inline(always)]
    pub const fn is_one_host(&self) -> bool {
        if self.is_v4() {
            matches!(u32::from_be(self.0[3]) >> 24, 1..=223)
        } else {
            u32::from_be(self.0[0]) >> 24 != 0xff && !self.is_unspecified()
        }
    }

    /// Whether this is a link-local address (RFC 3927; RFC 4291 §2.5.6).
    #[inline(always)]
    pub const fn is_link_local(&self) -> bool {
        if self.is_v4() {
            u32::from_be(self.0[3]) >> 16 == 0xa9fe
        } else {
            u32::from_be(self.0[0]) >> 22 == 0xfe80 >> 6
        }
    }

    /// The /64 that contains an IPv6 address. A customer has at least one /64 (RFC 6177).
    #[inline(always)]
    #[must_use]
    pub const fn site(&self) -> Self {
        Self([self.0[0], self.0[1], 0, 0])
    }

    /// Whether this is the link-local address that follows from a hardware address (RFC 4291, appendix A).
    #[inline(always)]
    pub const fn is_link_local_of(&self, mac: &[u8; 6]) -> bool {
        let third = u32::from_ne_bytes([mac[0] ^ 2, mac[1], mac[2], 0xff]);
        let fourth = u32::from_ne_bytes([0xfe, mac[3], mac[4], mac[5]]);
        (self.0[0] ^ 0xfe80_0000_u32.to_be()) | self.0[1] | (self.0[2] ^ third) | (self.0[3] ^ fourth) == 0
    }

    /// The unspecified address of the same family, `0.0.0.0` or `::`.
    #[inline(always)]
    #[must_use]
    pub const fn unspecified_of_family(&self) -> Self {
        if self.is_v4() {
            Self::from_v4_word(0)
        } else {
            Self::UNSPECIFIED
        }
    }

    /// Whether the two are the same. It compares word by word, because LLVM does not turn that into a call,
    /// and the verifier follows it.
    #[inline(always)]
    pub const fn same(&self, other: &Self) -> bool {
        (self.0[0] ^ other.0[0])
            | (self.0[1] ^ other.0[1])
            | (self.0[2] ^ other.0[2])
            | (self.0[3] ^ other.0[3])
            == 0
    }

    /// The address's bytes, in network order.
    pub const fn octets(&self) -> [u8; 16] {
        let mut octets = [0; 16];
        let mut word = 0;
        while word < 4 {
            let bytes = self.0[word].to_ne_bytes();
            let mut byte = 0;
            while byte < 4 {
                octets[word * 4 + byte] = bytes[byte];
                byte += 1;
            }
            word += 1;
        }
        octets
    }
}

impl From<Ipv4Addr> for Ip {
    fn from(address: Ipv4Addr) -> Self {
        Self::from_v4_word(u32::from_ne_bytes(address.octets()))
    }
}

impl From<Ipv6Addr> for Ip {
    fn from(address: Ipv6Addr) -> Self {
        let octets = address.octets();
        let word =
            |at: usize| u32::from_ne_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]]);
        Self([word(0), word(4), word(8), word(12)])
    }
}

impl From<IpAddr> for Ip {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => address.into(),
            IpAddr::V6(address) => address.into(),
        }
    }
}

impl From<Ip> for IpAddr {
    fn from(ip: Ip) -> Self {
        Self::V6(Ipv6Addr::from(ip.octets())).to_canonical()
    }
}

impl core::fmt::Debug for Ip {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Debug::fmt(&IpAddr::from(*self), formatter)
    }
}

/// A transport port in network order.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Port(u16);

impl Port {
    /// From a number in host order.
    #[inline(always)]
    pub const fn new(number: u16) -> Self {
        Self(number.to_be())
    }

    /// From a header field, read as one native half-word.
    #[inline(always)]
    pub const fn from_raw(raw: u16) -> Self {
        Self(raw)
    }

    /// The header field, as one native half-word.
    #[inline(always)]
    pub const fn raw(self) -> u16 {
        self.0
    }

    /// The number in host order.
    #[inline(always)]
    pub const fn number(self) -> u16 {
        u16::from_be(self.0)
    }
}

impl core::fmt::Debug for Port {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Debug::fmt(&self.number(), formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_address_survives_the_mapped_form() {
        let address: IpAddr = "10.96.0.1".parse().unwrap();
        let ip = Ip::from(address);
        assert!(ip.is_v4());
        assert_eq!(IpAddr::from(ip), address);
        assert_eq!(ip, Ip::from("::ffff:10.96.0.1".parse::<Ipv6Addr>().unwrap()));
    }

    #[test]
    fn an_ipv6_address_is_not_taken_for_ipv4() {
        for text in ["::", "::1", "::10.0.0.1", "fd00::ffff:0:1"] {
            let address: IpAddr = text.parse().unwrap();
            assert!(!Ip::from(address).is_v4(), "{text}");
            assert_eq!(IpAddr::from(Ip::from(address)), address);
        }
    }

    #[test]
    fn multicast_and_unspecified_addresses_are_not_one_host() {
        let ip = |text: &str| Ip::from(text.parse::<IpAddr>().unwrap());
        for text in [
            "0.0.0.0",
            "0.1.2.3",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "ff02::1",
        ] {
            assert!(!ip(text).is_one_host(), "{text}");
        }
        for text in [
            "10.0.0.1",
            "127.0.0.1",
            "223.255.255.255",
            "::1",
            "fe80::1",
            "2001:db8::1",
        ] {
            assert!(ip(text).is_one_host(), "{text}");
        }
    }

    #[test]
    fn ports_are_kept_in_network_order() {
        assert_eq!(Port::new(80).raw().to_ne_bytes(), [0, 80]);
        assert_eq!(Port::from_raw(u16::from_ne_bytes([0x1f, 0x90])).number(), 8080);
    }
}
