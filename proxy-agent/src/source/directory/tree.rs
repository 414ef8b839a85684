//! The directory tree: its content, and its changes.
//!
//! Inotify watches every directory below the root from before the directory is read, so that no change is
//! lost. A file that is seen twice does no harm. A file counts when it is complete: when it was closed after
//! a write, moved into place, or linked.
//!
//! Names that begin with a dot belong to editors and to Kubernetes' volumes. The link `..data` of such a
//! volume replaces all files at once, and everything is read again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::{FutureExt as _, StreamExt as _};
use inotify::{EventMask, EventOwned, EventStream, Inotify, WatchDescriptor, WatchMask, Watches};

/// The size of the event buffer in bytes.
const BUFFER: usize = 64 * 1024;
/// The limit of events at a time, so that the task yields to the rest of the agent.
const EVENTS: usize = 1024;

/// A set of changes, by paths relative to the root.
#[derive(Debug, Default)]
pub(super) struct Happened {
    /// Files that are new or may have changed.
    pub(super) changed: BTreeSet<Arc<Path>>,
    /// Files that were removed.
    pub(super) gone: BTreeSet<Arc<Path>>,
    /// Directories that were removed with their content.
    pub(super) gone_directories: BTreeSet<PathBuf>,
    /// Directories that cannot be read or watched.
    pub(super) unreadable: Vec<(PathBuf, io::Error)>,
}

/// Why the watch ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Lost {
    /// Events were lost, and everything must be read again.
    #[error("events were lost")]
    Events,
    /// The root was removed, or does not exist yet.
    #[error("{0}")]
    Root(String),
}

/// A watched directory tree.
pub(super) struct Tree {
    root: PathBuf,
    events: EventStream<Vec<u8>>,
    watches: Watches,
    directories: HashMap<WatchDescriptor, PathBuf>,
    descriptors: BTreeMap<PathBuf, WatchDescriptor>,
}

impl Tree {
    /// Watches everything below `root`, and returns its content.
    pub(super) fn open(root: &Path) -> Result<(Self, Happened), Lost> {
        let lost = |error: io::Error| Lost::Root(format!("{}: {}", root.display(), advice(&error)));
        let inotify = Inotify::init().map_err(lost)?;
        let watches = inotify.watches();
        let events = inotify.into_event_stream(vec![0; BUFFER]).map_err(lost)?;
        let (directories, descriptors) = (HashMap::new(), BTreeMap::new());
        let mut tree = Self {
            root: root.to_owned(),
            events,
            watches,
            directories,
            descriptors,
        };
        let mut found = Happened::default();
        tree.add(PathBuf::new(), &mut found);
        match found
            .unreadable
            .iter()
            .position(|(path, _)| path.as_os_str().is_empty())
        {
            Some(root_itself) => Err(lost(found.unreadable.swap_remove(root_itself).1)),
            None => Ok((tree, found)),
        }
    }

    /// Waits for a change, and collects all changes that have arrived by then. It calls `arrived` in between.
    pub(super) async fn next(&mut self, arrived: impl FnOnce()) -> Result<Happened, Lost> {
        let mut happened = Happened::default();
        let mut event = self.events.next().await;
        arrived();
        for _ in 0..EVENTS {
            match event {
                Some(Ok(event)) => self.take(&event, &mut happened)?,
                Some(Err(error)) => {
                    return Err(Lost::Root(format!("{}: inotify: {error}", self.root.display())));
                }
                None => return Err(Lost::Events),
            }
            match self.events.next().now_or_never() {
                Some(next) => event = next,
                None => break,
            }
        }
        Ok(happened)
    }

