//! The index of objects: which file defines which object.
//!
//! The source keeps no objects. Of each object it keeps the file that defines it and a hash of its document.
//! That is enough to find the changes in a new version of a file. Documents with a known hash are unchanged,
//! and objects that no document defines any more are deleted. If two files define an object, the first path
//! in sort order wins. The others are remembered as rivals, so that one of them can be read again when the
//! winner drops the object.
//!
//! A new version of a file takes these steps. [`Index::begin`] makes all objects of the file orphans.
//! [`Index::keep`] and [`Index::claim`] take back those of the new version, and [`Index::settle`] returns
//! those that no file took. So an object that moves between files in one step is never deleted in between.
//!
//! Invariant: the hash of an entry is that of the document whose object was passed on last.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use crate::source::pages::Pages;
use crate::source::table::{Row, Table};
use crate::source::{ObjectId, ObjectIdMap};

/// The number that means no file, or the end of a list.
const NONE: u32 = u32::MAX;

/// An object that a file defines.
#[derive(Debug)]
struct Entry {
    id: ObjectId,
    hash: u64,
    file: u32,
    // The next entry of the same file.
    next: u32,
}

impl Row for Entry {
    fn id(&self) -> ObjectId {
        self.id
    }
}

#[derive(Debug)]
struct File {
    path: Arc<Path>,
    first: u32,
    /// Whether the problems of the file were reported.
    bad: bool,
    /// Whether the file shares an object with another one, so that a known document may hold an object that
    /// it lost.
    contested: bool,
}

/// The files and the objects that they define.
#[derive(Debug)]
pub(super) struct Index {
    entries: Table<Entry>,
    files: Pages<File>,
    numbers: BTreeMap<Arc<Path>, u32>,
    rivals: ObjectIdMap<BTreeSet<Arc<Path>>>,
    orphans: Vec<ObjectId>,
}

/// A file whose new version is being indexed.
#[derive(Debug)]
pub(super) struct Intake {
    file: u32,
    // The earlier contents of the file: the hash of the document, and the entry. The list is sorted; it is
    // empty if every document must be read.
    before: Vec<(u64, u32)>,
}

/// The result of a claim: the owner of the object.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// The object is this file's, and must be passed on.
    Changed,
    /// The object is this file's, and unchanged since the earlier version.
    Unchanged,
    /// The object is this file's. It was taken from a file that comes later, which must be read again.
    Taken(Arc<Path>),
    /// The object is another file's, which comes first.
    Lost(Arc<Path>),
    /// The object is this file's already, from an earlier document.
    Repeated,
}

/// The outcome for the objects that lost their file.
#[derive(Debug, Default)]
pub(super) struct Settled {
    /// The objects that no file defines.
    pub(super) gone: Vec<ObjectId>,
    /// The files that may define one of the others, to be read again.
    pub(super) reread: BTreeSet<Arc<Path>>,
}

impl Index {
    pub(super) fn new() -> Self {
        Self {
            entries: Table::default(),
            files: Pages::new(),
            numbers: BTreeMap::new(),
            rivals: ObjectIdMap::default(),
            orphans: Vec::new(),
        }
    }

    /// Every known file below a directory.
    pub(super) fn files_below(&self, directory: &Path) -> Vec<Arc<Path>> {
        self.numbers
            .keys()
            .filter(|path| path.starts_with(directory))
            .cloned()
            .collect()
    }

    /// Whether the file defines an object.
    pub(super) fn defines_objects(&self, path: &Path) -> bool {
        let file = self.numbers.get(path).and_then(|&number| self.files.get(number));
        file.is_some_and(|file| file.first != NONE)
    }

    /// The hashes of the file's documents that need not be read again, sorted.
    pub(super) fn hashes(&self, path: &Path) -> Vec<u64> {
        let file = self.numbers.get(path).and_then(|&number| self.files.get(number));
        let first = file
            .filter(|file| !file.contested)
            .map_or(NONE, |file| file.first);
        let mut hashes: Vec<u64> = self.list(first).map(|(_, entry)| entry.hash).collect();
        hashes.sort_unstable();
        hashes
    }

    /// Notes whether the file has problems; returns true if that must be reported.
    pub(super) fn set_bad(&mut self, path: &Arc<Path>, bad: bool) -> bool {
        let number = self.number(path);
        self.files
            .get_mut(number)
            .is_some_and(|file| std::mem::replace(&mut file.bad, bad) || bad)
    }

    /// Starts to index a new version of a file.
    pub(super) fn begin(&mut self, path: &Arc<Path>) -> Intake {
        let file = self.number(path);
        self.rivals.retain(|_, rivals| {
            rivals.remove(path);
            !rivals.is_empty()
        });
        let (first, contested) = self.files.get_mut(file).map_or((NONE, false), |file| {
            (
                std::mem::replace(&mut file.first, NONE),
                std::mem::take(&mut file.contested),
            )
        });
        let mut before: Vec<_> = self
            .list(first)
            .map(|(number, entry)| (entry.hash, number))
            .collect();
        for &(_, number) in &before {
            if let Some(entry) = self.entries.get_mut(number) {
                entry.file = NONE;
                self.orphans.push(entry.id);
            }
        }
        if contested {
            before.clear();
        }
        before.sort_unstable();
        Intake { file, before }
    }

