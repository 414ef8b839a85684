//! Two nodes: one has Millrace with its agent, the other the stock chain.

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use harness::{Agent, Node, World};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::{Value, json};

use super::chain::{Chain, Plugin, Sandbox};

/// The variable with the root of the unpacked packages that hold the stock plugins.
const STOCK: &str = "MILLRACE_CNI_PLUGINS";
/// The variable with the path of Millrace's plugin.
const OURS: &str = "MILLRACE_CNI_BIN";
/// The size of the largest packet of a pod, in bytes.
pub const MTU: u32 = 1450;

/// The world with both nodes, and their chains of plugins.
pub struct Site {
    pub world: World,
    _agent: Agent,
    pub millrace: Chain,
    pub stock: Chain,
}

/// The node whose pods are measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Contender {
    Millrace,
    Stock,
}

impl Contender {
    pub const BOTH: [Self; 2] = [Self::Millrace, Self::Stock];

    /// Both, in an order that changes with each round.
    pub fn in_round(round: usize) -> [Self; 2] {
        let mut order = Self::BOTH;
        if round % 2 == 1 {
            order.reverse();
        }
        order
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Millrace => "millrace",
            Self::Stock => "stock",
        }
    }
}

/// The reason why nothing can be compared on this machine.
pub fn missing() -> Option<String> {
    let given = |name| env::var_os(name).is_some_and(|path| Path::new(&path).exists());
    if !given(STOCK) {
        return Some(format!(
            "{STOCK} does not name the unpacked plugins of Debian's containernetworking-plugins"
        ));
    }
    (!given(OURS)).then(|| format!("{OURS} does not name millrace-cni"))
}

impl Site {
    /// Creates the nodes, and waits until the node with Millrace can take pods.
    pub fn new() -> Result<Self> {
        Self::configured("")
    }

    /// The same with settings of the agent, one a line.
    pub fn configured(settings: &str) -> Result<Self> {
        let world = World::with_nodes(2);
        let settings = format!("apiVersion: millrace.dev/v1alpha1\nkind: AgentConfiguration\n{settings}");
        let agent = world.node(1).agent().config(&settings).start();
        let pins = world.node(1).bpf_root().join("current");
        let deadline = Instant::now() + Duration::from_mins(1);
        while !pins.exists() {
            ensure!(
                Instant::now() < deadline,
                "the agent has pinned nothing: {}",
                agent.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Self {
            millrace: ours(world.node(1))?,
            stock: stock(world.node(2))?,
            _agent: agent,
            world,
        })
    }

    pub fn node(&self, of: Contender) -> &Node {
        match of {
            Contender::Millrace => self.world.node(1),
            Contender::Stock => self.world.node(2),
        }
    }

    pub fn chain(&self, of: Contender) -> &Chain {
        match of {
            Contender::Millrace => &self.millrace,
            Contender::Stock => &self.stock,
        }
    }

    /// Creates a container's namespace. The end of the world removes it at the latest.
    pub fn sandbox(&self, id: &str) -> Result<Sandbox> {
        let netns = PathBuf::from(format!("/run/netns/{}-{id}", self.world.tag()));
        let make = || -> Result<()> {
            File::create(&netns)?;
            unshare(CloneFlags::CLONE_NEWNET)?;
            let own = "/proc/thread-self/ns/net";
            Ok(mount(
                Some(own),
                &netns,
                None::<&str>,
                MsFlags::MS_BIND,
                None::<&str>,
            )?)
        };
        on_own_thread(make).with_context(|| format!("making namespace {}", netns.display()))?;
        Ok(Sandbox {
            id: id.to_owned(),
            netns,
        })
    }
}

/// Runs `work` in a container's namespace.
pub fn inside<T: Send>(sandbox: &Sandbox, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    on_own_thread(|| {
        let netns = File::open(&sandbox.netns).context("opening a namespace")?;
        setns(netns, CloneFlags::CLONE_NEWNET).context("entering a namespace")?;
        work()
    })
}

fn on_own_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let done = std::thread::scope(|scope| scope.spawn(work).join());
    done.unwrap_or_else(|failure| std::panic::resume_unwind(failure))
}

fn ours(node: &Node) -> Result<Chain> {
    let program = PathBuf::from(env::var_os(OURS).context("no plugin of ours")?);
    let entry = json!({
        "type": "millrace-cni",
        "mtu": MTU,
        "bpfRoot": node.bpf_root(),
        "ipam": {
            "dataDir": node.dir().join("leases"),
            "ranges": [[{"subnet": "10.90.0.0/16"}]],
        },
    });
    Ok(Chain {
        name: "millrace",
        plugins: vec![Plugin {
            program,
            entry,
            capability: None,
        }],
        environment: Vec::new(),
    })
}

/// The bridge as flannel configures it. Containerd's example asks more of it: that one masquerades.
fn stock(node: &Node) -> Result<Chain> {
    let root = PathBuf::from(env::var_os(STOCK).context("no stock plugins")?);
    let libraries = ["usr/lib", "lib"].map(|folder| {
        let folder = root.join(folder);
        folder.join(format!("{}-linux-gnu", env::consts::ARCH))
    });
    let programs = ["usr/sbin", "usr/bin"].map(|folder| root.join(folder));
    let system = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from);
    let joined = |folders: Vec<PathBuf>| -> Result<OsString> { Ok(env::join_paths(folders)?) };
    let plugin = |name: &str, entry: Value, capability| -> Result<Plugin> {
        let program = root.join("usr/lib/cni").join(name);
        if !program.exists() {
            bail!("{} is not there", program.display());
        }
        Ok(Plugin {
            program,
            entry,
            capability: Some(capability),
        })
    };
    let bridge = json!({
        "type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "hairpinMode": true, "mtu": MTU,
        "ipam": {
            "type": "host-local",
            "dataDir": node.dir().join("leases"),
            "ranges": [[{"subnet": "10.91.0.0/16"}]],
        },
    });
    Ok(Chain {
        name: "stock",
        plugins: vec![
            plugin("bridge", bridge, "ips")?,
            plugin(
                "portmap",
                json!({"type": "portmap", "snat": true}),
                "portMappings",
            )?,
            plugin("bandwidth", json!({"type": "bandwidth"}), "bandwidth")?,
        ],
        environment: vec![
            ("PATH", joined(programs.into_iter().chain(system).collect())?),
            ("XTABLES_LIBDIR", libraries[0].join("xtables").into_os_string()),
            ("LD_LIBRARY_PATH", joined(libraries.into())?),
        ],
    })
}
