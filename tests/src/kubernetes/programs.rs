//! The command lines of etcd and kube-apiserver: the fewest options of a real API server, and one directory
//! for all files that they write.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result};
use serde_json::json;

use super::binaries;
use super::process::Process;
use crate::manifest::SERVICE_CIDRS;
use crate::place::Place;
use crate::world::World;

/// The address where etcd listens, inside the fabric only.
const ETCD: &str = "http://127.0.0.1:2379";
const ETCD_PEERS: &str = "http://127.0.0.1:2380";

const PORT: u16 = 6443;
const TOKEN: &str = "harness";

pub(super) struct Programs {
    fabric: Place,
    binaries: PathBuf,
    dir: PathBuf,
    flags: Vec<String>,
    kept: Arc<AtomicBool>,
}

impl Programs {
    /// Writes the files that the programs need; `flags` are more flags of kube-apiserver.
    pub(super) fn prepare(world: &World, flags: &[&str]) -> Result<Self> {
        let programs = Self {
            fabric: world.fabric().clone(),
            binaries: binaries::dir()?,
            dir: world.dir().join("kubernetes"),
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            kept: world.kept(),
        };
        programs.write_credentials()?;
        Ok(programs)
    }

    pub(super) fn fabric(&self) -> &Place {
        &self.fabric
    }

    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    pub(super) fn url(&self) -> String {
        format!("https://{}", self.address())
    }

    pub(super) fn address(&self) -> SocketAddr {
        SocketAddr::new(self.fabric.ip().into(), PORT)
    }

    pub(super) fn start_etcd(&self) -> Result<Process> {
        let mut command = self.fabric.command(self.binaries.join("etcd"));
        command.arg("--data-dir").arg(self.dir.join("etcd")).args([
            // The data need not survive a crash of this machine.
            "--unsafe-no-fsync",
            "--log-level=warn",
            &format!("--listen-client-urls={ETCD}"),
            &format!("--advertise-client-urls={ETCD}"),
            &format!("--listen-peer-urls={ETCD_PEERS}"),
            &format!("--initial-advertise-peer-urls={ETCD_PEERS}"),
            &format!("--initial-cluster=default={ETCD_PEERS}"),
        ]);
        Process::start(command, self.dir.join("etcd.log"), Arc::clone(&self.kept))
    }

    pub(super) fn start_api_server(&self) -> Result<Process> {
        let own = |name: &str| self.dir.join(name).display().to_string();
        let mut command = self.fabric.command(self.binaries.join("kube-apiserver"));
        command.args([
            format!("--etcd-servers={ETCD}"),
            format!("--bind-address={}", self.fabric.ip()),
            format!("--advertise-address={}", self.fabric.ip()),
            format!("--secure-port={PORT}"),
            format!("--service-cluster-ip-range={}", SERVICE_CIDRS.join(",")),
            // The server makes a certificate and key there, and finds them when it is started again.
            format!("--cert-dir={}", self.dir.display()),
            format!("--token-auth-file={}", own("tokens.csv")),
            "--authorization-mode=RBAC".to_owned(),
            // No controller makes the service accounts that pods would need.
            "--disable-admission-plugins=ServiceAccount".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-key-file={}", own("apiserver.key")),
            format!("--service-account-signing-key-file={}", own("apiserver.key")),
        ]);
        command.args(&self.flags);
        Process::start(
            command,
            self.dir.join("kube-apiserver.log"),
            Arc::clone(&self.kept),
        )
    }

    fn write_credentials(&self) -> Result<()> {
        fs::create_dir_all(&self.dir).with_context(|| format!("making {}", self.dir.display()))?;
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "millrace", "cluster": {
                "server": self.url(),
                // The file also holds the authority that signed the certificate.
                "certificate-authority": self.dir.join("apiserver.crt"),
            }}],
            "users": [{"name": "admin", "user": {"token": TOKEN}}],
            "contexts": [{"name": "millrace", "context": {"cluster": "millrace", "user": "admin"}}],
            "current-context": "millrace",
        });
        let kubeconfig = serde_saphyr::to_string(&kubeconfig).context("writing a kubeconfig")?;
        let tokens = format!("{TOKEN},admin,admin,\"system:masters\"\n");
        for (name, text) in [("kubeconfig", kubeconfig), ("tokens.csv", tokens)] {
            fs::write(self.dir.join(name), text).with_context(|| format!("writing {name}"))?;
        }
        Ok(())
    }
}
