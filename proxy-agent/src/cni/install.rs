//! Writes the plugin and the description into the directories of container runtimes, and notes the written
//! files.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::conflist::{CONFLIST, NETWORKS, Network};
use super::{PLUGIN, files};
use crate::private_dir::{self, Privacy};

/// The note in the state directory.
pub const NOTE: &str = "installed.json";

/// An error with a file: it could not be read, made or replaced.
#[derive(Debug, thiserror::Error)]
#[error("{what} {}: {error}{hint}", path.display())]
pub struct InstallError {
    what: &'static str,
    path: PathBuf,
    error: io::Error,
    hint: &'static str,
}

/// The files in foreign directories that an agent has written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Installed {
    /// The paths of the files.
    pub files: BTreeSet<PathBuf>,
}

impl Installed {
    /// Reads the note; an empty one if there is none.
    pub fn read(state_dir: &Path) -> Result<Self, InstallError> {
        let path = state_dir.join(NOTE);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            text => text.map_err(failed("reading", &path))?,
        };
        let note = serde_json::from_slice(&text).map_err(io::Error::other);
        note.map_err(failed("reading", &path))
    }

    /// Adds a file to the note.
    fn add(state_dir: &Path, file: &Path) -> Result<(), InstallError> {
        let mut note = Self::read(state_dir)?;
        if !note.files.insert(file.to_owned()) {
            return Ok(());
        }
        let path = state_dir.join(NOTE);
        private_dir::make(state_dir, is_state).map_err(failed("making", state_dir))?;
        let text = serde_json::to_vec(&note).map_err(io::Error::other);
        let written = text.and_then(|text| files::replace(&path, &text, 0o600));
        written.map(drop).map_err(failed("writing", &path))
    }
}

/// Closes the state directory to users other than root, if it exists. They could read which containers run
/// here.
pub fn close_state_dir(state_dir: &Path) -> Result<(), InstallError> {
    match private_dir::close(state_dir, is_state) {
        Ok(Privacy::Closed) => Ok(()),
        Ok(Privacy::Shared) => {
            tracing::warn!(
                path = %state_dir.display(),
                "others may enter the state directory, and something that is not ours lies in it: it stays as it is"
            );
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("closing", state_dir)(error)),
    }
}

/// Whether a file in the state directory is ours by its name: the note, also while it is replaced, and
/// leases.
fn is_state(name: &OsStr) -> bool {
    name == NETWORKS || name == NOTE || name == files::temporary(NOTE).as_str()
}

/// Writes files into the directories of container runtimes.
#[derive(Debug)]
pub struct Installer {
    state_dir: PathBuf,
    conf_dir: Option<PathBuf>,
    bin_dir: Option<PathBuf>,
    plugin_is_there: bool,
    network: Option<Network>,
    /// The written files, with their stamps afterwards.
    put: BTreeMap<PathBuf, Option<Stamp>>,
    /// Files that are gone or have another stamp.
    lost: BTreeSet<PathBuf>,
    restored: Vec<PathBuf>,
}

/// Inode, length and time of modification: these show that a file is another one.
type Stamp = (u64, u64, SystemTime);

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = fs::symlink_metadata(path).ok()?;
    Some((metadata.ino(), metadata.len(), metadata.modified().ok()?))
}

impl Installer {
    /// An installer that has not looked at the files yet.
    pub fn new(state_dir: &Path, conf_dir: Option<&Path>, bin_dir: Option<&Path>) -> Self {
        Self {
            state_dir: state_dir.to_owned(),
            conf_dir: conf_dir.map(Path::to_owned),
            bin_dir: bin_dir.map(Path::to_owned),
            plugin_is_there: false,
            network: None,
            put: BTreeMap::new(),
            lost: BTreeSet::new(),
            restored: Vec::new(),
        }
    }

    /// Whether all files are as they were written; this takes a system call each. If not, [`Self::install`]
    /// writes them again.
    pub fn is_whole(&mut self) -> bool {
        let lost = self.put.iter().filter(|(path, put)| stamp(path) != **put);
        self.lost = lost.map(|(path, _)| path.clone()).collect();
        self.plugin_is_there &= !self.lost.iter().any(|path| path.ends_with(PLUGIN));
        if self.lost.iter().any(|path| path.ends_with(CONFLIST)) {
            self.network = None;
        }
        self.lost.is_empty()
    }

    /// The files that were gone or altered and have been written again since the last call.
    pub fn take_restored(&mut self) -> Vec<PathBuf> {
        std::mem::take(&mut self.restored)
    }

