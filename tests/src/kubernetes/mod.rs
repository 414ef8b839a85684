//! A real control plane for a world: etcd and kube-apiserver in the fabric, on
//! the underlay's address, so that agents on nodes reach it as they would in a
//! cluster. There is no controller-manager: tests write Services and
//! EndpointSlices themselves, which makes what agents see predictable.
//!
//! The API server signs its own certificate and keeps it, with its keys, in the
//! world's directory; a kubeconfig there trusts it and carries an
//! administrator's token.

mod client;
mod process;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::failure::OrPanic;
use crate::manifest::{Manifest, SERVICE_CIDRS};
use crate::place::Place;
use crate::wait;
use crate::world::World;
use client::ApiClient;
use process::Process;

/// The release that `cargo xtask kubernetes` builds.
const VERSION: &str = "v1.36.3";

/// Where etcd listens, inside the fabric only.
const ETCD: &str = "http://127.0.0.1:2379";
const ETCD_PEERS: &str = "http://127.0.0.1:2380";

const PORT: u16 = 6443;
const TOKEN: &str = "harness";

/// How long a start may take; it is 3 s on two idle cores.
const START: Duration = Duration::from_secs(90);

/// The directory that holds `etcd` and `kube-apiserver`: `KUBEBUILDER_ASSETS`,
/// else what `cargo xtask kubernetes` made.
pub fn binaries() -> Result<PathBuf> {
    let dir = match env::var_os("KUBEBUILDER_ASSETS") {
        Some(path) => PathBuf::from(path),
        None => cache()
            .context("there is no HOME to find a cache below")?
            .join("kubernetes")
            .join(VERSION),
    };
    for name in ["etcd", "kube-apiserver"] {
        if !dir.join(name).is_file() {
            bail!(
                "no {name} in {}: run `cargo xtask kubernetes`, or set KUBEBUILDER_ASSETS",
                dir.display()
            );
        }
    }
    Ok(dir)
}

fn cache() -> Option<PathBuf> {
    let from = |name| env::var_os(name).map(PathBuf::from);
    from("MILLRACE_CACHE").or_else(|| {
        Some(
            from("XDG_CACHE_HOME")
                .or_else(|| Some(from("HOME")?.join(".cache")))?
                .join("millrace"),
        )
    })
}

/// What this machine lacks for a control plane, if anything.
pub fn missing() -> Option<String> {
    crate::skip::missing().or_else(|| binaries().err().map(|error| format!("{error:#}")))
}

/// Returns from the test, recording a skip, unless a control plane can run here.
#[macro_export]
macro_rules! require_kubernetes {
    () => {
        $crate::skip_if!($crate::kubernetes::missing())
    };
}

/// etcd, kube-apiserver and an administrator's client.
pub struct ControlPlane {
    fabric: Place,
    binaries: PathBuf,
    dir: PathBuf,
    flags: Vec<String>,
    api_server: Option<Process>,
    client: ApiClient,
    // After the API server, which complains when it goes first.
    etcd: Process,
}

impl ControlPlane {
    /// Starts it in a world's fabric and waits until it is ready.
    #[track_caller]
    pub fn start(world: &World) -> Self {
        Self::start_with(world, &[])
    }

    /// Starts it with more flags for kube-apiserver.
    #[track_caller]
    pub fn start_with(world: &World, flags: &[&str]) -> Self {
        Self::launch(world, flags)
            .context("starting a control plane")
            .or_panic()
    }

    fn launch(world: &World, flags: &[&str]) -> Result<Self> {
        let (binaries, dir) = (binaries()?, world.dir().join("kubernetes"));
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let fabric = world.fabric().clone();
        let mut etcd = fabric.command(binaries.join("etcd"));
        etcd.arg("--data-dir").arg(dir.join("etcd")).args([
            "--unsafe-no-fsync",
            "--log-level=warn",
            &format!("--listen-client-urls={ETCD}"),
            &format!("--advertise-client-urls={ETCD}"),
            &format!("--listen-peer-urls={ETCD_PEERS}"),
            &format!("--initial-advertise-peer-urls={ETCD_PEERS}"),
            &format!("--initial-cluster=default={ETCD_PEERS}"),
        ]);
        let etcd = Process::start(etcd, dir.join("etcd.log"), world.kept())?;
        write_credentials(&dir, &fabric)?;
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let api_server = Some(start_api_server(&fabric, &binaries, &dir, &flags, world)?);
        // The certificate is there once the API server has come so far.
        let client = wait::poll(START, || ApiClient::new(&fabric, &dir.join("kubeconfig")))?;
        let plane = Self {
            fabric,
            binaries,
            dir,
            flags,
            api_server,
            client,
            etcd,
        };
        plane.wait_ready(START)?;
        Ok(plane)
    }

