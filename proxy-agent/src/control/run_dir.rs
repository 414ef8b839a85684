//! The ownership of a run directory.
//!
//! Two agents that wrote the same maps would undo each other's work. An agent would at once repair what an
//! uninstall beside it removes. So a process that works with a run directory holds an exclusive lock on the
//! directory itself.
//!
//! The kernel releases the lock when the process ends, for every reason, so there is no stale lock. A socket
//! file in a directory that a process could lock is therefore stale.
//!
//! The lock belongs to the directory and not to its name, so the holder can check whether the two still
//! agree.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};

use crate::private_dir;

/// The control socket's name in the run directory.
pub const SOCKET: &str = "agent.sock";

/// A run directory that this process alone uses.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    lock: Flock<File>,
}

/// Why a run directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    /// Another process holds the lock on this directory.
    #[error("another agent is running with --run-dir {}: stop it first, or give this one a run directory of its own", .0.display())]
    Taken(PathBuf),
    /// Other users could replace the agent's socket with one of theirs.
    #[error("--run-dir {}: others may write there (mode {mode:04o}): use a directory of the agent's own", path.display())]
    Shared {
        /// The path of the directory.
        path: PathBuf,
        /// The permission bits of the directory.
        mode: u32,
    },
    /// A system call failed.
    #[error("--run-dir {}: {what}: {source}", path.display())]
    Io {
        /// The path of the directory.
        path: PathBuf,
        /// The step that failed.
        what: &'static str,
        /// The error of the system call.
        source: io::Error,
    },
}

impl RunDir {
    /// Makes the directory if it is missing, and locks it.
    pub fn create(path: &Path) -> Result<Self, RunDirError> {
        let failed = |what| {
            move |source| RunDirError::Io {
                path: path.to_owned(),
                what,
                source,
            }
        };
        private_dir::make(path, |name| name == SOCKET).map_err(failed("creating it"))?;
        let mode = fs::metadata(path)
            .map_err(failed("reading its mode"))?
            .permissions()
            .mode()
            & 0o7777;
        if mode & 0o022 != 0 {
            return Err(RunDirError::Shared {
                path: path.to_owned(),
                mode,
            });
        }
        Self::lock(path)
    }

    /// Locks the directory; `None` if it does not exist.
    pub fn existing(path: &Path) -> Result<Option<Self>, RunDirError> {
        match Self::lock(path) {
            Err(RunDirError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            locked => locked.map(Some),
        }
    }

    fn lock(path: &Path) -> Result<Self, RunDirError> {
        let failed = |what| {
            move |source| RunDirError::Io {
                path: path.to_owned(),
                what,
                source,
            }
        };
        let directory = OpenOptions::new()
            .read(true)
            .custom_flags(OFlag::O_DIRECTORY.bits())
            .open(path)
            .map_err(failed("opening it"))?;
        match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self {
                path: path.to_owned(),
                lock,
            }),
            Err((_, Errno::EWOULDBLOCK)) => Err(RunDirError::Taken(path.to_owned())),
            Err((_, errno)) => Err(failed("locking it")(errno.into())),
        }
    }

    /// Whether the locked directory still has its name.
    pub fn is_there(&self) -> bool {
        let locked = self.lock.metadata().map(|held| (held.dev(), held.ino()));
        matches!((locked, file_id(&self.path)), (Ok(locked), Ok(there)) if locked == there)
    }

    /// The path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of the control socket in the directory.
    pub fn socket(&self) -> PathBuf {
        self.path.join(SOCKET)
    }
}

/// The device and inode of the file that has a name. No other file has both while this file is open.
pub fn file_id(path: &Path) -> io::Result<(u64, u64)> {
    fs::metadata(path).map(|there| (there.dev(), there.ino()))
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn one_process_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("run");
        assert!(RunDir::existing(&path).unwrap().is_none());
        let first = RunDir::create(&path).unwrap();
        assert_eq!(mode(&path), 0o700);
        assert!(matches!(RunDir::create(&path), Err(RunDirError::Taken(_))));
        assert!(matches!(RunDir::existing(&path), Err(RunDirError::Taken(_))));
        drop(first);
        RunDir::create(&path).unwrap();
    }

    #[test]
    fn a_directory_that_is_removed_or_made_anew_is_not_the_locked_one() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("run");
        let first = RunDir::create(&path).unwrap();
        assert!(first.is_there());
        fs::remove_dir(&path).unwrap();
        assert!(!first.is_there());
        let second = RunDir::create(&path).unwrap();
        assert!(second.is_there() && !first.is_there());
    }

    #[test]
    fn an_empty_directory_is_closed_and_a_foreign_one_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let (empty, foreign) = (root.path().join("empty"), root.path().join("foreign"));
        for path in [&empty, &foreign] {
            fs::create_dir(path).unwrap();
            fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
        }
        fs::write(foreign.join("passwd"), "").unwrap();
        RunDir::create(&empty).unwrap();
        RunDir::create(&foreign).unwrap();
        assert_eq!((mode(&empty), mode(&foreign)), (0o700, 0o755));
    }

    #[test]
    fn a_directory_that_others_write_is_refused() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("other"), "").unwrap();
        fs::set_permissions(root.path(), Permissions::from_mode(0o1777)).unwrap();
        let error = RunDir::create(root.path()).unwrap_err().to_string();
        assert!(error.contains("others may write there (mode 1777)"), "{error}");
    }
}
