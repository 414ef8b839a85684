//! The network namespace of a container.
//!
//! It is opened once, so that all operations use the same namespace even if its path leads elsewhere later. A
//! thread enters it alone. Sockets and files under /proc/sys/net that are opened inside stay with the
//! namespace.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{FsType, fstatfs};

use super::error::NetlinkError;

const OWN: &str = "/proc/thread-self/ns/net";
/// `NSFS_MAGIC` of include/uapi/linux/magic.h.
const NSFS: FsType = FsType(0x6e73_6673);

/// An open network namespace, and the thread's own one for the return.
pub struct Namespace {
    path: PathBuf,
    file: File,
    own: File,
}

impl Namespace {
    /// Opens a namespace. The node's own one is refused unless `or_own` allows it.
    pub fn open(path: &Path, or_own: bool) -> Result<Self, NetlinkError> {
        let gone = |error| NetlinkError::NoNamespace {
            path: path.to_path_buf(),
            error,
        };
        let bad = |what| NetlinkError::BadNamespace {
            path: path.to_path_buf(),
            what,
        };
        let file = File::open(path).map_err(gone)?;
        if fstatfs(&file)
            .map_err(|errno| gone(errno.into()))?
            .filesystem_type()
            != NSFS
        {
            return Err(bad(
                "is no namespace: it is a file of /proc/PID/ns, or a mount of one",
            ));
        }
        let own = File::open(OWN).map_err(NetlinkError::refused(format!("opening {OWN}")))?;
        let identity = |file: &File| Ok::<_, io::Error>((file.metadata()?.dev(), file.metadata()?.ino()));
        let is_own = identity(&file).map_err(gone)? == identity(&own).map_err(gone)?;
        if is_own && !or_own {
            return Err(bad(
                "is the node's own network namespace: set CNI_NETNS_OVERRIDE=1 if that is meant",
            ));
        }
        Ok(Self {
            path: path.to_path_buf(),
            file,
            own,
        })
    }

    /// Runs a function in the namespace, then returns this thread to its own.
    pub fn enter<T>(&self, inside: impl FnOnce() -> T) -> Result<T, NetlinkError> {
        setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(|errno| NetlinkError::Refused {
            what: format!("entering network namespace {}", self.path.display()),
            error: errno.into(),
        })?;
        let done = inside();
        setns(&self.own, CloneFlags::CLONE_NEWNET).map_err(|errno| {
            NetlinkError::refused("coming back from the container's network namespace")(errno.into())
        })?;
        Ok(done)
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_network_namespace_is_accepted() {
        let why = |path: &str| Namespace::open(Path::new(path), false).err().unwrap().to_string();
        assert!(why("/run/netns/there is none").contains("is gone"));
        assert!(why("/etc/passwd").contains("no namespace"));
        assert!(why("/proc/self/ns/net").contains("own network namespace"));
        let own = Namespace::open(Path::new("/proc/self/ns/net"), true);
        assert!(own.is_ok());
    }
}
