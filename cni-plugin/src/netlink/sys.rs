//! A socket option that no crate has.

use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::getsockopt_impl;
use nix::sys::socket::{getsockopt, sockopt::GetStruct};

#[derive(Clone, Copy)]
struct NetnsCookie;

getsockopt_impl!(
    NetnsCookie,
    libc::SOL_SOCKET,
    libc::SO_NETNS_COOKIE,
    u64,
    GetStruct<u64>
);

/// The cookie of the network namespace in which a socket was made. Kernels before Linux 5.14 lack the option.
pub fn netns_cookie(socket: &impl AsFd) -> Result<u64, Errno> {
    getsockopt(socket, NetnsCookie)
}
