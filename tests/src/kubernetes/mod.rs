//! A real control plane for a world: etcd and kube-apiserver run in the fabric. They listen on the underlay's
//! address, so that agents on nodes reach them as in a cluster. There is no controller-manager: tests write
//! Services and EndpointSlices themselves, so the objects that agents see are predictable.
//!
//! The API server signs its own certificate and keeps it, with its keys, in the world's directory. A
//! kubeconfig there trusts the certificate and carries an administrator's token.

mod binaries;
mod client;
mod process;
mod programs;
mod proxy;
mod relay;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::failure::OrPanic;
use crate::manifest::Manifest;
use crate::wait::wait_for;
use crate::world::World;
use client::ApiClient;
use process::Process;
use programs::Programs;
pub use proxy::KubeProxy;
pub use relay::Relay;

/// The time limit of a start; a start takes 3 s on two idle cores.
const START: Duration = Duration::from_secs(90);

/// The reason why this machine cannot run a control plane, if there is one.
pub fn missing() -> Option<String> {
    crate::skip::missing().or_else(|| binaries::dir().err().map(|error| format!("{error:#}")))
}

/// Returns from the test and records a skip, unless a control plane can run here.
#[macro_export]
macro_rules! require_kubernetes {
    () => {
        $crate::skip_if!($crate::kubernetes::missing())
    };
}

/// The objects that kubectl makes of a kustomization.
#[track_caller]
pub fn kustomize(folder: &Path) -> Vec<Value> {
    let kubectl = binaries::kubectl().or_panic();
    let output = Command::new(kubectl).arg("kustomize").arg(folder).output();
    let output = output.context("running kubectl").or_panic();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {stderr}", folder.display());
    let text = String::from_utf8(output.stdout).expect("kubectl writes UTF-8");
    serde_saphyr::from_multiple(&text).expect("documents of YAML")
}

/// etcd, kube-apiserver and an administrator's client.
pub struct ControlPlane {
    programs: Programs,
    client: ApiClient,
    api_server: Option<Process>,
    // Dropped after the API server, which logs errors when etcd ends first.
    etcd: Process,
}

impl ControlPlane {
    /// Starts a control plane in a world's fabric and waits until it is ready.
    #[track_caller]
    pub fn start(world: &World) -> Self {
        Self::start_with(world, &[])
    }

    /// Starts a control plane with more flags for kube-apiserver.
    #[track_caller]
    pub fn start_with(world: &World, flags: &[&str]) -> Self {
        let programs = Programs::prepare(world, flags).or_panic();
        let etcd = programs.start_etcd().or_panic();
        let mut api_server = programs.start_api_server().or_panic();
        let client = wait_for("kube-apiserver to make its certificate", START, || {
            api_server.assert_running();
            ApiClient::new(programs.fabric(), &programs.kubeconfig())
        });
        let mut plane = Self {
            programs,
            client,
            api_server: Some(api_server),
            etcd,
        };
        plane.wait_ready();
        plane
    }

    #[track_caller]
    fn wait_ready(&mut self) {
        wait_for("kube-apiserver to be ready", START, || {
            for process in self.api_server.iter_mut().chain([&mut self.etcd]) {
                process.assert_running();
            }
            self.client.text("/readyz")?;
            // A controller inside the API server creates the namespace, and that controller starts after the
            // server is ready.
            self.client.get("/api/v1/namespaces/default")
        });
    }

    /// The administrator's kubeconfig, for the option `--kubeconfig`.
    pub fn kubeconfig(&self) -> PathBuf {
        self.programs.kubeconfig()
    }

    /// The API server's address as nodes see it, `https://192.168.50.1:6443`.
    pub fn url(&self) -> String {
        self.programs.url()
    }

    /// Serves another world too, by the same kubeconfig, until the relay is dropped.
    #[track_caller]
    pub fn serve_also(&self, other: &World) -> Relay {
        let to = self.programs.address();
        Relay::start(other.fabric(), to.port(), self.programs.fabric(), to).or_panic()
    }

    /// Serves at another port too, until the relay is dropped. The second value is its URL.
    #[track_caller]
    pub fn serve_at(&self, port: u16) -> (Relay, String) {
        let (fabric, to) = (self.programs.fabric(), self.programs.address());
        let relay = Relay::start(fabric, port, fabric, to).or_panic();
        (relay, format!("https://{}", SocketAddr::new(to.ip(), port)))
    }

    /// Kills the API server, as a crash would; etcd goes on.
    pub fn kill_api_server(&mut self) {
        drop(self.api_server.take());
    }

    /// Starts the API server again on the same data, and waits until it is ready.
    #[track_caller]
    pub fn start_api_server(&mut self) {
        self.api_server = Some(self.programs.start_api_server().or_panic());
        self.wait_ready();
    }

    /// Creates an object, or replaces the object of the same name.
    #[track_caller]
    pub fn apply(&self, object: &impl Manifest) -> Value {
        self.client.apply(&object.object()).or_panic()
    }

    /// Sets `status`, which [`ControlPlane::apply`] does not change.
    #[track_caller]
    pub fn apply_status(&self, object: &impl Manifest) -> Value {
        self.client.apply_status(&object.object()).or_panic()
    }

    /// Has the API server validate a new object by all its rules, without storing it (a dry run).
    pub fn judge(&self, object: &impl Manifest) -> Result<Value> {
        self.client
            .create(&object.object(), "?dryRun=All&fieldValidation=Strict")
    }

    /// Creates an object that is a question, such as a `SubjectAccessReview`, and returns the reply.
    #[track_caller]
    pub fn ask(&self, question: &Value) -> Value {
        self.client.create(question, "").or_panic()
    }

    /// Creates many new objects concurrently, in no particular order.
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

    /// Reads any path, such as `/api/v1/services`.
    pub fn get(&self, path: &str) -> Result<Value> {
        self.client.get(path)
    }

    /// Reads any path as text, such as `/readyz`.
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
