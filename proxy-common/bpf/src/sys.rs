//! bpf(2), mmap(2) and membarrier(2): the unsafe code of the agent.
//!
//! aya loads programs and creates maps. This module has the operations that aya lacks: batch map operations,
//! mmapped arrays, second pins of maps, links by pin, and an RCU grace period. Every function is safe to
//! call: sizes come from the buffers, and file descriptors are owned.

#![expect(unsafe_code, reason = "system calls without a safe wrapper in any crate")]

mod memory;
pub mod query;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub use memory::SharedWords;

const BPF_MAP_CREATE: u32 = 0;
const BPF_MAP_LOOKUP_ELEM: u32 = 1;
const BPF_MAP_UPDATE_ELEM: u32 = 2;
const BPF_MAP_DELETE_ELEM: u32 = 3;
const BPF_MAP_GET_NEXT_KEY: u32 = 4;
const BPF_PROG_LOAD: u32 = 5;
const BPF_OBJ_PIN: u32 = 6;
const BPF_OBJ_GET: u32 = 7;
const BPF_OBJ_GET_INFO_BY_FD: u32 = 15;
const BPF_MAP_LOOKUP_BATCH: u32 = 24;
const BPF_MAP_UPDATE_BATCH: u32 = 26;
const BPF_MAP_DELETE_BATCH: u32 = 27;
const BPF_LINK_CREATE: u32 = 28;
const BPF_LINK_UPDATE: u32 = 29;

