//! Fields of the kernel's `struct sk_buff`, which differ from kernel to kernel.

/// Where the fields lie that say whether and where a packet's checksum is left to the NIC. Offsets in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SkbLayout {
    /// The byte with `ip_summed`. It is never the first one: 0 stands for an unknown layout.
    pub summed: u32,
    /// The bit there with which the two of `ip_summed` begin.
    pub shift: u32,
    /// `csum_start`, with `csum_offset` behind it.
    pub sum: u32,
    /// `head`, with `data` behind it.
    pub head: u32,
}

impl SkbLayout {
    /// How many words hold it.
    pub const WORDS: usize = 4;

    /// As the loader hands it to the programs.
    pub const fn to_words(self) -> [u32; Self::WORDS] {
        [self.summed, self.shift, self.sum, self.head]
    }

    /// As the programs find it.
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
