//! Reports the parts that were made again and those that cannot be: in the log, as a metric, and as events on
//! the Node.

use crate::control::ObjectError;
use crate::events::{Event, Recorder};
use crate::metrics::Metrics;
use crate::network::netlink::Restored;

/// The most objects that an event names.
const MAX_NAMED: usize = 8;

/// Reports for one node; all clones report to the same places.
#[derive(Clone)]
pub struct Notifier {
    node: String,
    recorder: Recorder,
    metrics: Metrics,
}

impl Notifier {
    /// A notifier for the node of this name.
    pub fn new(node: &str, recorder: Recorder, metrics: Metrics) -> Self {
        Self {
            node: node.to_owned(),
            recorder,
            metrics,
        }
    }

    /// Counts, logs and reports the parts that were made again.
    pub fn restored(&self, restored: &[Restored]) {
        for (what, object) in restored {
            tracing::warn!("restored lost objects: {what} ({object})");
            self.metrics.own.restored(what);
        }
        if restored.is_empty() {
            return;
        }
        let named = restored.iter().take(MAX_NAMED);
        let named: Vec<_> = named.map(|(what, object)| format!("{what} ({object})")).collect();
        let rest = match restored.len().saturating_sub(MAX_NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let note = format!("restored lost objects: {}{rest}", named.join(", "));
        self.notify("Normal", "DataPlaneRestored", note);
    }

    /// Logs a lacking part, and sends an event about it.
    pub fn incomplete(&self, problem: &ObjectError) {
        tracing::warn!(object = problem.object, "{}", problem.message);
        let note = format!("{}: {}", problem.object, problem.message);
        self.notify("Warning", "DataPlaneIncomplete", note);
    }

    /// Logs a contradiction between the Nodes, and sends an event about it.
    pub fn unknown(&self, problem: &ObjectError) {
        tracing::warn!(object = problem.object, "{}", problem.message);
        let note = format!("{}: {}", problem.object, problem.message);
        let event = Event::warning_of_node(&self.node, "NodeMismatch", "Start", note);
        self.recorder.record(event);
    }

    fn notify(&self, type_: &'static str, reason: &'static str, note: String) {
        self.recorder
            .record(Event::of_node(type_, &self.node, reason, "Restore", note));
    }
}
