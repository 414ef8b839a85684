//! The offsets of the fields of `struct sk_buff` in this kernel, by its own description of its types (BTF,
//! `Documentation/bpf/btf.rst`).
//!
//! The programs read the fields by their offsets. Rust's compiler makes no relocations for them. So the agent
//! finds the offsets, and passes them to the programs when it loads them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use proxy_common::maps::SkbLayout;

const KERNEL_TYPES: &str = "/sys/kernel/btf/vmlinux";
const LOCKDOWN: &str = "/sys/kernel/security/lockdown";
const MAGIC: u16 = 0xeb9f;
const HEADER: usize = 24;
/// The size of the record with which each type begins: its name, its kind, and its size or the type that it
/// refers to.
const TYPE: usize = 12;
const MEMBER: usize = 12;

/// The layout in the running kernel; all zero if it is not known, see [`limitation`].
pub fn of_kernel() -> SkbLayout {
    known().as_ref().copied().unwrap_or_default()
}

/// The reason why the programs do not use the layout, if they do not.
pub fn limitation() -> Option<&'static str> {
    if IS_REFUSED.load(Ordering::Relaxed) {
        return Some("the kernel refuses programs that read its memory (lockdown)");
    }
    known().as_ref().err().map(String::as_str)
}

/// Whether the kernel has refused programs that use the layout.
static IS_REFUSED: AtomicBool = AtomicBool::new(false);

/// Notes that the kernel refuses programs that use the layout.
pub fn give_up() {
    IS_REFUSED.store(true, Ordering::Relaxed);
}

fn known() -> &'static Result<SkbLayout, String> {
    static KNOWN: OnceLock<Result<SkbLayout, String>> = OnceLock::new();
    KNOWN.get_or_init(|| {
        // Under this lockdown the kernel refuses programs that read its memory.
        if fs::read_to_string(LOCKDOWN).is_ok_and(|modes| modes.contains("[confidentiality]")) {
            return Err("the kernel is locked down (confidentiality)".to_owned());
        }
        let types = fs::read(Path::new(KERNEL_TYPES)).map_err(|error| format!("{KERNEL_TYPES}: {error}"))?;
        find(&types).ok_or_else(|| format!("{KERNEL_TYPES} does not describe the layout of struct sk_buff"))
    })
}

fn find(types: &[u8]) -> Option<SkbLayout> {
    let types = Types::read(types)?;
    let mut fields = BTreeMap::new();
    types.fields(types.structure("sk_buff")?, 0, &mut fields)?;
    let byte = |name: &str| {
        let Field { bit, .. } = *fields.get(name)?;
        (bit % 8 == 0).then_some(bit / 8)
    };
    let summed = fields.get("ip_summed").filter(|field| field.bits == 2)?;
    let layout = SkbLayout {
        summed: summed.bit / 8,
        shift: summed.bit % 8,
        sum: byte("csum_start")?,
        head: byte("head")?,
    };
    let is_as_read = layout.summed > 0
        && layout.shift <= 6
        && byte("csum_offset")? == layout.sum + 2
        && byte("data")? == layout.head + 8;
    is_as_read.then_some(layout)
}

/// A field of a structure: its first bit, and its size in bits if it is a bit field.
#[derive(Clone, Copy, Debug)]
struct Field {
    bit: u32,
    bits: u32,
}

/// The types of a kernel.
struct Types<'a> {
    bytes: &'a [u8],
    strings: &'a [u8],
    /// The position of each type, by its number; number 0 is `void`.
    begins: Vec<usize>,
}

/// A structure or a union.
#[derive(Clone, Copy)]
struct Structure {
    /// The position of its members.
    members: usize,
    count: usize,
    /// Whether the upper byte of an offset holds the number of bits.
    has_bits: bool,
}

impl<'a> Types<'a> {
    fn read(data: &'a [u8]) -> Option<Self> {
        let number = |at: usize| word(data, at).map(|word| word as usize);
        if data.get(..2)? != MAGIC.to_ne_bytes() {
            return None;
        }
        let header = number(4)?;
        if header < HEADER {
            return None;
        }
        let part = |at: usize, len: usize| data.get(header.checked_add(at)?..)?.get(..len);
        let (bytes, strings) = (part(number(8)?, number(12)?)?, part(number(16)?, number(20)?)?);
        let mut begins = vec![usize::MAX];
        let mut at = 0;
        while at < bytes.len() {
            begins.push(at);
            let info = word(bytes, at + 4)?;
            let count = (info & 0xffff) as usize;
            // The numbers of `BTF_KIND_*` in `linux/btf.h`.
            let rest = match info >> 24 & 0x1f {
                1 | 14 | 17 => 4,
                3 => 12,
                4 | 5 | 15 | 19 => 12 * count,
                6 | 13 => 8 * count,
                2 | 7..=12 | 16 | 18 => 0,
                _ => return None,
            };
            at += TYPE + rest;
        }
        Some(Self {
            bytes,
            strings,
            begins,
        })
    }

