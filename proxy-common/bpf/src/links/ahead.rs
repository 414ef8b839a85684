//! What runs before our programs, at the places where they hang.
//!
//! A program ahead of ours may end a packet's way or let it pass unseen, and socket hooks may find another
//! address than was asked for. Other projects do that for good reasons, so it is named and nothing more.
//! Programs of our own that hang there beside ours are another matter: they are left over from a bpf root
//! that nothing leads to any more, such as one that another mount hides, and decide by tables that stand
//! still. They are detached if it is certain that they are of this node: they use a `CONFIG` that names its
//! network namespace and is not the one in force, or a table that such a program uses.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use proxy_common::maps::Config;

use super::held::id_of;
use super::{Links, Means, Programs, SOCKET_HOOKS};
use crate::error::BpfError;
use crate::sys::{self, query};
use crate::traffic_control::Filter;

/// Where programs hang: an interface, or none for the cgroup.
pub type Place = Option<u32>;

/// Something that runs before a program of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ahead {
    /// The program of ours.
    pub before: &'static str,
    /// What runs first, in words.
    pub what: String,
    /// What it is to us.
    pub kind: Kind,
}

/// Whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Another project's, or an administrator's.
    Foreign,
    /// Left over of ours, by its name: it has to be detached, where known by the link of this id.
    Leftover(Option<u32>),
    /// Left over of ours, and detached just now.
    Detached,
    /// Of the agent of another node on this machine, whose programs leave this node's sockets alone.
    OtherNode,
}

/// The tables in force.
#[derive(Debug, Clone)]
pub struct InForce {
    /// The ids of all of them.
    pub maps: BTreeSet<u32>,
    /// The network namespace that `CONFIG` names.
    pub netns: u64,
}

impl Links {
    /// Looks what runs before our programs: at the cgroup, and at interfaces that `is_due` says. Gives all
    /// places that were looked at.
    pub fn ahead(
        &mut self,
        programs: &Programs,
        in_force: &InForce,
        cgroup: Option<&Path>,
        is_due: impl Fn(u32) -> bool,
    ) -> Result<BTreeMap<Place, Vec<Ahead>>, BpfError> {
        let mut found: BTreeMap<Place, Vec<Ahead>> = BTreeMap::new();
        let known = |id: u32, target: u32, before| describe(id, target, before, programs, in_force);
        for (index, role) in self.interfaces.clone() {
            // Each question takes the kernel's lock of all interfaces.
            if !is_due(index) {
                continue;
            }
            let by_filters = self.means_for(role) == Means::Clsact;
            let here = found.entry(Some(index)).or_default();
            for (program, direction) in role.programs() {
                let Some(fd) = programs.get(program) else { continue };
                // Where there is no tcx, and where the interface has just gone, none hang.
                let hanging = query::hanging(index, direction.tcx()).unwrap_or_default();
                let own = id_of(fd, program)?;
                let first = hanging.iter().take_while(|id| **id != own);
                here.extend(first.map(|id| known(*id, index, program)));
                if by_filters {
                    let filters = self.clsact.before(index, *direction)?;
                    here.extend(filters.iter().map(|filter| of_filter(filter, program)));
                }
            }
        }
        if let Some(cgroup) = cgroup.filter(|_| self.sockets) {
            let dir = File::open(cgroup).map_err(BpfError::file("opening", cgroup))?;
            let id = dir.metadata().map_err(BpfError::file("reading", cgroup))?.ino();
            let here = found.entry(None).or_default();
            for (program, attach_type) in SOCKET_HOOKS {
                let Some(fd) = programs.get(program) else { continue };
                let target = dir.as_raw_fd().cast_unsigned();
                let hanging = query::hanging(target, attach_type).map_err(BpfError::syscall(format!(
                    "asking for the programs of {}",
                    cgroup.display()
                )))?;
                let own = id_of(fd, program)?;
                let first = hanging.iter().take_while(|id| **id != own);
                // Of a link's target of 64 bits the first word is read.
                here.extend(first.map(|it| known(*it, id as u32, program)));
            }
        }
        for here in found.values_mut() {
            here.retain(|ahead| ahead.kind != Kind::OtherNode);
        }
        Ok(found)
    }
}

fn of_filter(filter: &Filter, before: &'static str) -> Ahead {
    let Filter { name, program, .. } = filter;
    let which = match program {
        0 => String::new(),
        id => format!(" `{name}` (program {id})"),
    };
    Ahead {
        before,
        what: format!(
            "a filter of kind {}{which} with priority {}",
            filter.kind, filter.position.priority
        ),
        kind: Kind::Foreign,
    }
}

/// What a program is to us, by its id; leftovers are detached from their target.
fn describe(id: u32, target: u32, before: &'static str, programs: &Programs, in_force: &InForce) -> Ahead {
    let (what, kind) = match query::program_by_id(id) {
        Ok((name, maps)) => {
            let kind = if programs.contains_key(name.as_str()) {
                let found = detach_leftover(id, target, &maps, programs, in_force);
                found.unwrap_or(Kind::Leftover(None))
            } else {
                Kind::Foreign
            };
            (format!("the program `{name}` ({id})"), kind)
        }
        // Names take CAP_SYS_ADMIN.
        Err(_) => (format!("the program {id}"), Kind::Foreign),
    };
    Ahead { before, what, kind }
}

fn detach_leftover(
    program: u32,
    target: u32,
    maps: &[u32],
    programs: &Programs,
    in_force: &InForce,
) -> io::Result<Kind> {
    let links = query::links()?;
    let mut here = links
        .iter()
        .filter(|(_, info)| info.program == program && info.target == target);
    let Some((link, info)) = here.next() else {
        return Ok(Kind::Leftover(None));
    };
    let is_apart = maps.iter().all(|id| !in_force.maps.contains(id));
    let node = if is_apart && in_force.netns != 0 {
        node_of(maps, programs, in_force)?
    } else {
        None
    };
    match node {
        Some(netns) if netns != in_force.netns => Ok(Kind::OtherNode),
        Some(_) if query::link_detach(link.as_fd()).is_ok() => Ok(Kind::Detached),
        _ => Ok(Kind::Leftover(Some(info.id))),
    }
}

/// The network namespace of the node that these maps are of: what a `CONFIG` says that is not in force, and that
/// a program by one of our names uses beside one of them.
fn node_of(maps: &[u32], programs: &Programs, in_force: &InForce) -> io::Result<Option<u64>> {
    for id in query::programs()? {
        // It may have gone meanwhile.
        let Ok((name, others)) = query::program_by_id(id) else {
            continue;
        };
        if !programs.contains_key(name.as_str()) || !others.iter().any(|id| maps.contains(id)) {
            continue;
        }
        let told = others
            .iter()
            .filter_map(|id| told_by(*id, in_force).ok().flatten());
        if let Some(netns) = told.into_iter().next() {
            return Ok(Some(netns));
        }
    }
    Ok(None)
}

/// The network namespace of a node, if a map is a `CONFIG` of any layout that is not in force.
fn told_by(id: u32, in_force: &InForce) -> io::Result<Option<u64>> {
    const NETNS: usize = offset_of!(Config, node_netns);
    let (map, name, size) = query::map_by_id(id)?;
    if name != "CONFIG" || size < NETNS + size_of::<u64>() || in_force.maps.contains(&id) {
        return Ok(None);
    }
    let mut value = vec![0_u8; size];
    sys::map_lookup(map.as_fd(), &0_u32.to_ne_bytes(), &mut value)?;
    let netns = value[NETNS..].first_chunk().copied().map(u64::from_ne_bytes);
    Ok(netns.filter(|netns| *netns != 0))
}
