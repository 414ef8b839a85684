//! Opens the data plane so that no running pod loses protection or traffic.
//!
//! Pins may be lost while the agent is away, or have a layout that it gives up. Then the agent's tables are
//! empty, while programs with the old tables are still attached to pods' interfaces. Before the agent
//! replaces these programs, it makes the entries of pods again from the plugin's notes.

use crate::bpf::object::MapSizes;
use crate::bpf::{BpfError, Datapath};
use crate::config::AgentOptions;
use crate::pods::restore;

/// Opens the data plane with the entries of running pods in its tables.
pub fn open_datapath(options: &AgentOptions, sizes: &MapSizes) -> Result<Datapath, BpfError> {
    let plugin_paths = crate::agent::plugin_paths(options);
    Datapath::open_prepared(&options.bpf_root, sizes, &mut |pins, dir| {
        match restore::prepare(&plugin_paths, pins, dir) {
            Ok(done) => {
                for (_, what) in &done.restored {
                    tracing::info!("restored an entry of a running pod: {what}");
                }
                for problem in &done.problems {
                    tracing::warn!(object = problem.object, "{}", problem.message);
                }
            }
            // The running agent tries it again; until then these pods send no packets.
            Err(error) => tracing::warn!(%error, "the entries of running pods are not restored"),
        }
    })
}
