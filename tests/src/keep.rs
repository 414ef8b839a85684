//! The instructions for a person about a world that stays up.

use std::fmt::Write;

use crate::binary;
use crate::world::World;

pub(crate) fn instructions(world: &World) -> String {
    let tool =
        binary::world_tool().map_or_else(|_| "millrace-world".to_owned(), |path| path.display().to_string());
    let millrace = binary::millrace_or_name();
    let mut text = format!(
        "The world {} stays up. Its files are in {}.\n\n",
        world.tag(),
        world.dir().display()
    );
    for node in world.nodes() {
        let (name, ip) = (node.name(), node.ip());
        let (dir, root) = (node.dir().display(), node.bpf_root().display());
        // write! to a String cannot fail.
        let _ = writeln!(
            text,
            "{name} ({ip}), manifests in {dir}/source, log in {dir}/agent.log"
        );
        let _ = writeln!(text, "  {millrace} status --run-dir {dir}/run --bpf-root {root}");
        let _ = writeln!(text, "  nsenter --net={} bash", node.netns_path().display());
    }
    let _ = writeln!(
        text,
        "\nPods and clients are namespaces too: ls /run/netns/{}-*",
        world.tag()
    );
    let _ = writeln!(
        text,
        "Socket hooks see a shell only in the right cgroup: {tool} run NETNS CGROUP bash"
    );
    let _ = writeln!(text, "Remove all of it: {tool} remove {}", world.tag());
    text
}
