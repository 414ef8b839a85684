//! Calls `millrace-cni` as a container runtime does. It takes the description that the agent wrote, and adds
//! the runtime's fields to one plugin of it. Then it executes the plugin in the node's network namespace.
//!
//! A failed call is a value here, because tests examine it. [`Node::add_pod`] makes pods by these calls on
//! nodes whose pod network is Millrace's.

use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use serde_json::{Map, Value, json};

use crate::binary;
use crate::node::Node;

/// The interface of a pod.
pub(crate) const INTERFACE: &str = "eth0";

/// The description of a pod that is to be made.
#[derive(Clone, Debug)]
pub struct PodSpec {
    name: String,
    container: String,
    runtime_config: Map<String, Value>,
    arguments: String,
}

impl PodSpec {
    /// A pod in the namespace `default` without requests. Its container is called `<name>-container`.
    pub fn new(name: &str) -> Self {
        let container = format!("{name}-container");
        Self {
            name: name.to_owned(),
            runtime_config: Map::new(),
            arguments: format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={name};K8S_POD_INFRA_CONTAINER_ID={container}"
            ),
            container,
        }
    }

    /// Adds a request by a capability: `portMappings`, `bandwidth`, `ips`, `mac`.
    #[must_use]
    pub fn asking(mut self, capability: &str, value: Value) -> Self {
        self.runtime_config.insert(capability.to_owned(), value);
        self
    }

    /// The pod's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// The attachment of one container to the network, as a runtime remembers it.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// The description that the pod was made from.
    pub spec: PodSpec,
    /// The file that names the network namespace.
    pub netns: PathBuf,
}

/// The outcome of a call.
#[derive(Debug)]
pub struct Called {
    /// Whether it succeeded.
    pub success: bool,
    /// The result or the error; null if nothing was printed.
    pub document: Value,
}

impl Called {
    /// The result of a call that must have succeeded.
    pub fn done(self) -> Result<Value> {
        if self.success {
            return Ok(self.document);
        }
        bail!("millrace-cni failed: {}", self.document)
    }
}

/// The directory where an agent writes the description of the network.
pub fn conf_dir(node: &Node) -> PathBuf {
    node.dir().join("cni/net.d")
}

/// The directory where an agent installs the plugin.
pub fn bin_dir(node: &Node) -> PathBuf {
    node.dir().join("cni/bin")
}

/// The description that an agent wrote.
pub fn conflist(node: &Node) -> Result<Value> {
    let path = conf_dir(node).join("10-millrace.conflist");
    let text = fs::read(&path)
        .with_context(|| format!("reading {}: has the agent described the network?", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))
}

/// Calls the plugin for one attachment. DEL and CHECK get the result of ADD as `previous`, if it is known.
pub fn call(node: &Node, verb: &str, attachment: &Attachment, previous: Option<&Value>) -> Result<Called> {
    start(node, verb, attachment, previous)?.finish()
}

/// Starts a call, and does not wait for its end.
pub fn start(node: &Node, verb: &str, attachment: &Attachment, previous: Option<&Value>) -> Result<Running> {
    let list = conflist(node)?;
    let Attachment { spec, netns } = attachment;
    let mut document = list["plugins"][0].clone();
    document["name"] = list["name"].clone();
    // The newest version that both sides know, as libcni chooses it.
    let newest = list["cniVersions"]
        .as_array()
        .and_then(|versions| versions.last());
    document["cniVersion"] = newest.unwrap_or(&list["cniVersion"]).clone();
    if !spec.runtime_config.is_empty() {
        document["runtimeConfig"] = json!(spec.runtime_config);
    }
    if let Some(previous) = previous {
        document["prevResult"] = previous.clone();
    }
    if let Some(object) = document.as_object_mut() {
        object.remove("capabilities");
    }
    let mut child = node
        .command(binary::millrace_cni())
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", &spec.container)
        .env("CNI_NETNS", netns)
        .env("CNI_IFNAME", INTERFACE)
        .env("CNI_ARGS", &spec.arguments)
        .env("CNI_PATH", bin_dir(node))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting millrace-cni")?;
    if let Some(mut input) = child.stdin.take() {
        // The plugin may fail before it has read all its input.
        let _ = input.write_all(document.to_string().as_bytes());
    }
    Ok(Running(child))
}

/// A call that runs.
pub struct Running(Child);

impl Running {
    /// Waits for the end of the call.
    pub fn finish(self) -> Result<Called> {
        let output = self.0.wait_with_output().context("waiting for millrace-cni")?;
        let document = if output.stdout.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&output.stdout).context("reading what millrace-cni printed")?
        };
        Ok(Called {
            success: output.status.success(),
            document,
        })
    }

    /// Ends the call by SIGKILL; false if it had ended before.
    pub fn kill(&mut self) -> Result<bool> {
        self.0.kill().context("killing millrace-cni")?;
        let status = self.0.wait().context("waiting for millrace-cni")?;
        Ok(status.signal().is_some())
    }
}

/// The addresses in the result of an ADD.
pub(crate) fn addresses(result: &Value) -> Result<Vec<IpAddr>> {
    let listed = result["ips"].as_array().context("no addresses in the result")?;
    let address = |entry: &Value| -> Result<IpAddr> {
        let text = entry["address"].as_str().context("an entry without an address")?;
        let net: IpNet = text.parse().with_context(|| format!("reading {text}"))?;
        Ok(net.addr())
    };
    listed.iter().map(address).collect()
}

/// The node's side of the interface in the result of an ADD.
pub(crate) fn host_interface(result: &Value) -> Result<String> {
    let name = result["interfaces"][0]["name"].as_str();
    Ok(name.context("no interface in the result")?.to_owned())
}

/// Records an attachment.
pub(crate) fn attachment(spec: &PodSpec, netns: &Path) -> Attachment {
    Attachment {
        spec: spec.clone(),
        netns: netns.to_owned(),
    }
}
