//! Tests of the network side against the kernel: the links, our device and its routes, and the namespaces of
//! pods.
//!
//! Each test runs in a network and a mount namespace of its own. The test's thread makes them, and they
//! disappear with it.

mod device;
mod following;
mod namespaces;
#[path = "../support/skip.rs"]
mod skip;

use std::net::{IpAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use millrace::network::cookie::{cookies_by_entering, cookies_of};
use millrace::network::namespaces::PodNamespaces;
use millrace::network::{
    Change, HOST_DEVICE, HostDevice, HostRoutes, Links, Monitor, Netlink, NetworkError, NodeAddresses, Role,
    RoleOptions, own_netns_cookie, roles,
};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

use skip::note_skip;

/// Runs a test in namespaces of its own, or notes why that is not possible.
fn in_namespace<F: Future<Output = ()>>(body: impl FnOnce() -> F) {
    if !nix::unistd::geteuid().is_root() {
        return note_skip("needs root");
    }
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).expect("new namespaces");
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("private mounts");
    ip("link set lo up");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        tokio::time::timeout(Duration::from_mins(1), body())
            .await
            .expect("in time");
    });
}

/// Runs a test in namespaces of its own whose cookies a socket can read. Before Linux 5.14 only a witness
/// can.
fn in_namespace_with_cookie<F: Future<Output = ()>>(body: impl FnOnce() -> F) {
    match own_netns_cookie(None) {
        Ok(_) => in_namespace(body),
        Err(error) => note_skip(&format!("no SO_NETNS_COOKIE: {error}")),
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program} {}: {error}",
        arguments.join(" ")
    );
    String::from_utf8(output.stdout).expect("text")
}

fn ip(arguments: &str) -> String {
    run("ip", &arguments.split(' ').collect::<Vec<_>>())
}

/// The value of a setting of a device.
fn setting(name: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/sys/net/{name}")).expect("a setting");
    text.trim_end().to_owned()
}

fn sent_by(device: &str) -> u64 {
    let text = ip(&format!("-j -s link show dev {device}"));
    let links: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    links[0]["stats64"]["tx"]["packets"].as_u64().expect("a counter")
}

/// Adds an interface to other machines: a veth whose other end has a carrier but leads nowhere.
fn add_uplink() {
    ip("link add uplink0 mtu 1400 type veth peer name outside0");
    for setting in ["accept_dad", "accept_ra"] {
        std::fs::write(format!("/proc/sys/net/ipv6/conf/uplink0/{setting}"), "0").expect("a setting");
    }
    ip("addr add 192.0.2.1/24 dev uplink0");
    ip("addr add 192.0.2.2/24 dev uplink0");
    ip("addr add 2001:db8::1/64 dev uplink0 nodad");
    ip("link set uplink0 up");
    ip("link set outside0 up");
}

fn node(primary_v4: &str) -> NodeAddresses {
    let mut all: Vec<IpAddr> = ["192.0.2.1", "192.0.2.2", "2001:db8::1"].map(address).into();
    all.sort_unstable();
    NodeAddresses {
        primary_v4: Some(primary_v4.parse().expect("IPv4")),
        primary_v6: Some("2001:db8::1".parse().expect("IPv6")),
        all,
        ..NodeAddresses::default()
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn wanted() -> HostRoutes {
    HostRoutes {
        service_cidrs: ["10.96.0.0/12", "fd00:96::/112"]
            .map(|text| text.parse().expect("a range"))
            .into(),
        virtual_addresses: ["10.96.0.1", "203.0.113.9", "192.0.2.2", "2001:db8:f::9"]
            .map(address)
            .into(),
        node: node("192.0.2.1"),
    }
}

fn our_routes() -> Vec<String> {
    let (v4, v6) = (ip("-4 route show proto 157"), ip("-6 route show proto 157"));
    v4.lines()
        .chain(v6.lines())
        .map(|line| line.trim_end().to_owned())
        .collect()
}

/// Waits until the links fulfil a condition; returns all changes until then.
async fn until(monitor: &mut Monitor, what: &str, mut fulfilled: impl FnMut(&Links) -> bool) -> Vec<Change> {
    let mut changes = Vec::new();
    while !fulfilled(monitor.links()) {
        let change = tokio::time::timeout(Duration::from_secs(5), monitor.changed()).await;
        changes.push(
            change
                .unwrap_or_else(|_| panic!("waiting until {what}"))
                .expect("following"),
        );
    }
    changes
}

/// A network namespace with a file, as a container runtime makes it.
struct Namespace {
    _dir: tempfile::TempDir,
    file: PathBuf,
}

impl Namespace {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let file = Self::make(dir.path(), "ns");
        Self { _dir: dir, file }
    }

    /// Makes a network namespace and mounts it on a file.
    fn make(dir: &Path, name: &str) -> PathBuf {
        let file = dir.join(name);
        std::fs::write(&file, "").expect("a file to mount on");
        run("unshare", &[&format!("--net={}", file.display()), "true"]);
        file
    }

    fn receive(&self, device: &str) {
        ip(&format!("link set {device} netns {}", self.file.display()));
    }
}
