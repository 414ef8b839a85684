//! Network namespaces with a name. For work inside a namespace a thread is started that joins it. No thread
//! of the caller ever changes its own namespace.

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd};
use std::panic;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

use crate::names::NETNS_DIR;
use crate::netlink::Rtnl;

/// The directory of the kernel settings.
const SYSCTL: &str = "/proc/sys";

/// A namespace, held open, and a netlink socket in it.
pub(crate) struct Netns {
    path: PathBuf,
    file: File,
    rtnl: Rtnl,
}

impl Netns {
    /// Creates a namespace with these kernel settings; its loopback is up.
    pub(crate) fn create(name: &str, sysctls: &[(&str, &str)]) -> Result<Self> {
        let path = Path::new(NETNS_DIR).join(name);
        let make = || -> Result<Self> {
            fs::create_dir_all(NETNS_DIR)?;
            File::create_new(&path)?;
            unshare(CloneFlags::CLONE_NEWNET).context("unshare")?;
            mount(
                Some("/proc/thread-self/ns/net"),
                &path,
                None::<&str>,
                MsFlags::MS_BIND,
                None::<&str>,
            )
            .context("binding it to its name")?;
            for (key, value) in sysctls {
                write_sysctl(key, value)?;
            }
            let rtnl = Rtnl::open()?;
            rtnl.set_up("lo")?;
            Ok(Self {
                file: File::open(&path)?,
                path: path.clone(),
                rtnl,
            })
        };
        on_own_thread(make).with_context(|| format!("making network namespace {name}"))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The netlink socket for links, addresses and routes of this namespace.
    pub(crate) fn rtnl(&self) -> &Rtnl {
        &self.rtnl
    }

    pub(crate) fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.enter(|| write_sysctl(key, value))?
    }

    /// Runs a closure on a thread that belongs to this namespace.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        on_own_thread(|| {
            join(&self.file)?;
            Ok(work())
        })
    }

    /// A runtime whose spawned tasks, and the sockets they open, belong to this namespace.
    pub(crate) fn runtime(&self) -> Result<tokio::runtime::Runtime> {
        let file = self
            .file
            .try_clone()
            .context("duplicating a namespace's descriptor")?;
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .on_thread_start(move || {
                if let Err(error) = join(&file) {
                    panic!("{error:#}");
                }
            })
            .enable_all()
            .build()
            .context("starting a runtime in a namespace")
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Moves the calling thread into a namespace.
pub(crate) fn join(namespace: impl AsFd) -> Result<()> {
    setns(namespace, CloneFlags::CLONE_NEWNET).context("entering a network namespace: needs CAP_SYS_ADMIN")
}

fn write_sysctl(key: &str, value: &str) -> Result<()> {
    fs::write(Path::new(SYSCTL).join(key), value).with_context(|| format!("setting {key} to {value}"))
}

fn on_own_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| match scope.spawn(work).join() {
        Ok(outcome) => outcome,
        Err(payload) => panic::resume_unwind(payload),
    })
}
