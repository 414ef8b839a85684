//! The control socket is removed while its agent runs, as a clean-up of temporary files removes it.

use std::fs;

use harness::wait_for;

use super::topology::{SOON, Topology};

#[test]
fn the_control_socket_is_made_again_with_its_directory() {
    harness::require_root!();
    let topology = Topology::build();
    let run_dir = topology.node().dir().join("run");
    // Without a socket there is no status to check.
    let await_reply = |topology: &Topology| wait_for("a reply", SOON, || topology.node().cli(&["status"]));
    topology.lose("socket", |topology| {
        fs::remove_file(run_dir.join("agent.sock")).expect("a socket");
        await_reply(topology);
    });
    topology.lose("socket", |topology| {
        fs::remove_dir_all(&run_dir).expect("a directory");
        await_reply(topology);
    });
    topology.assert_whole("with a new socket");
}
