//! Files for kube-proxy with fields that kube-proxy itself ignores with a warning. The check of the file and
//! the log of the agent name each field. The agent starts and applies the rest of the file.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use harness::{Node, World};

use crate::fixture::{errors, started};

/// Fields of old files, each with the line and the words of its warning.
const INPUTS: [(&str, &str); 5] = [
    ("udpIdleTimeout: 250ms\n", "4: udpIdleTimeout is ignored: "),
    (
        "resourceContainer: /kube-proxy\n",
        "4: resourceContainer is ignored: ",
    ),
    ("conntrack: {max: 0}\n", "4: conntrack.max is ignored: "),
    ("metadata: {name: config}\n", "4: metadata is ignored: "),
    (
        "configSyncPeriod: 1m\nconfigSyncPeriod: 0s\n",
        "5: configSyncPeriod is given more than once: ",
    ),
];
const CLUSTER_CIDR: &str = "10.244.0.0/16,fd00:244::/32";

fn file_with(fields: &str) -> String {
    format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
         clusterCIDR: {CLUSTER_CIDR}\n{fields}"
    )
}

/// The output of `millrace config check FILE`, which must exit with 0.
#[track_caller]
fn check(node: &Node, file: &Path) -> String {
    let output = node
        .command(harness::millrace())
        .args(["config", "check"])
        .arg(file)
        .output()
        .expect("to run the check");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {text}{error}", output.status);
    text
}

#[test]
fn a_field_that_kube_proxy_ignores_is_named_and_the_agent_starts() {
    harness::require_root!();
    let world = World::with_nodes(1);
    let node = world.node(1);
    for (fields, warning) in INPUTS {
        let text = file_with(fields);
        let file = node.dir().join("kube-proxy.yaml");
        fs::write(&file, &text).expect("to write the file");
        let checked = check(node, &file);
        let expected = format!("warning: {}:{warning}", file.display());
        assert!(checked.contains(&expected), "`{expected}` is not in: {checked}");
        assert_eq!(checked.matches("warning: ").count(), 1, "{checked}");

        let path = file.display().to_string();
        let agent = started(node.agent().arg("--config").arg(path));
        let expected = format!("{}:{warning}", file.display());
        let log = agent.log();
        assert!(log.contains(&expected), "`{expected}` is not in: {log}");
        assert_eq!(errors(node), []);
        let page = node.http_get(SocketAddr::from(([127, 0, 0, 1], 10249)), "/configz");
        let mut page = page.expect("a reply").json();
        let in_force = page["kubeproxy.config.k8s.io"]["clusterCIDR"].take();
        assert_eq!(in_force, CLUSTER_CIDR, "{fields}");
    }
}
