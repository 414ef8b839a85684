//! A node for each test: network namespaces, a bpf file system with pinned programs, and the real binary.
//!
//! A test runs in a thread of its own that has left the network and mount namespaces of the machine. So all
//! of its objects disappear when the thread and its children end, also after a failure, and no packet can
//! leave. The pinned programs only lead packets through limiters and let them pass. Other tests cover the
//! real programs; these tests check that programs are attached.

mod traces;

use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{panic, thread};

use cni_plugin::netlink::{NetlinkSocket, ip, link};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::Uid;
use proxy_bpf::pins::Pins;
use proxy_bpf::sys;
use proxy_common::Ip;
use proxy_common::maps::{Config, HostPort, HostPortKey, InUse, LIMITED_MARK, Pod, PodLink};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The node's own IPv4 address.
pub const NODE_V4: &str = "192.0.2.1";
/// The node's own IPv6 address.
pub const NODE_V6: &str = "2001:db8::1";

/// The capacity of `PODS` in addresses.
pub const PODS_CAPACITY: u32 = 256;

/// A node in namespaces of its own.
pub struct World {
    dir: TempDir,
    /// `BPF_ROOT` of the node.
    pub bpf_root: PathBuf,
    /// The directory of the leases.
    pub data_dir: PathBuf,
}

/// The outcome of a call of the plugin.
#[derive(Debug)]
pub struct Called {
    /// The exit status of the process.
    pub status: i32,
    /// The printed document; null if there is none.
    pub document: Value,
}

impl Called {
    /// The document of a call that must have succeeded.
    #[track_caller]
    pub fn done(self) -> Value {
        assert_eq!(self.status, 0, "{}", self.document);
        self.document
    }

    /// The code of a call that must have failed.
    #[track_caller]
    pub fn code(&self) -> u64 {
        assert_eq!(self.status, 1, "{}", self.document);
        self.document["code"].as_u64().expect("a code")
    }
}

/// Runs a test on a node with pinned programs.
pub fn on_a_node(test: impl FnOnce(&World) + Send) {
    on_a_bare_node(|world| {
        world.pin_programs();
        test(world);
    });
}

/// Runs a test on a node where no agent has run.
pub fn on_a_bare_node(test: impl FnOnce(&World) + Send) {
    if !Uid::effective().is_root() {
        return skip("needs root: makes network namespaces and loads BPF programs");
    }
    // Before Linux 5.11 maps count as locked memory. On later kernels a failure to lift the limit does no
    // harm.
    let unlimited = libc::RLIM_INFINITY;
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, unlimited, unlimited);
    let ran = thread::scope(|scope| scope.spawn(|| test(&World::new())).join());
    if let Err(failure) = ran {
        panic::resume_unwind(failure);
    }
}

/// Reports why a test does nothing; `cargo xtask test` decides which reasons are acceptable.
pub fn skip(reason: &str) {
    println!("skipped: {reason}");
    let Some(path) = std::env::var_os("MILLRACE_SKIPS") else {
        return;
    };
    let test = thread::current().name().unwrap_or_default().to_owned();
    let mut file = File::options()
        .create(true)
        .append(true)
        .open(path)
        .expect("the file of skips");
    let line = format!("{}\n", json!({"test": test, "reason": reason}));
    file.write_all(line.as_bytes()).expect("noting a skip");
}

