//! Asks the kernel for the cgroup of a listening socket, as `ss --cgroup` does: `inet_diag` with
//! `INET_DIAG_CGROUP_ID` (`linux/inet_diag.h`).

use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const REQUEST_DUMP: u16 = 0x301;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
const LISTENING: u32 = 1 << 10;
const INET_DIAG_CGROUP_ID: u16 = 21;
/// Sizes of `nlmsghdr`, `inet_diag_req_v2` and `inet_diag_msg`.
const HEADER: usize = 16;
const REQUEST: usize = 56;
const MESSAGE: usize = 72;

/// The id of the cgroup of the TCP socket that listens on a port, in this thread's
/// namespace. It is the inode number of the cgroup's directory.
pub fn of_listener(port: u16) -> Option<u64> {
    let family = AddressFamily::Netlink;
    let diag = socket(
        family,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )
    .ok()?;
    let mut request = [0; HEADER + REQUEST];
    request[..4].copy_from_slice(&((HEADER + REQUEST) as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request[6..8].copy_from_slice(&REQUEST_DUMP.to_ne_bytes());
    request[16..18].copy_from_slice(&[AF_INET6, IPPROTO_TCP]);
    request[20..24].copy_from_slice(&LISTENING.to_ne_bytes());
    send(diag.as_raw_fd(), &request, MsgFlags::empty()).ok()?;
    let mut reply = vec![0; 16 << 10];
    let length = recv(diag.as_raw_fd(), &mut reply, MsgFlags::empty()).ok()?;
    let mut messages = &reply[..length];
    while messages.len() >= HEADER + MESSAGE {
        let size = u32::from_ne_bytes(messages[..4].try_into().ok()?) as usize;
        let (message, rest) = messages.split_at_checked(size)?;
        if message[HEADER + 4..HEADER + 6] == port.to_be_bytes() {
            return attribute(&message[HEADER + MESSAGE..]);
        }
        messages = rest;
    }
    None
}

fn attribute(mut attributes: &[u8]) -> Option<u64> {
    while attributes.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes(attributes[..2].try_into().ok()?));
        if attributes[2..4] == INET_DIAG_CGROUP_ID.to_ne_bytes() {
            return Some(u64::from_ne_bytes(attributes.get(4..12)?.try_into().ok()?));
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}
