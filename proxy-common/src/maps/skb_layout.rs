//! Fields of the kernel's `struct sk_buff`, whose offsets differ from kernel to kernel.

/// Offsets of the fields that say whether a packet's checksum is left to the NIC, and where it is. In bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SkbLayout {
    /// The byte that contains `ip_summed`. It is never the first byte of the structure: 0 stands for an
    /// unknown layout.
    pub summed: u32,
    /// The lower one of the two bits of `ip_summed` in that byte.
    pub shift: u32,
    /// `csum_start`, which `csum_offset` follows.
    pub sum: u32,
    /// `head`, which `data` follows.
    pub head: u32,
}

impl SkbLayout {
    /// The number of words of the layout.
    pub const WORDS: usize = 4;

    /// The words that the loader hands to the programs.
    pub const fn to_words(self) -> [u32; Self::WORDS] {
        [self.summed, self.shift, self.sum, self.head]
    }

    /// The layout from those words.
    #[inline(always)]
    pub const fn from_words([summed, shift, sum, head]: [u32; Self::WORDS]) -> Self {
        Self {
            summed,
            shift,
            sum,
            head,
        }
    }
}