    fn take(&mut self, event: &EventOwned, happened: &mut Happened) -> Result<(), Lost> {
        if event.mask.contains(EventMask::Q_OVERFLOW) {
            return Err(Lost::Events);
        }
        // The directory is no longer watched, or its events arrived after it had moved.
        let Some(directory) = self.directories.get(&event.wd).cloned() else {
            return Ok(());
        };
        let at_root = directory.as_os_str().is_empty();
        if at_root
            && event
                .mask
                .intersects(EventMask::DELETE_SELF | EventMask::MOVE_SELF | EventMask::UNMOUNT)
        {
            let root = self.root.display();
            return Err(Lost::Root(format!(
                "{root}: the directory was removed or renamed; create it to be followed again"
            )));
        }
        let Some(name) = &event.name else { return Ok(()) };
        let path = directory.join(name);
        let comes = event
            .mask
            .intersects(EventMask::CREATE | EventMask::MOVED_TO | EventMask::CLOSE_WRITE);
        if event.mask.contains(EventMask::ISDIR) {
            if !comes {
                self.remove(&path);
                happened.gone_directories.insert(path);
            } else if !is_hidden(name) {
                self.add(path, happened);
            }
        } else if is_manifest(name) {
            let path: Arc<Path> = path.into();
            if !comes {
                happened.changed.remove(&path);
                happened.gone.insert(path);
            } else if !event.mask.contains(EventMask::CREATE) || is_link(&self.root.join(&path)) {
                happened.gone.remove(&path);
                happened.changed.insert(path);
            }
        } else if name.as_encoded_bytes().starts_with(b"..") && comes {
            return Err(Lost::Events);
        }
        Ok(())
    }

    /// Watches a directory and everything below it, and lists the files.
    fn add(&mut self, directory: PathBuf, found: &mut Happened) {
        let mut pending = vec![directory];
        while let Some(directory) = pending.pop() {
            if let Err(error) = self.add_one(&directory, found, &mut pending) {
                // A directory that was removed in the meantime is no problem; the root must exist.
                let at_root = directory.as_os_str().is_empty();
                if at_root || error.kind() != io::ErrorKind::NotFound {
                    found.unreadable.push((directory, error));
                }
            }
        }
    }

    fn add_one(
        &mut self,
        directory: &Path,
        found: &mut Happened,
        below: &mut Vec<PathBuf>,
    ) -> io::Result<()> {
        let full = self.root.join(directory);
        let mut mask = WatchMask::CREATE
            | WatchMask::CLOSE_WRITE
            | WatchMask::DELETE
            | WatchMask::MOVE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        if !directory.as_os_str().is_empty() {
            mask |= WatchMask::DONT_FOLLOW;
        }
        let watch = self.watches.add(&full, mask)?;
        self.directories.insert(watch.clone(), directory.to_owned());
        self.descriptors.insert(directory.to_owned(), watch);
        for entry in fs::read_dir(&full)? {
            let entry = entry?;
            let name = entry.file_name();
            let path = directory.join(&name);
            if entry.file_type()?.is_dir() {
                if !is_hidden(&name) {
                    below.push(path);
                }
            } else if is_manifest(&name) {
                let path: Arc<Path> = path.into();
                found.gone.remove(&path);
                found.changed.insert(path);
            }
        }
        Ok(())
    }

    /// Stops watching a directory and everything below it.
    fn remove(&mut self, directory: &Path) {
        let below = self.descriptors.range(directory.to_owned()..);
        let below: Vec<_> = below
            .map(|(path, _)| path)
            .take_while(|path| path.starts_with(directory))
            .cloned()
            .collect();
        for path in below {
            if let Some(watch) = self.descriptors.remove(&path) {
                self.directories.remove(&watch);
                // This fails if the directory itself was removed, and the watch with it.
                let _ = self.watches.remove(watch);
            }
        }
    }
}

fn is_hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}

fn is_manifest(name: &OsStr) -> bool {
    let extension = Path::new(name).extension().and_then(OsStr::to_str);
    !is_hidden(name) && matches!(extension, Some("yaml" | "yml" | "json"))
}

/// Whether the name was created together with its content, by `link` or `symlink`; no close after a write
/// follows then.
fn is_link(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink() || metadata.nlink() > 1)
}

/// The text of the error, with a remedy if there is a known one.
pub(super) fn advice(error: &io::Error) -> String {
    // The kernel returns these if the user's inotify instances (EMFILE) or watches (ENOSPC) are used up.
    match error.raw_os_error() {
        Some(libc::EMFILE) => format!("{error}; raise fs.inotify.max_user_instances"),
        Some(libc::ENOSPC) => format!("{error}; raise fs.inotify.max_user_watches"),
        _ => error.to_string(),
    }
}
