//! The families that every Prometheus client has for its process: memory, time, descriptors.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use nix::sys::time::TimeVal;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::kube_proxy::Adder;

/// The families, named as by Prometheus' own clients.
#[derive(Clone, Default)]
pub struct Process {
    cpu: Counter<f64, AtomicU64>,
    open_fds: Gauge,
    max_fds: Gauge,
    resident: Gauge,
    virtual_: Gauge,
    start: Gauge<f64, AtomicU64>,
}

impl Process {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let families = Self::default();
        // The process makes this object early, so this time is close to its start.
        families.start.set(Timestamp::now().as_duration().as_secs_f64());
        let mut add = Adder(registry.sub_registry_with_prefix("process"));
        add.one("cpu_seconds", "User and system time spent", &families.cpu);
        add.one("open_fds", "Open file descriptors", &families.open_fds);
        add.one("max_fds", "File descriptors that may be open", &families.max_fds);
        add.one("resident_memory_bytes", "Memory in RAM", &families.resident);
        add.one(
            "virtual_memory_bytes",
            "Memory that is mapped",
            &families.virtual_,
        );
        add.one(
            "start_time_seconds",
            "When the process started, in Unix time",
            &families.start,
        );
        families
    }

    /// Reads every value; a value that cannot be read stays as it was.
    pub(super) fn measure(&self) {
        if let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) {
            let spent = duration(usage.user_time()) + duration(usage.system_time());
            self.cpu
                .inner()
                .store(spent.as_secs_f64().to_bits(), Ordering::Relaxed);
        }
        if let Ok(entries) = fs::read_dir("/proc/self/fd") {
            // The open directory counts as a descriptor while it is read.
            let count = entries.count().saturating_sub(1);
            self.open_fds.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        if let Ok((soft, _)) = getrlimit(Resource::RLIMIT_NOFILE) {
            self.max_fds.set(soft.cast_signed());
        }
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        for (key, gauge) in [("VmRSS:", &self.resident), ("VmSize:", &self.virtual_)] {
            if let Some(kib) = field(&status, key) {
                gauge.set(kib * 1024);
            }
        }
    }
}

/// A process never spends a negative time.
fn duration(time: TimeVal) -> Duration {
    let part = |part: i64| u64::try_from(part).unwrap_or_default();
    Duration::from_secs(part(time.tv_sec())) + Duration::from_micros(part(time.tv_usec()))
}

/// The number of a field in `/proc/self/status`.
fn field(status: &str, key: &str) -> Option<i64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}
