//! The unsafe code of the network side: the two numbers of network namespaces, tables of the legacy iptables,
//! and a wait for `POLLPRI`. No crate has safe calls for them.

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
    // In include/uapi/linux/nsfs.h, NSIO is 0xb7, and NS_GET_ID is _IOR(NSIO, 13, __u64) since Linux 6.18.
    nix::ioctl_read!(ns_get_id, 0xb7, 13, u64);
}

/// The cookie of the network namespace in which a socket was made.
pub fn netns_cookie(socket: &impl AsFd) -> Result<u64, Errno> {
    getsockopt(socket, NetnsCookie)
}

/// The cookie of a socket, which no other socket has.
pub fn socket_cookie(socket: &impl AsFd) -> Result<u64, Errno> {
    getsockopt(socket, SocketCookie)
}

/// The id of an open namespace file, of any kind of namespace.
pub fn namespace_id(namespace: BorrowedFd<'_>) -> Result<u64, Errno> {
    let mut id = 0;
    // SAFETY: the file descriptor is borrowed, hence open. The kernel writes the eight bytes of `id` or
    // nothing; a file of another kind refuses the request.
    unsafe { ioctl::ns_get_id(namespace.as_raw_fd(), &raw mut id) }?;
    Ok(id)
}

/// Waits with `poll` for `POLLPRI` on a file. Must be called within a tokio runtime.
pub fn await_priority(file: File) -> io::Result<AsyncFd<File>> {
    // SAFETY: a `File` owns its descriptor, keeps it open and always returns the same one.
    Ok(unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY) }?)
}

/// `struct ipt_getinfo` of `include/uapi/linux/netfilter_ipv4/ip_tables.h`; the struct of IPv6 is the same.
#[repr(C)]
struct LegacyInfo {
    name: [u8; 32],
    valid_hooks: u32,
    hook_entry: [u32; 5],
    underflow: [u32; 5],
    entries: u32,
    size: u32,
}

/// The size of the head of `struct ipt_get_entries` in bytes; the rules follow at a multiple of eight.
const LEGACY_HEAD: usize = 40;

/// A table of the legacy iptables.
pub struct LegacyTable {
    /// All rules, in the kernel's layout.
    pub rules: Vec<u8>,
    /// The offset of each hook's chain (`NF_INET_…`), in bytes.
    pub hooks: [Option<u32>; 5],
}

/// All rules of a table of the legacy iptables. Call it only for a table that exists: the request makes the
/// kernel create a missing one. Any socket of the family will do.
pub fn legacy_table(socket: BorrowedFd<'_>, v4: bool, table: &str) -> io::Result<LegacyTable> {
    // The options `IPT_SO_GET_INFO` and `IPT_SO_GET_ENTRIES`; those of IPv6 are the same.
    const GET_INFO: i32 = 64;
    const GET_ENTRIES: i32 = 65;
    let level = if v4 { libc::IPPROTO_IP } else { libc::IPPROTO_IPV6 };
    let get = |option: i32, buffer: &mut [u8]| {
        let mut len = libc::socklen_t::try_from(buffer.len()).map_err(io::Error::other)?;
        // SAFETY: the descriptor is borrowed, hence open; the kernel writes at most `len` bytes into the
        // buffer.
        let result = unsafe {
            let to = buffer.as_mut_ptr().cast();
            libc::getsockopt(socket.as_raw_fd(), level, option, to, &raw mut len)
        };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    };
    let mut info = [0; size_of::<LegacyInfo>()];
    info[..table.len()].copy_from_slice(table.as_bytes());
    get(GET_INFO, &mut info)?;
    let word = |at: usize| u32::from_ne_bytes(std::array::from_fn(|byte| info[at + byte]));
    let size = word(std::mem::offset_of!(LegacyInfo, size));
    let valid = word(std::mem::offset_of!(LegacyInfo, valid_hooks));
    let entry = |hook: usize| word(std::mem::offset_of!(LegacyInfo, hook_entry) + hook * size_of::<u32>());
    let mut entries = vec![0; LEGACY_HEAD + size as usize];
    entries[..table.len()].copy_from_slice(table.as_bytes());
    entries[32..36].copy_from_slice(&size.to_ne_bytes());
    get(GET_ENTRIES, &mut entries)?;
    entries.drain(..LEGACY_HEAD);
    Ok(LegacyTable {
        rules: entries,
        hooks: std::array::from_fn(|hook| (valid & (1 << hook) != 0).then(|| entry(hook))),
    })
}
