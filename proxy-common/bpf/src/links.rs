//! Attachments of programs, which pins keep.
//!
//! A pinned link outlives the agent. A link that the agent holds open outlives the removal of its pin, and
//! the agent then pins it again. At start the agent compares every link of ours with the wanted attachments.
//! It removes a link whose target is gone. It replaces a program of another generation atomically. Where the
//! kernel has no tcx, interfaces have filters in place of links (see [`clsact`](super::clsact)), and the
//! agent treats them in the same way.
//!
//! The interfaces of our own pods have filters on every kernel. A link costs a grace period in each direction
//! when it is made, and another one when its interface goes. Meanwhile the kernel delays all other changes of
//! interfaces, for tens of milliseconds a pod. Filters cost next to nothing. On interfaces of other plugins,
//! links disturb the filters of those plugins less.
//!
//! Two processes may attach to one interface at the same moment: the CNI plugin, which has made it, and an
//! agent, which has seen it. Both put the same filter at the same position, and the second one replaces the
//! first.

pub mod ahead;
mod held;

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::clsact::{self, Clsact};
use super::error::BpfError;
use super::sys;
use super::traffic_control::Direction;

pub use super::role::{InterfaceRole, OWN_POD};

/// The programs of a generation, by name.
pub type Programs = BTreeMap<&'static str, OwnedFd>;

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

/// The kind of attachment of programs to interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachMode {
    /// Links, since Linux 6.6.
    Tcx,
    /// Filters on a clsact qdisc.
    Clsact,
}

impl AttachMode {
    /// The attach mode that this kernel supports.
    pub fn probe(programs: &Programs) -> Self {
        let packet_program = programs.get("from_pod");
        if packet_program.is_none_or(|program| sys::has_tcx(program.as_fd())) {
            Self::Tcx
        } else {
            Self::Clsact
        }
    }
}

impl Direction {
    /// `enum bpf_attach_type`: `BPF_TCX_INGRESS`, `BPF_TCX_EGRESS`.
    fn tcx(self) -> u32 {
        match self {
            Self::Ingress => sys::TCX_INGRESS,
            Self::Egress => sys::TCX_INGRESS + 1,
        }
    }
}

/// All attachments of one agent.
pub struct Links {
    dir: PathBuf,
    /// The directory that records the qdiscs that we made.
    qdiscs: PathBuf,
    /// The filters.
    clsact: Clsact,
    /// The attach mode for interfaces of other plugins.
    attach_mode: AttachMode,
    interfaces: BTreeMap<u32, InterfaceRole>,
    sockets: bool,
    /// Links by the names of their pins.
    held: BTreeMap<String, OwnedFd>,
}

impl Links {
    /// Takes over the existing attachments and gives each the program of this generation. `dir` contains the
    /// pins of links, and `qdiscs` the records of the qdiscs that we made.
    pub fn adopt(
        dir: PathBuf,
        qdiscs: PathBuf,
        attach_mode: AttachMode,
        programs: &Programs,
    ) -> Result<Self, BpfError> {
        let mut links = Self::open(dir, qdiscs, attach_mode)?;
        links.adopt_filters(programs)?;
        let entries = fs::read_dir(&links.dir).map_err(BpfError::file("reading directory", &links.dir))?;
        for entry in entries.filter_map(Result::ok) {
            let name = entry.file_name().to_string_lossy().into_owned();
            links.adopt_one(&entry.path(), &name, programs)?;
        }
        Ok(links)
    }

    /// Attaches to single interfaces beside a running agent. It does not read or change existing attachments.
    pub fn open(dir: PathBuf, qdiscs: PathBuf, attach_mode: AttachMode) -> Result<Self, BpfError> {
        Ok(Self {
            dir,
            clsact: Clsact::open(qdiscs.clone())?,
            qdiscs,
            attach_mode,
            interfaces: BTreeMap::new(),
            sockets: false,
            held: BTreeMap::new(),
        })
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
        self.held.insert(name.to_owned(), link);
        match place {
            Some(index) => {
                let role = InterfaceRole::of(program);
                self.interfaces.extend(role.map(|role| (index, role)));
            }
            None => self.sockets = true,
        }
        Ok(())
    }

