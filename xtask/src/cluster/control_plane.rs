//! The control plane: etcd, kube-apiserver, kube-controller-manager and kube-scheduler, one of each.
//!
//! Their data is gone with the cluster, so they need not wait for a disk.

use std::time::Duration;

use anyhow::{Result, bail};

use super::{
    credentials::TOKENS,
    place::Toolbox,
    process::Process,
    site::{API_PORT, CONTROL_V4, POD_RANGES, SERVICE_RANGES, both},
    wait::wait_for,
};
use crate::kubernetes::Program;

const ETCD: &str = "http://127.0.0.1:2379";
const ETCD_PEERS: &str = "http://127.0.0.1:2380";

/// The limit for the start. Kubernetes needs 3 s on two idle cores.
const START: Duration = Duration::from_secs(90);

/// Starts the control plane and waits until objects can be created.
pub fn start(toolbox: &Toolbox) -> Result<()> {
    run(
        toolbox,
        Program::Etcd,
        &[
            format!("--data-dir={}", toolbox.files.file("etcd").display()),
            format!("--listen-client-urls={ETCD}"),
            format!("--advertise-client-urls={ETCD}"),
            format!("--listen-peer-urls={ETCD_PEERS}"),
            "--unsafe-no-fsync".to_owned(),
            "--log-level=warn".to_owned(),
        ],
    )?;
    let api_server = run(toolbox, Program::KubeApiserver, &api_server(toolbox))?;
    wait_for("kube-apiserver to be ready", START, || {
        if !api_server.runs() {
            bail!(
                "it has ended: see {}",
                toolbox.files.file("kube-apiserver.log").display()
            );
        }
        toolbox.kubectl(&["get", "--raw", "/readyz"])?;
        // A controller inside the API server makes this namespace after the server is ready.
        toolbox.kubectl(&["get", "namespace", "default"])
    })?;
    run(
        toolbox,
        Program::KubeControllerManager,
        &controller_manager(toolbox),
    )?;
    run(
        toolbox,
        Program::KubeScheduler,
        &clients_of(toolbox, Program::KubeScheduler),
    )?;
    Ok(())
}

fn run(toolbox: &Toolbox, program: Program, flags: &[String]) -> Result<Process> {
    let mut command = toolbox.control_program(program)?;
    command.args(flags).current_dir(toolbox.files.root());
    Process::start(&mut command, toolbox.files.root(), program.name())
}

fn api_server(toolbox: &Toolbox) -> Vec<String> {
    let file = |name: &str| toolbox.files.file(name).display().to_string();
    vec![
        format!("--etcd-servers={ETCD}"),
        format!("--advertise-address={CONTROL_V4}"),
        format!("--secure-port={API_PORT}"),
        format!("--service-cluster-ip-range={}", both(SERVICE_RANGES)),
        format!("--tls-cert-file={}", file("apiserver.crt")),
        format!("--tls-private-key-file={}", file("apiserver.key")),
        format!("--client-ca-file={}", file("ca.crt")),
        format!("--token-auth-file={}", file(TOKENS)),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
        format!("--service-account-key-file={}", file("service-accounts.pub")),
        format!(
            "--service-account-signing-key-file={}",
            file("service-accounts.key")
        ),
        format!("--kubelet-client-certificate={}", file("kubelet-client.crt")),
        format!("--kubelet-client-key={}", file("kubelet-client.key")),
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        // A spec runs an aggregated API server.
        format!("--requestheader-client-ca-file={}", file("ca.crt")),
        "--requestheader-allowed-names=front-proxy-client".to_owned(),
        "--requestheader-extra-headers-prefix=X-Remote-Extra-".to_owned(),
        "--requestheader-group-headers=X-Remote-Group".to_owned(),
        "--requestheader-username-headers=X-Remote-User".to_owned(),
        format!("--proxy-client-cert-file={}", file("front-proxy.crt")),
        format!("--proxy-client-key-file={}", file("front-proxy.key")),
        // No proxy translates virtual addresses for the API server.
        "--enable-aggregator-routing=true".to_owned(),
        "--allow-privileged=true".to_owned(),
        "--profiling=false".to_owned(),
    ]
}

fn controller_manager(toolbox: &Toolbox) -> Vec<String> {
    let file = |name: &str| toolbox.files.file(name).display().to_string();
    let mut flags = clients_of(toolbox, Program::KubeControllerManager);
    flags.extend([
        "--use-service-account-credentials=true".to_owned(),
        format!(
            "--service-account-private-key-file={}",
            file("service-accounts.key")
        ),
        format!("--root-ca-file={}", file("ca.crt")),
        format!("--cluster-signing-cert-file={}", file("ca.crt")),
        format!("--cluster-signing-key-file={}", file("ca.key")),
        "--allocate-node-cidrs=true".to_owned(),
        format!("--cluster-cidr={}", both(POD_RANGES)),
        format!("--service-cluster-ip-range={}", both(SERVICE_RANGES)),
    ]);
    flags
}

/// The flags that clients of the API server share. There is one client of each kind, so no leader election is
/// needed.
fn clients_of(toolbox: &Toolbox, program: Program) -> Vec<String> {
    let config = toolbox.files.kubeconfig(program.name()).display().to_string();
    let mut flags: Vec<_> = [
        "kubeconfig",
        "authentication-kubeconfig",
        "authorization-kubeconfig",
    ]
    .iter()
    .map(|flag| format!("--{flag}={config}"))
    .collect();
    flags.extend([
        "--leader-elect=false".to_owned(),
        "--bind-address=127.0.0.1".to_owned(),
    ]);
    flags
}
