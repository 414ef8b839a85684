//! The live packet programs, opened once for many runs, and their counters.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use millrace::bpf::{Datapath, sys};
use proxy_common::maps::{Counter, Reason, Refusals};

/// More bytes than any program adds to a frame: the headers of an ICMP error over IPv6.
const ROOM: usize = 256;

/// The length of the Ethernet and IPv6 headers in bytes.
const SHORTEST_RUN: usize = 54;

/// One open program.
pub struct Program {
    classifier: SchedClassifier,
    context: [u8; 192],
    out: Vec<u8>,
}

impl Program {
    /// Opens the program of this name, for frames on the interface `ifindex`.
    pub fn open(datapath: &Datapath, name: &str, ifindex: u32) -> Self {
        let classifier = SchedClassifier::from_pin(datapath.program_pin(name)).expect("the program");
        let mut context = [0_u8; 192];
        // The field `ifindex` of `struct __sk_buff`.
        context[40..44].copy_from_slice(&ifindex.to_ne_bytes());
        Self {
            classifier,
            context,
            out: Vec::new(),
        }
    }

    /// Runs the program over a frame. Returns the verdict, and the frame as it is then. Returns `None` if the
    /// kernel rejects such a frame: newer kernels require the whole IP header in it.
    pub fn run(&mut self, frame: &[u8]) -> Option<(u32, &[u8])> {
        self.run_noted(frame, 0).map(|(verdict, out, _)| (verdict, out))
    }

    /// As [`Self::run`], with a note beside the frame, its priority. Returns the rest of the note, too.
    pub fn run_noted(&mut self, frame: &[u8], note: u32) -> Option<(u32, &[u8], u32)> {
        /// The offset in `struct __sk_buff`, in bytes.
        const PRIORITY: std::ops::Range<usize> = 32..36;
        self.context[PRIORITY].copy_from_slice(&note.to_ne_bytes());
        let mut left = self.context;
        self.out.resize(self.out.len().max(frame.len() + ROOM), 0);
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(&mut self.out);
        options.ctx_in = Some(&self.context);
        options.ctx_out = Some(&mut left);
        let result = match self.classifier.test_run(options) {
            Err(_) if frame.len() < SHORTEST_RUN => return None,
            result => result.expect("a run"),
        };
        let len = result.data_size_out as usize;
        let left = left[PRIORITY].try_into().expect("four bytes");
        Some((result.return_value, &self.out[..len], u32::from_ne_bytes(left)))
    }
}

/// The path of a pinned map, beside the programs.
fn map_pin(datapath: &Datapath, name: &str) -> PathBuf {
    let generation = datapath.program_pin("from_pod");
    let generation = generation.ancestors().nth(2).unwrap_or(Path::new("/"));
    generation.join("maps").join(name)
}

/// Opens a map that only the programs use.
pub fn open_map(datapath: &Datapath, name: &str) -> OwnedFd {
    sys::open_pin(&map_pin(datapath, name)).expect("a map")
}

/// Resets the limit of refusals per second, so that the programs send the next ones.
pub fn forgive_refusals(refusals: &OwnedFd) {
    let cpus = aya::util::nr_cpus().expect("the number of CPUs");
    let none = vec![0_u8; cpus * size_of::<Refusals>()];
    for group in 0..Refusals::GROUPS {
        sys::map_update(refusals.as_fd(), &group.to_ne_bytes(), &none).expect("to forget refusals");
    }
}

/// The counter of each reason, over all CPUs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Counts(pub [Counter; Reason::COUNT as usize]);

impl Counts {
    pub const NONE: Self = Self([Counter { packets: 0, bytes: 0 }; Reason::COUNT as usize]);

    /// The counts since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        let mut counts = *self;
        for (count, earlier) in counts.0.iter_mut().zip(&earlier.0) {
            count.packets -= earlier.packets;
            count.bytes -= earlier.bytes;
        }
        counts
    }

    pub fn add(&mut self, reason: Reason, bytes: u64) {
        let count = &mut self.0[reason as usize];
        count.packets += 1;
        count.bytes += bytes;
    }

    pub fn of(&self, reason: Reason) -> u64 {
        self.0[reason as usize].packets
    }

    /// The reasons with a count.
    pub fn reasons(&self) -> impl Iterator<Item = (Reason, Counter)> {
        let counted = Reason::ALL.iter().copied().zip(self.0);
        counted.filter(|(_, count)| *count != Counter::default())
    }
}

/// The counters, read by as few system calls as the kernel allows.
pub struct Counters {
    map: OwnedFd,
    keys: Vec<u8>,
    values: Vec<u8>,
    of_reason: usize,
}

impl Counters {
    pub fn open(datapath: &Datapath) -> Self {
        let of_reason = aya::util::nr_cpus().expect("the number of CPUs") * size_of::<Counter>();
        Self {
            map: open_map(datapath, "COUNTERS"),
            keys: vec![0; Reason::ALL.len() * 4],
            values: vec![0; Reason::ALL.len() * of_reason],
            of_reason,
        }
    }

    pub fn read(&mut self) -> Counts {
        let map = self.map.as_fd();
        let (keys, values) = (&mut self.keys, &mut self.values);
        if sys::map_lookup_batch(map, &mut Vec::new(), 4, keys, values, Reason::COUNT).is_err() {
            // Batch reads of per-CPU arrays exist since Linux 5.13.
            for (number, value) in (0_u32..).zip(values.chunks_exact_mut(self.of_reason)) {
                sys::map_lookup(map, &number.to_ne_bytes(), value).expect("a counter");
            }
        }
        let mut counts = Counts::NONE;
        for (count, value) in counts.0.iter_mut().zip(self.values.chunks_exact(self.of_reason)) {
            for value in value.chunks_exact(size_of::<Counter>()) {
                let word = |at: usize| u64::from_ne_bytes(std::array::from_fn(|byte| value[at + byte]));
                count.packets += word(0);
                count.bytes += word(8);
            }
        }
        counts
    }
}