    fn adopt_filters(&mut self, programs: &Programs) -> Result<(), BpfError> {
        self.clsact.forget_gone()?;
        for found in self.clsact.attached()? {
            let role = InterfaceRole::of(&found.program).map(|role| match (role, self.attach_mode) {
                (InterfaceRole::Pod, AttachMode::Tcx) => InterfaceRole::OwnPod,
                (InterfaceRole::Pod, _) if clsact::is_of_own_pod(found.interface) => InterfaceRole::OwnPod,
                (role, _) => role,
            });
            // Older agents attached the same program to all pods' interfaces.
            let program = role.and_then(|role| role.program(found.direction));
            // The agent of this kernel would not have made such a filter. It belongs to another agent in the
            // same network namespace.
            if role.is_some_and(|role| self.attach_mode_for(role) == AttachMode::Tcx) {
                continue;
            }
            let fd = program.and_then(|program| programs.get(program));
            match (role, program, fd) {
                (Some(role), Some(program), Some(fd)) => {
                    self.clsact
                        .attach(found.interface, found.direction, program, fd)?;
                    self.interfaces.insert(found.interface, role);
                }
                _ => self.clsact.detach_one(found.interface, found.direction)?,
            }
        }
        Ok(())
    }

    /// The attach mode for interfaces of other plugins.
    pub fn attach_mode(&self) -> AttachMode {
        self.attach_mode
    }

    /// The attach mode for interfaces of a role.
    fn attach_mode_for(&self, role: InterfaceRole) -> AttachMode {
        match role {
            InterfaceRole::OwnPod => AttachMode::Clsact,
            _ => self.attach_mode,
        }
    }

    /// Gives every attachment the program of another generation.
    pub fn switch(&self, programs: &Programs) -> Result<(), BpfError> {
        Self::adopt(
            self.dir.clone(),
            self.qdiscs.clone(),
            self.attach_mode(),
            programs,
        )
        .map(drop)
    }

    /// The interfaces that have programs, and their roles.
    pub fn interfaces(&self) -> &BTreeMap<u32, InterfaceRole> {
        &self.interfaces
    }

    /// Whether socket hooks are attached.
    pub fn has_sockets(&self) -> bool {
        self.sockets
    }

    /// Attaches programs to exactly the `wanted` interfaces. Returns the errors by interface index.
    pub fn set_interfaces(
        &mut self,
        wanted: &BTreeMap<u32, InterfaceRole>,
        programs: &Programs,
    ) -> Vec<(u32, BpfError)> {
        let mut errors = Vec::new();
        let kind = |role: InterfaceRole| (role.programs(), self.attach_mode_for(role));
        let stays = |(index, role): &(&u32, &InterfaceRole)| {
            wanted
                .get(index)
                .is_some_and(|wanted| kind(*wanted) == kind(**role))
        };
        let gone: Vec<_> = self
            .interfaces
            .iter()
            .filter(|found| !stays(found))
            .map(|(i, r)| (*i, *r))
            .collect();
        for (index, role) in gone {
            // If that fails, the interface stays in the list, and the next call tries again.
            match self.detach_interface(index, role) {
                Ok(()) => drop(self.interfaces.remove(&index)),
                Err(error) => errors.push((index, error)),
            }
        }
        for (index, role) in wanted {
            if errors.iter().any(|(failed, _)| failed == index) {
                continue;
            }
            // Existing links stay, but one of the two may be missing after a crash.
            match self.attach_interface(*index, *role, programs) {
                Ok(()) => drop(self.interfaces.insert(*index, *role)),
                Err(error) => errors.push((*index, error)),
            }
        }
        errors
    }

    /// Detaches the programs of a role from an interface, which may be gone.
    pub fn detach_interface(&mut self, index: u32, role: InterfaceRole) -> Result<(), BpfError> {
        if self.attach_mode_for(role) == AttachMode::Clsact {
            return self.clsact.detach(index);
        }
        for (program, _) in role.programs() {
            let name = interface_pin(index, program);
            let _ = fs::remove_file(self.dir.join(&name));
            self.held.remove(&name);
        }
        Ok(())
    }

