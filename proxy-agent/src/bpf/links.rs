//! Attachments: which program hangs where, held by pins.
//!
//! A pinned link outlives the agent. At start every link of ours is compared with what should hang there: a link whose
//! target is gone is removed, one whose program is of another generation gets the right one by an atomic exchange.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::error::BpfError;
use super::sys;

/// The programs of a generation, by name.
pub type Programs = BTreeMap<&'static str, OwnedFd>;

const TCX_INGRESS: u32 = 46;
const TCX_EGRESS: u32 = 47;

/// Socket hooks and their `enum bpf_attach_type`.
pub const SOCKET_HOOKS: [(&str, u32); 10] = [
    ("connect4", 10),
    ("connect6", 11),
    ("sendmsg4", 14),
    ("sendmsg6", 15),
    ("recvmsg4", 19),
    ("recvmsg6", 20),
    ("getpeername4", 29),
    ("getpeername6", 30),
    ("post_bind4", 12),
    ("post_bind6", 13),
];

/// A kind of interface, by what hangs on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum InterfaceRole {
    /// The host side of a pod.
    Pod,
    /// Leads to other machines.
    Uplink,
    /// Our own device.
    Host,
    /// The loopback.
    Loopback,
}

impl InterfaceRole {
    const ALL: [Self; 4] = [Self::Pod, Self::Uplink, Self::Host, Self::Loopback];

    fn programs(self) -> &'static [(&'static str, u32)] {
        match self {
            Self::Pod => &[("from_pod", TCX_INGRESS), ("to_pod", TCX_EGRESS)],
            Self::Uplink => &[("from_uplink", TCX_INGRESS), ("to_uplink", TCX_EGRESS)],
            Self::Host => &[("from_host", TCX_EGRESS)],
            Self::Loopback => &[("from_loopback", TCX_EGRESS)],
        }
    }
}

/// All attachments of one agent.
pub struct Links {
    dir: PathBuf,
    interfaces: BTreeMap<u32, InterfaceRole>,
    sockets: bool,
}

impl Links {
    /// Takes over the pinned links, giving each the program of this generation.
    pub fn adopt(dir: PathBuf, programs: &Programs) -> Result<Self, BpfError> {
        let mut links = Self {
            dir,
            interfaces: BTreeMap::new(),
            sockets: false,
        };
        let entries = fs::read_dir(&links.dir).map_err(BpfError::file("reading directory", &links.dir))?;
        for entry in entries.filter_map(Result::ok) {
            let name = entry.file_name().to_string_lossy().into_owned();
            links.adopt_one(&entry.path(), &name, programs)?;
        }
        Ok(links)
    }

    fn adopt_one(&mut self, path: &Path, name: &str, programs: &Programs) -> Result<(), BpfError> {
        let (place, program) = match name.split_once('-') {
            Some(("cgroup", program)) => (None, program),
            Some((index, program)) if index.starts_with("tcx") => (index[3..].parse::<u32>().ok(), program),
            _ => return Ok(()),
        };
        let link = sys::open_pin(path).map_err(BpfError::file("opening", path))?;
        let info = sys::link_info(link.as_fd()).map_err(BpfError::file("reading", path))?;
        let Some(fd) = programs.get(program).filter(|_| info.target != 0) else {
            tracing::info!(link = name, "removing a link whose target is gone");
            return fs::remove_file(path).map_err(BpfError::file("removing", path));
        };
        update(&link, fd, path, info.program)?;
        match place {
            Some(index) => {
                let role = InterfaceRole::ALL
                    .into_iter()
                    .find(|role| role.programs().iter().any(|(name, _)| *name == program));
                if let Some(role) = role {
                    self.interfaces.insert(index, role);
                }
            }
            None => self.sockets = true,
        }
        Ok(())
    }

    /// Gives every link the program of another generation.
    pub fn switch(&self, programs: &Programs) -> Result<(), BpfError> {
        Self::adopt(self.dir.clone(), programs).map(drop)
    }

    /// Interfaces that programs hang on, and as what.
    pub fn interfaces(&self) -> &BTreeMap<u32, InterfaceRole> {
        &self.interfaces
    }

    /// Whether socket hooks are attached.
    pub fn has_sockets(&self) -> bool {
        self.sockets
    }