    /// Keeps the objects of a document that the new version still contains; returns false if the hash is
    /// unknown.
    pub(super) fn keep(&mut self, intake: &mut Intake, hash: u64) -> bool {
        let start = intake.before.partition_point(|&(other, _)| other < hash);
        let end = intake.before.partition_point(|&(other, _)| other <= hash);
        let numbers = intake.before[start..end].iter().map(|&(_, number)| number);
        let mut kept = false;
        for number in numbers {
            // The object is taken already: the file contains the same text twice.
            if self
                .entries
                .get(number)
                .is_some_and(|entry| entry.file == NONE && entry.hash == hash)
            {
                self.link(intake.file, number);
                kept = true;
            }
        }
        kept
    }

    /// Claims an object for the new version, which defines it in a document with this hash.
    pub(super) fn claim(&mut self, intake: &Intake, id: ObjectId, hash: u64) -> Claim {
        let Some(number) = self.entries.find(id) else {
            let number = self.entries.insert(Entry {
                id,
                hash,
                file: NONE,
                next: NONE,
            });
            self.link(intake.file, number);
            return Claim::Changed;
        };
        let (owner, known) = self
            .entries
            .get(number)
            .map_or((NONE, 0), |entry| (entry.file, entry.hash));
        if owner == intake.file {
            return Claim::Repeated;
        }
        let other = self.files.get(owner).map(|file| Arc::clone(&file.path));
        let own = self.files.get(intake.file).map(|file| Arc::clone(&file.path));
        if let (Some(other), Some(own)) = (&other, &own)
            && other < own
        {
            self.rivals.entry(id).or_default().insert(Arc::clone(own));
            self.set_contested(intake.file);
            return Claim::Lost(Arc::clone(other));
        }
        self.unlink(owner, number);
        self.set_contested(owner);
        if let Some(entry) = self.entries.get_mut(number) {
            entry.hash = hash;
        }
        self.link(intake.file, number);
        match other {
            Some(other) => Claim::Taken(other),
            None if known == hash => Claim::Unchanged,
            None => Claim::Changed,
        }
    }

    /// Removes a file, whose objects become orphans. Returns true if it had problems, which must be cleared.
    pub(super) fn forget(&mut self, path: &Arc<Path>) -> bool {
        if !self.numbers.contains_key(path) {
            return false;
        }
        let intake = self.begin(path);
        self.numbers.remove(path);
        self.files.remove(intake.file).is_some_and(|file| file.bad)
    }

    /// Returns the outcome for the orphans.
    pub(super) fn settle(&mut self) -> Settled {
        let mut settled = Settled::default();
        for id in std::mem::take(&mut self.orphans) {
            let Some(number) = self.entries.find(id) else {
                continue;
            };
            if self.entries.get(number).is_none_or(|entry| entry.file != NONE) {
                continue;
            }
            if let Some(rivals) = self.rivals.remove(&id) {
                settled.reread.extend(rivals);
                self.orphans.push(id);
            } else {
                self.entries.remove(number);
                settled.gone.push(id);
            }
        }
        settled
    }

    fn set_contested(&mut self, file: u32) {
        if let Some(file) = self.files.get_mut(file) {
            file.contested = true;
        }
    }

    fn number(&mut self, path: &Arc<Path>) -> u32 {
        if let Some(&number) = self.numbers.get(path) {
            return number;
        }
        let number = self.files.insert(File {
            path: Arc::clone(path),
            first: NONE,
            bad: false,
            contested: false,
        });
        self.numbers.insert(Arc::clone(path), number);
        number
    }

    fn list(&self, first: u32) -> impl Iterator<Item = (u32, &Entry)> {
        let entry = |number: u32| self.entries.get(number).map(|entry| (number, entry));
        std::iter::successors(entry(first), move |(_, last)| entry(last.next))
    }

    fn link(&mut self, file: u32, number: u32) {
        let (Some(owner), Some(entry)) = (self.files.get_mut(file), self.entries.get_mut(number)) else {
            return;
        };
        entry.file = file;
        entry.next = std::mem::replace(&mut owner.first, number);
    }

