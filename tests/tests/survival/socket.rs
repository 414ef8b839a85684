//! The control socket is removed while its agent runs, as a clean-up of temporary files removes it.

use std::fs;

use harness::wait_for;

use super::town::{SOON, Town};

#[test]
fn the_control_socket_is_made_again_with_its_directory() {
    harness::require_root!();
    let town = Town::build();
    let run_dir = town.node().dir().join("run");
    // Without a socket there is no status to check.
    let await_answer = |town: &Town| wait_for("an answer", SOON, || town.node().cli(&["status"]));
    town.lose("socket", |town| {
        fs::remove_file(run_dir.join("agent.sock")).expect("a socket");
        await_answer(town);
    });
    town.lose("socket", |town| {
        fs::remove_dir_all(&run_dir).expect("a directory");
        await_answer(town);
    });
    town.assert_whole("with a new socket");
}