    /// Installs the plugin, and then the description, if the network is ready for pods. Written files are not
    /// checked again unless [`Self::is_whole`] found a difference.
    pub fn install(&mut self, network: Option<&Network>) -> Result<(), InstallError> {
        if !self.plugin_is_there
            && let Some(dir) = self.bin_dir.clone()
        {
            let source = own_plugin()?;
            let plugin = fs::read(&source).map_err(|error| InstallError {
                hint: ": the plugin belongs beside the agent's own executable; build or copy it there",
                ..failed("reading", &source)(error)
            })?;
            self.put(&dir.join(PLUGIN), &plugin, 0o755)?;
            self.plugin_is_there = true;
        }
        if let (Some(network), Some(dir)) = (network, self.conf_dir.clone())
            && self.network.as_ref() != Some(network)
        {
            self.put(&dir.join(CONFLIST), network.text().as_bytes(), 0o644)?;
            self.network = Some(network.clone());
        }
        Ok(())
    }

    fn put(&mut self, path: &Path, content: &[u8], mode: u32) -> Result<(), InstallError> {
        let dir = path.parent().unwrap_or(path);
        // A runtime that has never had a plugin may not have made the directories.
        fs::create_dir_all(dir).map_err(failed("making", dir))?;
        Installed::add(&self.state_dir, path)?;
        let is_written = files::replace(path, content, mode).map_err(failed("writing", path))?;
        if is_written {
            tracing::info!(path = %path.display(), "written");
        }
        if self.lost.remove(path) && is_written {
            self.restored.push(path.to_owned());
        }
        self.put.insert(path.to_owned(), stamp(path));
        Ok(())
    }
}

/// The description of another network in a directory, if runtimes use it in place of ours, since it comes
/// first by name.
pub fn preferred_to_ours(conf_dir: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(conf_dir).ok()?.flatten().map(|entry| entry.path());
    let is_one = |path: &PathBuf| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        matches!(extension, Some("conf" | "conflist" | "json"))
    };
    let first = entries.filter(is_one).min()?;
    (first < conf_dir.join(CONFLIST)).then_some(first)
}

/// The plugin that was built with this agent.
fn own_plugin() -> Result<PathBuf, InstallError> {
    let own = std::env::current_exe().map_err(failed("finding", Path::new("/proc/self/exe")))?;
    Ok(own.with_file_name(PLUGIN))
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InstallError {
    let path = path.to_owned();
    move |error| InstallError {
        what,
        path,
        error,
        hint: "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(mtu: u32) -> Network {
        Network {
            mtu,
            bpf_root: "/sys/fs/bpf/millrace".into(),
            state_dir: "/var/lib/millrace".into(),
            pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
        }
    }

    #[test]
    fn the_description_comes_after_the_plugin_and_both_are_noted() {
        let root = tempfile::tempdir().unwrap();
        let dir = |name: &str| root.path().join(name);
        let (state, conf, bin) = (dir("state"), dir("etc/cni/net.d"), dir("opt/cni/bin"));
        let conflist = conf.join(CONFLIST);
        // Beside a test there is no plugin, so the installer must not write a description.
        let mut installer = Installer::new(&state, Some(&conf), Some(&bin));
        let error = installer.install(Some(&network(1500))).unwrap_err().to_string();
        assert!(error.contains("beside the agent's own executable"), "{error}");
        assert!(!conflist.exists());
        assert_eq!(Installed::read(&state).unwrap(), Installed::default());

        let mut installer = Installer::new(&state, Some(&conf), None);
        installer.install(Some(&network(1500))).unwrap();
        assert_eq!(fs::read_to_string(&conflist).unwrap(), network(1500).text());
        assert_eq!(Installed::read(&state).unwrap().files, [conflist.clone()].into());
        let written = || fs::metadata(&conflist).unwrap().modified().unwrap();
        let before = written();
        Installer::new(&state, Some(&conf), None)
            .install(Some(&network(1500)))
            .unwrap();
        assert_eq!(written(), before, "a restarted agent leaves it alone");
        installer.install(Some(&network(1450))).unwrap();
        assert_eq!(fs::read_to_string(&conflist).unwrap(), network(1450).text());

        assert!(installer.is_whole() && installer.take_restored().is_empty());
        for damage in [
            |path: &Path| fs::remove_file(path).unwrap(),
            |path: &Path| fs::write(path, "{}").unwrap(),
        ] {
            damage(&conflist);
            assert!(!installer.is_whole());
            installer.install(Some(&network(1450))).unwrap();
            assert_eq!(fs::read_to_string(&conflist).unwrap(), network(1450).text());
            assert_eq!(installer.take_restored(), std::slice::from_ref(&conflist));
            assert!(installer.is_whole());
        }

        for name in ["05-readme.txt", "20-bridge.conf"] {
            fs::write(conf.join(name), "").unwrap();
        }
        assert_eq!(preferred_to_ours(&conf), None);
        let other = conf.join("10-flannel.conflist");
        fs::write(&other, "").unwrap();
        assert_eq!(preferred_to_ours(&conf), Some(other));
    }
}
