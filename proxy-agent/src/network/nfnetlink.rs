//! Reads the tables, chains and rules of netfilter by netlink.
//!
//! The messages are those of `linux/netfilter/nf_tables.h`: a header, four bytes with the family, and
//! attributes. The iptables of the distributions (`iptables-nft`) keeps its rules in tables and chains of
//! nftables too, so this module finds them.
//!
//! The parser stays within the bounds of each reply: it stops at a truncated message or an invalid attribute.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

/// `NFNL_SUBSYS_NFTABLES`, the upper byte of every message type.
const NFTABLES: u16 = 10 << 8;
const NEW_TABLE: u16 = NFTABLES;
const GET_TABLE: u16 = NFTABLES | 1;
const NEW_CHAIN: u16 = NFTABLES | 3;
const GET_CHAIN: u16 = NFTABLES | 4;
const NEW_RULE: u16 = NFTABLES | 6;
const GET_RULE: u16 = NFTABLES | 7;
const NEW_GENERATION: u16 = NFTABLES | 15;
const GET_GENERATION: u16 = NFTABLES | 16;
/// The message types `NLMSG_ERROR` and `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// The flags `NLM_F_REQUEST`, and the same with `NLM_F_DUMP`.
const REQUEST: u16 = 1;
const REQUEST_DUMP: u16 = 0x301;
/// `NFTA_TABLE_NAME` and `NFTA_CHAIN_TABLE` are both the first attribute.
const TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
/// The attributes `NFTA_RULE_TABLE`, `NFTA_RULE_CHAIN` and `NFTA_RULE_EXPRESSIONS`.
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const EXPRESSIONS: u16 = 4;
/// The attribute `NFTA_GEN_ID`.
const GENERATION: u16 = 1;
/// The bits of an attribute's type that are no flags (`NLA_TYPE_MASK`).
const KIND: u16 = 0x3fff;
/// The lengths of `nlmsghdr` and of `nfgenmsg` behind it, in bytes.
const HEADER: usize = 16;
const FAMILY: usize = 4;

/// A family of rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RuleFamily {
    /// Tables for IPv4 packets.
    Ip,
    /// Tables for IPv6 packets.
    Ip6,
    /// Tables for packets of both families.
    Inet,
    /// Tables for packets that enter or leave by single interfaces.
    Netdev,
}

impl RuleFamily {
    /// The name that `nft` uses.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Inet => "inet",
            Self::Netdev => "netdev",
        }
    }

    /// Whether the family is IPv4 alone or IPv6 alone.
    const fn is_of_one(self) -> bool {
        matches!(self, Self::Ip | Self::Ip6)
    }

    /// The number `NFPROTO_…`.
    const fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip => 2,
            Self::Netdev => 5,
            Self::Ip6 => 10,
        }
    }

    /// The family of a number `NFPROTO_…`; other families hold no rules about IP packets.
    const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Inet),
            2 => Some(Self::Ip),
            5 => Some(Self::Netdev),
            10 => Some(Self::Ip6),
            _ => None,
        }
    }
}

/// Calls `each` with the family and the attributes of each table, until it returns false.
pub fn tables(each: &mut dyn FnMut(RuleFamily, &[u8]) -> bool) -> io::Result<()> {
    dump(GET_TABLE, NEW_TABLE, &[0; FAMILY], each)
}

/// The tables for IPv4 alone or IPv6 alone, by family and name.
pub fn table_names() -> io::Result<Vec<(RuleFamily, String)>> {
    let mut names = Vec::new();
    tables(&mut |family, attributes| {
        if family.is_of_one() {
            names.extend(attribute(attributes, TABLE).map(|name| (family, text(name))));
        }
        true
    })?;
    Ok(names)
}

/// Calls `each` with the family and the attributes of each chain, until it returns false.
pub fn chains(each: &mut dyn FnMut(RuleFamily, &[u8]) -> bool) -> io::Result<()> {
    dump(GET_CHAIN, NEW_CHAIN, &[0; FAMILY], each)
}

