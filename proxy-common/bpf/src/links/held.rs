//! Links that are held open: an attachment that is unpinned stays where it is, and is pinned again.
//!
//! A link dies with its last reference. The agent holds one beside the pin, so pins may go with a directory or a mount and no
//! packet passes meanwhile that a program should have met. What the kernel has detached itself (the interface is gone, or
//! it was told to) is seen by asking for the link's target. Filters need no such reference; the kernel tells when they
//! change, so they are asked for where that is due.

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};

use super::{InterfaceRole, Links, Means, Programs, SOCKET_HOOKS, cgroup_pin, interface_pin, update};
use crate::error::BpfError;
use crate::sys;

impl Links {
    /// Sees to it that a link of ours stays: it hangs at its target, with the program that is wanted, and is pinned. False
    /// if there is none; what is left of one goes.
    pub(super) fn keep(&mut self, name: &str, target: u32, program: &OwnedFd) -> Result<bool, BpfError> {
        let path = self.dir.join(name);
        if !self.held.contains_key(name)
            && let Ok(link) = sys::open_pin(&path)
        {
            self.held.insert(name.to_owned(), link);
        }
        if let Some(link) = self.held.get(name)
            && let Ok(info) = sys::link_info(link.as_fd())
            && info.target == target
        {
            update(link, program, &path, info.program)?;
            if !path.exists() {
                sys::pin(link.as_fd(), &path).map_err(BpfError::file("pinning", &path))?;
            }
            return Ok(true);
        }
        self.held.remove(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(BpfError::file("removing", &path)(error))
            }
            _ => Ok(false),
        }
    }

    pub(super) fn hold(&mut self, name: String, link: OwnedFd) -> Result<(), BpfError> {
        let path = self.dir.join(&name);
        sys::pin(link.as_fd(), &path).map_err(BpfError::file("pinning", &path))?;
        self.held.insert(name, link);
        Ok(())
    }

    /// Whether every link is pinned that is held.
    pub fn are_pinned(&self) -> bool {
        self.held.keys().all(|name| self.dir.join(name).exists())
    }

    /// Pins again what is held, and notes again the qdiscs of our own pods, which are always ours. The directory is there.
    pub fn pin_again(&self) -> Result<(), BpfError> {
        for (name, link) in &self.held {
            let path = self.dir.join(name);
            if !path.exists() {
                sys::pin(link.as_fd(), &path).map_err(BpfError::file("pinning", &path))?;
            }
        }
        for (index, _) in self
            .interfaces
            .iter()
            .filter(|(_, role)| **role == InterfaceRole::OwnPod)
        {
            let note = self.qdiscs.join(index.to_string());
            fs::create_dir_all(&note).map_err(BpfError::file("making directory", &note))?;
        }
        Ok(())
    }

    /// Where a program does not hang that should, or another one hangs: the interface (none for a socket hook) and the
    /// program. `is_due` says of an interface with filters, which the kernel tells of, whether to look there.
    pub fn broken(
        &mut self,
        programs: &Programs,
        is_due: impl Fn(u32) -> bool,
    ) -> Result<Vec<(Option<u32>, &'static str)>, BpfError> {
        let mut broken = Vec::new();
        for (index, role) in self.interfaces.clone() {
            let by_filters = self.means_for(role) == Means::Clsact;
            if by_filters && !is_due(index) {
                continue;
            }
            for (program, direction) in role.programs() {
                let Some(fd) = programs.get(program) else { continue };
                let wanted = id_of(fd, program)?;
                let hangs = if by_filters {
                    self.clsact.hung(index, *direction, program)? == Some(wanted)
                } else {
                    self.holds(&interface_pin(index, program), |target| target == index, wanted)
                };
                if !hangs {
                    broken.push((Some(index), *program));
                }
            }
        }
        for (program, _) in SOCKET_HOOKS.iter().filter(|_| self.sockets) {
            let Some(fd) = programs.get(program) else { continue };
            let wanted = id_of(fd, program)?;
            if !self.holds(&cgroup_pin(program), |target| target != 0, wanted) {
                broken.push((None, *program));
            }
        }
        Ok(broken)
    }

    /// Whether a link of ours hangs where it should, with this program.
    fn holds(&self, name: &str, is_target: impl Fn(u32) -> bool, program: u32) -> bool {
        let info = self.held.get(name).map(|link| sys::link_info(link.as_fd()));
        matches!(info, Some(Ok(info)) if is_target(info.target) && info.program == program)
    }
}

pub(super) fn id_of(program: &OwnedFd, name: &str) -> Result<u32, BpfError> {
    let info = sys::program_info(program.as_fd());
    Ok(info
        .map_err(BpfError::syscall(format!("reading the program {name}")))?
        .id)
}
