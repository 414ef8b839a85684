//! Loads the embedded object: makes maps of the right sizes, verifies programs and pins both.

use std::collections::BTreeMap;
use std::io;
use std::num::NonZero;
use std::os::fd::AsFd as _;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread::available_parallelism;
use std::time::Instant;

use aya::EbpfLoader;
use aya::programs::{Program, ProgramError};
use proxy_common::maps::{FragmentKey, SkbLayout};
use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;

use super::error::{BpfError, hint};
use super::pins::LayoutDir;
use super::{skb_layout, sys};

/// The kernel programs, compiled by the build script.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/millrace-ebpf"));

/// Maps whose size the agent sets; the others have a fixed one.
pub const SIZED_MAPS: [&str; 12] = [
    "FRONTENDS",
    "SLOTS",
    "BACKENDS",
    "ADDRESSES",
    "FLOWS",
    "STREAMS",
    "NEW_FLOWS",
    "AFFINITY",
    "SOCKET_PEERS",
    "POD_NETNS",
    "PODS",
    "POD_LINKS",
];

/// All maps that are pinned.
pub const MAPS: [&str; 26] = [
    "FRONTENDS",
    "SLOTS",
    "BACKENDS",
    "ADDRESSES",
    "FLOWS",
    "STREAMS",
    "NEW_FLOWS",
    "SHARES",
    "UNANSWERED",
    "NEIGHBOURS",
    "AFFINITY",
    "FRAGMENTS",
    "SOURCE_RANGES",
    "SOCKET_PEERS",
    "POD_NETNS",
    "PODS",
    "POD_LINKS",
    "HOST_PORTS",
    "IN_USE",
    "POD_RANGES",
    "CONFIG",
    "TRACE",
    "WORK",
    "COUNTERS",
    "REFUSALS",
    "CONNECTED",
];

/// All programs of the object.
pub const PROGRAMS: [&str; 17] = [
    "from_pod",
    "from_own_pod",
    "to_pod",
    "from_uplink",
    "to_uplink",
    "from_host",
    "from_loopback",
    "connect4",
    "connect6",
    "sendmsg4",
    "sendmsg6",
    "recvmsg4",
    "recvmsg6",
    "getpeername4",
    "getpeername6",
    "post_bind4",
    "post_bind6",
];

/// Entries of the map of source ranges.
pub const SOURCE_RANGES: u32 = 1 << 20;

/// Entries of the map of first fragments: the places of 256 sources for datagrams that enter the node. An
/// entry takes 136 bytes, the map 2.1 MiB.
const FRAGMENTS: u32 = 256 * FragmentKey::PLACES;

/// Maps of a fixed size. The tries among them take memory only for their entries.
const FIXED_MAPS: [(&str, u32); 7] = [
    ("POD_RANGES", 65_536),
    ("SOURCE_RANGES", SOURCE_RANGES),
    ("FRAGMENTS", FRAGMENTS),
    ("SHARES", 16_384),
    ("UNANSWERED", 16_384),
    ("NEIGHBOURS", 4096),
    ("HOST_PORTS", 131_072),
];

/// Capacities of the maps whose size the agent sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapSizes {
    /// The map `FRONTENDS`.
    pub frontends: u32,
    /// The map `SLOTS`.
    pub slots: u32,
    /// The map `BACKENDS`.
    pub backends: u32,
    /// The map `ADDRESSES`.
    pub addresses: u32,
    /// The map `FLOWS`; `NEW_FLOWS` has half as many, `STREAMS` a quarter.
    pub flows: u32,
    /// The map `AFFINITY`.
    pub affinity: u32,
    /// The map `SOCKET_PEERS`.
    pub socket_peers: u32,
    /// The maps `POD_NETNS` and `POD_LINKS`; `PODS` has twice as many.
    pub pod_netns: u32,
}

