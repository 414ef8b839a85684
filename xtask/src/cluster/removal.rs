//! Removing Millrace from a cluster by kubectl alone, as docs/operations.md describes: the deletion, the work
//! of `manifests/uninstall` on each node, and the permitted rest.
//!
//! Pods go first, since the plugin that removes their interfaces is deleted later. Links, routes, pins and
//! files stay that existed before or belong to other programs. Two empty folders stay as well: a pod cannot
//! remove them since they are its volumes.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::{Node, installation, place::Toolbox, wait::wait_for};
use crate::{command, kubernetes::Program, manifests, step::Step};

/// Prints the leftovers of Millrace on a node. A node's own interfaces are the loopback and `eth0`; the other
/// leftovers are looked for by name.
const REMAINS: &str = r#"
ip -oneline link show | sed 's/^[0-9]*: \([^:@]*\).*/\1/' | grep --invert-match --line-regexp --regexp=lo --regexp=eth0 | sed 's/^/link /'
ip rule show | grep --invert-match --extended-regexp '^(0|32766|32767):' | sed 's/^/rule /'
for family in -4 -6; do
  ip $family route show table all | grep --extended-regexp '^(10\.244|10\.96|fd00:10:)' | sed 's/^/route /'
done
for path in /sys/fs/bpf/millrace /run/millrace/* /var/lib/millrace/* /var/lib/cni/networks/millrace \
            /etc/cni/net.d/10-millrace.conflist /opt/cni/bin/millrace-cni; do
  if [ -e "$path" ]; then echo "file $path"; fi
done
"#;

/// Removes Millrace, and fails if something is left.
pub fn run(toolbox: &Toolbox, nodes: &[Node]) -> Result<()> {
    let step = Step::start("removing Millrace from the cluster");
    let system = "--namespace=kube-system";
    toolbox.kubectl(&["scale", "deployment/coredns", system, "--replicas=0"])?;
    let selector = "--selector=k8s-app=kube-dns";
    toolbox.kubectl(&["wait", "--for=delete", "pods", system, selector, "--timeout=120s"])?;
    // Other pods may still be ending, such as those of a test.
    let on_the_network = "--field-selector=spec.hostNetwork=false";
    wait_for("all pods on the network to end", Duration::from_mins(3), || {
        let left = toolbox.kubectl(&["get", "pods", "--all-namespaces", on_the_network, "--output=name"])?;
        ensure!(left.trim().is_empty(), "there are still:\n{left}");
        Ok(())
    })?;
    installation::delete(toolbox)?;
    let uninstall = manifests::folder()?.join("uninstall");
    let kubectl = |verb: &str| {
        let mut kubectl = toolbox.control_program(Program::Kubectl)?;
        kubectl.args([verb, "--kustomize"]).arg(&uninstall);
        command::output(&mut kubectl)
    };
    kubectl("apply")?;
    let rollout = [
        "rollout",
        "status",
        "daemonset/millrace-uninstall",
        system,
        "--timeout=300s",
    ];
    toolbox
        .kubectl(&rollout)
        .context("the nodes did not become clean")?;
    kubectl("delete")?;
    for &node in nodes {
        step.note(&node.name());
        wait_for("nothing to be left", Duration::from_secs(20), || {
            let mut look = toolbox.in_node(node)?;
            let found = command::output(look.args(["sh", "-c", REMAINS]))?;
            if !found.trim().is_empty() {
                bail!("{} still has:\n{found}", node.name());
            }
            Ok(())
        })?;
    }
    step.done();
    Ok(())
}
