//! The owner of a bpf root: the agent that holds its lock for as long as it runs.
//!
//! The lock belongs to a directory and not to its name. If the directory is removed or a mount hides it,
//! another agent could lock a new directory of that name. So the owner compares both, and locks the new one.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::{Pins, agent_dir, make_dir};
use crate::error::BpfError;

/// A bpf root that no other agent works with.
#[derive(Debug)]
pub struct Owned {
    root: PathBuf,
    lock: Flock<File>,
}

impl Pins {
    /// Keeps other agents from this root while the returned value lives: two agents would undo each other's
    /// work. Fails at once if another agent has the root.
    pub fn own(&self) -> Result<Owned, BpfError> {
        let dir = agent_dir(&self.root);
        make_dir(&dir)?;
        // The kernel locks directories of a bpffs like any others. Processes that attach programs lock the
        // root itself.
        let open = File::open(&dir).map_err(BpfError::file("opening directory", &dir))?;
        match Flock::lock(open, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Owned {
                root: self.root.clone(),
                lock,
            }),
            Err((_, Errno::EWOULDBLOCK)) => Err(BpfError::Taken(self.root.clone())),
            Err((_, errno)) => Err(BpfError::file("locking directory", &dir)(errno.into())),
        }
    }
}

impl Owned {
    /// Ensures that the root is locked, even if it was made or mounted again.
    pub fn keep(&mut self) -> Result<(), BpfError> {
        if !self.is_whole() {
            *self = Pins::open(&self.root)?.own()?;
        }
        Ok(())
    }

    /// Whether the locked directory is the one that another agent would lock.
    fn is_whole(&self) -> bool {
        let locked = self.lock.metadata().map(|held| (held.dev(), held.ino()));
        let there = fs::metadata(agent_dir(&self.root)).map(|there| (there.dev(), there.ino()));
        matches!((locked, there), (Ok(locked), Ok(there)) if locked == there)
    }
}

/// The process that holds the lock of a bpf root, if the kernel shows it to this process (`proc_locks(5)`).
pub fn lock_holder(root: &Path) -> Option<u32> {
    let inode = fs::metadata(agent_dir(root)).ok()?.ino();
    lock_holder_in(&fs::read_to_string("/proc/locks").ok()?, inode)
}

fn lock_holder_in(locks: &str, inode: u64) -> Option<u32> {
    let suffix = format!(":{inode}");
    locks.lines().find_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let [_, "FLOCK", _, "WRITE", process, file, ..] = words[..] else {
            return None;
        };
        file.ends_with(&suffix).then(|| process.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_holder_is_found_by_the_inode() {
        let locks = "\
1: POSIX  ADVISORY  WRITE 11 00:19:77 0 EOF
2: FLOCK  ADVISORY  READ 12 00:19:77 0 EOF
3: -> FLOCK  ADVISORY  WRITE 13 00:19:77 0 EOF
4: FLOCK  ADVISORY  WRITE 14 00:19:177 0 EOF
5: FLOCK  ADVISORY  WRITE 15 00:19:77 0 EOF
";
        assert_eq!(lock_holder_in(locks, 77), Some(15));
        assert_eq!(lock_holder_in(locks, 7), None);
    }
}
