//! Links that the agent holds open: an attachment without its pin stays, and the agent pins it again.
//!
//! The kernel frees a link with its last reference. The agent holds one besides the pin. So if the pins are
//! lost with a directory or a mount, the programs still see every packet. The kernel may detach a link
//! itself, if its interface goes or a process requests it. The agent notices that by the link's target.
//! Filters need no such reference. The kernel reports changes of filters, so the agent checks only the
//! interfaces that are due.

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};

use super::{AttachMode, InterfaceRole, Links, Programs, SOCKET_HOOKS, cgroup_pin, interface_pin, update};
use crate::error::BpfError;
use crate::sys;

impl Links {
    /// Ensures that a link of ours stays: attached to its target, with the wanted program, and pinned.
    /// Returns false if there is none, after it has removed an unusable one.
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

    /// Whether every held link is pinned.
    pub fn are_pinned(&self) -> bool {
        self.held.keys().all(|name| self.dir.join(name).exists())
    }

    /// Pins the held links again, and records the qdiscs of our own pods again, which are always ours. The
    /// directory has to exist.
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

    /// The places where a wanted program is missing or another one is attached: the interface (none for a
    /// socket hook) and the program. `is_due` tells whether to check an interface with filters, whose changes
    /// the kernel reports.
    pub fn broken(
        &mut self,
        programs: &Programs,
        is_due: impl Fn(u32) -> bool,
    ) -> Result<Vec<(Option<u32>, &'static str)>, BpfError> {
        let mut broken = Vec::new();
        for (index, role) in self.interfaces.clone() {
            let by_filters = self.attach_mode_for(role) == AttachMode::Clsact;
            if by_filters && !is_due(index) {
                continue;
            }
            for (program, direction) in role.programs() {
                let Some(fd) = programs.get(program) else { continue };
                let wanted = id_of(fd, program)?;
                let is_attached = if by_filters {
                    self.clsact.attached_program(index, *direction, program)? == Some(wanted)
                } else {
                    self.holds(&interface_pin(index, program), |target| target == index, wanted)
                };
                if !is_attached {
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

    /// Whether a link of ours is attached to its target, with this program.
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
