//! A container runtime on a node: containerd, asked by the CRI as a kubelet asks it, and `ctr` and `cnitool` beside it.
//!
//! The runtime lives in mount, pid and other namespaces of its own inside the node's network namespace, made by the script
//! that nodes of a cluster start with; so whatever containers leave behind ends with the first process of these. Its
//! programs are found by `MILLRACE_RUNTIMES`, which `cargo xtask test` sets, else among what `cargo xtask kubernetes` and
//! `cargo xtask cluster` have built. There is one image: this package's `millrace-world`, which is a server and a client.

use std::env;
use std::fs;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::{Value, json};

use crate::failure::OrPanic;
use crate::node::Node;
use crate::{binary, cni, wait};

/// The only image.
pub const IMAGE: &str = "millrace.local/world:test";
/// The program in it.
pub const PROGRAM: &str = "/millrace-world";

/// The programs of a container runtime.
#[derive(Clone, Debug)]
pub struct Programs {
    folders: Vec<PathBuf>,
}

impl Programs {
    /// Finds all of them, or says what is missing.
    pub fn find() -> Result<Self, String> {
        let folders = match env::var_os("MILLRACE_RUNTIMES") {
            Some(folders) => env::split_paths(&folders).collect(),
            None => built(),
        };
        let programs = Self { folders };
        for name in [
            "containerd",
            "containerd-shim-runc-v2",
            "ctr",
            "cnitool",
            "cri",
            "runc",
        ] {
            programs
                .path(name)
                .map_err(|error| format!("no container runtime: {error}"))?;
        }
        Ok(programs)
    }

    /// Where one is.
    pub fn path(&self, name: &str) -> Result<PathBuf> {
        let mut candidates = self.folders.iter().map(|folder| folder.join(name));
        let found = candidates.find(|path| path.is_file());
        found.with_context(|| format!("no {name} in MILLRACE_RUNTIMES: run the test by `cargo xtask test`"))
    }

    fn search_path(&self) -> Result<std::ffi::OsString> {
        let inherited = env::var_os("PATH").unwrap_or_default();
        let system = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from);
        let folders = self.folders.iter().cloned().chain(env::split_paths(&inherited));
        env::join_paths(folders.chain(system)).context("joining paths")
    }
}

/// What `cargo xtask` has built, of any version.
fn built() -> Vec<PathBuf> {
    let cache = env::var_os("MILLRACE_CACHE").map(PathBuf::from);
    let home = || Some(PathBuf::from(env::var_os("HOME")?).join(".cache/millrace"));
    let Some(cache) = cache.or_else(home) else {
        return Vec::new();
    };
    let versions = fs::read_dir(cache.join("containerd"))
        .into_iter()
        .flatten()
        .flatten();
    let mut folders: Vec<_> = versions.map(|entry| entry.path()).collect();
    folders.push(cache.join("debian/nodes/root/usr/sbin"));
    folders
}

/// A running containerd; it ends with this value, and all containers with it.
pub struct Containerd {
    node: Node,
    programs: Programs,
    folder: PathBuf,
    process: Child,
}

/// A pod that runs, as the runtime knows it.
#[derive(Debug)]
pub struct Sandbox {
    /// The runtime's id of it.
    pub id: String,
    /// The id of its only container.
    pub container: String,
    config: Value,
}

impl Containerd {
    /// Starts it on a node whose agent has described the network.
    #[track_caller]
    pub fn start(node: &Node, programs: &Programs) -> Self {
        Self::try_start(node, programs)
            .context("starting containerd")
            .or_panic()
    }

