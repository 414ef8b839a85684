//! The metrics of the agent, in the form that Prometheus reads.
//!
//! Families of kube-proxy keep their names, labels and buckets, so that its dashboards and alerts work
//! unchanged ([`KubeProxy`]). Families that only Millrace has are called `millrace_…` ([`Own`]). The loop
//! counts as it runs, with one addition per event. Values that need a lookup (map usage, memory) are read at
//! a request, by a [`Scrape`]. [`server`] is the port that shows the page.
//!
//! Invariant: every family has a HELP and a TYPE, no series appears twice, and counters end in `_total`.
//! Times and sizes are in seconds and bytes. (One gauge of kube-proxy ends in `_total` too; its name is
//! kept.)

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

/// A label whose value is one of a few that are known at compile time.
type Label = [(&'static str, &'static str); 1];

/// Asks the loop to update the values that need a lookup; the loop replies when they are up to date.
pub type Scrape = oneshot::Sender<()>;

/// Every family. Clones share the values.
#[derive(Clone)]
pub struct Metrics {
    /// The families that kube-proxy has too.
    pub kube_proxy: KubeProxy,
    /// The families that only Millrace has.
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
    /// The metrics page.
    pub fn page(&self) -> String {
        self.process.measure();
        text::page(&self.registry)
    }
}

/// Sets a counter to a value that another component counts.
fn set<L>(family: &Family<L, Counter>, labels: &L, value: u64)
where
    L: Clone + std::hash::Hash + Eq,
{
    store(&family.get_or_create(labels), value);
}

/// Sets a counter without labels to a value that another component counts.
fn store(counter: &Counter<u64, AtomicU64>, value: u64) {
    counter.inner().store(value, Ordering::Relaxed);
}