impl World {
    fn new() -> Self {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
            .expect("leaving the namespaces of the machine");
        let nothing = None::<&str>;
        mount(
            nothing,
            "/",
            nothing,
            MsFlags::MS_REC | MsFlags::MS_PRIVATE,
            nothing,
        )
        .expect("mounts of our own");
        // The defaults of the configuration name directories of the machine.
        for place in ["/sys/fs/bpf", "/var/lib/cni"] {
            if Path::new(place).exists() {
                mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), nothing)
                    .expect("hiding the machine's");
            }
        }
        let dir = TempDir::new().expect("a temporary directory");
        let bpf = dir.path().join("bpf");
        fs::create_dir(&bpf).expect("a directory");
        mount(Some("bpf"), &bpf, Some("bpf"), MsFlags::empty(), nothing).expect("mounting bpffs");
        let world = Self {
            bpf_root: bpf.join("millrace"),
            data_dir: dir.path().join("leases"),
            dir,
        };
        let mut node = NetlinkSocket::open().expect("netlink");
        let lone = |address: &str| ip::address(1, ip::alone(address.parse().expect("an address")));
        node.batch(vec![link::up(1), lone(NODE_V4), lone(NODE_V6)])
            .expect("the node's addresses");
        world
    }

    /// Loads a program that lets every packet pass.
    pub fn load_program() -> OwnedFd {
        const SCHED_CLS: u32 = 3;
        // The instructions `r0 = TC_ACT_UNSPEC; exit`.
        const PASS: [u64; 2] = [0xffff_ffff_0000_00b7, 0x95];
        sys::program_load(SCHED_CLS, 0, &PASS).expect("loading a program")
    }

    /// Loads a program that redirects packets from a limited pod through its limiter, and lets them pass when
    /// they return.
    fn load_limiting_program(links: &OwnedFd) -> OwnedFd {
        const SCHED_CLS: u32 = 3;
        let mark = u64::from(LIMITED_MARK) << 32;
        let links = u64::try_from(links.as_raw_fd()).expect("a descriptor") << 32;
        let program = [
            0x0000_0000_0000_16bf,         // r6 = r1
            0x0000_0000_0008_1261,         // r2 = r1->mark
            0x0000_0000_0011_0215 | mark,  // if r2 == LIMITED_MARK goto clear
            0x0000_0000_0028_1261,         // r2 = r1->ifindex
            0x0000_0000_fffc_2a63,         // *(u32 *)(r10 - 4) = r2
            0x0000_0000_0000_a2bf,         // r2 = r10
            0xffff_fffc_0000_0207,         // r2 += -4
            0x0000_0000_0000_1118 | links, // r1 = POD_LINKS
            0x0000_0000_0000_0000,
            0x0000_0001_0000_0085,        // call bpf_map_lookup_elem
            0x0000_0000_000b_0015,        // if r0 == 0 goto pass
            0x0000_0000_0008_0361,        // r3 = r0->flags
            0x0000_0002_0000_0357,        // r3 &= LIMITED_FIRST
            0x0000_0000_0008_0315,        // if r3 == 0 goto pass
            0x0000_0000_000c_0161,        // r1 = r0->limiter
            0x0000_0000_0000_02b7,        // r2 = 0
            0x0000_0000_0000_03b7 | mark, // r3 = LIMITED_MARK
            0x0000_0000_0008_3663,        // r6->mark = r3
            0x0000_0017_0000_0085,        // call bpf_redirect
            0x0000_0000_0000_0095,        // exit
            0x0000_0000_0000_03b7,        // clear: r3 = 0
            0x0000_0000_0008_3663,        // r6->mark = r3
            0xffff_ffff_0000_00b7,        // pass: r0 = TC_ACT_UNSPEC
            0x0000_0000_0000_0095,        // exit
        ];
        sys::program_load(SCHED_CLS, 0, &program).expect("loading a program")
    }

    /// Pins programs as an agent does.
    pub fn pin_programs(&self) {
        const HASH: u32 = 1;
        const ARRAY: u32 = 2;
        let pins = Pins::open(&self.bpf_root).expect("a bpf root");
        let dir = pins.next("test").expect("a directory of pins");
        for (name, kind, key, value, capacity) in [
            ("POD_NETNS", HASH, 8, 4, 128),
            ("PODS", HASH, size_of::<Ip>(), size_of::<Pod>(), PODS_CAPACITY),
            ("POD_LINKS", HASH, 4, size_of::<PodLink>(), 128),
            (
                "HOST_PORTS",
                HASH,
                size_of::<HostPortKey>(),
                size_of::<HostPort>(),
                128,
            ),
            ("IN_USE", ARRAY, 4, 4, InUse::COUNT),
            ("ADDRESSES", HASH, size_of::<Ip>(), 4, 128),
            ("CONFIG", ARRAY, 4, size_of::<Config>(), 1),
        ] {
            let map = sys::map_create(kind, key as u32, value as u32, capacity).expect("making a map");
            sys::pin(map.as_fd(), &dir.map(name)).expect("pinning a map");
        }
        let links = sys::open_pin(&dir.map("POD_LINKS")).expect("a map");
        for (name, program) in [
            ("from_own_pod", Self::load_limiting_program(&links)),
            ("to_pod", Self::load_program()),
        ] {
            sys::pin(program.as_fd(), &dir.program(name)).expect("pinning a program");
        }
        pins.publish(&dir).expect("putting pins in force");
    }

    /// A path in the node's own directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes a network namespace and returns its path.
    pub fn pod(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        File::create(&path).expect("a file");
        thread::scope(|scope| {
            let made = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
                let own = "/proc/thread-self/ns/net";
                mount(Some(own), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("keeping it");
            });
            made.join().expect("making a namespace");
        });
        path
    }

    /// Unmounts a namespace, so that it ends.
    pub fn end_pod(path: &Path) {
        nix::mount::umount2(path, nix::mount::MntFlags::MNT_DETACH).expect("unmounting a namespace");
        fs::remove_file(path).expect("removing a file");
    }

    /// Runs a function in a namespace.
    pub fn inside<T: Send>(namespace: &Path, act: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let acting = scope.spawn(|| {
                let file = File::open(namespace).expect("a namespace");
                setns(file, CloneFlags::CLONE_NEWNET).expect("entering a namespace");
                act()
            });
            acting
                .join()
                .unwrap_or_else(|failure| panic::resume_unwind(failure))
        })
    }

    /// The network's configuration, with both families.
    pub fn config(&self) -> Value {
        json!({
            "cniVersion": "1.1.0",
            "name": "millrace",
            "type": "millrace-cni",
            "mtu": 1450,
            "bpfRoot": self.bpf_root,
            "ipam": {
                "dataDir": self.data_dir,
                "ranges": [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:1::/64"}]],
            },
        })
    }

    /// A call that is ready to run.
    pub fn command(verb: &str, container: &str, namespace: Option<&Path>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_millrace-cni"));
        command
            .env_clear()
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", container)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/opt/cni/bin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(namespace) = namespace {
            command.env("CNI_NETNS", namespace);
        }
        command
    }

    /// Calls the plugin and waits for its end.
    pub fn call(verb: &str, container: &str, namespace: Option<&Path>, config: &Value) -> Called {
        run(
            &mut Self::command(verb, container, namespace),
            config.to_string().as_bytes(),
        )
    }

    /// Calls ADD with the usual configuration.
    pub fn add(&self, container: &str, namespace: &Path) -> Called {
        Self::call("ADD", container, Some(namespace), &self.config())
    }

    /// Calls DEL with the usual configuration.
    pub fn del(&self, container: &str, namespace: Option<&Path>) -> Called {
        Self::call("DEL", container, namespace, &self.config())
    }
}

