//! Counts the bpf(2) calls of another process.
//!
//! The kernel itself counts them, by one perf event for each thread on the tracepoint of the system call.
//! Unlike ptrace, the event neither stops nor slows the process, so calls and time are measured together. The
//! counters need no eBPF program.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::mount::{MsFlags, mount, umount};
use perf_event::events::Tracepoint;
use perf_event::{Builder, Counter};

/// The usual mount points of tracefs (Documentation/trace/ftrace.rst).
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

const TRACEPOINT: &str = "events/syscalls/sys_enter_bpf/id";

/// A counter for each thread of a process.
pub struct BpfCalls(Vec<Counter>);

impl BpfCalls {
    /// Starts to count. `scratch` is a directory where tracefs may be mounted for a moment.
    pub fn of(process: u32, scratch: &Path) -> Result<Self> {
        let tracepoint = Tracepoint::with_id(tracepoint_id(scratch)?);
        let tasks = format!("/proc/{process}/task");
        let mut counters = Vec::new();
        for entry in fs::read_dir(&tasks).with_context(|| format!("reading {tasks}"))? {
            let name = entry.with_context(|| format!("reading {tasks}"))?.file_name();
            let thread: i32 = name.to_string_lossy().parse().context("a thread's number")?;
            let mut builder = Builder::new(tracepoint);
            builder
                .observe_pid(thread)
                .any_cpu()
                .include_kernel()
                .inherit(true);
            let mut counter = builder
                .build()
                .context("counting bpf(2) calls: needs CONFIG_PERF_EVENTS and CONFIG_FTRACE_SYSCALLS")?;
            counter.enable().context("starting a counter")?;
            counters.push(counter);
        }
        Ok(Self(counters))
    }

    /// The number of calls so far.
    pub fn count(&mut self) -> Result<u64> {
        self.0
            .iter_mut()
            .map(|counter| counter.read().context("reading a counter"))
            .sum()
    }
}

/// The number of the tracepoint on this kernel. Where tracefs is not mounted, it is mounted for the time of
/// the look-up.
fn tracepoint_id(scratch: &Path) -> Result<u64> {
    let mounted = TRACEFS
        .iter()
        .find_map(|tracefs| fs::read_to_string(Path::new(tracefs).join(TRACEPOINT)).ok());
    let text = if let Some(text) = mounted {
        text
    } else {
        let tracefs = scratch.join("tracefs");
        fs::create_dir_all(&tracefs).with_context(|| format!("making {}", tracefs.display()))?;
        mount(
            Some("tracefs"),
            &tracefs,
            Some("tracefs"),
            MsFlags::empty(),
            None::<&str>,
        )
        .context("mounting tracefs: needs CONFIG_FTRACE")?;
        let text = fs::read_to_string(tracefs.join(TRACEPOINT));
        umount(&tracefs).context("unmounting tracefs")?;
        text.with_context(|| format!("this kernel has no tracepoint {TRACEPOINT}"))?
    };
    text.trim()
        .parse()
        .with_context(|| format!("{text:?} is not a number"))
}
