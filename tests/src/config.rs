//! Configuration files of agents.

/// A file that leaves everything at its default; settings may follow.
pub const DEFAULTS: &str = "apiVersion: millrace.dev/v1alpha1\nkind: AgentConfiguration\n";
/// The same without socket hooks, so that packets are translated one by one; more settings may follow.
pub const HOOKS_OFF: &str =
    "apiVersion: millrace.dev/v1alpha1\nkind: AgentConfiguration\nsocketLB: \"off\"\n";