    fn is_named(&self, offset: u32, name: &str) -> bool {
        let text = self.strings.get(offset as usize..).unwrap_or_default();
        text.strip_prefix(name.as_bytes())
            .is_some_and(|rest| rest.first() == Some(&0))
    }

    fn structure_at(&self, begin: usize) -> Option<Structure> {
        let info = word(self.bytes, begin + 4)?;
        matches!(info >> 24 & 0x1f, 4 | 5).then_some(Structure {
            members: begin + TYPE,
            count: (info & 0xffff) as usize,
            has_bits: info >> 31 == 1,
        })
    }

    fn structure(&self, name: &str) -> Option<Structure> {
        let mut all = self.begins.iter().skip(1);
        all.find_map(|begin| {
            let is_it = self.is_named(word(self.bytes, *begin)?, name);
            if is_it { self.structure_at(*begin) } else { None }
        })
    }

    /// Notes the fields of a structure by name, and those of the unnamed structures in it.
    fn fields(&self, of: Structure, base: u32, into: &mut BTreeMap<String, Field>) -> Option<()> {
        for number in 0..of.count {
            let at = of.members + MEMBER * number;
            let (name, kind, offset) = (
                word(self.bytes, at)?,
                word(self.bytes, at + 4)?,
                word(self.bytes, at + 8)?,
            );
            let field = Field {
                bit: base + if of.has_bits { offset & 0x00ff_ffff } else { offset },
                bits: if of.has_bits { offset >> 24 } else { 0 },
            };
            let name = self
                .strings
                .get(name as usize..)?
                .split(|byte| *byte == 0)
                .next()?;
            if !name.is_empty() {
                into.insert(String::from_utf8_lossy(name).into_owned(), field);
            } else if let Some(inner) = self.structure_at(*self.begins.get(kind as usize)?) {
                self.fields(inner, field.bit, into)?;
            }
        }
        Some(())
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A member: its name, the number of its type, its first bit, its size in bits.
    type Member = (&'static str, u32, u32, u32);

    /// The bytes of these types: an integer, and these structures, numbered from 2 on.
    fn types(structures: &[(&str, &[Member])]) -> Vec<u8> {
        let mut strings = vec![0];
        let mut types = Vec::new();
        let mut put = |words: &[u32]| types.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
        let mut name = |text: &str| {
            let at = if text.is_empty() { 0 } else { strings.len() };
            if at != 0 {
                strings.extend(text.bytes().chain([0]));
            }
            at as u32
        };
        put(&[name("int"), 1 << 24, 4, 32]);
        for (title, members) in structures {
            put(&[name(title), 1 << 31 | 4 << 24 | members.len() as u32, 0]);
            for (title, kind, bit, bits) in *members {
                put(&[name(title), *kind, bits << 24 | bit]);
            }
        }
        let mut data = MAGIC.to_ne_bytes().to_vec();
        data.extend([1, 0]);
        let lengths = [24, 0, types.len(), types.len(), strings.len()];
        data.extend(lengths.iter().flat_map(|len| (*len as u32).to_ne_bytes()));
        data.extend(types);
        data.extend(strings);
        data
    }

    const SKB: &[Member] = &[
        ("next", 1, 0, 0),
        ("", 3, 64, 0),
        ("head", 1, 640, 0),
        ("data", 1, 704, 0),
    ];
    const INNER: &[Member] = &[
        ("pkt_type", 1, 0, 3),
        ("ip_summed", 1, 5, 2),
        ("csum_start", 1, 32, 0),
        ("csum_offset", 1, 48, 0),
    ];
    const LAYOUT: SkbLayout = SkbLayout {
        summed: 8,
        shift: 5,
        sum: 12,
        head: 80,
    };

    #[test]
    fn fields_are_found_in_structures_without_a_name() {
        let data = types(&[("sk_buff", SKB), ("", INNER)]);
        assert_eq!(find(&data), Some(LAYOUT));
        for len in 0..data.len() {
            let _ = find(&data[..len]);
        }
    }

    #[test]
    fn another_layout_than_the_programs_read_is_none() {
        assert_eq!(find(&types(&[("sk_buff_head", SKB), ("", INNER)])), None);
        let apart = [SKB[0], SKB[1], SKB[2], ("data", 1, 768, 0)];
        assert_eq!(find(&types(&[("sk_buff", &apart), ("", INNER)])), None);
        let wide = [INNER[0], ("ip_summed", 1, 5, 3), INNER[2], INNER[3]];
        assert_eq!(find(&types(&[("sk_buff", SKB), ("", &wide)])), None);
        assert_eq!(find(&types(&[("sk_buff", SKB), ("", &INNER[..3])])), None);
    }

    #[test]
    fn this_kernel_has_the_layout() {
        if let Ok(types) = fs::read(KERNEL_TYPES) {
            assert!(find(&types).is_some());
        }
    }
}
