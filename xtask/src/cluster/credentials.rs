//! The identities of the cluster: an authority, certificates, and a token with a kubeconfig for every user.
//!
//! Users have tokens, which need no renewal and are readable in a file. Certificates exist only where
//! Kubernetes needs them: the API server's own, and its client certificates for kubelets and aggregated
//! servers.

use std::{fmt::Write as _, fs, process::Command};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::site::{API_PORT, API_SERVICE, CONTROL_V4, Files, Node};
use crate::command;

/// Users by file name: name and groups for the API server.
const USERS: &[(&str, &str, &str)] = &[
    ("admin", "admin", "system:masters"),
    ("kube-controller-manager", "system:kube-controller-manager", ""),
    ("kube-scheduler", "system:kube-scheduler", ""),
    ("kube-proxy", "system:kube-proxy", ""),
    ("millrace", "millrace", ""),
];

/// The name of the API server's token file.
pub const TOKENS: &str = "tokens.csv";

/// Makes all credentials in the cluster's folder.
pub fn create(files: &Files, nodes: &[Node]) -> Result<()> {
    authority(files)?;
    let names = [
        "DNS:kubernetes.default.svc.cluster.local",
        "DNS:kubernetes.default.svc",
        "DNS:kubernetes.default",
        "DNS:kubernetes",
    ];
    let addresses = [CONTROL_V4, API_SERVICE, "127.0.0.1"].map(|address| format!("IP:{address}"));
    let alternatives = format!("subjectAltName={},{}", names.join(","), addresses.join(","));
    certificate(files, "apiserver", "/CN=kube-apiserver", &alternatives)?;
    let client = "extendedKeyUsage=clientAuth";
    let kubelet_client = "/O=system:masters/CN=apiserver-kubelet-client";
    certificate(files, "kubelet-client", kubelet_client, client)?;
    certificate(files, "front-proxy", "/CN=front-proxy-client", client)?;
    openssl(files, "genrsa -out service-accounts.key 2048")?;
    openssl(
        files,
        "rsa -in service-accounts.key -pubout -out service-accounts.pub",
    )?;

    let mut tokens = String::new();
    let mut user = |file: &str, name: &str, groups: &str| -> Result<()> {
        writeln!(tokens, "{file}-token,{name},{file},\"{groups}\"").context("formatting")?;
        kubeconfig(files, file)
    };
    for (file, name, groups) in USERS {
        user(file, name, groups)?;
    }
    for node in nodes {
        user(
            &node.name(),
            &format!("system:node:{}", node.name()),
            "system:nodes",
        )?;
    }
    fs::write(files.file(TOKENS), tokens).context("writing the tokens")
}

fn authority(files: &Files) -> Result<()> {
    openssl(
        files,
        "req -x509 -newkey rsa:2048 -nodes -days 3650 -subj /CN=millrace-cluster \
         -addext keyUsage=critical,keyCertSign,cRLSign,digitalSignature -keyout ca.key -out ca.crt",
    )
}

fn certificate(files: &Files, name: &str, subject: &str, extension: &str) -> Result<()> {
    fs::write(files.file(&format!("{name}.ext")), extension).context("writing a certificate's extensions")?;
    let request = format!("req -newkey rsa:2048 -nodes -subj {subject} -keyout {name}.key -out {name}.csr");
    openssl(files, &request)?;
    let sign = format!(
        "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 3650 \
         -extfile {name}.ext -out {name}.crt"
    );
    openssl(files, &sign)
}

/// No argument here contains a blank.
fn openssl(files: &Files, arguments: &str) -> Result<()> {
    let mut openssl = Command::new("openssl");
    openssl
        .args(arguments.split_whitespace())
        .current_dir(files.root());
    command::output(&mut openssl).map(drop)
}

fn kubeconfig(files: &Files, user: &str) -> Result<()> {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "millrace", "cluster": {
            "server": format!("https://{CONTROL_V4}:{API_PORT}"),
            "certificate-authority": files.file("ca.crt"),
        }}],
        "users": [{"name": user, "user": {"token": format!("{user}-token")}}],
        "contexts": [{"name": "millrace", "context": {"cluster": "millrace", "user": user}}],
        "current-context": "millrace",
    });
    let path = files.kubeconfig(user);
    fs::write(&path, config.to_string()).with_context(|| format!("writing {}", path.display()))
}
