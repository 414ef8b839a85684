//! Announcing that an address has a new owner.
//!
//! An address may have been another pod's a moment ago. For IPv4 the kernel sends gratuitous ARP itself, if
//! `arp_notify` is set, when an interface with the address goes up. A packet socket of the plugin would cost
//! 15 ms, since closing one waits for a grace period.
//!
//! For IPv6 the kernel announces only after duplicate address detection, which pods do without. So the plugin
//! sends an unsolicited advertisement (RFC 4861, 7.2.6) by a raw socket, and the kernel fills in the
//! checksum.

use std::io::IoSlice;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, sendmsg,
    setsockopt, socket, sockopt,
};

use super::error::NetlinkError;

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const OVERRIDE: u8 = 0x20;
const TARGET_LINK_LAYER_ADDRESS: u8 = 2;

/// A socket for advertisements in the pod's network namespace.
pub struct Announcer(OwnedFd);

impl Announcer {
    /// Opens the socket in the network namespace of this thread.
    pub fn open() -> Result<Self, NetlinkError> {
        let open = || {
            let fd = socket(
                AddressFamily::Inet6,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::IcmpV6,
            )?;
            // Receivers ignore advertisements that crossed a router (RFC 4861, 7.1.2): the hop limit must be
            // 255.
            setsockopt(&fd, sockopt::Ipv6MulticastHops, &255)?;
            Ok(Self(fd))
        };
        open().map_err(|errno: nix::Error| {
            NetlinkError::refused("opening a socket for neighbour advertisements")(errno.into())
        })
    }

    /// Announces that an address is at an Ethernet address.
    pub fn announce(&self, interface: u32, ip: Ipv6Addr, mac: [u8; 6]) -> Result<(), NetlinkError> {
        let message = advertisement(ip, mac);
        let to = SockaddrIn6::from(SocketAddrV6::new(ALL_NODES, 0, 0, interface));
        let from = libc::in6_pktinfo {
            ipi6_addr: libc::in6_addr { s6_addr: ip.octets() },
            ipi6_ifindex: interface,
        };
        let control = [ControlMessage::Ipv6PacketInfo(&from)];
        let sent = sendmsg(
            self.0.as_raw_fd(),
            &[IoSlice::new(&message)],
            &control,
            MsgFlags::empty(),
            Some(&to),
        );
        sent.map(drop)
            .map_err(|errno| NetlinkError::refused(format!("announcing {ip}"))(errno.into()))
    }
}

fn advertisement(ip: Ipv6Addr, mac: [u8; 6]) -> [u8; 32] {
    let mut message = [0; 32];
    message[0] = NEIGHBOUR_ADVERTISEMENT;
    message[4] = OVERRIDE;
    message[8..24].copy_from_slice(&ip.octets());
    // The length of the option counts units of eight bytes.
    message[24..26].copy_from_slice(&[TARGET_LINK_LAYER_ADDRESS, 1]);
    message[26..].copy_from_slice(&mac);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_advertisement_names_address_and_owner() {
        let ip = "fd00::5".parse().unwrap();
        let message = advertisement(ip, [2, 0, 0, 0, 0, 7]);
        assert_eq!((message[0], message[4]), (136, 0x20));
        assert_eq!(message[8..24], ip.octets());
        assert_eq!(message[24..], [2, 1, 2, 0, 0, 0, 0, 7]);
    }
}
