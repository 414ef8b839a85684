//! The source that follows a directory of manifests.
//!
//! The source reads every `*.yaml`, `*.yml` and `*.json` below the directory, with several documents a file.
//! It passes changes on document by document within a fraction of a millisecond. A file that no longer parses
//! keeps its last valid content, and a directory that disappears keeps all of it. Only the removal of a file,
//! or a version of it that parses, removes objects.
//!
//! The stages: `tree` finds the files to read, `documents` and `parse` turn them into objects, `index` knows
//! their earlier versions, and `Follower` passes the differences on.

mod block;
mod decode;
mod documents;
mod index;
mod parse;
mod tree;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fs;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use self::decode::Malformed;
use self::documents::documents;
use self::index::{Claim, Index};
use self::parse::Content;
use self::tree::{Happened, Lost, Tree};
use super::{Change, Event, Kind, ObjectId, StateHandle};

/// How long to wait before the next look for a directory that does not exist.
const RETRY: Duration = Duration::from_millis(500);
/// The size in bytes above which a file is read on another thread.
const LARGE: u64 = 1024 * 1024;
/// The number of documents after which the task yields to the rest of the agent.
const DOCUMENTS_PER_TURN: usize = 32;
/// The number of parsed documents of a file that are kept until the whole file is known to be valid. Further
/// ones are parsed a second time.
const HELD: usize = 1024;
/// The limit of messages about one file.
const MAX_MESSAGES: usize = 8;

/// Follows the directory until the receiver of `events` is dropped.
pub fn start(path: PathBuf, events: mpsc::Sender<Event>) -> io::Result<StateHandle> {
    if !path.is_absolute() && path.as_os_str().is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the directory of the source is not given: dir:PATH",
        ));
    }
    let state = StateHandle::new(path.display().to_string());
    let out = Out {
        events,
        received: Instant::now(),
    };
    let follower = Follower {
        root: path,
        state: state.clone(),
        index: Index::new(),
        hasher: RandomState::new(),
        unreadable: BTreeSet::new(),
        out,
    };
    tokio::spawn(follower.run());
    Ok(state)
}

/// The receiver of the events was dropped, so the source stops.
#[derive(Debug)]
struct Closed;

/// The channel for changes.
struct Out {
    events: mpsc::Sender<Event>,
    received: Instant,
}

impl Out {
    async fn send(&self, change: Change) -> Result<(), Closed> {
        self.events
            .send(Event::new(self.received, change))
            .await
            .map_err(|_| Closed)
    }
}

struct Follower {
    root: PathBuf,
    state: StateHandle,
    index: Index,
    hasher: RandomState,
    /// The directories that were reported as unreadable.
    unreadable: BTreeSet<PathBuf>,
    out: Out,
}

/// A document of a file that is valid as a whole.
struct Read {
    hash: u64,
    content: Held,
}

enum Held {
    /// The document is unchanged.
    Known,
    Content(Content),
    /// The document must be parsed again.
    Later,
}

impl Follower {
    async fn run(mut self) {
        let mut listed = false;
        loop {
            match Tree::open(&self.root) {
                Ok((tree, found)) => match self.follow(tree, found, &mut listed).await {
                    Ok(Lost::Events) => {
                        tracing::info!(directory = %self.root.display(), "reading everything again");
                    }
                    Ok(Lost::Root(error)) => self.wait(&error).await,
                    Err(Closed) => return,
                },
                Err(error) if self.out.events.is_closed() => return drop(error),
                Err(error) => self.wait(&error.to_string()).await,
            }
        }
    }

    async fn wait(&self, error: &str) {
        for kind in Kind::ALL {
            if self.state.set_failing(kind, &error) && kind == Kind::Service {
                tracing::warn!(error, "the directory cannot be followed; what it held stays");
            }
        }
        tokio::time::sleep(RETRY).await;
    }

    /// Passes on the content of the tree, then its changes, until they cannot be followed any more.
    async fn follow(
        &mut self,
        mut tree: Tree,
        mut found: Happened,
        listed: &mut bool,
    ) -> Result<Lost, Closed> {
        self.out.received = Instant::now();
        let first = !std::mem::replace(listed, true);
        if first {
            for kind in Kind::ALL {
                self.out.send(Change::Begin(kind)).await?;
            }
        }
        for directory in std::mem::take(&mut self.unreadable) {
            self.report_directory(&directory, Vec::new()).await?;
        }
        let known = self.index.files_below(Path::new(""));
        found
            .gone
            .extend(known.into_iter().filter(|path| !found.changed.contains(path)));
        self.take(found).await?;
        for kind in Kind::ALL {
            if first {
                self.out.send(Change::End(kind)).await?;
            }
            self.state.set_following(kind);
        }
        loop {
            let received = &mut self.out.received;
            let closed = self.out.events.closed();
            let happened = tokio::select! {
                happened = tree.next(|| *received = Instant::now()) => happened,
                () = closed => return Err(Closed),
            };
            match happened {
                Ok(happened) => self.take(happened).await?,
                Err(lost) => return Ok(lost),
            }
        }
    }