    /// Removes an entry from its file's list. It walks the list, since this is rare.
    fn unlink(&mut self, file: u32, number: u32) {
        let Some(next) = self.entries.get(number).map(|entry| entry.next) else {
            return;
        };
        let Some(owner) = self.files.get_mut(file) else {
            return;
        };
        if owner.first == number {
            owner.first = next;
            return;
        }
        let before = self.list(self.files.get(file).map_or(NONE, |file| file.first));
        let before = before
            .filter(|(_, entry)| entry.next == number)
            .map(|(before, _)| before)
            .next();
        if let Some(entry) = before.and_then(|before| self.entries.get_mut(before)) {
            entry.next = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Kind;

    fn id(name: &str) -> ObjectId {
        ObjectId::new(Kind::Service, "default", name)
    }

    fn path(name: &str) -> Arc<Path> {
        Path::new(name).into()
    }

    /// Indexes a file whose documents hold one object each; a document's hash is that of name and version.
    fn take(index: &mut Index, file: &str, objects: &[(&str, u64)]) -> Vec<Claim> {
        let mut intake = index.begin(&path(file));
        let mut claims = Vec::new();
        for &(name, hash) in objects {
            if !index.keep(&mut intake, hash) {
                claims.extend(
                    Some(index.claim(&intake, id(name), hash)).filter(|claim| *claim != Claim::Unchanged),
                );
            }
        }
        claims
    }

    fn gone(index: &mut Index) -> Vec<ObjectId> {
        let settled = index.settle();
        assert!(settled.reread.is_empty(), "{:?}", settled.reread);
        settled.gone
    }

    #[test]
    fn a_new_version_changes_what_differs_and_drops_what_is_missing() {
        let mut index = Index::new();
        assert_eq!(
            take(&mut index, "a", &[("x", 1), ("y", 2), ("z", 3)]),
            [Claim::Changed, Claim::Changed, Claim::Changed]
        );
        assert!(gone(&mut index).is_empty());
        assert_eq!(index.hashes(Path::new("a")), [1, 2, 3]);
        assert_eq!(take(&mut index, "a", &[("y", 2), ("x", 9)]), [Claim::Changed]);
        assert_eq!(gone(&mut index), [id("z")]);
        assert!(take(&mut index, "a", &[("y", 2), ("x", 9)]).is_empty());
        assert!(gone(&mut index).is_empty());
        assert!(!index.forget(&path("a")));
        assert_eq!(gone(&mut index).len(), 2);
        assert!(!index.defines_objects(Path::new("a")));
    }

    #[test]
    fn an_object_that_moves_between_files_is_never_gone() {
        let mut index = Index::new();
        take(&mut index, "a", &[("x", 1), ("y", 2)]);
        index.forget(&path("a"));
        assert_eq!(take(&mut index, "b", &[("x", 1), ("y", 3)]), [Claim::Changed]);
        assert!(gone(&mut index).is_empty());
    }

    #[test]
    fn the_first_path_wins_in_any_order() {
        let mut index = Index::new();
        take(&mut index, "b", &[("w", 7), ("x", 1), ("y", 2)]);
        assert_eq!(take(&mut index, "c", &[("x", 3)]), [Claim::Lost(path("b"))]);
        assert_eq!(take(&mut index, "a", &[("x", 4)]), [Claim::Taken(path("b"))]);
        // The losing file is read again, and remembers that it lost.
        assert_eq!(
            take(&mut index, "b", &[("w", 7), ("x", 1), ("y", 2)]),
            [Claim::Lost(path("a"))]
        );
        assert!(gone(&mut index).is_empty());
        index.forget(&path("a"));
        let settled = index.settle();
        assert!(settled.gone.is_empty());
        assert_eq!(
            settled.reread.into_iter().collect::<Vec<_>>(),
            [path("b"), path("c")]
        );
        assert_eq!(
            take(&mut index, "b", &[("w", 7), ("x", 1), ("y", 2)]),
            [Claim::Changed]
        );
        assert_eq!(take(&mut index, "c", &[("x", 3)]), [Claim::Lost(path("b"))]);
        assert!(gone(&mut index).is_empty());
    }

    #[test]
    fn a_rival_that_gave_up_takes_nothing_over() {
        let mut index = Index::new();
        take(&mut index, "a", &[("x", 1)]);
        take(&mut index, "b", &[("x", 2)]);
        take(&mut index, "b", &[]);
        index.forget(&path("a"));
        assert_eq!(gone(&mut index), [id("x")]);
    }

    #[test]
    fn a_rival_that_cannot_be_read_does_not_hold_the_object() {
        let mut index = Index::new();
        take(&mut index, "a", &[("x", 1)]);
        take(&mut index, "b", &[("x", 2)]);
        index.forget(&path("a"));
        assert_eq!(index.settle().reread.len(), 1);
        assert_eq!(gone(&mut index), [id("x")]);
    }

    #[test]
    fn a_file_may_repeat_itself() {
        let mut index = Index::new();
        assert_eq!(
            take(&mut index, "a", &[("x", 1), ("x", 2)]),
            [Claim::Changed, Claim::Repeated]
        );
        assert_eq!(
            take(&mut index, "a", &[("x", 1), ("x", 1)]),
            [Claim::Repeated],
            "the same text twice"
        );
        assert!(gone(&mut index).is_empty());
    }
}
