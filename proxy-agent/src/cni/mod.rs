//! What container runtimes find on the node: the plugin `millrace-cni`, and the description of the network that says
//! when and how to execute it.
//!
//! A runtime adds pods as soon as it sees the description, so this comes last: after the plugin is in its place, and only
//! when the node can take pods. It stays when the agent stops, since without it no runtime could take pods away.
//! Pure files: what they say is decided elsewhere.
//!
//! Invariants: a runtime never sees half a file; what is right already is not written; whatever was put into directories of
//! others is noted beforehand in the state directory, so that uninstalling removes exactly that.

mod conflist;
mod files;
mod install;

pub use conflist::{CONFLIST, LEASES, Network, lease_dir};
pub use files::replace;
pub use install::{InstallError, Installed, Installer, NOTE, close_state_dir, preferred_to_ours};

/// The plugin's file, and what a description calls it.
pub const PLUGIN: &str = "millrace-cni";
