//! Opens a port.
//!
//! The unspecified address of either family means every address of both, as it does for kube-proxy (Go's
//! `net.Listen`). A balancer that speaks IPv6 must reach `0.0.0.0:10256` too. So the code sets `IPV6_V6ONLY`
//! itself, and the sysctl `net.ipv6.bindv6only` has no effect.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd as _;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen as start, setsockopt, socket,
    sockopt,
};
use tokio::net::TcpListener;

/// Connections that wait to be accepted: this many can arrive before the agent accepts the first.
const BACKLOG: i32 = 4096;

/// Listens at `address` in the network namespace of this thread. Must be called within a tokio runtime.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let everywhere = |ip: IpAddr| SocketAddr::new(ip, address.port());
    let opened = if address.ip().is_unspecified() {
        match open(everywhere(Ipv6Addr::UNSPECIFIED.into())) {
            // The kernel has no IPv6, or this namespace has none.
            Err(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL) => open(everywhere(Ipv4Addr::UNSPECIFIED.into())),
            opened => opened,
        }
    } else {
        open(address)
    };
    TcpListener::from_std(opened?)
}

fn open(address: SocketAddr) -> Result<std::net::TcpListener, Errno> {
    let family = if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family, SockType::Stream, flags, None)?;
    // Connections of an agent that ended shortly before must not block the port.
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    if address.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &!address.ip().is_unspecified())?;
    }
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    start(&socket, Backlog::new(BACKLOG)?)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_unspecified_address_is_that_of_both_families() {
        let listener = listen("0.0.0.0:0".parse().unwrap()).unwrap();
        let port = listener.local_addr().unwrap().port();
        for ip in ["127.0.0.1", "::1"] {
            let to = SocketAddr::new(ip.parse().unwrap(), port);
            std::net::TcpStream::connect(to).unwrap_or_else(|error| panic!("{to}: {error}"));
        }
        let error = listen(SocketAddr::new("0.0.0.0".parse().unwrap(), port)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }

    #[tokio::test]
    async fn another_address_is_only_itself() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(std::net::TcpStream::connect(("::1", port)).is_err());
    }
}
