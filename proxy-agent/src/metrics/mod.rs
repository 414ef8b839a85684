//! What is measured, in the form that Prometheus reads.
//!
//! Families of kube-proxy keep their names, labels and buckets, so that its dashboards and alerts go on working
//! ([`KubeProxy`]); what only Millrace has is called `millrace_…` ([`Own`]). The loop counts as it goes, which costs it no
//! more than an addition; what has to be looked up (how full maps are, memory) is looked up when somebody asks, by a
//! [`Scrape`]. [`server`] is the port that shows it.
//!
//! Invariant: every family has a HELP and a TYPE, no series appears twice, counters end in `_total`, and times and sizes are in
//! seconds and bytes. (One gauge of kube-proxy ends in `_total` too; its name is kept.)

mod kube_proxy;
mod own;
mod process;
pub mod server;
mod text;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tokio::sync::oneshot;

pub use kube_proxy::{KubeProxy, Probes, Round};
pub use own::Own;
pub use process::Process;

/// A label whose value is one of few that are known beforehand.
type Label = [(&'static str, &'static str); 1];

/// Asks the loop to bring what has to be looked up to date; it answers when it has.
pub type Scrape = oneshot::Sender<()>;

/// Every family. Clones show the same values.
#[derive(Clone)]
pub struct Metrics {
    /// Those that kube-proxy has too.
    pub kube_proxy: KubeProxy,
    /// Those that only Millrace has.
    pub own: Own,
    process: Process,
    registry: Arc<Registry>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        Self {
            kube_proxy: KubeProxy::register(&mut registry),
            own: Own::register(&mut registry),
            process: Process::register(&mut registry),
            registry: Arc::new(registry),
        }
    }
}

impl Metrics {
    /// The page.
    pub fn page(&self) -> String {
        self.process.measure();
        text::page(&self.registry)
    }
}

/// Sets a counter that somebody else counts.
fn set<L>(family: &Family<L, Counter>, labels: &L, value: u64)
where
    L: Clone + std::hash::Hash + Eq,
{
    store(&family.get_or_create(labels), value);
}

/// Likewise, for a counter without labels.
fn store(counter: &Counter<u64, AtomicU64>, value: u64) {
    counter.inner().store(value, Ordering::Relaxed);
}
