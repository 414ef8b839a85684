//! What an agent is started with.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::{Configuration, Settings};

/// Everything that the command line, the environment and files say about an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentOptions {
    /// The node's name, as its Node object has it.
    pub node_name: String,
    /// Where objects come from.
    pub source: SourceSpec,
    /// How to reach the API server; as a pod of the cluster where it is not given.
    pub kubeconfig: Option<PathBuf>,
    /// Where maps, programs and links are pinned.
    pub bpf_root: PathBuf,
    /// What outlives a boot.
    pub state_dir: PathBuf,
    /// What does not: the control socket.
    pub run_dir: PathBuf,
    /// The cgroup whose sockets are translated; the root of cgroup v2 where it is not given.
    pub cgroup: Option<PathBuf>,
    /// The interfaces to other machines; found by addresses and routes where none is given.
    pub uplinks: Vec<String>,
    /// The interfaces of pods; found by where they lead where none is given.
    pub pod_interfaces: Vec<NamePattern>,
    /// Where the network is described for container runtimes, if the agent does the pod network.
    pub cni_conf_dir: Option<PathBuf>,
    /// Where container runtimes look for plugins, if the agent is to put its own there.
    pub cni_bin_dir: Option<PathBuf>,
    /// Whether errors are shown at length: the verifier's whole log.
    pub verbose: bool,
    /// The files that the configuration was read from.
    pub config_files: Vec<PathBuf>,
    /// What the environment and flags say, which comes before the files.
    pub overrides: Settings,
    /// What is hardly meant in the files.
    pub warnings: Vec<String>,
    /// The configuration in force.
    pub configuration: Configuration,
}

impl AgentOptions {
    /// The UDP port of the nodes' tunnels, if the agent does the pod network.
    pub fn tunnel_port(&self) -> Option<u16> {
        self.cni_conf_dir.as_ref().map(|_| self.configuration.vxlan.port)
    }

    /// Whether what pods send to the world outside carries the node's address.
    pub fn masquerades_pods(&self) -> bool {
        self.configuration
            .masquerade
            .unwrap_or(self.cni_conf_dir.is_some())
    }
}

/// The name of an interface, or with a `*` at its end the beginning of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePattern(String);

impl NamePattern {
    /// Whether a name is meant.
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
        // `IFNAMSIZ` in `include/uapi/linux/if.h`, with the zero at the end.
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

/// Where objects come from, written `kubernetes` or `dir:PATH`.
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
