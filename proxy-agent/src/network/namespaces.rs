//! Finds the network namespaces of pods and their cookies.
//!
//! A pod's interface refers to its peer's namespace only by an id that this namespace assigned. The container
//! runtime keeps a file for each namespace in one directory, and the kernel returns the id of an open file.
//! So the agent tries the files, youngest first, until each id has its namespace.
//!
//! The agent remembers nothing by id or inode. The kernel reuses both as soon as a namespace is removed, and
//! before its interface disappears.
//!
//! The file is a mount point, so a change of our own mount table reports it. The agent watches that table
//! only while a pod waits.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::cookie::{Witness, cookies_of};
use super::error::NetworkError;
use super::links::Links;
use super::netlink::Netlink;
use super::roles::{Role, Roles};
use super::sys;

/// The directory where container runtimes keep the namespaces of pods.
pub const RUNTIME_DIRECTORY: &str = "/run/netns";

/// The namespaces of pods.
pub struct PodNamespaces {
    netlink: Netlink,
    directory: PathBuf,
    mounts: AsyncFd<File>,
    /// The pods' interfaces, with the id of the namespace that each leads to.
    pods: BTreeMap<u32, Pod>,
    witness: Option<Witness>,
    limitation: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pod {
    namespace: i32,
    cookie: Option<u64>,
}

impl PodNamespaces {
    /// Makes the object, which looks in `directory`, in general [`RUNTIME_DIRECTORY`]. Must be called within
    /// a tokio runtime.
    pub fn new(netlink: Netlink, directory: impl Into<PathBuf>) -> Result<Self, NetworkError> {
        const MOUNTS: &str = "/proc/thread-self/mountinfo";
        let failed = |error| NetworkError::File {
            what: "watching",
            path: MOUNTS.into(),
            error,
        };
        let mounts = File::open(MOUNTS).and_then(sys::await_priority);
        Ok(Self {
            netlink,
            directory: directory.into(),
            mounts: mounts.map_err(failed)?,
            pods: BTreeMap::new(),
            witness: None,
            limitation: None,
        })
    }

    /// Adds a witness, for kernels where a socket does not give the cookie.
    #[must_use]
    pub fn with_witness(self, witness: Option<Witness>) -> Self {
        Self { witness, ..self }
    }

    /// Notes the pods' interfaces and looks for those whose namespace is not known. Call it after a change of
    /// roles or links, and after [`Self::mounted`] returned. Returns whether [`Self::cookies`] has changed.
    pub async fn update(&mut self, links: &Links, roles: &Roles) -> bool {
        let before: Vec<_> = self.cookies().collect();
        let pods = roles.of(Role::Pod).filter_map(|pod| {
            let namespace = links.get(pod.index)?.peer_namespace?;
            let known = self
                .pods
                .get(&pod.index)
                .filter(|known| known.namespace == namespace);
            Some((
                pod.index,
                known.copied().unwrap_or(Pod {
                    namespace,
                    cookie: None,
                }),
            ))
        });
        self.pods = pods.collect();
        self.search().await;
        !self.cookies().eq(before)
    }

    /// The known cookies, by the index of the pod's interface.
    pub fn cookies(&self) -> impl Iterator<Item = (u32, u64)> {
        self.pods
            .iter()
            .filter_map(|(index, pod)| Some((*index, pod.cookie?)))
    }

    /// The addresses in the namespace that a pod's interface leads to.
    pub async fn addresses(&self, interface: u32) -> Vec<IpAddr> {
        let Some(pod) = self.pods.get(&interface) else {
            return Vec::new();
        };
        // The namespace may no longer exist.
        self.netlink.addresses_in(pod.namespace).await.unwrap_or_default()
    }

    /// The reason why this node cannot read cookies, if it cannot. The packet path then translates for the
    /// sockets of pods: the result is the same, with one translation for each packet.
    pub fn limitation(&self) -> Option<&str> {
        self.limitation.as_deref()
    }

    /// Waits for a mount while the namespace of a pod is not known. It never returns while none is missing.
    pub async fn mounted(&mut self) {
        if !self.is_searching() {
            std::future::pending::<()>().await;
        }
        match self.mounts.ready(Interest::PRIORITY).await {
            Ok(mut ready) => ready.clear_ready(),
            Err(error) => {
                tracing::warn!(%error, "the mount table cannot be watched; pods are found when links change");
                std::future::pending::<()>().await;
            }
        }
    }

    fn is_searching(&self) -> bool {
        self.limitation.is_none() && self.pods.values().any(|pod| pod.cookie.is_none())
    }

    async fn search(&mut self) {
        if !self.is_searching() {
            return;
        }
        let mut missing: Vec<i32> = self
            .pods
            .values()
            .filter(|pod| pod.cookie.is_none())
            .map(|pod| pod.namespace)
            .collect();
        let (mut ids, mut files) = (Vec::new(), Vec::new());
        for path in namespace_files(&self.directory) {
            if missing.is_empty() {
                break;
            }
            // The file may be removed already, or not yet be a mount point.
            let Ok(file) = File::open(&path) else { continue };
            let Ok(Some(id)) = self.netlink.namespace_id(file.as_fd()).await else {
                continue;
            };
            if missing.contains(&id) {
                missing.retain(|other| *other != id);
                ids.push(id);
                files.push(file);
            }
        }
        if files.is_empty() {
            return;
        }
        match cookies_of(files, self.witness.as_ref()) {
            Ok(cookies) => {
                let found: BTreeMap<i32, u64> = ids.into_iter().zip(cookies).collect();
                for pod in self.pods.values_mut().filter(|pod| pod.cookie.is_none()) {
                    pod.cookie = found.get(&pod.namespace).copied();
                }
            }
            Err(error) if error.is_for_good() => {
                tracing::info!("sockets of pods are left to the packet path: {error}");
                self.limitation = Some(error.to_string());
            }
            Err(error) => tracing::warn!("the socket hooks leave out a pod until something changes: {error}"),
        }
    }
}

/// The files of other network namespaces in a directory, youngest first, so that the search finds a new pod
/// at once.
fn namespace_files(directory: &Path) -> Vec<PathBuf> {
    // Without this file there is no inode to compare with, and without the directory there are no files.
    let Ok(own) = fs::metadata("/proc/thread-self/ns/net") else {
        return Vec::new();
    };
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut files: Vec<_> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let metadata = fs::metadata(&path).ok()?;
            let is_other_namespace = metadata.dev() == own.dev() && metadata.ino() != own.ino();
            is_other_namespace.then(|| ((metadata.ctime(), metadata.ctime_nsec()), path))
        })
        .collect();
    files.sort_unstable_by(|a, b| b.cmp(a));
    files.into_iter().map(|(_, path)| path).collect()
}