/// Calls `each` with family, table and name of each chain for IPv4 alone or IPv6 alone, until it returns
/// false.
pub fn chain_names(each: &mut dyn FnMut(RuleFamily, &str, &str) -> bool) -> io::Result<()> {
    chains(
        &mut |family, attributes| match (attribute(attributes, TABLE), attribute(attributes, CHAIN_NAME)) {
            (Some(table), Some(name)) if family.is_of_one() => each(family, &text(table), &text(name)),
            _ => true,
        },
    )
}

/// The expressions of each rule of a chain, in order.
pub fn rules(family: RuleFamily, table: &str, chain: &str) -> io::Result<Vec<Vec<u8>>> {
    let mut body = vec![family.number(), 0, 0, 0];
    for (kind, name) in [(RULE_TABLE, table), (RULE_CHAIN, chain)] {
        let length = u16::try_from(4 + name.len() + 1).map_err(io::Error::other)?;
        body.extend(length.to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(name.bytes().chain([0]));
        body.resize(aligned(body.len()), 0);
    }
    let mut rules = Vec::new();
    dump(GET_RULE, NEW_RULE, &body, &mut |found, attributes| {
        let is_of = |kind, name| attribute(attributes, kind).is_some_and(|value| text(value) == name);
        if found == family && is_of(RULE_TABLE, table) && is_of(RULE_CHAIN, chain) {
            rules.push(attribute(attributes, EXPRESSIONS).unwrap_or_default().to_vec());
        }
        true
    })?;
    Ok(rules)
}

/// Reads the generation of the rules: a number that differs after each change.
#[derive(Debug)]
pub struct Generations(OwnedFd);

impl Generations {
    /// Opens the netlink socket.
    pub fn open() -> io::Result<Self> {
        Ok(Self(open()?))
    }

    /// The generation; `None` if the kernel has no nftables. After an error, the reply to an earlier request
    /// may still arrive.
    pub fn current(&self) -> io::Result<Option<u32>> {
        send_request(&self.0, GET_GENERATION, REQUEST, &[0; FAMILY])?;
        let mut generation = None;
        receive(&self.0, NEW_GENERATION, &mut |_, attributes| {
            generation = attribute(attributes, GENERATION).and_then(number);
            false
        })?;
        Ok(generation)
    }
}

/// Requests all objects of a kind. A kernel without nftables has none.
fn dump(
    request: u16,
    reply: u16,
    body: &[u8],
    each: &mut dyn FnMut(RuleFamily, &[u8]) -> bool,
) -> io::Result<()> {
    let socket = open()?;
    send_request(&socket, request, REQUEST_DUMP, body)?;
    receive(&socket, reply, &mut |family, attributes| {
        RuleFamily::from_number(family).is_none_or(|family| each(family, attributes))
    })
}

/// Sends a request. Its body is the family, the version 0, no resource, and attributes.
fn send_request(socket: &OwnedFd, request: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    let length = HEADER + body.len();
    let mut message = Vec::with_capacity(length);
    message.extend((length as u32).to_ne_bytes());
    message.extend(request.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // The sequence number and the port.
    message.extend([0; 8]);
    message.extend(body);
    send(socket.as_raw_fd(), &message, MsgFlags::empty())?;
    Ok(())
}

/// Calls `each` with the number of the family and the attributes of each reply.
fn receive(socket: &OwnedFd, reply: u16, each: &mut dyn FnMut(u8, &[u8]) -> bool) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        match read(&buffer[..length], reply, each) {
            Progress::More if length > 0 => {}
            Progress::Failed(Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOENT)
            | Progress::More
            | Progress::Done => return Ok(()),
            Progress::Failed(error) => return Err(error.into()),
        }
    }
}

fn open() -> Result<OwnedFd, Errno> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(5))?;
    Ok(socket)
}

/// The state of a dump.
#[derive(Debug, PartialEq, Eq)]
enum Progress {
    More,
    Done,
    Failed(Errno),
}

/// Parses one datagram, which holds several messages.
fn read(mut bytes: &[u8], wanted: u16, each: &mut dyn FnMut(u8, &[u8]) -> bool) -> Progress {
    while let Some((length, kind)) = header(bytes) {
        let Some(message) = bytes.get(HEADER..length) else {
            return Progress::Done;
        };
        match kind {
            DONE => return Progress::Done,
            ERROR => {
                let code = message.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                return if code == 0 {
                    Progress::Done
                } else {
                    Progress::Failed(Errno::from_raw(-code))
                };
            }
            kind if kind == wanted => {
                if let (Some(family), Some(attributes)) = (message.first(), message.get(FAMILY..))
                    && !each(*family, attributes)
                {
                    return Progress::Done;
                }
            }
            _ => {}
        }
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
    }
    Progress::More
}

