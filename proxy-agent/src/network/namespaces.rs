//! Finds the network namespaces of pods and their cookies.
//!
//! A pod's interface names its peer's namespace only by an id that this namespace gave it. The container
//! runtime keeps a file for each namespace in one directory, and the kernel tells the id of an open file; so
//! the files are tried, youngest first, until each id has its namespace. Nothing is remembered by id or
//! inode: both are given out again at once when a namespace dies, and before its interface is gone.
//!
//! The file is a mount, and so its coming is told by our own mount table; that is watched only while a pod
//! waits.

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

/// Where container runtimes keep the namespaces of pods.
pub const RUNTIME_DIRECTORY: &str = "/run/netns";

/// The namespaces of pods.
pub struct PodNamespaces {
    netlink: Netlink,
    directory: PathBuf,
    mounts: AsyncFd<File>,
    /// The pods' interfaces, with the id of the namespace they lead to.
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
    /// Looks in `directory`, in general [`RUNTIME_DIRECTORY`]. Must be called within a tokio runtime.
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

    /// Gives it a witness, for kernels where a socket does not tell the cookie.
    #[must_use]
    pub fn with_witness(self, witness: Option<Witness>) -> Self {
        Self { witness, ..self }
    }

    /// Takes note of the pods' interfaces and looks for those whose namespace is not known. Call it when
    /// roles or links changed and when [`Self::mounted`] returned. Says whether [`Self::cookies`] is
    /// different from before.
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

    /// The cookies known, by the index of the pod's interface.
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
        // It may be gone by now.
        self.netlink.addresses_in(pod.namespace).await.unwrap_or_default()
    }

    /// Why cookies cannot be had on this node, where that is so. The sockets of pods are then left to the
    /// packet path, which does the same, at the cost of a translation for each packet.
    pub fn limitation(&self) -> Option<&str> {
        self.limitation.as_deref()
    }

    /// Waits until something was mounted while the namespace of a pod is not known; waits for ever while none
    /// is missing.
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
            // It may be gone by now, or not be mounted.
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

/// The files of other network namespaces in a directory, youngest first: a pod that was just made is found at
/// once.
fn namespace_files(directory: &Path) -> Vec<PathBuf> {
    // Without this file no other can be compared with it, and without the directory there is none.
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
