//! Who is who in the cluster: an authority, certificates, and a token with a kubeconfig for every user.
//!
//! Users carry tokens, which need no renewal and can be read in a file; certificates are only where Kubernetes
//! wants them: the API server's own, and those by which it shows itself to kubelets and aggregated servers.

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

/// The API server's token file.
pub const TOKENS: &str = "tokens.csv";

/// Makes all of them in the cluster's folder.
pub fn create(files: &Files, nodes: &[Node]) -> Result<()> {
    authority(files)?;
    let names = [
        "DNS:kubernetes.default.svc.cluster.local",
        "DNS:kubernetes.default.svc",
        "DNS:kubernetes.default",
        "DNS:kubernetes",
    ];
    let addresses = [CONTROL_V4, API_SERVICE, "127.0.0.1"].map(|address| format!("IP:{address}"));
    let alternatives = [&names.join(","), &addresses.join(",")]
        .map(String::as_str)
        .join(",");
    certificate(
        files,
        "apiserver",
        "/CN=kube-apiserver",
        &format!("subjectAltName={alternatives}"),
    )?;
    let client = "extendedKeyUsage=clientAuth";
    certificate(
        files,
        "kubelet-client",
        "/O=system:masters/CN=apiserver-kubelet-client",
        client,
    )?;
    certificate(files, "front-proxy", "/CN=front-proxy-client", client)?;
    openssl(files, &["genrsa", "-out", "service-accounts.key", "2048"])?;
    openssl(
        files,
        &[
            "rsa",
            "-in",
            "service-accounts.key",
            "-pubout",
            "-out",
            "service-accounts.pub",
        ],
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
        &[
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "3650",
            "-subj",
            "/CN=millrace-cluster",
            "-addext",
            "keyUsage=critical,keyCertSign,cRLSign,digitalSignature",
            "-keyout",
            "ca.key",
            "-out",
            "ca.crt",
        ],
    )
}

fn certificate(files: &Files, name: &str, subject: &str, extension: &str) -> Result<()> {
    let file = |suffix: &str| format!("{name}.{suffix}");
    let (key, request, extensions, certificate) = (file("key"), file("csr"), file("ext"), file("crt"));
    fs::write(files.file(&extensions), extension).context("writing a certificate's extensions")?;
    openssl(
        files,
        &[
            "req", "-newkey", "rsa:2048", "-nodes", "-subj", subject, "-keyout", &key, "-out", &request,
        ],
    )?;
    openssl(
        files,
        &[
            "x509",
            "-req",
            "-in",
            &request,
            "-CA",
            "ca.crt",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "3650",
            "-extfile",
            &extensions,
            "-out",
            &certificate,
        ],
    )
}

fn openssl(files: &Files, arguments: &[&str]) -> Result<()> {
    command::output(Command::new("openssl").args(arguments).current_dir(files.root())).map(drop)
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
