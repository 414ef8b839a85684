//! A container runtime on a node: containerd, called over the CRI as a kubelet calls it, with `ctr` and
//! `cnitool` beside it.
//!
//! The runtime has mount, pid and other namespaces of its own inside the node's network namespace. The script
//! that starts the nodes of a cluster creates them. The remains of containers end with the first process of
//! these namespaces. `MILLRACE_RUNTIMES`, which `cargo xtask test` sets, leads to the runtime's programs.
//! Without it they are among the builds of `cargo xtask kubernetes` and `cargo xtask cluster`. There is one
//! image: this package's `millrace-world`, which is a server and a client.

mod cgroups;
mod image;
mod programs;

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
use crate::{cni, wait};

pub use image::{IMAGE, PROGRAM};
pub use programs::Programs;

/// A running containerd. It ends when this value is dropped, and all containers with it.
pub struct Containerd {
    node: Node,
    programs: Programs,
    folder: PathBuf,
    process: Child,
}

/// A pod that runs, with the ids that the runtime gave it.
#[derive(Debug)]
pub struct Sandbox {
    /// The runtime's id of the pod.
    pub id: String,
    /// The id of its only container.
    pub container: String,
    config: Value,
}

impl Containerd {
    /// Starts containerd on a node whose agent has described the network.
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
        image::pack(&images)?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster/node.sh");
        let configuration = folder.join("containerd.toml");
        fs::write(&configuration, containerd_config(node, &folder, programs)?)
            .context("configuring containerd")?;
        let mut command = node.command("bash");
        command
            .arg(script)
            // The script starts this command in place of a kubelet. `ctr` looks for networks in a fixed
            // directory.
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
            // All files of that directory.
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

    /// Runs a pod with one container, which serves a port under the pod's name. `changes` are merged into its
    /// configuration.
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
                "cgroupParent": cgroups::parent(&self.node)?,
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

    /// Asks a server from inside a pod's container, and returns its answer: its name and the client that it
    /// saw.
    pub fn ask(&self, sandbox: &Sandbox, to: std::net::SocketAddr) -> Result<crate::Reply> {
        let request = json!({
            "containerId": sandbox.container,
            "cmd": [PROGRAM, "ask", to.to_string()],
            "timeout": "10",
        });
        let done = self.call("ExecSync", &request)?;
        let decoded = |key: &str| done[key].as_str().map(decode).unwrap_or_default();
        ensure!(
            done["exitCode"] == 0,
            "asking {to}: {}{}",
            decoded("stdout"),
            decoded("stderr")
        );
        crate::Reply::parse(&decoded("stdout")).context("reading a reply")
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

    /// Runs `ctr`, containerd's own command line.
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
        // The end of its first process ends all processes of the pid namespace.
        let _ = self.process.kill();
        let _ = self.process.wait();
        cgroups::remove(&self.node);
    }
}

/// The configuration of containerd: the file of a cluster's nodes with the paths of this runtime.
/// `CNI_LOOPBACK` makes up for the missing kubelet.
fn containerd_config(node: &Node, folder: &Path, programs: &Programs) -> Result<String> {
    let path = |path: PathBuf| path.display().to_string();
    let mut text = include_str!("../../cluster/containerd.toml").to_owned();
    for (name, value) in [
        ("ROOT", path(folder.join("containerd"))),
        ("SOCKET", path(folder.join("run/containerd.sock"))),
        ("PAUSE", IMAGE.to_owned()),
        ("RUNC", path(programs.path("runc")?)),
        ("CNI_BIN", path(cni::bin_dir(node))),
        ("CNI_CONF", path(cni::conf_dir(node))),
        ("CNI_LOOPBACK", "true".to_owned()),
    ] {
        text = text.replace(&format!("@{name}@"), &value);
    }
    Ok(text)
}

fn text(document: &Value, key: &str) -> Result<String> {
    let text = document[key].as_str().filter(|text| !text.is_empty());
    Ok(text
        .with_context(|| format!("no {key} in {document}"))?
        .to_owned())
}

/// The output of a command, if it succeeded.
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

/// The text in a bytes field of a protocol buffer, decoded from its JSON form, base64.
fn decode(text: &str) -> String {
    let bytes = BASE64_STANDARD.decode(text).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}