    /// Attaches those programs of a role to an interface that are not attached yet.
    pub fn attach_interface(
        &mut self,
        index: u32,
        role: InterfaceRole,
        programs: &Programs,
    ) -> Result<(), BpfError> {
        for (program, direction) in role.programs() {
            if self.attach_mode_for(role) == AttachMode::Clsact {
                if let Some(fd) = programs.get(program) {
                    self.clsact.attach(index, *direction, program, fd)?;
                }
                continue;
            }
            let name = interface_pin(index, program);
            let Some(fd) = programs.get(program) else { continue };
            if self.keep(&name, index, fd)? {
                continue;
            }
            let link = match sys::link_create(fd.as_fd(), index, direction.tcx()) {
                // A link exists: another process of ours is attaching it and will pin it.
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => continue,
                made => made.map_err(BpfError::syscall(format!(
                    "attaching {program} to interface {index}"
                )))?,
            };
            self.hold(name, link)?;
        }
        Ok(())
    }

    /// As [`Self::attach_interface`], for a new interface, where no other process is expected.
    pub fn attach_new(
        &mut self,
        index: u32,
        role: InterfaceRole,
        programs: &Programs,
    ) -> Result<(), BpfError> {
        if self.attach_mode_for(role) == AttachMode::Clsact {
            let of_role = role.programs().iter();
            let filters = of_role
                .filter_map(|(program, direction)| Some((*direction, *program, programs.get(program)?)));
            if self.clsact.attach_new(index, &filters.collect::<Vec<_>>())? {
                return Ok(());
            }
        }
        self.attach_interface(index, role, programs)
    }

    /// The programs of a role that are not attached to an interface.
    pub fn missing(&mut self, index: u32, role: InterfaceRole) -> Result<Vec<&'static str>, BpfError> {
        let mut missing = Vec::new();
        for (program, direction) in role.programs() {
            let is_attached = if self.attach_mode_for(role) == AttachMode::Clsact {
                self.clsact.is_attached(index, *direction, program)?
            } else {
                let link = sys::open_pin(&self.dir.join(interface_pin(index, program)));
                let info = link.and_then(|link| sys::link_info(link.as_fd()));
                info.is_ok_and(|info| info.target == index)
            };
            if !is_attached {
                missing.push(*program);
            }
        }
        Ok(missing)
    }

    /// Removes the pins and the qdisc record of a removed pod's interface.
    pub fn forget_pod(dir: &Path, qdiscs: &Path, index: u32) {
        Clsact::forget(qdiscs, index);
        for (program, _) in InterfaceRole::Pod.programs() {
            let _ = fs::remove_file(dir.join(interface_pin(index, program)));
        }
    }

    /// Removes the pins of links and the qdisc records of interfaces that are gone.
    pub fn forget_gone(&mut self) -> Result<(), BpfError> {
        self.clsact.forget_gone()?;
        let entries = match fs::read_dir(&self.dir) {
            // The directory was removed, and the pins with it.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(BpfError::file("reading directory", &self.dir))?,
        };
        for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if !name.starts_with("tcx") {
                continue;
            }
            let info = sys::open_pin(&path).and_then(|link| sys::link_info(link.as_fd()));
            if info.is_ok_and(|info| info.target == 0) {
                let _ = fs::remove_file(&path);
            }
        }
        Ok(())
    }

    /// Attaches the socket hooks to a cgroup. Existing links stay.
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
            let name = cgroup_pin(program);
            let Some(fd) = programs.get(program) else { continue };
            // The link information has the first word of the target's 64 bits.
            if self.keep(&name, id as u32, fd)? {
                continue;
            }
            let target = dir.as_raw_fd().cast_unsigned();
            let link = sys::link_create(fd.as_fd(), target, attach_type).map_err(BpfError::syscall(
                format!("attaching {program} to {}", cgroup.display()),
            ))?;
            self.hold(name, link)?;
        }
        self.sockets = true;
        Ok(())
    }

    /// Detaches the socket hooks.
    pub fn detach_sockets(&mut self) {
        for (program, _) in SOCKET_HOOKS {
            let name = cgroup_pin(program);
            let _ = fs::remove_file(self.dir.join(&name));
            self.held.remove(&name);
        }
        self.sockets = false;
    }
}

fn interface_pin(index: u32, program: &str) -> String {
    format!("tcx{index}-{program}")
}

fn cgroup_pin(program: &str) -> String {
    format!("cgroup-{program}")
}

fn update(link: &OwnedFd, program: &OwnedFd, path: &Path, attached: u32) -> Result<(), BpfError> {
    let wanted = sys::program_info(program.as_fd()).map_err(BpfError::file("reading program of", path))?;
    if wanted.id == attached {
        return Ok(());
    }
    sys::link_update(link.as_fd(), program.as_fd()).map_err(BpfError::file("exchanging the program of", path))
}