    fn try_start(node: &Node, programs: &Programs) -> Result<Self> {
        let folder = node.dir().join("runtime");
        let images = folder.join("images");
        for new in [&images, &folder.join("run"), &folder.join("logs")] {
            fs::create_dir_all(new).with_context(|| format!("making {}", new.display()))?;
        }
        pack_image(&images)?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster/node.sh");
        let configuration = folder.join("containerd.toml");
        fs::write(&configuration, containerd_toml(node, &folder, programs)?)
            .context("configuring containerd")?;
        let mut command = node.command("unshare");
        command
            .args(["--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child"])
            .args(["--mount-proc", "--propagation=private", "bash"])
            .arg(script)
            // What the script starts in place of a kubelet: `ctr` looks for networks where nobody can tell it otherwise.
            .args([
                "bash",
                "-c",
                "cp \"$0\"/*.conflist /etc/cni/net.d/ && exec sleep infinity",
            ])
            .arg(cni::conf_dir(node))
            .env("PATH", programs.search_path()?)
            .env("NODE", node.name())
            .env("ADDRESS", node.ip().to_string())
            .env("FOLDER", &folder)
            .env("IMAGES", &images)
            // All that is in it.
            .env("PLUGINS", cni::bin_dir(node).join("."))
            .env("CGROUP", node.cgroup())
            .env("CONTAINERD_ADDRESS", folder.join("run/containerd.sock"))
            .stdin(Stdio::null())
            .process_group(0);
        let log = fs::File::create(folder.join("node.log")).context("making a log")?;
        command
            .stdout(log.try_clone().context("duplicating a log")?)
            .stderr(log);
        let process = command.spawn().context("starting its namespaces")?;
        let runtime = Self {
            node: node.clone(),
            programs: programs.clone(),
            folder,
            process,
        };
        wait::wait_for("containerd to be ready", Duration::from_mins(1), || {
            runtime.is_ready()
        });
        Ok(runtime)
    }

    fn is_ready(&self) -> Result<()> {
        let status = self.call("Status", &json!({}))?;
        let conditions = status["status"]["conditions"]
            .as_array()
            .context("no conditions")?;
        let is_met = |kind: &str| {
            let mut met = conditions.iter().filter(|condition| condition["status"] == true);
            met.any(|condition| condition["type"] == kind)
        };
        ensure!(
            is_met("RuntimeReady") && is_met("NetworkReady"),
            "not ready: {conditions:?}"
        );
        let images = self.ctr(&["images", "ls", "-q"])?;
        ensure!(images.contains(IMAGE), "it has not got its image: {images}");
        let networks = self
            .inside("ls")
            .arg("/etc/cni/net.d")
            .output()
            .context("listing networks")?;
        ensure!(
            String::from_utf8_lossy(&networks.stdout).contains("conflist"),
            "no network yet"
        );
        Ok(())
    }

    /// One call of the CRI.
    pub fn call(&self, method: &str, request: &Value) -> Result<Value> {
        let mut command = Command::new(self.programs.path("cri")?);
        let mut child = command
            .arg(self.folder.join("run/containerd.sock"))
            .arg(method)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting cri")?;
        if let Some(mut input) = child.stdin.take() {
            input
                .write_all(request.to_string().as_bytes())
                .context("sending a request")?;
        }
        let output = child.wait_with_output().context("waiting for cri")?;
        serde_json::from_str(&succeeded(&output)?).context("reading a response")
    }

    /// Runs a pod with one container, which serves a port under the pod's name. `changes` are more of its configuration.
    #[track_caller]
    pub fn run_pod(&self, name: &str, port: u16, changes: &Value) -> Sandbox {
        self.try_run_pod(name, port, changes)
            .with_context(|| format!("running the pod {name}; see {}", self.log()))
            .or_panic()
    }

