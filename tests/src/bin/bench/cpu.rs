//! The division of the CPUs: the agent has one CPU, and the processes that watch it have another one.

use std::fs;
use std::thread;

use anyhow::{Context as _, Result, anyhow};
use nix::errno::Errno;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// The agent's CPU.
pub const AGENT: usize = 0;

/// The CPU of all other processes.
pub const OTHERS: usize = 1;

/// Binds all threads of a process, and those it will start, to a CPU.
pub fn bind(process: u32, cpu: usize) -> Result<()> {
    let tasks = format!("/proc/{process}/task");
    for entry in fs::read_dir(&tasks).with_context(|| format!("reading {tasks}"))? {
        let name = entry.with_context(|| format!("reading {tasks}"))?.file_name();
        let thread: i32 = name.to_string_lossy().parse().context("a thread's number")?;
        bind_thread(thread, cpu)?;
    }
    Ok(())
}

/// Runs `work` on a thread that is bound to [`OTHERS`].
pub fn beside<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let bound = || -> Result<T> {
        bind_this_thread()?;
        work()
    };
    thread::scope(|scope| scope.spawn(bound).join()).map_err(|_| anyhow!("a measuring thread panicked"))?
}

/// Binds the calling thread to [`OTHERS`].
pub fn bind_this_thread() -> Result<()> {
    bind_thread(0, OTHERS)
}

fn bind_thread(thread: i32, cpu: usize) -> Result<()> {
    if thread::available_parallelism().map_or(1, usize::from) < 2 {
        return Ok(());
    }
    let mut cpus = CpuSet::new();
    cpus.set(cpu).context("numbering a CPU")?;
    // A thread that has ended meanwhile needs no binding.
    match sched_setaffinity(Pid::from_raw(thread), &cpus) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("binding thread {thread} to CPU {cpu}")),
    }
}
