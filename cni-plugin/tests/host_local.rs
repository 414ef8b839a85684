//! A directory of leases passes from host-local to this plugin and back, without a change of addresses.
//!
//! host-local is that of Debian's `containernetworking-plugins`, unpacked or installed.

#[expect(dead_code, reason = "this file needs a part of it")]
mod support;

use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use support::{World, names, on_a_node, run, skip, with};

fn host_local() -> Option<PathBuf> {
    let given = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let cache = given("MILLRACE_CACHE")
        .or_else(|| given("XDG_CACHE_HOME").map(|base| base.join("millrace")))
        .or_else(|| given("HOME").map(|home| home.join(".cache/millrace")));
    let unpacked =
        given("MILLRACE_CNI_PLUGINS").or_else(|| cache.map(|cache| cache.join("debian/nodes/root")));
    let folders = [
        unpacked.map(|root| root.join("usr/lib/cni")),
        Some("/usr/lib/cni".into()),
        Some("/opt/cni/bin".into()),
    ];
    let mut places = folders
        .into_iter()
        .flatten()
        .map(|folder| folder.join("host-local"));
    places.find(|path| path.exists())
}

/// Calls host-local for the same directory: its `dataDir` is the parent, and the network has the directory's
/// name.
fn call(world: &World, program: &PathBuf, verb: &str, container: &str) -> Value {
    let config = json!({
        "cniVersion": "1.0.0", "name": "leases", "type": "host-local",
        "ipam": {"type": "host-local", "dataDir": world.path(""), "ranges": ranges()},
    });
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", container)
        .env("CNI_IFNAME", "eth0")
        .env("CNI_NETNS", "/dummy")
        .env("CNI_PATH", "/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    run(&mut command, config.to_string().as_bytes()).done()
}

fn ranges() -> Value {
    json!([[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:1::/64"}]])
}

#[test]
fn leases_are_exchanged_with_host_local() {
    let Some(program) = host_local() else {
        return skip(
            "no host-local: `cargo xtask test` unpacks Debian's containernetworking-plugins where it can",
        );
    };
    on_a_node(|world| {
        let theirs = call(world, &program, "ADD", "old1");
        assert_eq!(theirs["ips"][0]["address"], "10.244.1.2/24");
        call(world, &program, "ADD", "old2");
        // This plugin continues after host-local's last address and refuses the addresses that it gave.
        let pod = world.pod("pod");
        let ours = world.add("new1", &pod).done();
        assert_eq!(ours["ips"][0]["address"], "10.244.1.4/32");
        assert_eq!(ours["ips"][1]["address"], "fd00:1::4/128");
        let taken = with(world.config(), &json!({"runtimeConfig": {"ips": ["10.244.1.2"]}}));
        assert_eq!(
            World::call("ADD", "new2", Some(&world.pod("pod2")), &taken).code(),
            102
        );
        // host-local continues after this plugin's last address and frees the addresses that it gave.
        assert_eq!(
            call(world, &program, "ADD", "old3")["ips"][0]["address"],
            "10.244.1.5/24"
        );
        call(world, &program, "DEL", "new1");
        assert!(!world.data_dir.join("10.244.1.4").exists() && !world.data_dir.join("fd00:1::4").exists());
        world.del("new1", Some(&pod)).done();
        // This plugin frees the addresses that host-local gave.
        for container in ["old1", "old2", "old3"] {
            world.del(container, None).done();
        }
        let left: Vec<_> = names(&world.data_dir);
        assert_eq!(
            left,
            ["last_reserved_ip.0", "last_reserved_ip.1", "lock", "millrace"]
        );
        assert_eq!(names(&world.data_dir.join("millrace")), [""; 0]);
    });
}
