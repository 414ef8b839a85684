//! Reads configuration files again when they change.
//!
//! It watches the directories of the files, and those of the links to them. Editors replace files, and a
//! ConfigMap's volume exchanges a link that leads to all of its files. After any change there it reads the
//! files again, and sends their content if it has changed.
//!
//! Invariant: a file is read after it was quiet for a moment, so no reader sees a half-written one.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _};
use inotify::{Inotify, WatchMask};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::file::{ConfigError, Read, read_files};

/// The present content of the files.
pub type Reading = Result<Read, Vec<ConfigError>>;

/// The time for which the files must be quiet before they are read.
const QUIET: Duration = Duration::from_millis(100);
/// The files are read this often even without a report of a change: a directory may not have existed when the
/// watch began.
const ANYWAY: Duration = Duration::from_mins(1);
/// The most links that may lead from one to the other.
const MOST_LINKS: usize = 16;

/// Sends the content of the files: first the present one, then each change, until the receiver is gone. Must
/// be called within a tokio runtime.
pub async fn follow(files: Vec<PathBuf>, readings: mpsc::Sender<Reading>) -> io::Result<()> {
    let inotify = Inotify::init()?;
    let mut watches = inotify.watches();
    let mut events = inotify.into_event_stream(vec![0; 4096])?;
    let mut last = None;
    loop {
        // Watched before they are read, so that no change in between is lost.
        for directory in directories(&files) {
            let mask = WatchMask::CLOSE_WRITE | WatchMask::MOVE | WatchMask::CREATE | WatchMask::DELETE;
            if let Err(error) = watches.add(&directory, mask) {
                tracing::debug!(directory = %directory.display(), %error, "cannot watch for changes of the configuration");
            }
        }
        let reading = read_files(&files);
        if last.as_ref() != Some(&reading) {
            last = Some(reading.clone());
            if readings.send(reading).await.is_err() {
                return Ok(());
            }
        }
        let event = tokio::select! {
            event = timeout(ANYWAY, events.next()) => event,
            () = readings.closed() => return Ok(()),
        };
        match event {
            Ok(Some(Ok(_))) => loop {
                sleep(QUIET).await;
                let mut more = false;
                while events.next().now_or_never().is_some() {
                    more = true;
                }
                if !more {
                    break;
                }
            },
            Ok(Some(Err(error))) => return Err(error),
            Ok(None) => return Ok(()),
            Err(_) => {}
        }
    }
}

/// The directories in which an event may change the content of a file.
fn directories(files: &[PathBuf]) -> BTreeSet<PathBuf> {
    let mut directories = BTreeSet::new();
    for file in files {
        let mut path = file.clone();
        for _ in 0..MOST_LINKS {
            let parent = match path.parent() {
                Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
                Some(parent) => parent,
                None => break,
            };
            directories.insert(parent.to_owned());
            match path.read_link() {
                Ok(target) => path = parent.join(target),
                Err(_) => break,
            }
        }
    }
    directories
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::config::{Configuration, Settings};

    const HEADER: &str = "apiVersion: millrace.dev/v1alpha1\nkind: AgentConfiguration\n";

    async fn next(readings: &mut mpsc::Receiver<Reading>) -> Result<Configuration, String> {
        let reading = timeout(Duration::from_secs(10), readings.recv()).await;
        match reading.expect("in time").expect("it goes on") {
            Ok(read) => Ok(Configuration::of(&read.settings, &Settings::default())),
            Err(errors) => Err(errors[0].to_string()),
        }
    }

    fn start(file: PathBuf) -> mpsc::Receiver<Reading> {
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(follow(vec![file], sender));
        receiver
    }

    #[tokio::test]
    async fn a_file_that_is_replaced_or_written_is_read_again() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("agent.yaml");
        fs::write(&file, HEADER).unwrap();
        let mut readings = start(file.clone());
        assert!(!next(&mut readings).await.unwrap().masquerade_all);
        fs::write(&file, format!("{HEADER}masqueradeAll: true\n")).unwrap();
        assert!(next(&mut readings).await.unwrap().masquerade_all);
        let other = root.path().join("other");
        fs::write(&other, format!("{HEADER}masqueradeAll: [\n")).unwrap();
        fs::rename(&other, &file).unwrap();
        assert!(next(&mut readings).await.unwrap_err().contains("agent.yaml"));
        fs::remove_file(&file).unwrap();
        assert!(next(&mut readings).await.unwrap_err().contains("No such file"));
        fs::write(&file, HEADER).unwrap();
        assert!(!next(&mut readings).await.unwrap().masquerade_all);
    }

    #[tokio::test]
    async fn the_volume_of_a_config_map_swaps_a_link() {
        let root = tempfile::tempdir().unwrap();
        let version = |name: &str, text: &str| {
            fs::create_dir(root.path().join(name)).unwrap();
            fs::write(
                root.path().join(name).join("agent.yaml"),
                format!("{HEADER}{text}"),
            )
            .unwrap();
        };
        version("..1", "");
        symlink("..1", root.path().join("..data")).unwrap();
        let file = root.path().join("agent.yaml");
        symlink("..data/agent.yaml", &file).unwrap();
        let mut readings = start(file);
        assert!(!next(&mut readings).await.unwrap().masquerade_all);
        version("..2", "masqueradeAll: true\n");
        symlink("..2", root.path().join("..data_tmp")).unwrap();
        fs::rename(root.path().join("..data_tmp"), root.path().join("..data")).unwrap();
        assert!(next(&mut readings).await.unwrap().masquerade_all);
    }
}
