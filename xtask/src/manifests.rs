//! `cargo xtask manifests`: the base as one file, for `kubectl apply --filename`.
//!
//! The base is a kustomization that changes nothing: it lists files, and what they say is what is installed. So rendering it is
//! putting them one after the other, and nobody needs kustomize for that. What has to be changed for a cluster is changed by an
//! overlay, which kubectl renders.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::paths;

const HEADING: &str = "# Millrace in one file. Made from manifests/base by `cargo xtask manifests`: change those files, not this one.\n";

/// The fields that a base of ours may have.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(rename_all = "camelCase")]
struct Kustomization {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    resources: Vec<PathBuf>,
}

/// `cargo xtask manifests`.
pub fn run(check: bool) -> Result<()> {
    let path = folder()?.join("install.yaml");
    let rendered = render()?;
    if !check {
        fs::write(&path, rendered).with_context(|| format!("writing {}", path.display()))?;
        println!("{} written", path.display());
        return Ok(());
    }
    let found = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    if found != rendered {
        bail!(
            "{} is not what the base says: run `cargo xtask manifests`",
            path.display()
        );
    }
    Ok(())
}

/// Where they are.
pub fn folder() -> Result<PathBuf> {
    Ok(paths::repository()?.join("manifests"))
}

fn render() -> Result<String> {
    let base = folder()?.join("base");
    let read = |name: &PathBuf| {
        let path = base.join(name);
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    };
    let text = read(&"kustomization.yaml".into())?;
    let kustomization: Kustomization =
        serde_saphyr::from_str(&text).context("reading the base's kustomization.yaml")?;
    let documents = kustomization.resources.iter().map(read);
    let documents = documents.collect::<Result<Vec<_>>>()?;
    Ok(format!("{HEADING}---\n{}", documents.join("---\n")))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs};

    use serde_json::{Value, json};

    use super::{folder, render, run};
    use crate::image;

    fn objects() -> Vec<Value> {
        serde_saphyr::from_multiple(&render().expect("the base")).expect("YAML")
    }

    fn object(kind: &str) -> Value {
        let found = objects().into_iter().find(|object| object["kind"] == kind);
        found.unwrap_or_else(|| panic!("there is no {kind} in the base"))
    }

    fn names(list: &Value) -> BTreeSet<&str> {
        let items = list.as_array().expect("a list").iter();
        items.map(|item| item["name"].as_str().expect("a name")).collect()
    }

    #[test]
    fn the_rendered_file_is_what_the_base_says() {
        run(true).expect("no drift");
    }

    #[test]
    fn the_image_that_is_asked_for_is_the_one_that_is_made() {
        let agent = &object("DaemonSet")["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(agent["image"], image::name());
        assert_eq!(agent["args"][0], "agent");
    }

    #[test]
    fn the_container_has_no_more_than_it_needs() {
        let pod = &object("DaemonSet")["spec"]["template"]["spec"];
        let agent = &pod["containers"][0];
        let security = &agent["securityContext"];
        assert_eq!(security["privileged"], false);
        assert_eq!(security["allowPrivilegeEscalation"], false);
        assert_eq!(security["readOnlyRootFilesystem"], true);
        assert_eq!(
            security["capabilities"],
            json!({"drop": ["ALL"], "add": ["BPF", "PERFMON", "NET_ADMIN"]})
        );
        for key in ["hostPID", "hostIPC"] {
            assert_eq!(pod[key], Value::Null, "{key}");
        }
        assert_eq!(names(&agent["volumeMounts"]), names(&pod["volumes"]));
    }

    #[test]
    fn the_role_lets_agents_read_and_tell_events() {
        for rule in object("ClusterRole")["rules"].as_array().expect("rules") {
            let expected = if rule["apiGroups"] == json!(["events.k8s.io"]) {
                json!(["create"])
            } else {
                json!(["get", "list", "watch"])
            };
            assert_eq!(rule["verbs"], expected, "{rule}");
        }
    }

    #[test]
    fn the_example_changes_addresses_and_cgroup_and_nothing_else() {
        let file = folder()
            .expect("a folder")
            .join("overlays/example/kustomization.yaml");
        let text = fs::read_to_string(file).expect("the example");
        let overlay: Value = serde_saphyr::from_str(&text).expect("YAML");
        let patches = overlay["patches"].as_array().expect("patches");
        assert_eq!(patches.len(), 1);
        let patch = patches[0]["patch"].as_str().expect("a patch");
        let patch: Value = serde_saphyr::from_str(patch).expect("YAML");
        let mut agent = patch["spec"]["template"]["spec"]["containers"][0].clone();
        let set = agent["env"].take();
        let name = "MILLRACE_NODE_NAME";
        assert_eq!(
            names(&set),
            BTreeSet::from(["MILLRACE_API_SERVER", "MILLRACE_CGROUP", name])
        );
        // Kustomize puts what a patch names before the rest, and values may contain what stands before them.
        let base = &object("DaemonSet")["spec"]["template"]["spec"]["containers"][0]["env"];
        let mut base = base.as_array().expect("a list").iter();
        assert_eq!(base.find(|variable| variable["name"] == name), Some(&set[0]));
        assert_eq!(agent, json!({"name": "agent", "env": null}));
    }
}
