//! The network side against the kernel: links followed, our device and its routes, pods' namespaces found.
//!
//! Each test runs in a network and a mount namespace of its own, made by the thread it runs in and gone with it.

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

/// Runs a test in namespaces of its own, or notes why it cannot.
fn in_namespace<F: Future<Output = ()>>(test: &str, body: impl FnOnce() -> F) {
    if !nix::unistd::geteuid().is_root() {
        return note_skip(test, "needs root");
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

/// Runs a test in namespaces of its own whose cookies a socket tells; before Linux 5.14 only a witness does.
fn in_namespace_with_cookie<F: Future<Output = ()>>(test: &str, body: impl FnOnce() -> F) {
    match own_netns_cookie(None) {
        Ok(_) => in_namespace(test, body),
        Err(error) => note_skip(test, &format!("no SO_NETNS_COOKIE: {error}")),
    }
}

fn note_skip(test: &str, reason: &str) {
    use std::io::Write as _;
    let Some(path) = std::env::var_os("MILLRACE_SKIPS") else {
        return;
    };
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    writeln!(
        file.expect("the file of skips"),
        "{}",
        serde_json::json!({ "test": test, "reason": reason })
    )
    .expect("noting a skip");
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

/// An interface to others: a veth whose other end has carrier but leads nowhere.
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

/// Waits until the links fulfil a condition; gives all changes on the way.
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

#[test]
fn our_device_is_made_once_and_then_left_alone() {
    in_namespace("our_device_is_made_once_and_then_left_alone", || async {
        add_uplink();
        std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "1").expect("strict filtering");
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("forwarding");
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").expect("IPv6 off by default");
        let netlink = Netlink::open().expect("a socket");
        let mut device = HostDevice::new(netlink.clone());
        let index = device.ensure(1400).await.expect("made");
        assert!(device.writes() > 0);

        let link = netlink
            .link_by_name(HOST_DEVICE)
            .await
            .expect("asked")
            .expect("there");
        let shown = ip("-d link show");
        for name in ["millrace0@millrace1", "millrace1@millrace0"] {
            let row = shown.lines().find(|row| row.contains(name)).expect("both ends");
            assert!(
                row.contains("NOARP,UP,LOWER_UP") && !row.contains("MULTICAST"),
                "{row}"
            );
            assert!(row.contains("mtu 1400"), "{row}");
        }
        assert_eq!(
            ip("-o addr show dev millrace0") + &ip("-o addr show dev millrace1"),
            "",
            "no addresses"
        );
        assert_eq!(setting("ipv4/conf/all/rp_filter"), "1");
        assert_eq!(
            setting("ipv4/conf/millrace0/rp_filter"),
            setting("ipv4/conf/default/rp_filter")
        );
        assert_eq!(setting("ipv4/conf/millrace0/forwarding"), "1");
        assert_eq!(setting("ipv6/conf/millrace0/forwarding"), "1");
        assert_eq!(setting("ipv6/conf/all/forwarding"), "0");
        assert_eq!(setting("ipv4/conf/millrace1/forwarding"), "0");

        let restarted = Netlink::open().expect("a socket");
        let mut after_restart = HostDevice::new(restarted.clone());
        assert_eq!(after_restart.ensure(1400).await.expect("adopted"), index);
        assert_eq!(after_restart.writes(), 0);
        assert_eq!(
            restarted.link_by_name(HOST_DEVICE).await.expect("asked"),
            Some(link)
        );

        after_restart.ensure(1350).await.expect("smaller");
        assert_eq!(after_restart.writes(), 2, "one for each end");
        assert!(after_restart.remove().await.expect("removed"));
        assert!(!after_restart.remove().await.expect("nothing left"));
        assert_eq!(netlink.link_by_name(HOST_DEVICE).await.expect("asked"), None);
    });
}

#[test]
fn an_interface_with_our_name_is_not_touched() {
    in_namespace("an_interface_with_our_name_is_not_touched", || async {
        ip("link add millrace0 type veth peer name other0");
        let before = ip("-o link show");
        let mut device = HostDevice::new(Netlink::open().expect("a socket"));
        let error = device.ensure(1500).await.expect_err("foreign");
        assert!(matches!(error, NetworkError::ForeignDevice { .. }), "{error}");
        assert!(device.remove().await.is_err());
        assert_eq!((ip("-o link show"), device.writes()), (before, 0));
    });
}

#[test]
fn routes_follow_what_is_wanted_and_nothing_is_written_twice() {
    in_namespace(
        "routes_follow_what_is_wanted_and_nothing_is_written_twice",
        || async {
            add_uplink();
            let mut device = HostDevice::new(Netlink::open().expect("a socket"));
            device.ensure(1400).await.expect("made");
            assert_eq!(device.sync_routes(wanted()).await.expect("set"), []);
            let expected = [
                "10.96.0.0/12 dev millrace0 scope link src 192.0.2.1",
                "203.0.113.9 dev millrace0 scope link src 192.0.2.1",
                "2001:db8:f::9 dev millrace0 src 2001:db8::1 metric 1024 pref medium",
                "fd00:96::/112 dev millrace0 src 2001:db8::1 metric 1024 pref medium",
            ];
            assert_eq!(our_routes(), expected);

            let mut restarted = HostDevice::new(Netlink::open().expect("a socket"));
            restarted.ensure(1400).await.expect("adopted");
            assert_eq!(restarted.sync_routes(wanted()).await.expect("read"), []);
            assert_eq!(restarted.writes(), 0);

            // Another primary address, one range and one address less.
            let mut other = HostRoutes {
                node: node("192.0.2.2"),
                ..wanted()
            };
            other.service_cidrs.pop();
            other.virtual_addresses = [address("2001:db8:f::9")].into();
            assert_eq!(restarted.sync_routes(other.clone()).await.expect("set"), []);
            assert_eq!(
                our_routes(),
                [
                    expected[0].replace("192.0.2.1", "192.0.2.2").as_str(),
                    expected[2]
                ]
            );
            assert_eq!(restarted.writes(), 3);

            // The kernel takes the routes with their source address and with the device's state.
            ip("addr del 192.0.2.2/24 dev uplink0");
            ip("link set millrace0 down");
            assert_eq!(our_routes(), [""; 0]);
            ip("addr add 192.0.2.2/24 dev uplink0");
            restarted.ensure(1400).await.expect("up again");
            assert_eq!(restarted.sync_routes(other).await.expect("set"), []);
            assert_eq!(our_routes().len(), 2);
        },
    );
}

#[test]
fn foreign_routes_stay_and_are_reported() {
    in_namespace("foreign_routes_stay_and_are_reported", || async {
        add_uplink();
        ip("route add 10.96.0.0/12 via 192.0.2.254 metric 50");
        ip("route add blackhole fd00:96::/112");
        ip("route add 198.51.100.0/24 via 192.0.2.254 proto 157");
        let mut monitor = Monitor::start(Netlink::open().expect("a socket"))
            .await
            .expect("following");
        let mut device = HostDevice::new(Netlink::open().expect("a socket"));
        device.ensure(1400).await.expect("made");
        let before = ip("route show proto boot") + &ip("-6 route show type blackhole");
        let problems = device.sync_routes(wanted()).await.expect("set");
        let objects: Vec<_> = problems.iter().map(|problem| problem.object.as_str()).collect();
        assert_eq!(objects, ["route 10.96.0.0/12", "route fd00:96::/112"]);
        assert!(
            problems[0].message.contains("through uplink0"),
            "{}",
            problems[0].message
        );
        assert_eq!(
            ip("route show proto boot") + &ip("-6 route show type blackhole"),
            before
        );
        assert!(
            ip("route show proto 157").contains("198.51.100.0/24"),
            "not on our device, hence not ours"
        );

        ip("route del 10.96.0.0/12 via 192.0.2.254");
        ip("route del blackhole fd00:96::/112");
        let change = monitor.changed().await.expect("following");
        assert!(device.is_concerned(&change), "{change:?}");
        assert_eq!(device.sync_routes(wanted()).await.expect("set"), []);
        assert_eq!(
            our_routes()
                .iter()
                .filter(|route| route.contains("millrace0"))
                .count(),
            4
        );
    });
}

#[test]
fn packets_to_virtual_addresses_leave_by_our_device_and_end_at_its_peer() {
    in_namespace(
        "packets_to_virtual_addresses_leave_by_our_device_and_end_at_its_peer",
        || async {
            add_uplink();
            for setting in [
                "ipv4/ip_forward",
                "ipv6/conf/all/forwarding",
                "ipv4/conf/all/rp_filter",
            ] {
                std::fs::write(format!("/proc/sys/net/{setting}"), "1").expect("a setting");
            }
            let mut device = HostDevice::new(Netlink::open().expect("a socket"));
            device.ensure(1400).await.expect("made");
            device.sync_routes(wanted()).await.expect("set");
            for (to, from) in [("10.96.7.7:53", "192.0.2.1"), ("[fd00:96::7]:53", "2001:db8::1")] {
                let before = (sent_by("millrace0"), sent_by("millrace1"));
                let any = if from.contains(':') { "[::]:0" } else { "0.0.0.0:0" };
                let socket = UdpSocket::bind(any).expect("a socket");
                socket.connect(to).expect("a route");
                assert_eq!(socket.local_addr().expect("bound").ip(), address(from));
                for _ in 0..5 {
                    socket
                        .send(b"?")
                        .expect("no neighbour to wait for, and nobody who refuses");
                }
                // Exactly these five: no solicitation, no report, no echo from the other end.
                let after = (sent_by("millrace0"), sent_by("millrace1"));
                assert_eq!(after, (before.0 + 5, before.1), "{to}");
            }
            assert_eq!(
                (sent_by("millrace0"), sent_by("millrace1")),
                (10, 0),
                "it says nothing of its own accord"
            );
        },
    );
}

#[test]
fn links_addresses_and_default_routes_are_followed() {
    in_namespace("links_addresses_and_default_routes_are_followed", || async {
        let mut monitor = Monitor::start(Netlink::open().expect("a socket"))
            .await
            .expect("following");
        assert_eq!(
            monitor
                .links()
                .iter()
                .map(|link| link.name.as_str())
                .collect::<Vec<_>>(),
            ["lo"]
        );

        ip("link add uplink0 type veth peer name outside0");
        ip("addr add 192.0.2.1/24 dev uplink0");
        ip("link set uplink0 up");
        ip("link set outside0 up");
        ip("route add default via 192.0.2.254");
        let carries = |links: &Links| {
            links
                .by_name("uplink0")
                .is_some_and(millrace::network::Link::has_carrier)
        };
        let changes = until(&mut monitor, "the uplink has carrier", carries).await;
        assert!(
            changes
                .iter()
                .any(|change| change.addresses && change.default_routes),
            "{changes:?}"
        );
        let index = monitor.links().by_name("uplink0").expect("there").index;
        assert_eq!(monitor.links().default_interfaces(), [index].into());
        let found = roles(monitor.links(), &RoleOptions::default());
        assert_eq!(
            found
                .of(Role::Uplink)
                .map(|uplink| uplink.index)
                .collect::<Vec<_>>(),
            [index]
        );
        let addresses = NodeAddresses::find(monitor.links(), &found, &[]);
        assert_eq!(addresses.all, [address("192.0.2.1")]);

        // The kernel says nothing of routes that go with the state of a link.
        ip("link set uplink0 down");
        until(&mut monitor, "the default route is gone", |links| {
            links.default_interfaces().is_empty()
        })
        .await;

        // Nor does it tell one end of a veth that the other one moved.
        let pod = Namespace::new();
        pod.receive("outside0");
        let leads_there = |links: &Links| {
            links
                .get(index)
                .is_some_and(millrace::network::Link::leads_to_another_namespace)
        };
        until(&mut monitor, "the other end is known to have moved", leads_there).await;

        ip("link add br0 type bridge");
        ip("link set uplink0 master br0");
        ip("link set uplink0 nomaster");
        until(&mut monitor, "the bridge is there", |links| {
            links.by_name("br0").is_some()
        })
        .await;
        assert!(
            monitor.links().get(index).is_some(),
            "leaving a bridge is not being removed"
        );
        ip("link del uplink0");
        until(&mut monitor, "the link is gone", |links| {
            links.get(index).is_none()
        })
        .await;
        assert_eq!(monitor.links().addresses(index), []);
    });
}

#[test]
fn lost_messages_are_made_up_for() {
    in_namespace("lost_messages_are_made_up_for", || async {
        let mut monitor = Monitor::start(Netlink::open().expect("a socket"))
            .await
            .expect("following");
        let dir = tempfile::tempdir().expect("a directory");
        let batch = dir.path().join("batch");
        let routes =
            (0..60_000).map(|i| format!("route add 10.{}.{}.{} dev lo", i >> 16, i >> 8 & 255, i & 255));
        std::fs::write(&batch, routes.collect::<Vec<_>>().join("\n")).expect("written");
        run("ip", &["-batch", batch.to_str().expect("UTF-8")]);
        ip("link add late0 type veth peer name late1");
        let changes = until(&mut monitor, "the late link is there", |links| {
            links.by_name("late0").is_some()
        })
        .await;
        assert!(
            changes.iter().any(|change| change.resynced),
            "the buffer held it all: make the flood larger"
        );
    });
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

    /// Makes one and mounts it on a file.
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

#[test]
fn a_namespace_tells_its_cookie_to_one_who_enters_and_to_one_who_asks() {
    in_namespace_with_cookie(
        "a_namespace_tells_its_cookie_to_one_who_enters_and_to_one_who_asks",
        || async {
            let pods = [Namespace::new(), Namespace::new()];
            let files = || {
                pods.iter()
                    .map(|pod| std::fs::File::open(&pod.file).expect("the namespace"))
                    .collect()
            };
            let own = own_netns_cookie(None).expect("a cookie");
            let entered = cookies_by_entering(files(), None).expect("entered");
            assert_eq!(cookies_of(files(), None).expect("asked"), entered);
            assert_eq!(
                entered,
                [cookie_inside(&pods[0].file), cookie_inside(&pods[1].file)]
            );
            assert_eq!(
                own_netns_cookie(None).expect("a cookie"),
                own,
                "this thread has not moved"
            );
        },
    );
}

/// The cookie as a process in the namespace sees it.
fn cookie_inside(file: &Path) -> u64 {
    let file = std::fs::File::open(file).expect("the namespace");
    let inside = move || {
        setns(file, CloneFlags::CLONE_NEWNET).expect("entering");
        own_netns_cookie(None).expect("a cookie")
    };
    std::thread::spawn(inside).join().expect("a thread")
}

#[test]
fn pods_are_found_before_and_after_their_interface() {
    in_namespace_with_cookie("pods_are_found_before_and_after_their_interface", || async {
        let directory = tempfile::tempdir().expect("a directory");
        let directory = directory.path();
        let netlink = Netlink::open().expect("a socket");
        let mut monitor = Monitor::start(netlink.clone()).await.expect("following");
        let mut namespaces = PodNamespaces::new(netlink, directory).expect("watching");
        let no_uplink = RoleOptions {
            uplinks: vec!["none".into()],
            ..RoleOptions::default()
        };
        std::fs::write(directory.join("not-mounted"), "").expect("a file");
        Namespace::make(directory, "of-nobody");

        // The file first, as with every container runtime; two interfaces into one pod.
        let first = Namespace::make(directory, "first");
        for name in ["pod0", "pod1"] {
            ip(&format!(
                "link add {name} type veth peer name eth-{name} netns {}",
                first.display()
            ));
        }
        until(&mut monitor, "both links are there", |links| {
            links.by_name("pod1").is_some()
        })
        .await;
        let found = roles(monitor.links(), &no_uplink);
        assert_eq!(
            found
                .of(Role::Pod)
                .map(|pod| pod.name.as_str())
                .collect::<Vec<_>>(),
            ["pod0", "pod1"]
        );
        assert!(namespaces.update(monitor.links(), &found).await);
        assert!(!namespaces.update(monitor.links(), &found).await, "no news");
        let cookie = cookie_inside(&first);
        assert_ne!(cookie, own_netns_cookie(None).expect("a cookie"));
        assert_eq!(
            namespaces.cookies().map(|(_, cookie)| cookie).collect::<Vec<_>>(),
            [cookie, cookie]
        );

        // The interface first: its namespace gets a file in the directory later.
        let second = Namespace::new();
        ip(&format!(
            "link add pod2 type veth peer name eth0 netns {}",
            second.file.display()
        ));
        until(&mut monitor, "the link is there", |links| {
            links.by_name("pod2").is_some()
        })
        .await;
        let found = roles(monitor.links(), &no_uplink);
        assert!(!namespaces.update(monitor.links(), &found).await);
        let file = directory.join("second");
        std::fs::write(&file, "").expect("a file to mount on");
        mount(
            Some(&second.file),
            &file,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .expect("mounted");
        namespaces.mounted().await;
        assert!(namespaces.update(monitor.links(), &found).await);
        let pod2 = monitor.links().by_name("pod2").expect("there").index;
        assert!(
            namespaces
                .cookies()
                .any(|found| found == (pod2, cookie_inside(&second.file)))
        );

        // A pod that takes over the name, id and inode of one that went.
        ip("link del pod2");
        nix::mount::umount(&second.file).expect("unmounted");
        nix::mount::umount(&file).expect("unmounted");
        let third = Namespace::make(directory, "second");
        ip(&format!(
            "link add pod3 type veth peer name eth0 netns {}",
            third.display()
        ));
        until(&mut monitor, "the link is there", |links| {
            links.by_name("pod3").is_some()
        })
        .await;
        assert!(
            namespaces
                .update(monitor.links(), &roles(monitor.links(), &no_uplink))
                .await
        );
        let pod3 = monitor.links().by_name("pod3").expect("there").index;
        assert!(
            namespaces
                .cookies()
                .any(|found| found == (pod3, cookie_inside(&third)))
        );
        assert!(!namespaces.cookies().any(|(index, _)| index == pod2));
    });
}
