//! The directory of leases and notes.
//!
//! Reading needs no lock: a file appears with all of its contents and never changes. All writers use
//! [`LockedStore`]. The lock is that of host-local, so both plugins may work in one directory.
//!
//! Invariant: an unreadable file with the name of a lease or note blocks only that name. An address whose
//! lease is unreadable counts as taken, by no attachment.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
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

/// This plugin's own directory beside the leases.
const NOTES: &str = "millrace";
const LOCK: &str = "lock";
const LAST: &str = "last_reserved_ip.";
/// The name of a file while it is written, on file systems without unnamed files. host-local does not take it
/// for a lease.
const UNFINISHED: &str = "millrace.new";
/// The time to wait for the lock: half of the time that kubelet gives a runtime at the least.
const PATIENCE: Duration = Duration::from_secs(30);

/// The pauses between attempts to lock. Of many waiting processes one always tries soon, and each attempt
/// slows the process that holds the lock.
const SHORTEST_PAUSE: Duration = Duration::from_micros(200);
const LONGEST_PAUSE: Duration = Duration::from_millis(4);

/// A directory of leases.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
}

/// A file among leases or notes that cannot be read as one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// The path of the file.
    pub path: PathBuf,
    /// The reason why it cannot be read.
    pub why: String,
}

/// A directory of leases that no other process changes.
pub struct LockedStore<'a> {
    /// The locked directory.
    pub store: &'a Store,
    _lock: Flock<File>,
}

impl Store {
    /// Opens the directory and makes it if it is missing.
    pub fn create(dir: &Path) -> Result<Self, IpamError> {
        for (path, mode) in [(dir.to_path_buf(), 0o755), (dir.join(NOTES), 0o700)] {
            let made = DirBuilder::new().recursive(true).mode(mode).create(&path);
            made.map_err(IpamError::file("making directory", &path))?;
        }
        Ok(Self {
            dir: dir.to_path_buf(),
        })
    }

    /// Opens the directory, if it exists.
    pub fn existing(dir: &Path) -> Option<Self> {
        dir.is_dir().then(|| Self {
            dir: dir.to_path_buf(),
        })
    }

    /// The path of the directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Locks the directory; fails when another process holds the lock for too long.
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
        // A file of this name is left by a process that was killed while it wrote.
        remove(&self.dir.join(UNFINISHED))?;
        Ok(LockedStore {
            store: self,
            _lock: lock,
        })
    }

    /// Waits for the caller's turn to make a pod's interface. The turn lasts while the returned lock lives,
    /// at the longest until the process ends.
    ///
    /// The kernel changes one interface at a time. If many processes interleave their steps, even the first
    /// one is done only when nearly all are. So they take turns, in the order in which they asked.
    /// Correctness does not depend on the lock.
    pub fn interface_lock(&self) -> Option<Flock<File>> {
        let mut notes = File::open(self.dir.join(NOTES)).ok()?;
        loop {
            match Flock::lock(notes, FlockArg::LockExclusive) {
                Err((back, Errno::EINTR)) => notes = back,
                lock => return lock.ok(),
            }
        }
    }

    /// All leases. An unreadable lease has an empty container.
    pub fn leases(&self) -> Result<Vec<Lease>, IpamError> {
        let names = names(&self.dir)?;
        let leases = names.iter().filter_map(|name| self.lease_named(name));
        Ok(leases.collect())
    }

    /// All readable leases, and the reasons for the others.
    pub fn readable_leases(&self) -> Result<(Vec<Lease>, Vec<Unreadable>), IpamError> {
        let (mut leases, mut broken) = (Vec::new(), Vec::new());
        for name in names(&self.dir)? {
            if name.parse::<IpAddr>().is_ok() {
                match self.read_lease(&name) {
                    Ok(lease) => leases.extend(lease),
                    Err(unreadable) => broken.push(unreadable),
                }
            }
        }
        Ok((leases, broken))
    }

    /// The lease of an address. An unreadable lease has an empty container.
    pub fn lease(&self, address: IpAddr) -> Option<Lease> {
        self.lease_named(&address.to_string())
    }

    fn lease_named(&self, name: &str) -> Option<Lease> {
        name.parse::<IpAddr>().ok()?;
        self.read_lease(name).unwrap_or_else(|_| Lease::read(name, &[]))
    }

    fn read_lease(&self, name: &str) -> Result<Option<Lease>, Unreadable> {
        let path = self.dir.join(name);
        match read(&path) {
            Ok(contents) => Ok(contents.and_then(|contents| Lease::read(name, &contents))),
            Err(error) => Err(Unreadable::new(path, &error)),
        }
    }

    /// How long ago the file of a lease was written, by the wall clock.
    pub fn lease_age(&self, lease: &Lease) -> Option<Duration> {
        let metadata = fs::metadata(self.dir.join(lease.address.to_string())).ok()?;
        SystemTime::now().duration_since(metadata.modified().ok()?).ok()
    }

    /// The note with the name of an interface of the node; `None` also for invalid contents.
    pub fn note(&self, host_interface: &str) -> Result<Option<Note>, IpamError> {
        let path = self.note_path(host_interface);
        let contents = read(&path).map_err(IpamError::file("reading", &path))?;
        Ok(contents.and_then(|contents| serde_json::from_slice(&contents).ok()))
    }

    /// The file with the name of a note, if it cannot be read as one.
    pub fn unreadable_note(&self, host_interface: &str) -> Option<Unreadable> {
        self.read_note(host_interface).err()
    }

    /// All readable notes.
    pub fn notes(&self) -> Result<Vec<Note>, IpamError> {
        self.readable_notes().map(|(notes, _)| notes)
    }

    /// All readable notes, and the reasons for the others.
    pub fn readable_notes(&self) -> Result<(Vec<Note>, Vec<Unreadable>), IpamError> {
        let (mut notes, mut broken) = (Vec::new(), Vec::new());
        let dir = self.dir.join(NOTES);
        if dir.is_dir() {
            for name in names(&dir)? {
                match self.read_note(&name) {
                    Ok(note) => notes.extend(note),
                    Err(unreadable) => broken.push(unreadable),
                }
            }
        }
        Ok((notes, broken))
    }

    fn read_note(&self, name: &str) -> Result<Option<Note>, Unreadable> {
        let path = self.note_path(name);
        let parse = |contents: Vec<u8>| serde_json::from_slice::<Note>(&contents).map_err(io::Error::from);
        let note = read(&path).and_then(|contents| contents.map(parse).transpose());
        note.map_err(|error| Unreadable::new(path, &error))
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
        let path = self.dir.join(format!("{LAST}{set}"));
        let contents = read(&path).map_err(IpamError::file("reading", &path))?;
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

    /// Removes a lease; a missing lease is no error.
    pub fn remove_lease(&self, address: IpAddr) -> Result<(), IpamError> {
        remove(&self.store.dir.join(address.to_string()))
    }

    /// Records the last address that was given from a set.
    pub fn set_last(&self, set: usize, address: IpAddr) -> Result<(), IpamError> {
        let path = self.store.dir.join(format!("{LAST}{set}"));
        let address = address.to_string();
        let open = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path);
        // The file is not truncated first: ext4 would write it to disk at once, which takes milliseconds
        // (`auto_da_alloc`).
        let write = |mut file: File| {
            file.write_all(address.as_bytes())?;
            file.set_len(address.len() as u64)
        };
        open.and_then(write).map_err(IpamError::file("writing", &path))
    }

    /// Writes a note in place of an older one. The note counts as in the making for as long as the returned
    /// lock lives.
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

    /// Removes a note; a missing note is no error.
    pub fn remove_note(&self, host_interface: &str) -> Result<(), IpamError> {
        remove(&self.store.note_path(host_interface))
    }

    /// Makes a file that appears with all of its contents or not at all; `None` if the name is taken.
    fn publish(&self, path: &Path, contents: &[u8]) -> io::Result<Option<File>> {
        let dir = path.parent().unwrap_or(path);
        let unnamed = OpenOptions::new()
            .write(true)
            .mode(0o600)
            .custom_flags(OFlag::O_TMPFILE.bits())
            .open(dir);
        let mut file = match unnamed {
            // Some file systems have no unnamed files: overlayfs lacks them before Linux 6.3.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR)) => {
                return self.publish_named(path, contents);
            }
            file => file?,
        };
        file.write_all(contents)?;
        let unnamed = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        link(&unnamed, path).map(|linked| linked.then_some(file))
    }

    /// Like [`Self::publish`], with a temporary name. The next lock removes a file that a killed process
    /// leaves.
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