/// `union bpf_attr` for making a map.
#[repr(C)]
#[derive(Default)]
struct MapCreateAttr {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

/// `union bpf_attr` for loading a program.
#[repr(C)]
#[derive(Default)]
struct ProgramLoadAttr {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log: [u64; 2],
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

/// `union bpf_attr` for the commands on one element.
#[repr(C)]
#[derive(Default)]
struct ElementAttr {
    map_fd: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// `union bpf_attr` for the batch commands.
#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    element_flags: u64,
    flags: u64,
}

/// `union bpf_attr` for pinning an object and for opening a pin.
#[repr(C)]
#[derive(Default)]
struct ObjectAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

/// `union bpf_attr` for information about an object.
#[repr(C)]
#[derive(Default)]
struct InfoAttr {
    fd: u32,
    len: u32,
    info: u64,
}

/// `union bpf_attr` for making a link.
#[repr(C)]
#[derive(Default)]
struct LinkCreateAttr {
    program_fd: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    reserved: u32,
    expected_revision: u64,
}

/// `union bpf_attr` for exchanging a link's program.
#[repr(C)]
#[derive(Default)]
struct LinkUpdateAttr {
    link_fd: u32,
    program_fd: u32,
    flags: u32,
    old_program_fd: u32,
}

/// The start of `struct bpf_map_info`.
#[repr(C)]
#[derive(Default, Clone, Copy, Debug)]
pub struct MapInfo {
    /// `enum bpf_map_type`.
    pub kind: u32,
    /// Kernel-wide id.
    pub id: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Capacity.
    pub max_entries: u32,
    /// Creation flags.
    pub flags: u32,
}

/// The start of `struct bpf_prog_info`, up to the last field that is read.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ProgramInfo {
    /// `enum bpf_prog_type`.
    pub kind: u32,
    /// Kernel-wide id.
    pub id: u32,
    /// Hash of the instructions.
    pub tag: [u8; 8],
    unread: [u64; 22],
    /// Nanoseconds spent in the program, while statistics are enabled.
    pub run_time_ns: u64,
    /// Runs, while statistics are enabled.
    pub run_count: u64,
}

/// The start of `struct bpf_link_info`.
#[repr(C)]
#[derive(Default, Clone, Copy, Debug)]
pub struct LinkInfo {
    /// `enum bpf_link_type`.
    pub kind: u32,
    /// Kernel-wide id.
    pub id: u32,
    /// The program's id.
    pub program: u32,
    padding: u32,
    /// The first word of the target: the interface index of a tcx link.
    pub target: u32,
    unread: [u32; 5],
}

fn bpf<T>(command: u32, attr: &mut T) -> io::Result<i64> {
    // SAFETY: the attribute is a live struct of the given size. The callers below set its pointers from
    // slices that are live for the call and as long as the map's key and value sizes demand.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<T>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn descriptor(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn owned(result: i64) -> OwnedFd {
    // SAFETY: the kernel has made this descriptor for us.
    unsafe { OwnedFd::from_raw_fd(result as RawFd) }
}

/// Makes a map that the kernel frees with its last descriptor.
pub fn map_create(kind: u32, key_size: u32, value_size: u32, max_entries: u32) -> io::Result<OwnedFd> {
    let mut attr = MapCreateAttr {
        kind,
        key_size,
        value_size,
        max_entries,
        flags: 0,
    };
    bpf(BPF_MAP_CREATE, &mut attr).map(owned)
}

/// Loads a program, given as instructions.
pub fn program_load(kind: u32, attach_type: u32, instructions: &[u64]) -> io::Result<OwnedFd> {
    let mut attr = ProgramLoadAttr {
        kind,
        instruction_count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: c"Dual BSD/GPL".as_ptr() as u64,
        attach_type,
        ..ProgramLoadAttr::default()
    };
    bpf(BPF_PROG_LOAD, &mut attr).map(owned)
}

/// Writes one element.
pub fn map_update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    let mut attr = ElementAttr {
        map_fd: descriptor(map),
        key: key.as_ptr() as u64,
        value: value.as_ptr() as u64,
        ..ElementAttr::default()
    };
    bpf(BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// Reads one element into `value`.
pub fn map_lookup(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<()> {
    let mut attr = ElementAttr {
        map_fd: descriptor(map),
        key: key.as_ptr() as u64,
        value: value.as_mut_ptr() as u64,
        ..ElementAttr::default()
    };
    bpf(BPF_MAP_LOOKUP_ELEM, &mut attr).map(drop)
}

/// Removes one element.
pub fn map_delete(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<()> {
    let mut attr = ElementAttr {
        map_fd: descriptor(map),
        key: key.as_ptr() as u64,
        ..ElementAttr::default()
    };
    bpf(BPF_MAP_DELETE_ELEM, &mut attr).map(drop)
}

/// Writes the key that follows `key`, or the first one, into `next`; false if there is none.
pub fn map_next_key(map: BorrowedFd<'_>, key: Option<&[u8]>, next: &mut [u8]) -> io::Result<bool> {
    let mut attr = ElementAttr {
        map_fd: descriptor(map),
        key: key.map_or(0, |key| key.as_ptr() as u64),
        value: next.as_mut_ptr() as u64,
        ..ElementAttr::default()
    };
    match bpf(BPF_MAP_GET_NEXT_KEY, &mut attr) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes `count` elements. Returns the number of elements written, and the error if it is not all.
pub fn map_update_batch(
    map: BorrowedFd<'_>,
    keys: &[u8],
    values: &[u8],
    count: u32,
) -> (u32, io::Result<()>) {
    let mut attr = BatchAttr {
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count,
        map_fd: descriptor(map),
        ..BatchAttr::default()
    };
    let result = bpf(BPF_MAP_UPDATE_BATCH, &mut attr).map(drop);
    (attr.count, result)
}

/// Removes `count` elements. Returns the number of elements removed, and the error if it is not all.
pub fn map_delete_batch(map: BorrowedFd<'_>, keys: &[u8], count: u32) -> (u32, io::Result<()>) {
    let mut attr = BatchAttr {
        keys: keys.as_ptr() as u64,
        count,
        map_fd: descriptor(map),
        ..BatchAttr::default()
    };
    let result = bpf(BPF_MAP_DELETE_BATCH, &mut attr).map(drop);
    (attr.count, result)
}

/// Reads up to `count` elements from `position` on. Returns their number, and whether the end was reached.
///
/// `position` is empty for the start, and the kernel fills it in for the next call. It has 4 bytes for hash
/// tables, and the key's size for others.
pub fn map_lookup_batch(
    map: BorrowedFd<'_>,
    position: &mut Vec<u8>,
    position_size: usize,
    keys: &mut [u8],
    values: &mut [u8],
    count: u32,
) -> io::Result<(u32, bool)> {
    let mut next = vec![0_u8; position_size.max(4)];
    let mut attr = BatchAttr {
        in_batch: if position.is_empty() {
            0
        } else {
            position.as_ptr() as u64
        },
        out_batch: next.as_mut_ptr() as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count,
        map_fd: descriptor(map),
        ..BatchAttr::default()
    };
    let result = bpf(BPF_MAP_LOOKUP_BATCH, &mut attr);
    *position = next;
    match result {
        Ok(_) => Ok((attr.count, false)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok((attr.count, true)),
        Err(error) => Err(error),
    }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Pins an object.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = ObjectAttr {
        path: path.as_ptr() as u64,
        fd: descriptor(object),
        flags: 0,
    };
    bpf(BPF_OBJ_PIN, &mut attr).map(drop)
}

/// Opens a pinned object.
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = ObjectAttr {
        path: path.as_ptr() as u64,
        ..ObjectAttr::default()
    };
    bpf(BPF_OBJ_GET, &mut attr).map(owned)
}

fn info<T>(object: BorrowedFd<'_>, into: &mut T) -> io::Result<()> {
    let mut attr = InfoAttr {
        fd: descriptor(object),
        len: size_of::<T>() as u32,
        info: std::ptr::from_mut(into) as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr).map(drop)
}

/// The kernel's information about a map.
pub fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    let mut into = MapInfo::default();
    info(map, &mut into).map(|()| into)
}

/// The kernel's information about a link.
pub fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut into = LinkInfo::default();
    info(link, &mut into).map(|()| into)
}

/// The kernel's information about a program.
pub fn program_info(program: BorrowedFd<'_>) -> io::Result<ProgramInfo> {
    let mut into = ProgramInfo {
        kind: 0,
        id: 0,
        tag: [0; 8],
        unread: [0; 22],
        run_time_ns: 0,
        run_count: 0,
    };
    info(program, &mut into).map(|()| into)
}

/// Attaches a program to a cgroup or an interface, behind the programs that are already attached.
pub fn link_create(program: BorrowedFd<'_>, target: u32, attach_type: u32) -> io::Result<OwnedFd> {
    let mut attr = LinkCreateAttr {
        program_fd: descriptor(program),
        target,
        attach_type,
        ..LinkCreateAttr::default()
    };
    bpf(BPF_LINK_CREATE, &mut attr).map(owned)
}

/// `BPF_TCX_INGRESS`; `BPF_TCX_EGRESS` is the next number.
pub const TCX_INGRESS: u32 = 46;

/// Whether the kernel can attach packet programs to interfaces by links (tcx, Linux 6.6). A kernel that
/// cannot fails before it looks for the interface, which does not exist.
pub fn has_tcx(packet_program: BorrowedFd<'_>) -> bool {
    const NO_INTERFACE: u32 = i32::MAX.cast_unsigned();
    match link_create(packet_program, NO_INTERFACE, TCX_INGRESS) {
        Err(error) => error.raw_os_error() != Some(libc::EINVAL),
        Ok(_) => true,
    }
}

/// Exchanges the program of a link, atomically.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdateAttr {
        link_fd: descriptor(link),
        program_fd: descriptor(program),
        ..LinkUpdateAttr::default()
    };
    bpf(BPF_LINK_UPDATE, &mut attr).map(drop)
}

/// Waits until every reader that runs now has ended: `MEMBARRIER_CMD_GLOBAL` is `synchronize_rcu()`.
pub fn wait_for_grace_period() -> io::Result<()> {
    const MEMBARRIER_CMD_GLOBAL: i32 = 1;
    // SAFETY: no pointers are passed.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
