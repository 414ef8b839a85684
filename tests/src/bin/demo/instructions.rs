//! The closing words about a world that stays: how to enter it, commands to try, how to remove it.

use std::fmt::Write as _;

use crate::topology::{HTTP, Topology};

/// Leaves the world up and returns instructions for its use.
pub fn instructions(topology: Topology) -> String {
    let (tag, dir) = (topology.world.tag(), topology.world.dir());
    let (node, dir) = (topology.world.node(1).name().to_owned(), dir.display());
    let (host, port) = HTTP.split_once(':').unwrap_or((HTTP, "80"));
    let mut text = String::from("Things to try:\n");
    let ask = format!(
        "ip netns exec {tag}-client bash -c 'for i in {{1..10}}; do head -1 </dev/tcp/{host}/{port}; done'"
    );
    let tries = [
        (
            "ten requests from the client's pod; each reply names its backend",
            ask,
        ),
        (
            "a service without endpoints refuses connections at once",
            format!("rm {dir}/n*/source/endpointslice.default.shop-ipv4.yaml"),
        ),
        (
            "a mistake in a file: the agent keeps the last good content, and status names the mistake",
            format!("echo 'kind: 1' >> {dir}/{node}/source/shop.yaml"),
        ),
    ];
    for (what, command) in tries {
        // write! to a String cannot fail.
        let _ = writeln!(text, "  # {what}\n  {command}");
    }
    format!("{}\n{text}", topology.world.keep())
}
