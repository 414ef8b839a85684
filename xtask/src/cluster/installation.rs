//! Millrace as a user installs it: the image loaded into each node, and one overlay applied.
//!
//! The overlay is the example of `manifests/overlays` with this cluster's API server and cgroups. It differs
//! from a normal installation in nothing else. No server listens at the first of the API server's addresses,
//! as if that server were down.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::{
    cgroup,
    place::Toolbox,
    site::{API_PORT, CONTROL_V4, Node},
};
use crate::{command, image, kubernetes::Program, manifests};

/// The namespace and name of the DaemonSet.
const NAMESPACE: &str = "--namespace=kube-system";
const DAEMON_SET: &str = "daemonset/millrace";
const SELECTOR: &str = "--selector=app.kubernetes.io/name=millrace";

/// The path of the image's archive.
pub fn image(toolbox: &Toolbox) -> PathBuf {
    toolbox.files.file("millrace.tar")
}

/// Makes the image of the cluster's programs.
pub fn make_image(toolbox: &Toolbox) -> Result<()> {
    let (millrace, plugin) = (toolbox.own(image::MILLRACE)?, toolbox.own(image::PLUGIN)?);
    image::pack(millrace, plugin, &image(toolbox)).map(drop)
}

/// Applies the overlay to the cluster.
pub fn apply(toolbox: &Toolbox) -> Result<()> {
    let overlay = write_overlay(toolbox)?;
    let mut kubectl = toolbox.control_program(Program::Kubectl)?;
    kubectl.args(["apply", "--kustomize"]).arg(overlay);
    command::output(&mut kubectl).map(drop)
}

/// Waits until the agents are ready.
pub fn wait(toolbox: &Toolbox) -> Result<()> {
    let rollout = ["rollout", "status", DAEMON_SET, NAMESPACE, "--timeout=300s"];
    toolbox
        .kubectl(&rollout)
        .context("the agents did not become ready")?;
    Ok(())
}

/// Ends the agents one after the other, and waits for new ones.
pub fn restart(toolbox: &Toolbox) -> Result<()> {
    toolbox.kubectl(&["rollout", "restart", DAEMON_SET, NAMESPACE])?;
    wait(toolbox)
}

/// Loads another image under the same name, and restarts the agents with it.
pub fn renew(toolbox: &Toolbox, nodes: &[Node]) -> Result<()> {
    make_image(toolbox)?;
    for &node in nodes {
        let mut import = toolbox.in_node(node)?;
        import.args(["ctr", "--namespace=k8s.io", "images", "import", "--local"]);
        command::output(import.arg(image(toolbox)))?;
    }
    apply(toolbox)?;
    restart(toolbox)
}

/// The log of a node's agent.
pub fn log(toolbox: &Toolbox, node: Node) -> Result<String> {
    let on_node = format!("--field-selector=spec.nodeName={}", node.name());
    let pod = toolbox.kubectl(&["get", "pods", NAMESPACE, SELECTOR, &on_node, "--output=name"])?;
    toolbox.kubectl(&["logs", NAMESPACE, pod.trim()])
}

/// Removes Millrace from the cluster.
pub fn delete(toolbox: &Toolbox) -> Result<()> {
    let mut kubectl = toolbox.control_program(Program::Kubectl)?;
    kubectl.args(["delete", "--wait", "--timeout=120s", "--kustomize"]);
    command::output(kubectl.arg(overlay(toolbox)))?;
    toolbox.kubectl(&[
        "wait",
        "--for=delete",
        "pods",
        NAMESPACE,
        SELECTOR,
        "--timeout=120s",
    ])?;
    Ok(())
}

fn overlay(toolbox: &Toolbox) -> PathBuf {
    toolbox.files.file("manifests/overlays/cluster")
}

/// Copies the base, and the example with other values. (A kustomization can name its base by a relative path
/// only.)
fn write_overlay(toolbox: &Toolbox) -> Result<PathBuf> {
    let from = manifests::folder()?;
    let base = toolbox.files.file("manifests/base");
    let overlay = overlay(toolbox);
    for folder in [&base, &overlay] {
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    for entry in fs::read_dir(from.join("base")).context("listing the base")? {
        let entry = entry.context("listing the base")?;
        fs::copy(entry.path(), base.join(entry.file_name())).context("copying the base")?;
    }
    let name = "kustomization.yaml";
    let example = from.join("overlays/example").join(name);
    let text = fs::read_to_string(&example).with_context(|| format!("reading {}", example.display()))?;
    let text = with_values(
        &text,
        &[
            (
                "MILLRACE_API_SERVER",
                format!(
                    "https://{CONTROL_V4}:{},https://{CONTROL_V4}:{API_PORT}",
                    API_PORT - 1
                ),
            ),
            (
                "MILLRACE_CGROUP",
                format!(
                    "/host{}/{}",
                    cgroup::hierarchy()?.display(),
                    Node::tag_of("$(MILLRACE_NODE_NAME)")
                ),
            ),
        ],
    )?;
    fs::write(overlay.join(name), text).context("writing the overlay")?;
    Ok(overlay)
}

/// Returns an overlay with other values of environment variables that it sets.
fn with_values(overlay: &str, values: &[(&str, String)]) -> Result<String> {
    let mut overlay: Value = serde_saphyr::from_str(overlay).context("reading the example")?;
    let patch = overlay["patches"][0]["patch"].as_str().unwrap_or_default();
    let mut patch: Value = serde_saphyr::from_str(patch).context("reading the example's patch")?;
    let set = &mut patch["spec"]["template"]["spec"]["containers"][0]["env"];
    for (name, value) in values {
        let variables = set.as_array_mut().into_iter().flatten();
        match variables
            .into_iter()
            .find(|variable| variable["name"].as_str() == Some(name))
        {
            Some(variable) => variable["value"] = json!(value),
            None => bail!("the example does not set {name}"),
        }
    }
    overlay["patches"][0]["patch"] = json!(patch.to_string());
    // JSON is valid YAML.
    Ok(overlay.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::with_values;

    #[test]
    fn values_change_and_nothing_else() {
        let example = "a: b\npatches:\n- patch: |\n    c: d\n    spec: {template: {spec: {containers: \
                       [{name: agent, env: [{name: X, value: old}, {name: OTHER, value: kept}]}]}}}\n";
        let changed = with_values(example, &[("X", "new".to_owned())]).expect("an overlay");
        let changed: serde_json::Value = serde_json::from_str(&changed).expect("JSON");
        assert_eq!(changed["a"], "b");
        let patch = changed["patches"][0]["patch"].as_str().expect("a patch");
        let patch: serde_json::Value = serde_json::from_str(patch).expect("JSON");
        let env = json!([{"name": "X", "value": "new"}, {"name": "OTHER", "value": "kept"}]);
        let pod = json!({"containers": [{"name": "agent", "env": env}]});
        assert_eq!(patch, json!({"c": "d", "spec": {"template": {"spec": pod}}}));
        assert!(with_values(example, &[("NONE", String::new())]).is_err());
    }
}