    fn wait_ready(&self, within: Duration) -> Result<()> {
        wait::poll(within, || {
            self.client.text("/readyz")?;
            // Made by a controller inside the API server that starts after it is ready.
            self.client.get("/api/v1/namespaces/default").map(drop)
        })
        .context("waiting for kube-apiserver to be ready")
    }

    /// The file for `--kubeconfig`, an administrator's.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    /// Its address as nodes see it.
    pub fn url(&self) -> String {
        url(&self.fabric)
    }

    /// Ends the API server at once, as a crash would; etcd stays.
    #[track_caller]
    pub fn kill_api_server(&mut self) {
        drop(self.api_server.take());
    }

    /// Starts the API server again on the same data, and waits until it is ready.
    #[track_caller]
    pub fn start_api_server(&mut self, world: &World) {
        let started = start_api_server(&self.fabric, &self.binaries, &self.dir, &self.flags, world);
        self.api_server = Some(started.or_panic());
        self.wait_ready(START).or_panic();
    }

    /// Creates an object, or replaces the one of its name.
    #[track_caller]
    pub fn apply(&self, object: &impl Manifest) -> Value {
        self.client.apply(&object.object()).or_panic()
    }

    /// Sets `status`, which [`ControlPlane::apply`] leaves alone.
    #[track_caller]
    pub fn apply_status(&self, object: &impl Manifest) -> Value {
        self.client.apply_status(&object.object()).or_panic()
    }

    /// Creates many new objects, many at a time and in no particular order.
    #[track_caller]
    pub fn create_all<M: Manifest>(&self, objects: impl IntoIterator<Item = M>) {
        self.client
            .create_all(objects.into_iter().map(|object| object.object()).collect())
            .or_panic();
    }

    /// Changes some fields of an object (JSON merge patch, RFC 7396).
    #[track_caller]
    pub fn patch(&self, object: &impl Manifest, change: &Value) -> Value {
        self.client.patch(&object.object(), change).or_panic()
    }

    /// Deletes an object.
    #[track_caller]
    pub fn delete(&self, object: &impl Manifest) {
        self.client.delete(&object.object()).or_panic();
    }

    /// Reads any path, `/api/v1/services` and the like.
    pub fn get(&self, path: &str) -> Result<Value> {
        self.client.get(path)
    }

    /// Reads any path as text, `/readyz` and the like.
    pub fn text(&self, path: &str) -> Result<String> {
        self.client.text(path)
    }

    /// Process ids of etcd and, while it runs, kube-apiserver.
    pub fn pids(&self) -> Vec<u32> {
        [Some(&self.etcd), self.api_server.as_ref()]
            .into_iter()
            .flatten()
            .map(Process::id)
            .collect()
    }
}

fn url(fabric: &Place) -> String {
    format!("https://{}:{PORT}", fabric.ip())
}

fn start_api_server(
    fabric: &Place,
    binaries: &Path,
    dir: &Path,
    flags: &[String],
    world: &World,
) -> Result<Process> {
    let own = |name: &str| dir.join(name).display().to_string();
    let mut command = fabric.command(binaries.join("kube-apiserver"));
    command.args([
        format!("--etcd-servers={ETCD}"),
        format!("--bind-address={}", fabric.ip()),
        format!("--advertise-address={}", fabric.ip()),
        format!("--secure-port={PORT}"),
        format!("--service-cluster-ip-range={}", SERVICE_CIDRS.join(",")),
        format!("--cert-dir={}", dir.display()),
        format!("--token-auth-file={}", own("tokens.csv")),
        "--authorization-mode=RBAC".to_owned(),
        // Nobody makes the service accounts that pods would need.
        "--disable-admission-plugins=ServiceAccount".to_owned(),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        format!("--service-account-key-file={}", own("apiserver.key")),
        format!("--service-account-signing-key-file={}", own("apiserver.key")),
        "--profiling=false".to_owned(),
    ]);
    command.args(flags);
    Process::start(command, dir.join("kube-apiserver.log"), world.kept())
}

fn write_credentials(dir: &Path, fabric: &Place) -> Result<()> {
    let kubeconfig = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "millrace", "cluster": {
            "server": url(fabric),
            // Holds the authority that signed it, too.
            "certificate-authority": dir.join("apiserver.crt"),
        }}],
        "users": [{"name": "admin", "user": {"token": TOKEN}}],
        "contexts": [{"name": "millrace", "context": {"cluster": "millrace", "user": "admin"}}],
        "current-context": "millrace",
    });
    let kubeconfig = serde_saphyr::to_string(&kubeconfig).context("writing a kubeconfig")?;
    let files = [
        ("kubeconfig", kubeconfig),
        ("tokens.csv", format!("{TOKEN},admin,admin,\"system:masters\"\n")),
    ];
    for (name, text) in files {
        fs::write(dir.join(name), text).with_context(|| format!("writing {name}"))?;
    }
    Ok(())
}
