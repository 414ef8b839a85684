//! The files for container runtimes on the node: the plugin `millrace-cni`, and the description of the
//! network. The description tells runtimes when and how to execute the plugin.
//!
//! A runtime adds pods as soon as it sees the description. So this file comes last, after the plugin is in
//! its place, and only when the node can take pods. It stays when the agent stops, since without it no
//! runtime could remove pods. This module only writes files; other modules decide their content.
//!
//! Invariants: a runtime never sees half a file. A file that is right already is not written. The state
//! directory notes each file before it is written into a foreign directory, so that uninstalling removes
//! exactly these files.

mod conflist;
mod files;
mod install;

pub use conflist::{CONFLIST, LEASES, Network, lease_dir};
pub use files::replace;
pub use install::{InstallError, Installed, Installer, NOTE, close_state_dir, preferred_to_ours};

/// The plugin's file name, which the description names as its type.
pub const PLUGIN: &str = "millrace-cni";