    /// Makes exactly `wanted` the interfaces that programs hang on; gives the errors by interface index.
    pub fn set_interfaces(
        &mut self,
        wanted: &BTreeMap<u32, InterfaceRole>,
        programs: &Programs,
    ) -> Vec<(u32, BpfError)> {
        let mut errors = Vec::new();
        let gone: Vec<_> = self
            .interfaces
            .iter()
            .filter(|(index, role)| wanted.get(index) != Some(role))
            .map(|(i, r)| (*i, *r))
            .collect();
        for (index, role) in gone {
            for (program, _) in role.programs() {
                let _ = fs::remove_file(self.interface_pin(index, program));
            }
            self.interfaces.remove(&index);
        }
        for (index, role) in wanted {
            // Links stay, but one half may be missing after a crash between the two.
            match self.attach_interface(*index, *role, programs) {
                Ok(()) => drop(self.interfaces.insert(*index, *role)),
                Err(error) => errors.push((*index, error)),
            }
        }
        errors
    }

    fn attach_interface(&self, index: u32, role: InterfaceRole, programs: &Programs) -> Result<(), BpfError> {
        for (program, attach_type) in role.programs() {
            let path = self.interface_pin(index, program);
            if path.exists() {
                let alive = sys::open_pin(&path).and_then(|link| sys::link_info(link.as_fd()));
                if alive.is_ok_and(|info| info.target == index) {
                    continue;
                }
                fs::remove_file(&path).map_err(BpfError::file("removing", &path))?;
            }
            let Some(fd) = programs.get(program) else { continue };
            let link = sys::link_create(fd.as_fd(), index, *attach_type).map_err(BpfError::syscall(
                format!("attaching {program} to interface {index}"),
            ))?;
            sys::pin(link.as_fd(), &path).map_err(BpfError::file("pinning", &path))?;
        }
        Ok(())
    }

    /// Attaches the socket hooks to a cgroup; links that hang there already stay as they are.
    pub fn attach_sockets(&mut self, cgroup: &Path, programs: &Programs) -> Result<(), BpfError> {
        let kind = statfs(cgroup).map_err(|error| BpfError::NoCgroup {
            path: cgroup.to_path_buf(),
            error: error.into(),
        })?;
        if kind.filesystem_type() != CGROUP2_SUPER_MAGIC {
            return Err(BpfError::NotCgroup2(cgroup.to_path_buf()));
        }
        let dir = fs::File::open(cgroup).map_err(BpfError::file("opening", cgroup))?;
        let id = dir.metadata().map_err(BpfError::file("reading", cgroup))?.ino();
        for (program, attach_type) in SOCKET_HOOKS {
            let path = self.dir.join(format!("cgroup-{program}"));
            if path.exists() {
                let info = sys::open_pin(&path).and_then(|link| sys::link_info(link.as_fd()));
                if info.is_ok_and(|info| u64::from(info.target) == id & u64::from(u32::MAX)) {
                    continue;
                }
                fs::remove_file(&path).map_err(BpfError::file("removing", &path))?;
            }
            let Some(fd) = programs.get(program) else { continue };
            let target = dir.as_raw_fd().cast_unsigned();
            let link = sys::link_create(fd.as_fd(), target, attach_type).map_err(BpfError::syscall(
                format!("attaching {program} to {}", cgroup.display()),
            ))?;
            sys::pin(link.as_fd(), &path).map_err(BpfError::file("pinning", &path))?;
        }
        self.sockets = true;
        Ok(())
    }

    /// Detaches the socket hooks.
    pub fn detach_sockets(&mut self) {
        for (program, _) in SOCKET_HOOKS {
            let _ = fs::remove_file(self.dir.join(format!("cgroup-{program}")));
        }
        self.sockets = false;
    }

    fn interface_pin(&self, index: u32, program: &str) -> PathBuf {
        self.dir.join(format!("tcx{index}-{program}"))
    }
}

fn update(link: &OwnedFd, program: &OwnedFd, path: &Path, attached: u32) -> Result<(), BpfError> {
    let wanted = sys::program_info(program.as_fd()).map_err(BpfError::file("reading program of", path))?;
    if wanted.id == attached {
        return Ok(());
    }
    sys::link_update(link.as_fd(), program.as_fd()).map_err(BpfError::file("exchanging the program of", path))
}
