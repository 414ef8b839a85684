//! Elements of tables that another process takes or alters: the kernel does not tell, so the tables are
//! compared with what was written, each second, and what differs is put back.

use super::Agent;
use crate::control::ObjectError;
use crate::trouble::Trouble;

const TABLES: &str = "tables to be as they were written";

/// Looks at the tables of services, addresses and pods' namespaces. Those of pods are
/// [`keeper`](super::keeper)'s.
pub fn look(agent: &mut Agent) {
    let turn = agent.survival.turn as usize;
    let of_services = agent.programmer.compare(turn);
    let of_pods = agent.node.compare_pod_sockets(agent.programmer.store());
    let (mut restored, mut lacking) = (Vec::new(), Vec::new());
    for (object, compared) in [
        ("maps FRONTENDS and ADDRESSES", of_services),
        ("map POD_NETNS", of_pods.map(|done| done.into_iter().collect())),
    ] {
        match compared {
            Ok(done) => restored.extend(done.into_iter().map(|what: String| ("entry", what))),
            Err(error) => lacking.push(ObjectError {
                code: Trouble::MapAccessFailed,
                object: object.to_owned(),
                message: format!(
                    "comparing with what was written fails: {error}; restart the agent if that stays"
                ),
            }),
        }
    }
    agent.survival.restored(&restored);
    agent.survival.lacks(TABLES, lacking);
}