    async fn take(&mut self, mut happened: Happened) -> Result<(), Closed> {
        for (directory, error) in happened.unreadable {
            let message = format!("{}; the files in it are not read", tree::advice(&error));
            self.report_directory(&directory, vec![message]).await?;
            self.unreadable.insert(directory);
        }
        for directory in &happened.gone_directories {
            let below = self.index.files_below(directory).into_iter();
            happened
                .gone
                .extend(below.filter(|path| !happened.changed.contains(path)));
        }
        for path in &happened.gone {
            self.forget(path).await?;
        }
        let mut unread = happened.changed;
        loop {
            while let Some(path) = unread.pop_first() {
                self.load(&path, &mut unread).await?;
            }
            let settled = self.index.settle();
            for id in settled.gone {
                self.out.send(Change::Delete(id.kind(), id)).await?;
            }
            if settled.reread.is_empty() {
                return Ok(());
            }
            unread = settled.reread;
        }
    }

    async fn forget(&mut self, path: &Arc<Path>) -> Result<(), Closed> {
        if self.index.forget(path) {
            let subject = self.subject(path);
            self.out
                .send(Change::Problems {
                    subject,
                    messages: Vec::new(),
                })
                .await?;
        }
        Ok(())
    }

    /// Reads a file and passes its changes on. The function adds to `unread` the files that this one took an
    /// object from.
    async fn load(&mut self, path: &Arc<Path>, unread: &mut BTreeSet<Arc<Path>>) -> Result<(), Closed> {
        let problem = match read(&self.root.join(path)).await {
            Ok(text) => match self.parse(path, &text).await {
                Ok(documents) => {
                    let messages = self.hand_on(path, &text, documents, unread).await?;
                    return self.report(path, messages).await;
                }
                Err(malformed) => malformed.to_string(),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => return self.forget(path).await,
            Err(error) => error.to_string(),
        };
        let consequence = if self.index.defines_objects(path) {
            "its last good content stays served"
        } else {
            "nothing in it is served"
        };
        self.report(path, vec![format!("{problem}; {consequence}")]).await
    }

    /// Reads every document of a file that is not known yet; the file is valid only as a whole.
    async fn parse(&self, path: &Path, text: &str) -> Result<Vec<Read>, Malformed> {
        let known = self.index.hashes(path);
        let mut read = Vec::new();
        let mut parsed = 0;
        for document in documents(text) {
            let hash = self.hasher.hash_one(document.text);
            let content = if known.binary_search(&hash).is_ok() {
                Held::Known
            } else {
                let content = parse::parse(document, is_json(path))?;
                parsed += 1;
                if parsed % DOCUMENTS_PER_TURN == 0 {
                    tokio::task::yield_now().await;
                }
                if parsed > HELD {
                    Held::Later
                } else {
                    Held::Content(content)
                }
            };
            read.push(Read { hash, content });
        }
        Ok(read)
    }

    /// Indexes a valid file; returns the messages to report about it.
    async fn hand_on(
        &mut self,
        path: &Arc<Path>,
        text: &str,
        read: Vec<Read>,
        unread: &mut BTreeSet<Arc<Path>>,
    ) -> Result<Vec<String>, Closed> {
        let mut intake = self.index.begin(path);
        let mut messages = Vec::new();
        for (document, read) in documents(text).zip(read) {
            let content = match read.content {
                Held::Known if self.index.keep(&mut intake, read.hash) => continue,
                Held::Content(content) => content,
                Held::Known | Held::Later => match parse::parse(document, is_json(path)) {
                    Ok(content) => content,
                    // The document parsed the first time.
                    Err(malformed) => {
                        messages.push(malformed.to_string());
                        continue;
                    }
                },
            };
            messages.extend(content.warnings);
            for object in content.objects {
                let id: ObjectId = object.id();
                let line = document.first_line();
                match self.index.claim(&intake, id, read.hash) {
                    Claim::Unchanged => continue,
                    Claim::Changed => {}
                    Claim::Taken(other) => drop(unread.insert(other)),
                    Claim::Lost(other) => {
                        let other = self.root.join(other);
                        let other = other.display();
                        messages.push(format!(
                            "line {line}: {object} is left out: {other} defines it too and comes first"
                        ));
                        continue;
                    }
                    Claim::Repeated => {
                        messages.push(format!(
                            "line {line}: {object} is left out: the file defines it before"
                        ));
                        continue;
                    }
                }
                self.out.send(Change::Apply(Box::new(object))).await?;
            }
        }
        Ok(messages)
    }

    async fn report(&mut self, path: &Arc<Path>, mut messages: Vec<String>) -> Result<(), Closed> {
        if !self.index.set_bad(path, !messages.is_empty()) {
            return Ok(());
        }
        let subject = self.subject(path);
        if messages.len() > MAX_MESSAGES {
            let left_out = messages.len() - MAX_MESSAGES;
            messages.truncate(MAX_MESSAGES);
            messages.push(format!("and {left_out} more"));
        }
        for message in &messages {
            tracing::warn!("{subject}: {message}");
        }
        self.out.send(Change::Problems { subject, messages }).await
    }

    async fn report_directory(&self, directory: &Path, messages: Vec<String>) -> Result<(), Closed> {
        let subject = format!("directory {}", self.root.join(directory).display());
        self.out.send(Change::Problems { subject, messages }).await
    }

    fn subject(&self, path: &Path) -> String {
        format!("file {}", self.root.join(path).display())
    }
}

fn is_json(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "json")
}

/// Reads the text of a file. It opens regular files only, since opening a pipe would wait for a writer.
async fn read(path: &Path) -> io::Result<String> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    // For a small file, another thread would cost more time than the read.
    let bytes = if metadata.len() > LARGE {
        tokio::fs::read(path).await?
    } else {
        fs::read(path)?
    };
    String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = good.split(|&byte| byte == b'\n').count();
        io::Error::new(io::ErrorKind::InvalidData, format!("line {line}: not UTF-8"))
    })
}
