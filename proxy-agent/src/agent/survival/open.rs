//! Opening the data plane so that no running pod loses protection or traffic by it.
//!
//! Pins may be lost while the agent is away, or of a layout that it gives up. Then its tables are empty, while programs over
//! the old ones still hang at pods' interfaces. Before these are exchanged the entries of pods are made again from the
//! plugin's notes.

use crate::bpf::object::MapSizes;
use crate::bpf::{BpfError, Datapath};
use crate::config::AgentOptions;
use crate::pods::restore;

/// Opens the data plane with the entries of running pods in it.
pub fn open_datapath(options: &AgentOptions, sizes: &MapSizes) -> Result<Datapath, BpfError> {
    let places = crate::agent::places(options);
    Datapath::open_prepared(&options.bpf_root, sizes, &mut |pins, dir| {
        match restore::prepare(&places, pins, dir) {
            Ok(done) => {
                for (_, what) in &done.restored {
                    tracing::info!("restored an entry of a running pod: {what}");
                }
                for problem in &done.problems {
                    tracing::warn!(object = problem.object, "{}", problem.message);
                }
            }
            // It is tried again when the agent runs; until then these pods send nothing.
            Err(error) => tracing::warn!(%error, "the entries of running pods are not restored"),
        }
    })
}