/// Runs a call with a document on standard input.
pub fn run(command: &mut Command, input: &[u8]) -> Called {
    let mut child = command.spawn().expect("starting millrace-cni");
    // The plugin may fail before it has read all of its input.
    let _ = child.stdin.take().expect("a pipe").write_all(input);
    let output = child.wait_with_output().expect("waiting for millrace-cni");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.is_empty(), "nothing belongs on standard error: {error}");
    let printed = String::from_utf8(output.stdout).expect("UTF-8");
    let document = if printed.is_empty() {
        Value::Null
    } else {
        serde_json::from_str(&printed).expect("a JSON document")
    };
    Called {
        status: output.status.code().expect("an exit status"),
        document,
    }
}

/// Gives the node a further address.
pub fn give_node(address: &str) {
    let lone = ip::alone(address.parse().expect("an address"));
    let mut node = NetlinkSocket::open().expect("netlink");
    node.ask(ip::address(1, lone)).expect("an address of the node");
}

/// Waits for a condition that the kernel fulfils after a while.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_mins(1);
    while !condition() {
        assert!(Instant::now() < deadline, "waiting until {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The interfaces of this thread's namespace.
pub fn interfaces() -> Vec<String> {
    let devices = text("/proc/thread-self/net/dev");
    let lines = devices.lines().skip(2);
    lines
        .filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()))
        .collect()
}

/// The names in a directory, which may be missing.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// A document with some keys changed.
pub fn with(mut document: Value, changes: &Value) -> Value {
    let changes = changes.as_object().expect("an object").clone();
    document.as_object_mut().expect("an object").extend(changes);
    document
}
