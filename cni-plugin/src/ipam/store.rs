//! The directory of leases and notes.
//!
//! Reading needs no lock: a file comes into being with all of its contents and is never changed. Everything that makes or
//! removes one goes through [`LockedStore`]. The lock is host-local's, so both may work in one directory.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, Flock, FlockArg, OFlag};
use nix::unistd::linkat;

use super::error::IpamError;
use super::lease::Lease;
use super::note::Note;
use crate::config::Attachment;

/// Our own directory beside the leases.
const NOTES: &str = "millrace";
const LOCK: &str = "lock";
const LAST: &str = "last_reserved_ip.";
/// What is being written where files cannot do without a name. It is nobody's lease, for host-local either.
const UNFINISHED: &str = "millrace.new";
/// How long the lock is waited for: half of what kubelet gives a runtime at the least.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between looks at the lock. Of many that wait there is always one that looks soon, and looking costs the one who has it.
const SHORTEST_PAUSE: Duration = Duration::from_micros(200);
const LONGEST_PAUSE: Duration = Duration::from_millis(4);

/// A directory of leases.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
}

/// The same while nobody else changes it.
pub struct LockedStore<'a> {
    /// The directory.
    pub store: &'a Store,
    _lock: Flock<File>,
}

impl Store {
    /// The directory, made where it is missing.
    pub fn create(dir: &Path) -> Result<Self, IpamError> {
        for (path, mode) in [(dir.to_path_buf(), 0o755), (dir.join(NOTES), 0o700)] {
            let made = DirBuilder::new().recursive(true).mode(mode).create(&path);
            made.map_err(IpamError::file("making directory", &path))?;
        }
        Ok(Self {
            dir: dir.to_path_buf(),
        })
    }

    /// The directory, if there is one.
    pub fn existing(dir: &Path) -> Option<Self> {
        dir.is_dir().then(|| Self {
            dir: dir.to_path_buf(),
        })
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Locks the directory.
    pub fn lock(&self) -> Result<LockedStore<'_>, IpamError> {
        let path = self.dir.join(LOCK);
        let open = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path);
        let mut file = open.map_err(IpamError::file("opening", &path))?;
        let deadline = Instant::now() + PATIENCE;
        let mut pause = SHORTEST_PAUSE;
        let lock = loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => break lock,
                Err((back, Errno::EWOULDBLOCK | Errno::EINTR)) => file = back,
                Err((_, errno)) => return Err(IpamError::file("locking", &path)(errno.into())),
            }
            if Instant::now() > deadline {
                let seconds = PATIENCE.as_secs();
                return Err(IpamError::Locked { path, seconds });
            }
            thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        };
        // Whoever wrote it was killed.
        remove(&self.dir.join(UNFINISHED))?;
        Ok(LockedStore {
            store: self,
            _lock: lock,
        })
    }

    /// Waits until it is the caller's turn to make a pod's interface. It lasts while the answer lives, at the longest until the
    /// process ends.
    ///
    /// The kernel changes one interface at a time, and of many who each take all of their steps in turns with the others, even
    /// the first is done only when nearly all are. So they come one after the other, in the order in which they asked. Nothing
    /// but this order depends on it.
    pub fn turn(&self) -> Option<Flock<File>> {
        let mut notes = File::open(self.dir.join(NOTES)).ok()?;
        loop {
            match Flock::lock(notes, FlockArg::LockExclusive) {
                Err((back, Errno::EINTR)) => notes = back,
                turn => return turn.ok(),
            }
        }
    }

    /// All leases.
    pub fn leases(&self) -> Result<Vec<Lease>, IpamError> {
        let (leases, broken) = self.readable_leases()?;
        broken.into_iter().next().map_or(Ok(leases), Err)
    }

    /// All leases that can be read, and why others cannot.
    pub fn readable_leases(&self) -> Result<(Vec<Lease>, Vec<IpamError>), IpamError> {
        let (mut leases, mut broken) = (Vec::new(), Vec::new());
        for name in names(&self.dir)? {
            if name.parse::<IpAddr>().is_ok() {
                match self.read_lease(&name) {
                    Ok(lease) => leases.extend(lease),
                    Err(error) => broken.push(error),
                }
            }
        }
        Ok((leases, broken))
    }

    /// The lease of an address.
    pub fn lease(&self, address: IpAddr) -> Result<Option<Lease>, IpamError> {
        self.read_lease(&address.to_string())
    }

    fn read_lease(&self, name: &str) -> Result<Option<Lease>, IpamError> {
        let contents = read(&self.dir.join(name))?;
        Ok(contents.and_then(|contents| Lease::read(name, &contents)))
    }

    /// How long ago the file of a lease was written, by the wall clock.
    pub fn lease_age(&self, lease: &Lease) -> Option<Duration> {
        let metadata = fs::metadata(self.dir.join(lease.address.to_string())).ok()?;
        SystemTime::now().duration_since(metadata.modified().ok()?).ok()
    }

    /// The note that bears the name of an interface of the node. One that cannot be read counts as none.
    pub fn note(&self, host_interface: &str) -> Result<Option<Note>, IpamError> {
        let contents = read(&self.note_path(host_interface))?;
        Ok(contents.and_then(|contents| serde_json::from_slice(&contents).ok()))
    }

    /// All notes.
    pub fn notes(&self) -> Result<Vec<Note>, IpamError> {
        let mut notes = Vec::new();
        let dir = self.dir.join(NOTES);
        if dir.is_dir() {
            for name in names(&dir)? {
                notes.extend(self.note(&name)?);
            }
        }
        Ok(notes)
    }

    /// Whether the ADD that wrote a note still runs.
    pub fn is_in_the_making(&self, host_interface: &str) -> bool {
        let Ok(file) = File::open(self.note_path(host_interface)) else {
            return false;
        };
        matches!(
            Flock::lock(file, FlockArg::LockSharedNonblock),
            Err((_, Errno::EWOULDBLOCK))
        )
    }

    /// The address that was given last from a set of ranges.
    pub fn last(&self, set: usize) -> Result<Option<IpAddr>, IpamError> {
        let contents = read(&self.dir.join(format!("{LAST}{set}")))?;
        Ok(contents.and_then(|contents| String::from_utf8(contents).ok()?.trim().parse().ok()))
    }

    fn note_path(&self, host_interface: &str) -> PathBuf {
        self.dir.join(NOTES).join(host_interface)
    }
}

