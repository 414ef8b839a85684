//! File descriptors over a unix socket (`SCM_RIGHTS`, unix(7)).

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};

/// Descriptors per message; the kernel's limit is 253 (`SCM_MAX_FD`).
pub(crate) const BATCH: usize = 128;

/// Sends one message with up to [`BATCH`] descriptors.
pub(crate) fn send(socket: impl AsFd, payload: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let fds: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let control = if fds.is_empty() { &[] } else { &rights[..] };
    let payload = [IoSlice::new(payload)];
    let flags = MsgFlags::MSG_NOSIGNAL;
    sendmsg::<UnixAddr>(socket.as_fd().as_raw_fd(), &payload, control, flags, None)?;
    Ok(())
}

/// Receives one message; a length of 0 means that the other side has closed its socket.
pub(crate) fn receive(socket: impl AsFd, payload: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; BATCH]);
    let mut buffers = [IoSliceMut::new(payload)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let socket = socket.as_fd().as_raw_fd();
    let received = recvmsg::<UnixAddr>(socket, &mut buffers, Some(&mut space), flags)?;
    let mut fds = Vec::new();
    for message in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(rights) = message {
            fds.extend(rights.into_iter().map(own));
        }
    }
    Ok((received.bytes, fds))
}

#[expect(unsafe_code, reason = "nix returns received descriptors as numbers")]
fn own(received: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just opened this descriptor for the message, and no other code has it.
    unsafe { OwnedFd::from_raw_fd(received) }
}
