//! The closing words about a world that stays: how to enter it, commands to try, how to remove it.

use std::fmt::Write as _;

use crate::shop::{SHOP, Shop};

/// Leaves the world up and returns instructions for its use.
pub fn instructions(shop: Shop) -> String {
    let (tag, dir) = (shop.world.tag(), shop.world.dir());
    let (node, dir) = (shop.world.node(1).name().to_owned(), dir.display());
    let (host, port) = SHOP.split_once(':').unwrap_or((SHOP, "80"));
    let mut text = String::from("Things to try:\n");
    let ask = format!(
        "ip netns exec {tag}-client bash -c 'for i in {{1..10}}; do head -1 </dev/tcp/{host}/{port}; done'"
    );
    let tries = [
        (
            "ten requests from the client's pod; each answer names its backend",
            ask,
        ),
        (
            "a service without endpoints refuses connections at once",
            format!("rm {dir}/n*/source/endpointslice.default.shop-ipv4.yaml"),
        ),
        (
            "a mistake in a file: the last good content is served on, and status tells",
            format!("echo 'kind: 1' >> {dir}/{node}/source/shop.yaml"),
        ),
    ];
    for (what, command) in tries {
        // write! to a String cannot fail.
        let _ = writeln!(text, "  # {what}\n  {command}");
    }
    format!("{}\n{text}", shop.world.keep())
}
