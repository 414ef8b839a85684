//! Elements of tables that another process removes or alters. The kernel does not report such changes, so the
//! agent compares the tables with their written content each second, and restores the differences.

use super::Agent;
use crate::control::ObjectError;
use crate::trouble::Trouble;

const TABLES: &str = "tables to be as they were written";

/// Checks the tables of services, addresses and pods' namespaces. [`pod_checks`](super::pod_checks) checks
/// the tables of pods.
pub fn look(agent: &mut Agent) {
    let iteration = agent.survival.iteration as usize;
    let of_services = agent.programmer.compare(iteration);
    let of_pods = agent.node.compare_pod_sockets(agent.programmer.store());
    let (mut restored, mut missing) = (Vec::new(), Vec::new());
    for (object, compared) in [
        ("maps FRONTENDS and ADDRESSES", of_services),
        ("map POD_NETNS", of_pods.map(|done| done.into_iter().collect())),
    ] {
        match compared {
            Ok(done) => restored.extend(done.into_iter().map(|what: String| ("entry", what))),
            Err(error) => missing.push(ObjectError {
                code: Trouble::MapAccessFailed,
                object: object.to_owned(),
                message: format!(
                    "comparing with what was written fails: {error}; restart the agent if that stays"
                ),
            }),
        }
    }
    agent.survival.restored(&restored);
    agent.survival.report_missing(TABLES, missing);
}
