//! The network namespace of a socket. Kernels before Linux 5.14 report it to bpf programs only.
//!
//! So the agent attaches a program for a moment to a cgroup above this process. For every socket that is made
//! there the program notes the cookie of its namespace by the cookie of the socket. The program has a dozen
//! instructions and is assembled here. The agent needs it before it attaches its own programs, and on a few
//! kernels only.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;

use super::sys;

const LRU_HASH: u32 = 9;
const CGROUP_SOCK: u32 = 9;
const SOCK_CREATE: u32 = 2;
/// Other processes make sockets at the same moment; the agent looks its own up at once.
const CAPACITY: u32 = 1024;

const UPDATE_ELEMENT: i32 = 2;
const GET_SOCKET_COOKIE: i32 = 46;
const GET_NETNS_COOKIE: i32 = 122;

/// Calls `make`, which makes an internet socket and returns its cookie. Returns the cookie of that socket's
/// network namespace. This process must live below `cgroup`.
pub fn namespace_of_socket(cgroup: &Path, make: &dyn Fn() -> io::Result<u64>) -> io::Result<u64> {
    let map = sys::map_create(LRU_HASH, 8, 8, CAPACITY)?;
    let program = sys::program_load(CGROUP_SOCK, SOCK_CREATE, &program(map.as_raw_fd()))?;
    let cgroup = File::open(cgroup)?;
    let target = cgroup.as_raw_fd().cast_unsigned();
    let link = sys::link_create(program.as_fd(), target, SOCK_CREATE)?;
    let socket = make()?;
    drop(link);
    let mut namespace = [0; 8];
    sys::map_lookup(map.as_fd(), &socket.to_ne_bytes(), &mut namespace)?;
    Ok(u64::from_ne_bytes(namespace))
}

/// The program: `map[socket cookie] = namespace cookie; return 1`.
fn program(map: i32) -> [u64; 16] {
    let call = |helper| instruction(0x85, 0, 0, 0, helper);
    let copy = |to, from| instruction(0xbf, to, from, 0, 0);
    let store = |offset, from| instruction(0x7b, 10, from, offset, 0);
    let add = |to, value| instruction(0x07, to, 0, 0, value);
    let set = |to, value| instruction(0xb7, to, 0, 0, value);
    [
        copy(6, 1),
        call(GET_SOCKET_COOKIE),
        store(-8, 0),
        copy(1, 6),
        call(GET_NETNS_COOKIE),
        store(-16, 0),
        // A map's address takes two instructions.
        instruction(0x18, 1, 1, 0, map),
        0,
        copy(2, 10),
        add(2, -8),
        copy(3, 10),
        add(3, -16),
        set(4, 0),
        call(UPDATE_ELEMENT),
        set(0, 1),
        instruction(0x95, 0, 0, 0, 0),
    ]
}

/// The encoding of one `struct bpf_insn`.
fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> u64 {
    let [low, high] = offset.to_ne_bytes();
    let [a, b, c, d] = value.to_ne_bytes();
    let registers = if cfg!(target_endian = "little") {
        from << 4 | to
    } else {
        to << 4 | from
    };
    u64::from_ne_bytes([code, registers, low, high, a, b, c, d])
}