    fn try_run_pod(&self, name: &str, port: u16, changes: &Value) -> Result<Sandbox> {
        let mut config = json!({
            "metadata": {"name": name, "uid": format!("uid-{name}"), "namespace": "default"},
            "hostname": name,
            "logDirectory": self.folder.join("logs"),
            "dnsConfig": {},
            "linux": {
                "cgroupParent": cgroup_parent(&self.node)?,
                "securityContext": {"namespaceOptions": {"network": "POD", "pid": "CONTAINER"}},
            },
        });
        for (key, value) in changes.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        let started = self.call("RunPodSandbox", &json!({"config": config}))?;
        let id = text(&started, "podSandboxId")?;
        let container = json!({
            "podSandboxId": id,
            "config": {
                "metadata": {"name": "main"},
                "image": {"image": IMAGE},
                "command": [PROGRAM, "serve", name, port.to_string()],
                "logPath": format!("{name}.log"),
                "linux": {},
            },
            "sandboxConfig": config,
        });
        let container = text(&self.call("CreateContainer", &container)?, "containerId")?;
        self.call("StartContainer", &json!({"containerId": container}))?;
        Ok(Sandbox {
            id,
            container,
            config,
        })
    }

    /// The addresses that the runtime reports of a pod.
    pub fn addresses(&self, sandbox: &Sandbox) -> Result<Vec<std::net::IpAddr>> {
        let status = self.call("PodSandboxStatus", &json!({"podSandboxId": sandbox.id}))?;
        let network = &status["status"]["network"];
        let first = network["ip"].as_str().into_iter();
        let more = network["additionalIps"].as_array().into_iter().flatten();
        first
            .chain(more.filter_map(|entry| entry["ip"].as_str()))
            .map(|ip| ip.parse().with_context(|| format!("reading {ip}")))
            .collect()
    }

    /// Asks a server from inside a pod's container, and gives its answer: its name and whom it saw.
    pub fn ask(&self, sandbox: &Sandbox, to: std::net::SocketAddr) -> Result<crate::Answer> {
        let request = json!({
            "containerId": sandbox.container,
            "cmd": [PROGRAM, "ask", to.to_string()],
            "timeout": "10",
        });
        let done = self.call("ExecSync", &request)?;
        let said = |key: &str| done[key].as_str().map(decode).unwrap_or_default();
        ensure!(
            done["exitCode"] == 0,
            "asking {to}: {}{}",
            said("stdout"),
            said("stderr")
        );
        crate::Answer::parse(&said("stdout")).context("reading an answer")
    }

    /// Stops a pod and removes it.
    #[track_caller]
    pub fn remove_pod(&self, sandbox: &Sandbox) {
        for (method, key, id) in [
            ("StopContainer", "containerId", &sandbox.container),
            ("StopPodSandbox", "podSandboxId", &sandbox.id),
            ("RemovePodSandbox", "podSandboxId", &sandbox.id),
        ] {
            self.call(method, &json!({key: id}))
                .with_context(|| format!("removing {}", sandbox.config["metadata"]))
                .or_panic();
        }
    }

    /// Runs `ctr`, by which people talk to containerd.
    pub fn ctr(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.inside(self.programs.path("ctr")?);
        command
            .arg("--address")
            .arg(self.folder.join("run/containerd.sock"))
            .args(["--namespace", "k8s.io"])
            .args(arguments);
        succeeded(&command.output().context("running ctr")?)
    }

    /// A command in the runtime's namespaces.
    fn inside(&self, program: impl AsRef<Path>) -> Command {
        let pid = self.process.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let mut command = self.node.command("nsenter");
        command
            .arg(format!(
                "--target={}",
                children.split_whitespace().next().unwrap_or_default()
            ))
            .args(["--mount", "--pid", "--uts", "--ipc", "--root", "--"])
            .arg(program.as_ref());
        command
    }

