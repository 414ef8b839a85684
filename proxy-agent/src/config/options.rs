//! The options of an agent.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::{Configuration, Settings};

/// All options of an agent from the command line, the environment and files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentOptions {
    /// The node's name, as its Node object has it.
    pub node_name: String,
    /// The source of objects.
    pub source: SourceSpec,
    /// The kubeconfig for the API server; `None` for a pod's access to its cluster.
    pub kubeconfig: Option<PathBuf>,
    /// The directory of the pinned maps, programs and links.
    pub bpf_root: PathBuf,
    /// The directory of files that outlive a boot.
    pub state_dir: PathBuf,
    /// The directory of the control socket, which does not outlive a boot.
    pub run_dir: PathBuf,
    /// The cgroup whose sockets are translated; `None` for the root of cgroup v2.
    pub cgroup: Option<PathBuf>,
    /// The interfaces to other machines; if empty, the agent finds them by addresses and routes.
    pub uplinks: Vec<String>,
    /// The interfaces of pods; if empty, the agent finds them by the namespace that they lead to.
    pub pod_interfaces: Vec<NamePattern>,
    /// The directory for the description of the network, if the agent sets up the pod network.
    pub cni_conf_dir: Option<PathBuf>,
    /// The directory of container runtimes for plugins, if the agent must install its own there.
    pub cni_bin_dir: Option<PathBuf>,
    /// Whether errors are shown at length, such as the verifier's whole log.
    pub verbose: bool,
    /// The files that the configuration was read from.
    pub config_files: Vec<PathBuf>,
    /// The settings of the environment and flags, which override the files.
    pub overrides: Settings,
    /// Warnings about settings in the files that are most likely not intended.
    pub warnings: Vec<String>,
    /// The configuration in force.
    pub configuration: Configuration,
}

impl AgentOptions {
    /// The UDP port of the nodes' tunnels, if the agent sets up the pod network.
    pub fn tunnel_port(&self) -> Option<u16> {
        self.cni_conf_dir.as_ref().map(|_| self.configuration.vxlan.port)
    }

    /// Whether packets from pods to the outside get the node's address as their source.
    pub fn masquerades_pods(&self) -> bool {
        self.configuration
            .masquerade
            .unwrap_or(self.cni_conf_dir.is_some())
    }
}

/// The name of an interface, or its beginning with a `*` at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePattern(String);

impl NamePattern {
    /// Whether a name matches.
    pub fn matches(&self, name: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => self.0 == name,
        }
    }
}

impl FromStr for NamePattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // `IFNAMSIZ` in `include/uapi/linux/if.h`, less the zero at the end.
        const LONGEST: usize = 15;
        let name = text.strip_suffix('*').unwrap_or(text);
        if text.is_empty()
            || name.len() > LONGEST
            || name.contains(['*', '/'])
            || name.contains(char::is_whitespace)
        {
            return Err(format!(
                "{text:?} is no name of an interface, nor the beginning of one with a * behind it"
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

/// The source of objects, written `kubernetes` or `dir:PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceSpec {
    /// An API server.
    Kubernetes,
    /// Manifests below a directory.
    Directory(PathBuf),
}

impl FromStr for SourceSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            None if text == "kubernetes" => Ok(Self::Kubernetes),
            Some(("dir", path)) if !path.is_empty() => Ok(Self::Directory(path.into())),
            _ => Err("write kubernetes, or dir:PATH".into()),
        }
    }
}

impl fmt::Display for SourceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kubernetes => f.write_str("kubernetes"),
            Self::Directory(path) => write!(f, "dir:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_written_as_they_are_read() {
        for text in ["kubernetes", "dir:/etc/millrace", "dir:a:b"] {
            assert_eq!(text.parse::<SourceSpec>().unwrap().to_string(), text);
        }
        for text in ["", "dir", "dir:", "kubernetes:x", "file:/x"] {
            assert!(text.parse::<SourceSpec>().is_err(), "{text}");
        }
    }
}
