//! Runs a packet program over a crafted packet.
//!
//! Every run is marked as a dry run. For its length the cell `TRACE` holds a random nonce, and the packet's
//! control block has the same nonce. See `proxy-ebpf`'s `dry_run`.

use std::hash::{BuildHasher as _, RandomState};
use std::io;

use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use proxy_common::maps::{Reason, TraceCell};

use super::array::MappedArray;
use super::datapath::Datapath;

/// The decision of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DryRun {
    /// The kind of the decision.
    pub kind: DryRunKind,
    /// The reason of the decision.
    pub reason: Reason,
    /// Whether the program would change the source address.
    pub masquerade: bool,
    /// The backend's id; meaningful for [`DryRunKind::Translate`].
    pub backend: u32,
    /// The service port's id; meaningful for [`DryRunKind::Translate`].
    pub service: u32,
}

/// The kinds of decisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DryRunKind {
    /// The packet goes on unchanged.
    Pass,
    /// The program drops the packet.
    Drop,
    /// The program replies to an echo request.
    Echo,
    /// The program translates the packet.
    Translate,
}

/// The size in bytes of `struct __sk_buff` up to the end of the fields that are set here.
const CONTEXT_LEN: usize = 192;
/// The offset of `ifindex` in `struct __sk_buff`.
const IFINDEX: usize = 40;
/// The offset of `cb` in `struct __sk_buff`.
const CONTROL: usize = 48;

/// Arms the cell, and disarms it when dropped.
struct Armed<'a>(&'a MappedArray<TraceCell>);

impl Drop for Armed<'_> {
    fn drop(&mut self) {
        self.0.set(0, &TraceCell::default());
    }
}

/// Runs one program over crafted packets.
pub struct DryRunner<'a> {
    program: SchedClassifier,
    cell: &'a MappedArray<TraceCell>,
}

impl<'a> DryRunner<'a> {
    /// A runner for the program of this name that is in force.
    pub fn new(datapath: &'a Datapath, program: &str) -> io::Result<Self> {
        let program = SchedClassifier::from_pin(datapath.program_pin(program)).map_err(io::Error::other)?;
        Ok(Self {
            program,
            cell: &datapath.trace,
        })
    }

    /// Runs the program once over `frame` as if it had arrived at the interface `ifindex` (0: at none in
    /// particular).
    pub fn run(&self, frame: &[u8], ifindex: u32) -> io::Result<DryRun> {
        let result = self.try_run(frame, ifindex)?;
        result.ok_or_else(|| io::Error::other("the program returned outcome 0"))
    }

    /// The same; `None` if the program left the packet alone without a decision.
    pub fn try_run(&self, frame: &[u8], ifindex: u32) -> io::Result<Option<DryRun>> {
        // RandomState is the standard library's access to the system's random numbers.
        let nonce = RandomState::new().hash_one(0_u8) | 1;
        let mut context = [0_u8; CONTEXT_LEN];
        context[IFINDEX..IFINDEX + 4].copy_from_slice(&ifindex.to_ne_bytes());
        context[CONTROL..CONTROL + 8].copy_from_slice(&nonce.to_ne_bytes());
        let mut result = [0_u8; CONTEXT_LEN];
        let mut out = vec![0_u8; frame.len() + 256];
        self.cell.set(0, &TraceCell { nonce });
        let armed = Armed(self.cell);
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(&mut out);
        options.ctx_in = Some(&context);
        options.ctx_out = Some(&mut result);
        self.program.test_run(options).map_err(io::Error::other)?;
        drop(armed);
        let word = |index: usize| {
            let start = CONTROL + index * 4;
            u32::from_ne_bytes(std::array::from_fn(|byte| result[start + byte]))
        };
        if word(2) == 0 {
            return Ok(None);
        }
        parse(word(2), word(3), word(4)).map(Some)
    }
}

fn parse(outcome: u32, backend: u32, service: u32) -> io::Result<DryRun> {
    let kind = match outcome & 0xff {
        1 => DryRunKind::Pass,
        2 => DryRunKind::Drop,
        3 => DryRunKind::Echo,
        4 => DryRunKind::Translate,
        other => {
            return Err(io::Error::other(format!("the program returned outcome {other}")));
        }
    };
    let reason = Reason::ALL.get((outcome >> 8 & 0xff) as usize).copied();
    let reason = reason.ok_or_else(|| io::Error::other(format!("the program returned {outcome:#x}")))?;
    Ok(DryRun {
        kind,
        reason,
        masquerade: outcome >> 16 & 1 == 1,
        backend,
        service,
    })
}