    fn log(&self) -> String {
        let log = fs::read_to_string(self.folder.join("containerd.log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // Its first process goes with it, and whatever that one has started.
        let _ = self.process.kill();
        let _ = self.process.wait();
        let Ok(parent) = cgroup_parent(&self.node) else {
            return;
        };
        // Where version 1 controllers are in use, containers had cgroups in each of them.
        for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let group = hierarchy.path().join(parent.trim_start_matches('/'));
            let _ = wait::poll(Duration::from_secs(5), || remove_tree(&group));
            // The world's own, empty by now in these hierarchies.
            if let Some(world) = group.parent().filter(|_| hierarchy.file_name() != "unified") {
                let _ = fs::remove_dir(world).and_then(|()| fs::remove_dir(world.parent().unwrap_or(world)));
            }
        }
    }
}

/// The parent of containers' cgroups, below the mount point of any hierarchy.
fn cgroup_parent(node: &Node) -> Result<String> {
    let names = node
        .cgroup()
        .components()
        .map(|part| part.as_os_str().to_string_lossy());
    let own: Vec<_> = names.skip_while(|name| !name.starts_with("mr-")).collect();
    ensure!(!own.is_empty(), "{} is in no world", node.cgroup().display());
    Ok(format!("/{}/containers", own.join("/")))
}

fn remove_tree(group: &Path) -> Result<()> {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(group) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", group.display()))
        }
        _ => Ok(()),
    }
}

fn containerd_toml(node: &Node, folder: &Path, programs: &Programs) -> Result<String> {
    let (root, run) = (folder.join("containerd"), folder.join("run"));
    // A process may not lower its own oom score without CAP_SYS_RESOURCE, and needs no lower one here.
    Ok(format!(
        r#"version = 3
root = "{root}"
state = "/run/containerd"
oom_score = 0
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt"]
[grpc]
address = "{socket}"
[plugins.'io.containerd.cri.v1.images']
snapshotter = "overlayfs"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "{IMAGE}"
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
disable_apparmor = true
[plugins.'io.containerd.cri.v1.runtime'.containerd]
default_runtime_name = "runc"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = "{runc}"
SystemdCgroup = false
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["{bin}"]
use_internal_loopback = true
conf_dir = "{conf}"
"#,
        root = root.display(),
        socket = run.join("containerd.sock").display(),
        runc = programs.path("runc")?.display(),
        bin = cni::bin_dir(node).display(),
        conf = cni::conf_dir(node).display(),
    ))
}

/// Writes an archive as `docker save` does: one layer with one program, which in a sandbox waits for the pod's end.
fn pack_image(folder: &Path) -> Result<()> {
    let parts = folder.with_file_name("image");
    fs::create_dir_all(&parts).context("making a folder for the image")?;
    fs::copy(binary::world_tool()?, parts.join(PROGRAM.trim_start_matches('/')))
        .context("copying a program")?;
    let run = |command: &mut Command| succeeded(&command.output().context("making an image")?);
    let tar = |archive: &Path, members: &[&str]| {
        let mut tar = Command::new("tar");
        tar.args(["--create", "--owner=0", "--group=0", "--file"])
            .arg(archive)
            .arg("--directory")
            .arg(&parts);
        run(tar.args(members)).map(drop)
    };
    tar(&parts.join("layer.tar"), &[PROGRAM.trim_start_matches('/')])?;
    let digest = run(Command::new("sha256sum").arg(parts.join("layer.tar")))?;
    let digest = digest
        .split_whitespace()
        .next()
        .context("sha256sum said nothing")?;
    let config = json!({
        "architecture": if env::consts::ARCH == "aarch64" { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {"Entrypoint": [PROGRAM, "serve", "pause", "1"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    });
    let manifest = json!([{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]);
    fs::write(parts.join("config.json"), config.to_string()).context("writing an image's configuration")?;
    fs::write(parts.join("manifest.json"), manifest.to_string()).context("writing an image's manifest")?;
    tar(
        &folder.join("world.tar"),
        &["config.json", "manifest.json", "layer.tar"],
    )
}

fn text(document: &Value, key: &str) -> Result<String> {
    let text = document[key].as_str().filter(|text| !text.is_empty());
    Ok(text
        .with_context(|| format!("no {key} in {document}"))?
        .to_owned())
}

/// What a command printed, if it succeeded.
fn succeeded(output: &Output) -> Result<String> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    bail!(
        "{}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    )
}

/// The bytes of a protocol buffer, as its JSON form has them.
fn decode(text: &str) -> String {
    let bytes = BASE64_STANDARD.decode(text).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}