impl LockedStore<'_> {
    /// Makes a lease; false if the address has one.
    pub fn add_lease(&self, address: IpAddr, attachment: &Attachment) -> Result<bool, IpamError> {
        let path = self.store.dir.join(address.to_string());
        let file = self.publish(&path, Lease::contents(attachment).as_bytes());
        file.map(|file| file.is_some())
            .map_err(IpamError::file("writing lease", &path))
    }

    /// Removes a lease; one that is not there is no error.
    pub fn remove_lease(&self, address: IpAddr) -> Result<(), IpamError> {
        remove(&self.store.dir.join(address.to_string()))
    }

    /// Takes note of the last address that was given from a set.
    pub fn set_last(&self, set: usize, address: IpAddr) -> Result<(), IpamError> {
        let path = self.store.dir.join(format!("{LAST}{set}"));
        let address = address.to_string();
        let open = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path);
        // ext4 writes a file to disk at once that was emptied first, which takes milliseconds (`auto_da_alloc`).
        let write = |mut file: File| {
            file.write_all(address.as_bytes())?;
            file.set_len(address.len() as u64)
        };
        open.and_then(write).map_err(IpamError::file("writing", &path))
    }

    /// Writes a note in place of an older one. It counts as in the making for as long as the answer lives.
    pub fn set_note(&self, note: &Note) -> Result<Flock<File>, IpamError> {
        let path = self.store.note_path(&note.host_interface);
        let failed = |error| IpamError::file("writing note", &path)(error);
        let dir = self.store.dir.join(NOTES);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        made.map_err(IpamError::file("making directory", &dir))?;
        remove(&path)?;
        let contents = serde_json::to_vec(note)
            .map_err(io::Error::other)
            .map_err(failed)?;
        let file = self.publish(&path, &contents).map_err(failed)?;
        let file = file.ok_or_else(|| failed(io::ErrorKind::AlreadyExists.into()))?;
        Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| failed(errno.into()))
    }

    /// Removes a note; one that is not there is no error.
    pub fn remove_note(&self, host_interface: &str) -> Result<(), IpamError> {
        remove(&self.store.note_path(host_interface))
    }

    /// Makes a file that is there with all of its contents or not at all; `None` if there is one of that name.
    fn publish(&self, path: &Path, contents: &[u8]) -> io::Result<Option<File>> {
        let dir = path.parent().unwrap_or(path);
        let unnamed = OpenOptions::new()
            .write(true)
            .mode(0o600)
            .custom_flags(OFlag::O_TMPFILE.bits())
            .open(dir);
        let mut file = match unnamed {
            // Not every file system has files without a name: overlays before Linux 6.3 have none.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR)) => {
                return self.publish_named(path, contents);
            }
            file => file?,
        };
        file.write_all(contents)?;
        let unnamed = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        link(&unnamed, path).map(|linked| linked.then_some(file))
    }

    /// The same by a file that has a name of its own at first. One that is left by who was killed goes with the next lock.
    fn publish_named(&self, path: &Path, contents: &[u8]) -> io::Result<Option<File>> {
        let unfinished = self.store.dir.join(UNFINISHED);
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&unfinished)?;
        file.write_all(contents)?;
        let linked = link(&unfinished, path)?;
        fs::remove_file(&unfinished)?;
        Ok(linked.then_some(file))
    }
}

/// Gives a file a further name; false if that is another's.
fn link(file: &Path, name: &Path) -> io::Result<bool> {
    match linkat(AT_FDCWD, file, AT_FDCWD, name, AtFlags::AT_SYMLINK_FOLLOW) {
        Ok(()) => Ok(true),
        Err(Errno::EEXIST) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, IpamError> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        contents => contents.map(Some).map_err(IpamError::file("reading", path)),
    }
}

fn remove(path: &Path) -> Result<(), IpamError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(IpamError::file("removing", path)(error))
        }
        _ => Ok(()),
    }
}

/// The names of the files in a directory.
fn names(dir: &Path) -> Result<Vec<String>, IpamError> {
    let failed = |error| IpamError::file("reading directory", dir)(error);
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        names.extend(entry.file_name().into_string());
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_needs_a_name_is_made_whole_over_what_a_killed_call_left() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path()).unwrap();
        let locked = store.lock().unwrap();
        let path = dir.path().join("10.0.0.2");
        fs::write(dir.path().join(UNFINISHED), "half of something that is longer").unwrap();
        assert!(store.leases().unwrap().is_empty(), "it is no lease");
        assert!(locked.publish_named(&path, b"c1\r\neth0").unwrap().is_some());
        assert!(locked.publish_named(&path, b"c2\r\neth0").unwrap().is_none());
        assert_eq!(fs::read(&path).unwrap(), b"c1\r\neth0");
        let unfinished = dir.path().join(UNFINISHED);
        assert!(!unfinished.exists());
        drop(locked);
        fs::write(&unfinished, "left").unwrap();
        store.lock().unwrap();
        assert!(!unfinished.exists(), "DEL, which takes the lock, leaves nothing");
    }
}
