//! Which file defines which object.
//!
//! The source keeps no objects. Of each it keeps the file that defines it and a hash of the document it stood in, which is enough
//! to say what a new version of a file changes: documents with a known hash are unchanged, and objects that no document names any
//! more are gone. Where two files define an object the first path in sort order wins; the others are remembered as rivals, so that
//! one of them can be read again when the winner lets go.
//!
//! Taking in a file goes: [`Index::begin`] makes everything it defined an orphan, [`Index::keep`] and [`Index::claim`] take back
//! what the new version has, and [`Index::settle`] tells what nobody took. An object that moves between files in one go is therefore
//! never gone in between.
//!
//! Invariant: an entry's hash is that of the document whose object was handed on last.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use crate::source::pages::Pages;
use crate::source::table::{Row, Table};
use crate::source::{ObjectId, ObjectIdMap};

/// No file, or the end of a list.
const NONE: u32 = u32::MAX;

/// An object that some file defines.
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
    /// Its problems were reported.
    bad: bool,
    /// It shares an object with another file, so that a known document may hold one that it lost.
    contested: bool,
}

/// Which file defines which object.
#[derive(Debug)]
pub(super) struct Index {
    entries: Table<Entry>,
    files: Pages<File>,
    numbers: BTreeMap<Arc<Path>, u32>,
    rivals: ObjectIdMap<BTreeSet<Arc<Path>>>,
    orphans: Vec<ObjectId>,
}

/// A file that is being taken in.
#[derive(Debug)]
pub(super) struct Intake {
    file: u32,
    // What it defined before: hash of the document, entry. Sorted; empty if nothing can be kept unread.
    before: Vec<(u64, u32)>,
}

/// Whose an object is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// This file's, and it has to be handed on.
    Changed,
    /// This file's, and it is as it was in the file that it came from.
    Unchanged,
    /// This file's, taken from one that comes later and has to be read again.
    Taken(Arc<Path>),
    /// Another file's, which comes first.
    Lost(Arc<Path>),
    /// This file's already, by an earlier document.
    Repeated,
}

/// What became of the objects that lost their file.
#[derive(Debug, Default)]
pub(super) struct Settled {
    /// Nobody defines them.
    pub(super) gone: Vec<ObjectId>,
    /// Files that may define one of the others, to be read again.
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

    /// Whether the file defines anything.
    pub(super) fn defines_something(&self, path: &Path) -> bool {
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

    /// Notes whether the file has problems; true if that has to be reported.
    pub(super) fn set_bad(&mut self, path: &Arc<Path>, bad: bool) -> bool {
        let number = self.number(path);
        self.files
            .get_mut(number)
            .is_some_and(|file| std::mem::replace(&mut file.bad, bad) || bad)
    }

    /// Starts to take in a new version of a file.
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

    /// A document with this hash stands in the new version too; false if nothing is known of it.
    pub(super) fn keep(&mut self, intake: &mut Intake, hash: u64) -> bool {
        let start = intake.before.partition_point(|&(other, _)| other < hash);
        let end = intake.before.partition_point(|&(other, _)| other <= hash);
        let numbers = intake.before[start..end].iter().map(|&(_, number)| number);
        let mut kept = false;
        for number in numbers {
            // Taken already: the file holds the same text twice.
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

    /// The new version defines this object, in a document with this hash.
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

    /// The file is gone, and what it defined is an orphan. True if it had problems to be cleared.
    pub(super) fn forget(&mut self, path: &Arc<Path>) -> bool {
        if !self.numbers.contains_key(path) {
            return false;
        }
        let intake = self.begin(path);
        self.numbers.remove(path);
        self.files.remove(intake.file).is_some_and(|file| file.bad)
    }

    /// What became of the orphans.
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

    /// Takes an entry out of its file's list. Rare, so a walk will do.
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

    /// Takes in a file whose documents hold one object each; their hashes are those of name and version.
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
        assert!(!index.defines_something(Path::new("a")));
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
    fn the_first_path_wins_whichever_came_first() {
        let mut index = Index::new();
        take(&mut index, "b", &[("w", 7), ("x", 1), ("y", 2)]);
        assert_eq!(take(&mut index, "c", &[("x", 3)]), [Claim::Lost(path("b"))]);
        assert_eq!(take(&mut index, "a", &[("x", 4)]), [Claim::Taken(path("b"))]);
        // The loser is read again, and remembers that it lost.
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
