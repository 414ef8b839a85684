//! The files below the bpf root, and how one process takes them over from another.
//!
//! ```text
//! BPF_ROOT/current            → the directory in force (a symbolic link, exchanged atomically)
//! BPF_ROOT/l1-<object>-<n>/   layout version 1, built from this object, n-th generation
//!     maps/NAME  programs/name
//! BPF_ROOT/links/             one pin per attachment; they stay while programs and maps change beneath them
//! BPF_ROOT/agent/             empty; locked by the agent that works with this root
//! BPF_ROOT/qdiscs/INDEX       an empty directory for each clsact qdisc that we made
//! ```
//!
//! Invariant: the directory that `current` names is complete. Any other directory is left over from an agent
//! that was killed while it built or exchanged one. The next start removes it.
//!
//! If a process attached a program while another one exchanges `current`, that attachment would keep its old
//! program. So the exchange takes an exclusive lock on the bpf root, and a process that attaches takes a
//! shared one. The kernel releases the lock of a process that dies. A second lock, on `links`, protects the
//! entries of host ports. The agent holds a third one, on `agent`, for as long as it runs.

mod owned;

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, symlink};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use proxy_common::LAYOUT_VERSION;
use serde::Serialize;

use super::error::BpfError;

pub use owned::{Owned, lock_holder};

/// The pins below one bpf root.
#[derive(Debug, Clone)]
pub struct Pins {
    root: PathBuf,
}

/// One directory of maps and programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayoutDir {
    /// The path of the directory.
    pub path: PathBuf,
    /// The layout version of everything in it.
    pub layout: u32,
    /// The object from which the programs were built.
    pub object: String,
    /// A number that increases with every new directory.
    pub generation: u32,
}

impl LayoutDir {
    /// The path at which a map is pinned.
    pub fn map(&self, name: &str) -> PathBuf {
        self.path.join("maps").join(name)
    }

    /// The path at which a program is pinned.
    pub fn program(&self, name: &str) -> PathBuf {
        self.path.join("programs").join(name)
    }

    fn parse(path: PathBuf) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let mut parts = name.strip_prefix('l')?.split('-');
        let layout = parts.next()?.parse().ok()?;
        let object = parts.next()?.to_owned();
        let generation = parts.next()?.parse().ok()?;
        parts.next().is_none().then_some(Self {
            path,
            layout,
            object,
            generation,
        })
    }
}

/// An object that was removed from the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// The kind of the object.
    pub kind: String,
    /// Its name.
    pub name: String,
}

impl Pins {
    /// Opens the bpf root, and makes the directory if it does not exist.
    pub fn open(root: &Path) -> Result<Self, BpfError> {
        let pins = Self {
            root: root.to_path_buf(),
        };
        let parent = root.parent().unwrap_or(root);
        let existing = if root.exists() { root } else { parent };
        let kind = statfs(existing).map_err(|error| BpfError::NoBpffs {
            path: existing.to_path_buf(),
            error: error.into(),
        })?;
        if kind.filesystem_type() != BPF_FS_MAGIC {
            return Err(BpfError::NotBpffs(existing.to_path_buf()));
        }
        make_dir(root)?;
        make_dir(&pins.links())?;
        Ok(pins)
    }

    /// The pins below a bpf root that another process has made; none if there is no such directory.
    pub fn existing(root: &Path) -> Option<Self> {
        let root = root.to_path_buf();
        root.is_dir().then_some(Self { root })
    }

    /// Prevents an exchange of `current` while the returned lock is held.
    pub fn hold(&self) -> Result<Flock<File>, BpfError> {
        self.lock(FlockArg::LockShared)
    }

    /// Waits until no process attaches a program, and prevents that while the returned lock is held.
    pub fn exchange(&self) -> Result<Flock<File>, BpfError> {
        self.lock(FlockArg::LockExclusive)
    }

    /// Prevents other processes from entering host ports while the returned lock is held. A process first
    /// checks that a port is free and then enters it, and both have to be one step.
    pub fn claim(&self) -> Result<Flock<File>, BpfError> {
        lock(&self.links(), FlockArg::LockExclusive)
    }

    fn lock(&self, how: FlockArg) -> Result<Flock<File>, BpfError> {
        lock(&self.root, how)
    }

    /// The bpf root.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of attachments.
    pub fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// The directory that records the qdiscs that we made.
    pub fn qdiscs(&self) -> PathBuf {
        qdiscs(&self.root)
    }