/// The length and the type of the message at the start of `bytes`.
fn header(bytes: &[u8]) -> Option<(usize, u16)> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    (length >= HEADER).then_some((length, kind))
}

/// The attributes in some bytes, by type.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?);
        let value = bytes.get(4..length)?;
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
        Some((kind & KIND, value))
    })
}

/// The value of an attribute.
pub fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes)
        .find(|(kind, _)| *kind == wanted)
        .map(|(_, value)| value)
}

/// Parses a string value, up to its first zero byte.
pub fn text(value: &[u8]) -> String {
    let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

/// Parses a number in network byte order, as nftables writes it.
pub fn number(value: &[u8]) -> Option<u32> {
    value.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

/// Rounds up to a multiple of four, where messages and attributes begin.
const fn aligned(length: usize) -> usize {
    (length + 3) & !3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, family: u8, attributes: &[(u16, &str)]) -> Vec<u8> {
        let mut body = vec![family, 0, 0, 0];
        for (kind, text) in attributes {
            body.extend((4 + text.len() as u16 + 1).to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(text.bytes().chain([0]));
            body.resize(aligned(body.len()), 0);
        }
        let mut message = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend([0; 10]);
        message.extend(body);
        message
    }

    #[test]
    fn names_are_read_and_other_things_passed_over() {
        let datagram = [
            message(NEW_CHAIN, 2, &[(1, "nat"), (2, "12345678"), (3, "KUBE-SERVICES")]),
            message(NEW_TABLE, 2, &[(1, "nat")]),
            message(NEW_CHAIN, 7, &[(1, "bridge"), (3, "x")]),
            message(NEW_CHAIN, 10, &[(1, "filter"), (3, "y")]),
        ]
        .concat();
        let mut found = Vec::new();
        let mut note = |family: u8, attributes: &[u8]| {
            let name = |kind| attribute(attributes, kind).map(text);
            found.extend(
                RuleFamily::from_number(family).map(|family| (family, name(TABLE), name(CHAIN_NAME))),
            );
            true
        };
        assert_eq!(read(&datagram, NEW_CHAIN, &mut note), Progress::More);
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(
            found,
            [
                (RuleFamily::Ip, some("nat"), some("KUBE-SERVICES")),
                (RuleFamily::Ip6, some("filter"), some("y")),
            ]
        );
    }

    #[test]
    fn a_dump_ends_with_done_an_error_or_garbage() {
        let read = |bytes: &[u8]| read(bytes, NEW_TABLE, &mut |_, _| true);
        assert_eq!(read(&message(DONE, 0, &[])), Progress::Done);
        let mut error = message(ERROR, 0, &[]);
        error[HEADER..HEADER + 4].copy_from_slice(&(-(Errno::EPERM as i32)).to_ne_bytes());
        assert_eq!(read(&error), Progress::Failed(Errno::EPERM));
        assert_eq!(read(&message(NEW_TABLE, 2, &[])[..18]), Progress::Done);
        assert_eq!(read(&[]), Progress::More);
    }
    #[test]
    fn attributes_end_where_bytes_do() {
        let mut bytes = message(NEW_TABLE, 2, &[(1, "nat"), (2 | 0x8000, "x")]).split_off(HEADER + FAMILY);
        let found: Vec<_> = attributes(&bytes).collect();
        assert_eq!(found, [(1, &b"nat\0"[..]), (2, &b"x\0"[..])], "flags apart");
        for length in 0..bytes.len() {
            assert!(attributes(&bytes[..length]).count() < 3);
        }
        for length in [0, 3, 200] {
            bytes[0] = length;
            assert_eq!(attributes(&bytes).count(), 0, "{length}");
        }
        assert_eq!((number(&[0, 0, 1, 2]), number(&[0, 1])), (Some(258), None));
    }
}
