//! The unsafe code of the network side: the two numbers by which the kernel tells network namespaces apart,
//! and waiting for a file that reports urgent news; no crate has safe calls for them.

#![expect(unsafe_code, reason = "system calls without a safe wrapper in any crate")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};

use nix::errno::Errno;
use nix::getsockopt_impl;
use nix::sys::socket::{getsockopt, sockopt::GetStruct};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

#[derive(Clone, Copy)]
struct NetnsCookie;

#[derive(Clone, Copy)]
struct SocketCookie;

getsockopt_impl!(
    NetnsCookie,
    libc::SOL_SOCKET,
    libc::SO_NETNS_COOKIE,
    u64,
    GetStruct<u64>
);

getsockopt_impl!(
    SocketCookie,
    libc::SOL_SOCKET,
    libc::SO_COOKIE,
    u64,
    GetStruct<u64>
);

mod ioctl {
    // include/uapi/linux/nsfs.h: NSIO is 0xb7, NS_GET_ID is _IOR(NSIO, 13, __u64) since Linux 6.18.
    nix::ioctl_read!(ns_get_id, 0xb7, 13, u64);
}

/// The cookie of the namespace a socket was made in.
pub fn netns_cookie(socket: &impl AsFd) -> Result<u64, Errno> {
    getsockopt(socket, NetnsCookie)
}

/// The number that no other socket has.
pub fn socket_cookie(socket: &impl AsFd) -> Result<u64, Errno> {
    getsockopt(socket, SocketCookie)
}

/// The id of an open namespace file, whichever kind it is of.
pub fn namespace_id(namespace: BorrowedFd<'_>) -> Result<u64, Errno> {
    let mut id = 0;
    // SAFETY: the file descriptor is borrowed, hence open, and the kernel writes the eight bytes of `id` or
    // nothing; a file of another kind refuses the number.
    unsafe { ioctl::ns_get_id(namespace.as_raw_fd(), &raw mut id) }?;
    Ok(id)
}

/// Waits with `poll` for `POLLPRI` on a file. Must be called within a tokio runtime.
pub fn await_priority(file: File) -> io::Result<AsyncFd<File>> {
    // SAFETY: a `File` owns its descriptor, keeps it open and gives always the same one.
    Ok(unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY) }?)
}