    /// The directory in force, if there is one. It fails if a newer agent made it.
    pub fn current(&self) -> Result<Option<LayoutDir>, BpfError> {
        let path = self.root.join("current");
        let target = match fs::read_link(&path) {
            Ok(target) => target,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(BpfError::Foreign {
                    path,
                    what: format!("no symbolic link: {error}"),
                });
            }
        };
        let Some(dir) = LayoutDir::parse(self.root.join(&target)) else {
            return Err(BpfError::Foreign {
                path,
                what: format!("leads to {}", target.display()),
            });
        };
        if dir.layout > LAYOUT_VERSION {
            return Err(BpfError::NewerLayout {
                path: dir.path,
                found: dir.layout,
                known: LAYOUT_VERSION,
            });
        }
        Ok(Some(dir))
    }

    /// Makes an empty directory for the next generation.
    pub fn next(&self, object: &str) -> Result<LayoutDir, BpfError> {
        let generation = self.all()?.iter().map(|dir| dir.generation).max().unwrap_or(0) + 1;
        let path = self.root.join(format!("l{LAYOUT_VERSION}-{object}-{generation}"));
        let dir = LayoutDir {
            path,
            layout: LAYOUT_VERSION,
            object: object.to_owned(),
            generation,
        };
        make_dir(&dir.path)?;
        make_dir(&dir.path.join("maps"))?;
        make_dir(&dir.path.join("programs"))?;
        Ok(dir)
    }

    /// Whether a directory is the one in force, according to the pins.
    pub fn is_in_force(&self, dir: &LayoutDir) -> bool {
        let target = fs::read_link(self.root.join("current")).ok();
        target.is_some() && target.as_deref() == dir.path.file_name().map(Path::new)
    }

    /// Makes the missing directories for pins, including the bpf root, which must be on a bpffs.
    pub fn make_again(&self, dir: &LayoutDir) -> Result<(), BpfError> {
        Self::open(&self.root)?;
        make_dir(&dir.path)?;
        make_dir(&dir.path.join("maps"))?;
        make_dir(&dir.path.join("programs"))
    }

    /// Puts a complete directory in force by an atomic exchange of `current`.
    pub fn publish(&self, dir: &LayoutDir) -> Result<(), BpfError> {
        let path = self.root.join("current");
        let next = self.root.join("current-next");
        remove_file(&next)?;
        let name = dir.path.file_name().unwrap_or_default();
        symlink(name, &next).map_err(BpfError::file("making symbolic link", &next))?;
        fs::rename(&next, &path).map_err(BpfError::file("exchanging symbolic link", &path))
    }

    /// Removes all directories but one.
    pub fn remove_others(&self, keep: &LayoutDir) -> Result<(), BpfError> {
        for dir in self.all()? {
            if dir != *keep {
                tracing::info!(path = %dir.path.display(), "removing pins that are no longer in force");
                remove_layout(&dir, &mut Vec::new())?;
            }
        }
        Ok(())
    }

    /// The files below the bpf root that are not ours.
    pub fn foreign(&self) -> Vec<PathBuf> {
        let known = |path: &PathBuf| {
            matches!(
                name(path),
                "agent" | "current" | "current-next" | "links" | "qdiscs"
            ) || LayoutDir::parse(path.clone()).is_some()
        };
        let in_root = entries(&self.root).unwrap_or_default();
        let in_links = entries(&self.links()).unwrap_or_default();
        let mut foreign: Vec<_> = in_root.into_iter().filter(|path| !known(path)).collect();
        foreign.extend(in_links.into_iter().filter(|path| !is_link_name(name(path))));
        foreign.sort_unstable();
        foreign
    }

    fn all(&self) -> Result<Vec<LayoutDir>, BpfError> {
        Ok(entries(&self.root)?
            .into_iter()
            .filter_map(LayoutDir::parse)
            .collect())
    }
}

/// Removes all our pins below a bpf root, attachments first, and the root if it is then empty.
///
/// Removing the pin of a link detaches its program. Files of others stay.
pub fn remove_all(root: &Path) -> Result<Vec<Removed>, BpfError> {
    let mut removed = Vec::new();
    if !root.exists() {
        return Ok(removed);
    }
    let pins = Pins {
        root: root.to_path_buf(),
    };
    let links = pins.links();
    if links.exists() {
        for path in entries(&links)?.iter().filter(|path| is_link_name(name(path))) {
            remove_pin("link", path, &mut removed)?;
        }
        if entries(&links)?.is_empty() {
            remove_dir(&links)?;
        }
    }
    for name in ["current", "current-next"] {
        remove_file(&root.join(name))?;
    }
    for dir in pins.all()? {
        remove_layout(&dir, &mut removed)?;
    }
    if agent_dir(root).exists() {
        remove_dir(&agent_dir(root))?;
    }
    if entries(root)?.is_empty() {
        remove_dir(root)?;
        removed.push(Removed {
            kind: "directory".to_owned(),
            name: root.display().to_string(),
        });
    }
    Ok(removed)
}

