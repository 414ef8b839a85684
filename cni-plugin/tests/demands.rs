//! What a tenant can ask for by its runtime: it reaches what the pod has, never what others have.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, which panic with what went wrong"
)]

#[expect(dead_code, reason = "this file needs a part of it")]
mod support;

use support::{World, interfaces, on_a_node};

#[test]
fn an_interface_has_the_name_that_was_asked_for() {
    on_a_node(|world| {
        let before = world.traces();
        let pod = world.pod("pod");
        for name in [
            "eth%d",
            "%d",
            "net%s",
            "50%",
            "all",
            "default",
            "a b",
            "a:b",
            "a/b",
            "..",
            "sixteen-bytes-16",
        ] {
            let mut command = World::command("ADD", "c1", Some(&pod));
            let refused = support::run(
                command.env("CNI_IFNAME", name),
                world.config().to_string().as_bytes(),
            );
            assert_eq!(refused.code(), 4, "{name}");
            assert!(
                refused.document["msg"].as_str().unwrap().contains(name),
                "{}",
                refused.document
            );
            assert_eq!(World::inside(&pod, interfaces), ["lo"], "{name}");
            assert_eq!(world.traces(), before, "{name}");
        }
    });
}
