//! kube-proxy on a node, in its nftables mode, for comparisons with Millrace. It runs in the node's network
//! namespace, so its rules end with the world.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::binaries;
use super::process::Process;
use crate::failure::OrPanic;
use crate::node::Node;
use crate::wait::wait_for;

/// The default address of its metrics.
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10249);

/// The metric with the time of the last write of rules, for each address family.
const LAST_SYNC: &str = "kubeproxy_sync_proxy_rules_last_timestamp_seconds{";

/// Folders of administrators' commands, which a user's `PATH` may leave out.
const ADMINISTRATORS: [&str; 2] = ["/usr/sbin", "/sbin"];

/// A running kube-proxy; dropping it ends it, unless its world is kept.
pub struct KubeProxy {
    node: Node,
    process: Process,
}

impl KubeProxy {
    /// The reason why kube-proxy cannot run on this machine, if there is one.
    pub fn missing() -> Option<String> {
        if nft().is_none() {
            return Some("no `nft`: install nftables".to_owned());
        }
        let binary = binaries::kube_proxy();
        binary
            .err()
            .map(|error| format!("no Kubernetes programs: {error:#}"))
    }

    /// Starts kube-proxy on a node with a KubeProxyConfiguration, as JSON or YAML, that names a kubeconfig.
    #[track_caller]
    pub fn start(node: &Node, configuration: &str) -> Self {
        Self::spawn(node, configuration)
            .with_context(|| format!("starting kube-proxy on {}", node.name()))
            .or_panic()
    }

    fn spawn(node: &Node, configuration: &str) -> Result<Self> {
        let file = node.dir().join("kube-proxy.yaml");
        fs::write(&file, configuration).with_context(|| format!("writing {}", file.display()))?;
        let mut command = node.command(binaries::kube_proxy()?);
        command
            .arg("--config")
            .arg(&file)
            // One of the few flags that apply beside a configuration file.
            .arg(format!("--hostname-override={}", node.name()))
            .arg("--v=2")
            .env("PATH", path());
        for variable in ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"] {
            command.env_remove(variable);
        }
        let process = Process::start(command, node.dir().join("kube-proxy.log"), node.kept())?;
        Ok(Self {
            node: node.clone(),
            process,
        })
    }

    /// Waits until kube-proxy has written its rules for both address families.
    #[track_caller]
    pub fn wait_synced(&mut self, within: Duration) {
        let what = format!("kube-proxy on {} to write its rules", self.node.name());
        wait_for(&what, within, || {
            self.process.assert_running();
            let page = self.node.http_get(METRICS, "/metrics")?.body;
            let synced = page
                .lines()
                .filter(|line| line.starts_with(LAST_SYNC) && !line.ends_with("} 0"));
            ensure!(synced.count() == 2, "it has not for both families");
            Ok(())
        });
    }
}

/// `PATH` with the administrators' folders in it.
fn path() -> OsString {
    let given = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&given).chain(ADMINISTRATORS.map(PathBuf::from));
    env::join_paths(folders).unwrap_or(given)
}

/// The program that kube-proxy writes rules with.
fn nft() -> Option<PathBuf> {
    env::split_paths(&path())
        .map(|folder| folder.join("nft"))
        .find(|file| file.is_file())
}