/// The directory below a bpf root that records the qdiscs that we made.
pub fn qdiscs(root: &Path) -> PathBuf {
    root.join("qdiscs")
}

/// The directory whose lock an agent holds while it runs.
fn agent_dir(root: &Path) -> PathBuf {
    root.join("agent")
}

/// All files of others below a bpf root; none if there is no such directory.
pub fn foreign(root: &Path) -> Vec<PathBuf> {
    let root = root.to_path_buf();
    Pins { root }.foreign()
}

/// Whether a pin among the attachments has a name that we would give it.
fn is_link_name(name: &str) -> bool {
    match name.split_once('-') {
        Some(("cgroup", program)) => !program.is_empty(),
        Some((place, program)) => {
            let index = place.strip_prefix("tcx").map(str::parse::<u32>);
            index.is_some_and(|index| index.is_ok()) && !program.is_empty()
        }
        None => false,
    }
}

fn lock(dir: &Path, how: FlockArg) -> Result<Flock<File>, BpfError> {
    let open = File::open(dir).map_err(BpfError::file("opening directory", dir))?;
    let locked = Flock::lock(open, how).map_err(|(_, errno)| errno.into());
    locked.map_err(BpfError::file("locking directory", dir))
}

fn name(path: &Path) -> &str {
    path.file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default()
}

fn remove_layout(dir: &LayoutDir, removed: &mut Vec<Removed>) -> Result<(), BpfError> {
    for (kind, name) in [("program", "programs"), ("map", "maps")] {
        let path = dir.path.join(name);
        if path.exists() {
            for pin in entries(&path)? {
                remove_pin(kind, &pin, removed)?;
            }
            remove_dir(&path)?;
        }
    }
    remove_dir(&dir.path)
}

fn remove_pin(kind: &str, path: &Path, removed: &mut Vec<Removed>) -> Result<(), BpfError> {
    remove_file(path)?;
    removed.push(Removed {
        kind: kind.to_owned(),
        name: name(path).to_owned(),
    });
    Ok(())
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, BpfError> {
    let read = || {
        fs::read_dir(dir)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<io::Result<Vec<_>>>()
    };
    read().map_err(BpfError::file("reading directory", dir))
}

fn make_dir(path: &Path) -> Result<(), BpfError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(BpfError::file("making directory", path)(error))
        }
        _ if path.is_dir() => Ok(()),
        _ => Err(BpfError::Foreign {
            path: path.to_path_buf(),
            what: "no directory".to_owned(),
        }),
    }
}

fn remove_file(path: &Path) -> Result<(), BpfError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(BpfError::file("removing", path)(error)),
        _ => Ok(()),
    }
}

fn remove_dir(path: &Path) -> Result<(), BpfError> {
    fs::remove_dir(path).map_err(BpfError::file("removing directory", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_our_directories() {
        let dir = LayoutDir::parse(PathBuf::from("/x/l1-00ff00ff-12")).expect("one of ours");
        assert_eq!(
            (dir.layout, dir.object.as_str(), dir.generation),
            (1, "00ff00ff", 12)
        );
        for foreign in [
            "/x/links",
            "/x/l1",
            "/x/l1-a",
            "/x/l1-a-b",
            "/x/lx-a-1",
            "/x/l1-a-1-2",
            "/x/cilium",
        ] {
            assert_eq!(LayoutDir::parse(PathBuf::from(foreign)), None, "{foreign}");
        }
    }

    #[test]
    fn names_of_our_attachments() {
        for ours in ["cgroup-connect4", "tcx12-from_pod"] {
            assert!(is_link_name(ours), "{ours}");
        }
        for foreign in ["", "other", "cgroup-", "tcx-from_pod", "tcxa-x", "tcx1", "tcx1-"] {
            assert!(!is_link_name(foreign), "{foreign}");
        }
    }

    #[test]
    fn a_root_outside_of_bpffs_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for (below, place) in [("millrace", ""), ("missing/millrace", "missing")] {
            let error = Pins::open(&dir.path().join(below))
                .expect_err("not a bpffs")
                .to_string();
            let place = dir.path().join(place).display().to_string();
            assert!(error.starts_with(place.trim_end_matches('/')), "{error}");
            assert!(error.contains("mount -t bpf"), "{error}");
        }
    }
}
