//! All programs that are attached at a place, and objects by their ids.
//!
//! Only `CAP_SYS_ADMIN` can turn ids into descriptors. A query for the attached programs needs less.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use super::{LinkInfo, bpf, descriptor, info, link_info, owned};

const BPF_PROG_GET_NEXT_ID: u32 = 11;
const BPF_PROG_GET_FD_BY_ID: u32 = 13;
const BPF_MAP_GET_FD_BY_ID: u32 = 14;
const BPF_PROG_QUERY: u32 = 16;
const BPF_LINK_GET_FD_BY_ID: u32 = 30;
const BPF_LINK_GET_NEXT_ID: u32 = 31;
const BPF_LINK_DETACH: u32 = 34;

/// More programs than are attached at any place, and more maps than a program has (`MAX_USED_MAPS`).
const MOST: usize = 64;

/// `union bpf_attr` for a query of the attached programs.
#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    padding: u32,
    unused: [u64; 4],
}

/// `union bpf_attr` for ids.
#[repr(C)]
#[derive(Default)]
struct IdAttr {
    id: u32,
    next: u32,
    flags: u32,
}

/// `union bpf_attr` for detaching a link.
#[repr(C)]
struct LinkDetachAttr {
    link_fd: u32,
}

/// The start of `struct bpf_prog_info`, up to the name.
#[repr(C)]
#[derive(Default)]
struct NamedProgramInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    lengths: [u32; 2],
    instructions: [u64; 2],
    load_time: u64,
    user: u32,
    map_count: u32,
    maps: u64,
    name: [u8; 16],
}

/// The start of `struct bpf_map_info`, up to the name.
#[repr(C)]
#[derive(Default)]
struct NamedMapInfo {
    kind: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    name: [u8; 16],
}

/// The ids of the programs attached to a target (an interface's index, or a cgroup's descriptor), in the
/// order in which they run.
pub fn attached(target: u32, attach_type: u32) -> io::Result<Vec<u32>> {
    let mut ids = vec![0_u32; MOST];
    let mut attr = QueryAttr {
        target,
        attach_type,
        programs: ids.as_mut_ptr() as u64,
        count: MOST as u32,
        ..QueryAttr::default()
    };
    bpf(BPF_PROG_QUERY, &mut attr)?;
    ids.truncate(attr.count as usize);
    Ok(ids)
}

/// The name of a program and the ids of its maps.
pub fn program_by_id(id: u32) -> io::Result<(String, Vec<u32>)> {
    let program = by_id(BPF_PROG_GET_FD_BY_ID, id)?;
    let mut maps = vec![0_u32; MOST];
    let mut found = NamedProgramInfo {
        map_count: MOST as u32,
        maps: maps.as_mut_ptr() as u64,
        ..NamedProgramInfo::default()
    };
    info(program.as_fd(), &mut found)?;
    maps.truncate(found.map_count as usize);
    Ok((name(&found.name), maps))
}

/// A map, its name and the size of its values.
pub fn map_by_id(id: u32) -> io::Result<(OwnedFd, String, usize)> {
    let map = by_id(BPF_MAP_GET_FD_BY_ID, id)?;
    let mut found = NamedMapInfo::default();
    info(map.as_fd(), &mut found)?;
    Ok((map, name(&found.name), found.value_size as usize))
}

/// The ids of all programs in the kernel.
pub fn programs() -> io::Result<Vec<u32>> {
    ids(BPF_PROG_GET_NEXT_ID)
}

/// All links in the kernel, with their information. A link that goes meanwhile is left out.
pub fn links() -> io::Result<Vec<(OwnedFd, LinkInfo)>> {
    let mut links = Vec::new();
    for id in ids(BPF_LINK_GET_NEXT_ID)? {
        match by_id(BPF_LINK_GET_FD_BY_ID, id) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            link => {
                let link = link?;
                let info = link_info(link.as_fd())?;
                links.push((link, info));
            }
        }
    }
    Ok(links)
}

fn ids(command: u32) -> io::Result<Vec<u32>> {
    let mut ids = Vec::new();
    loop {
        let mut attr = IdAttr {
            id: ids.last().copied().unwrap_or_default(),
            ..IdAttr::default()
        };
        match bpf(command, &mut attr) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(ids),
            found => drop(found?),
        }
        ids.push(attr.next);
    }
}

/// Detaches a link's program from its target. The link stays, without a target.
pub fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkDetachAttr {
        link_fd: descriptor(link),
    };
    bpf(BPF_LINK_DETACH, &mut attr).map(drop)
}

fn by_id(command: u32, id: u32) -> io::Result<OwnedFd> {
    let mut attr = IdAttr {
        id,
        ..IdAttr::default()
    };
    bpf(command, &mut attr).map(owned)
}

fn name(bytes: &[u8; 16]) -> String {
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}
