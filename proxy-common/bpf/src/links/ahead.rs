//! Programs that run before ours at the same place.
//!
//! A program that runs before ours may drop a packet or pass it by ours. It may also change the address of a
//! socket call before our hook. Other projects do that for good reasons, so the agent only reports it.
//!
//! Programs of our own beside the current ones are left over from a bpf root that is not reachable any more.
//! For example, another mount hides it. They decide by tables that no agent updates. The agent detaches them
//! if they certainly belong to this node. Such a program uses a `CONFIG` that names this node's network
//! namespace and is not the one in force. Or it shares a table with a program that does.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use proxy_common::maps::Config;

use super::held::id_of;
use super::{AttachMode, Links, Programs, SOCKET_HOOKS};
use crate::error::BpfError;
use crate::sys::{self, query};
use crate::traffic_control::Filter;

/// A place of attachment: an interface, or none for the cgroup.
pub type AttachPoint = Option<u32>;

/// A program or filter that runs before a program of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrecedingProgram {
    /// Our program.
    pub before: &'static str,
    /// A description of the program that runs first.
    pub what: String,
    /// Its relation to us.
    pub kind: Kind,
}

/// The origin of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It belongs to another project or to an administrator.
    Foreign,
    /// It is ours by its name and left over. It has to be detached, by the link with this id if that is
    /// known.
    Leftover(Option<u32>),
    /// It was ours and left over, and was detached in this call.
    Detached,
    /// It belongs to the agent of another node on this machine, whose programs ignore this node's sockets.
    OtherNode,
}

/// The maps in force.
#[derive(Debug, Clone)]
pub struct InForce {
    /// The ids of all of them.
    pub maps: BTreeSet<u32>,
    /// The network namespace that `CONFIG` names.
    pub netns: u64,
}

impl Links {
    /// Finds the programs before ours, at the cgroup and at the interfaces that `is_due` selects. Returns all
    /// places that it checked.
    pub fn ahead(
        &mut self,
        programs: &Programs,
        in_force: &InForce,
        cgroup: Option<&Path>,
        is_due: impl Fn(u32) -> bool,
    ) -> Result<BTreeMap<AttachPoint, Vec<PrecedingProgram>>, BpfError> {
        let mut found: BTreeMap<AttachPoint, Vec<PrecedingProgram>> = BTreeMap::new();
        let known = |id: u32, target: u32, before| describe(id, target, before, programs, in_force);
        for (index, role) in self.interfaces.clone() {
            // Each query takes the kernel's lock of all interfaces.
            if !is_due(index) {
                continue;
            }
            let by_filters = self.attach_mode_for(role) == AttachMode::Clsact;
            let here = found.entry(Some(index)).or_default();
            for (program, direction) in role.programs() {
                let Some(fd) = programs.get(program) else { continue };
                // Without tcx, or if the interface has gone meanwhile, there are none.
                let attached = query::attached(index, direction.tcx()).unwrap_or_default();
                let own = id_of(fd, program)?;
                let first = attached.iter().take_while(|id| **id != own);
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
                let attached = query::attached(target, attach_type).map_err(BpfError::syscall(format!(
                    "asking for the programs of {}",
                    cgroup.display()
                )))?;
                let own = id_of(fd, program)?;
                let first = attached.iter().take_while(|id| **id != own);
                // The link information has the first word of the target's 64 bits.
                here.extend(first.map(|it| known(*it, id as u32, program)));
            }
        }
        for here in found.values_mut() {
            here.retain(|ahead| ahead.kind != Kind::OtherNode);
        }
        Ok(found)
    }
}

fn of_filter(filter: &Filter, before: &'static str) -> PrecedingProgram {
    let Filter { name, program, .. } = filter;
    let which = match program {
        0 => String::new(),
        id => format!(" `{name}` (program {id})"),
    };
    PrecedingProgram {
        before,
        what: format!(
            "a filter of kind {}{which} with priority {}",
            filter.kind, filter.position.priority
        ),
        kind: Kind::Foreign,
    }
}

/// Describes a program by its id, and detaches a leftover program from its target.
fn describe(
    id: u32,
    target: u32,
    before: &'static str,
    programs: &Programs,
    in_force: &InForce,
) -> PrecedingProgram {
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
        // Only `CAP_SYS_ADMIN` can read names.
        Err(_) => (format!("the program {id}"), Kind::Foreign),
    };
    PrecedingProgram { before, what, kind }
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
    let is_disjoint = maps.iter().all(|id| !in_force.maps.contains(id));
    let node = if is_disjoint && in_force.netns != 0 {
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

/// The network namespace of the node that these maps belong to. It reads a `CONFIG` that is not in force. A
/// program with one of our names has to use that `CONFIG` together with one of the maps.
fn node_of(maps: &[u32], programs: &Programs, in_force: &InForce) -> io::Result<Option<u64>> {
    for id in query::programs()? {
        // The program may be gone meanwhile.
        let Ok((name, others)) = query::program_by_id(id) else {
            continue;
        };
        if !programs.contains_key(name.as_str()) || !others.iter().any(|id| maps.contains(id)) {
            continue;
        }
        let namespaces = others
            .iter()
            .filter_map(|id| netns_in(*id, in_force).ok().flatten());
        if let Some(netns) = namespaces.into_iter().next() {
            return Ok(Some(netns));
        }
    }
    Ok(None)
}

/// The network namespace in a map, if the map is a `CONFIG` of any layout that is not in force.
fn netns_in(id: u32, in_force: &InForce) -> io::Result<Option<u64>> {
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