/// Gives a file a further name; false if another file has it.
fn link(file: &Path, name: &Path) -> io::Result<bool> {
    match linkat(AT_FDCWD, file, AT_FDCWD, name, AtFlags::AT_SYMLINK_FOLLOW) {
        Ok(()) => Ok(true),
        Err(Errno::EEXIST) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

impl Unreadable {
    fn new(path: PathBuf, error: &io::Error) -> Self {
        let why = error.to_string();
        Self { path, why }
    }
}

/// Reads a regular file. It refuses other files, since the read of a pipe would block.
fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let open = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path);
    let mut file = match open {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut contents = Vec::new();
    file.read_to_end(&mut contents)?;
    Ok(Some(contents))
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
    fn unreadable_files_are_reported_and_affect_only_themselves() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path()).unwrap();
        fs::write(dir.path().join("10.0.0.2"), "c1\r\neth0").unwrap();
        fs::create_dir(dir.path().join("10.0.0.3")).unwrap();
        nix::unistd::mkfifo(&dir.path().join("10.0.0.4"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let notes = dir.path().join(NOTES);
        fs::create_dir(notes.join("lost+found")).unwrap();
        fs::write(notes.join("mr000000000001"), "").unwrap();
        fs::write(notes.join("mr000000000002"), "{").unwrap();
        let taken: std::collections::BTreeSet<_> = store
            .leases()
            .unwrap()
            .into_iter()
            .map(|lease| lease.address.to_string())
            .collect();
        assert!(taken.iter().eq(["10.0.0.2", "10.0.0.3", "10.0.0.4"]), "{taken:?}");
        let (leases, broken) = store.readable_leases().unwrap();
        assert_eq!((leases.len(), broken.len()), (1, 2), "{broken:?}");
        assert!(
            broken.iter().all(|broken| broken.why == "it is no regular file"),
            "{broken:?}"
        );
        assert!(!store.lease("10.0.0.3".parse().unwrap()).unwrap().is_readable());
        let (found, broken) = store.readable_notes().unwrap();
        assert_eq!((found.len(), broken.len()), (0, 3), "{broken:?}");
        assert!(store.unreadable_note("mr000000000001").is_some());
        assert_eq!(store.unreadable_note("mr000000000003"), None);
    }

    #[test]
    fn a_named_file_replaces_the_remains_of_a_killed_call() {
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
