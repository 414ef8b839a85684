//! Which tables and chains netfilter holds, by netlink: two dumps, and no more of nftables than their names.
//!
//! The messages are those of `linux/netfilter/nf_tables.h`: a header, four bytes that name the family, and attributes. iptables
//! as distributions ship it (`iptables-nft`) keeps its rules in tables and chains of nftables too, so they are found here.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

/// `NFNL_SUBSYS_NFTABLES`, the upper byte of every type.
const NFTABLES: u16 = 10 << 8;
const NEW_TABLE: u16 = NFTABLES;
const GET_TABLE: u16 = NFTABLES | 1;
const NEW_CHAIN: u16 = NFTABLES | 3;
const GET_CHAIN: u16 = NFTABLES | 4;
/// `NLMSG_ERROR` and `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const REQUEST_DUMP: u16 = 0x301;
/// `NFTA_TABLE_NAME` and `NFTA_CHAIN_TABLE` are both the first attribute.
const TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
/// Length of `nlmsghdr`, and of `nfgenmsg` behind it.
const HEADER: usize = 16;
const FAMILY: usize = 4;

/// A family of rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RuleFamily {
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
}

impl RuleFamily {
    /// As `nft` writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
        }
    }

    /// From `NFPROTO_…`; other families hold no rules of a Service proxy.
    const fn from_number(number: u8) -> Option<Self> {
        match number {
            2 => Some(Self::Ip),
            10 => Some(Self::Ip6),
            _ => None,
        }
    }
}

/// The tables of both families, by family and name.
pub fn tables() -> io::Result<Vec<(RuleFamily, String)>> {
    let mut tables = Vec::new();
    dump(GET_TABLE, NEW_TABLE, &mut |family, attributes| {
        tables.extend(attribute(attributes, TABLE).map(|name| (family, name)));
        true
    })?;
    Ok(tables)
}

/// Calls `each` with family, table and name of each chain, until it wants no more.
pub fn chains(each: &mut dyn FnMut(RuleFamily, &str, &str) -> bool) -> io::Result<()> {
    dump(GET_CHAIN, NEW_CHAIN, &mut |family, attributes| match (
        attribute(attributes, TABLE),
        attribute(attributes, CHAIN_NAME),
    ) {
        (Some(table), Some(name)) => each(family, &table, &name),
        _ => true,
    })
}

/// Asks for everything of a kind; where the kernel has no nftables there is nothing.
fn dump(request: u16, answer: u16, each: &mut dyn FnMut(RuleFamily, &[u8]) -> bool) -> io::Result<()> {
    let socket = open()?;
    let mut message = Vec::with_capacity(HEADER + FAMILY);
    message.extend(((HEADER + FAMILY) as u32).to_ne_bytes());
    message.extend(request.to_ne_bytes());
    message.extend(REQUEST_DUMP.to_ne_bytes());
    // Sequence number, port, then any family, version 0, no resource.
    message.extend([0; 8 + FAMILY]);
    send(socket.as_raw_fd(), &message, MsgFlags::empty())?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        match read(&buffer[..length], answer, each) {
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

/// How far a dump is.
#[derive(Debug, PartialEq, Eq)]
enum Progress {
    More,
    Done,
    Failed(Errno),
}

/// Reads one datagram, which holds several messages.
fn read(mut bytes: &[u8], wanted: u16, each: &mut dyn FnMut(RuleFamily, &[u8]) -> bool) -> Progress {
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
                let family = message.first().copied().and_then(RuleFamily::from_number);
                if let (Some(family), Some(attributes)) = (family, message.get(FAMILY..))
                    && !each(family, attributes)
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

/// Length and type of the message that `bytes` begin with.
fn header(bytes: &[u8]) -> Option<(usize, u16)> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    (length >= HEADER).then_some((length, kind))
}

/// A text attribute.
fn attribute(mut bytes: &[u8], wanted: u16) -> Option<String> {
    loop {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?);
        let value = bytes.get(4..length)?;
        if kind == wanted {
            let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        bytes = bytes.get(aligned(length)..)?;
    }
}

/// Messages and attributes begin at multiples of four.
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
        let mut note = |family: RuleFamily, attributes: &[u8]| {
            found.push((
                family,
                attribute(attributes, TABLE),
                attribute(attributes, CHAIN_NAME),
            ));
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
}