impl MapSizes {
    /// The sizes by map name.
    pub fn by_name(&self) -> [(&'static str, u32); 12] {
        let sizes = [
            self.frontends,
            self.slots,
            self.backends,
            self.addresses,
            self.flows,
            self.flows / 4,
            self.flows / 2,
            self.affinity,
            self.socket_peers,
            self.pod_netns,
            // A pod has an address of each of two families.
            self.pod_netns.saturating_mul(2),
            self.pod_netns,
        ];
        std::array::from_fn(|index| (SIZED_MAPS[index], sizes[index].max(1)))
    }
}

/// A hash that identifies the embedded object.
pub fn hash() -> String {
    format!("{:016x}", SipHasher13::new().hash(OBJECT))
}

/// Loads the object and pins its maps and programs in `dir`. It uses maps that are pinned there already as
/// they are.
pub fn load(dir: &LayoutDir, sizes: &MapSizes) -> Result<(), BpfError> {
    let mut may = Constants {
        has_set_retval: true,
        skb_layout: skb_layout::of_kernel(),
    };
    loop {
        match load_with(dir, sizes, may) {
            // A kernel without bpf_set_retval refuses the program that calls it.
            Err(BpfError::Load { program, .. }) if program.starts_with("connect") && may.has_set_retval => {
                may.has_set_retval = false;
            }
            // A kernel in lockdown refuses programs that read its memory.
            Err(BpfError::Load { program, .. })
                if program.starts_with("from_") && may.skb_layout != SkbLayout::default() =>
            {
                skb_layout::give_up();
                may.skb_layout = SkbLayout::default();
            }
            result => return result,
        }
    }
}

/// The features that the programs may use, as constants that the verifier knows.
#[derive(Clone, Copy)]
struct Constants {
    has_set_retval: bool,
    skb_layout: SkbLayout,
}

fn load_with(dir: &LayoutDir, sizes: &MapSizes, may: Constants) -> Result<(), BpfError> {
    let pins: BTreeMap<&str, _> = MAPS.iter().map(|name| (*name, dir.map(name))).collect();
    let mut loader = EbpfLoader::new();
    for (name, size) in sizes.by_name() {
        loader.map_max_entries(name, size);
    }
    for (name, size) in FIXED_MAPS {
        loader.map_max_entries(name, size);
    }
    for (name, path) in &pins {
        loader.map_pin_path(name, path.as_path());
    }
    let has_set_retval = u8::from(may.has_set_retval);
    loader.override_global("HAS_SET_RETVAL", &has_set_retval, true);
    let skb_layout = may.skb_layout.to_words();
    loader.override_global("SKB_LAYOUT", &skb_layout[..], true);
    let mut object = loader.load(OBJECT).map_err(|error| load_error("maps", &error))?;
    #[cfg(feature = "log")]
    super::log::follow(&mut object);
    load_programs(dir, object.programs_mut().collect())
}

/// Loads and pins the programs, on all CPUs. The verifier takes its time for each, and takes no lock for
/// privileged users (`bpf_check` in `kernel/bpf/verifier.c`).
fn load_programs(dir: &LayoutDir, programs: Vec<(&str, &mut Program)>) -> Result<(), BpfError> {
    let threads = available_parallelism()
        .map_or(1, NonZero::get)
        .min(programs.len());
    let queue = Mutex::new(programs);
    let work = || {
        loop {
            // A thread that panicked left the queue as it was.
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some((name, program)) = next else {
                return Ok(());
            };
            load_and_pin(dir, name, program)?;
        }
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut result = work();
        for other in others {
            let done = other.join().unwrap_or_else(|panic| resume_unwind(panic));
            result = result.and(done);
        }
        result
    })
}

fn load_and_pin(dir: &LayoutDir, name: &str, program: &mut Program) -> Result<(), BpfError> {
    let path = dir.program(name);
    if path.exists() {
        std::fs::remove_file(&path).map_err(BpfError::file("removing", &path))?;
    }
    let started = Instant::now();
    load_program(program).map_err(|error| BpfError::Load {
        program: name.to_owned(),
        message: program_message(&error),
    })?;
    // Kernels before Linux 5.16 do not report it.
    let verified = program
        .info()
        .ok()
        .and_then(|info| info.verified_instruction_count());
    tracing::debug!(name, ?verified, took = ?started.elapsed(), "the kernel took a program");
    pin_program(program, &path)
}

/// Loads a program, and again if a signal came meanwhile. The verifier gives up for any signal (EAGAIN,
/// `do_check` in `kernel/bpf/verifier.c`), and it runs long enough for some to come.
fn load_program(program: &mut Program) -> Result<(), ProgramError> {
    const ATTEMPTS: u32 = 20;
    for _ in 1..ATTEMPTS {
        match try_load_program(program) {
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.raw_os_error() == Some(libc::EAGAIN) => {}
            result => return result,
        }
    }
    try_load_program(program)
}

fn try_load_program(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::SchedClassifier(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

fn pin_program(program: &Program, path: &Path) -> Result<(), BpfError> {
    let fd = program.fd().map_err(|error| load_error("program", &error))?;
    sys::pin(fd.as_fd(), path).map_err(BpfError::file("pinning", path))
}

fn load_error(program: &str, error: &(dyn std::error::Error + 'static)) -> BpfError {
    BpfError::Load {
        program: program.to_owned(),
        message: chain(error),
    }
}

/// The last line of the verifier's log that is no statistic; the whole log goes to the agent's debug log.
fn program_message(error: &ProgramError) -> String {
    let ProgramError::LoadError {
        io_error,
        verifier_log,
    } = error
    else {
        return chain(error);
    };
    let log = verifier_log.to_string();
    tracing::debug!(%log, "the verifier's log");
    let is_statistic = |line: &&str| {
        let words = ["processed ", "stack depth ", "verification time ", "peak_states "];
        line.trim().is_empty() || words.iter().any(|word| line.starts_with(word))
    };
    let last = log.lines().rev().find(|line| !is_statistic(line));
    let advice = match io_error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => hint(io_error),
        _ => String::new(),
    };
    let reason = last.unwrap_or("the verifier gave no reason; -v shows its log");
    format!("{io_error}{advice}: {reason}")
}

/// An error with its causes, and the usual remedy.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut message = String::new();
    let mut advice = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        // Many errors repeat the text of their cause.
        if !message.contains(&text) {
            let colon = if message.is_empty() { "" } else { ": " };
            message = format!("{message}{colon}{text}");
        }
        if let Some(error) = error.downcast_ref::<io::Error>() {
            advice = hint(error);
        }
        next = error.source();
    }
    message + &advice
}

#[cfg(test)]
mod stack;
