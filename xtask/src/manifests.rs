//! `cargo xtask manifests`: the installation and the removal as one file each, for
//! `kubectl apply --filename`.
//!
//! Each is a kustomization without changes: it lists files, and their contents are applied. So rendering
//! joins the files, and needs no kustomize. Changes for a cluster are in an overlay, which kubectl renders.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::paths;

/// A kustomization, and the file with the same objects.
struct Rendered {
    folder: &'static str,
    file: &'static str,
    /// The title of the file.
    title: &'static str,
}

const BASE: Rendered = Rendered {
    folder: "base",
    file: "install.yaml",
    title: "Millrace in one file",
};
const UNINSTALL: Rendered = Rendered {
    folder: "uninstall",
    file: "uninstall.yaml",
    title: "The removal of Millrace from nodes, in one file",
};

/// The fields that a kustomization here may have, unless it is an overlay.
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

/// Carries out `cargo xtask manifests`.
pub fn run(check: bool) -> Result<()> {
    for one in [BASE, UNINSTALL] {
        let path = folder()?.join(one.file);
        let rendered = one.render()?;
        if !check {
            fs::write(&path, rendered).with_context(|| format!("writing {}", path.display()))?;
            println!("{} written", path.display());
            continue;
        }
        let found = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        if found != rendered {
            bail!(
                "{} differs from {}: run `cargo xtask manifests`",
                path.display(),
                one.folder
            );
        }
    }
    Ok(())
}

/// The folder of the manifests.
pub fn folder() -> Result<PathBuf> {
    Ok(paths::repository()?.join("manifests"))
}

impl Rendered {
    fn render(&self) -> Result<String> {
        let Self { folder, title, .. } = self;
        let sources = self::folder()?.join(folder);
        let read = |name: &PathBuf| {
            let path = sources.join(name);
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
        };
        let text = read(&"kustomization.yaml".into())?;
        let kustomization: Kustomization = serde_saphyr::from_str(&text)
            .with_context(|| format!("reading the kustomization.yaml of {folder}"))?;
        let documents = kustomization.resources.iter().map(read);
        let documents = documents.collect::<Result<Vec<_>>>()?;
        Ok(format!(
            "# {title}. Made from manifests/{folder} by `cargo xtask manifests`: change those files, not this one.\n---\n{}",
            documents.join("---\n")
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs};

    use serde_json::{Value, json};

    use super::{BASE, Rendered, UNINSTALL, folder, run};
    use crate::image;

    fn objects(of: &Rendered) -> Vec<Value> {
        serde_saphyr::from_multiple(&of.render().expect("a kustomization")).expect("YAML")
    }

    fn object(kind: &str) -> Value {
        let found = objects(&BASE).into_iter().find(|object| object["kind"] == kind);
        found.unwrap_or_else(|| panic!("there is no {kind} in the base"))
    }

    /// The only patch of an overlay or a component.
    fn patch(of: &str) -> Value {
        let file = folder().expect("a folder").join(of).join("kustomization.yaml");
        let text = fs::read_to_string(file).expect("a kustomization");
        let overlay: Value = serde_saphyr::from_str(&text).expect("YAML");
        let patches = overlay["patches"].as_array().expect("patches");
        assert_eq!(patches.len(), 1);
        let patch = patches[0]["patch"].as_str().expect("a patch");
        serde_saphyr::from_str(patch).expect("YAML")
    }

    fn names(list: &Value) -> BTreeSet<&str> {
        let items = list.as_array().expect("a list").iter();
        items.map(|item| item["name"].as_str().expect("a name")).collect()
    }

    #[test]
    fn rendered_files_match_their_sources() {
        run(true).expect("no drift");
    }

    #[test]
    fn the_image_of_the_manifests_is_the_built_one() {
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
    fn the_role_lets_agents_read_and_create_events() {
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
        let patch = patch("overlays/example");
        let mut agent = patch["spec"]["template"]["spec"]["containers"][0].clone();
        let set = agent["env"].take();
        let name = "MILLRACE_NODE_NAME";
        assert_eq!(
            names(&set),
            BTreeSet::from(["MILLRACE_API_SERVER", "MILLRACE_CGROUP", name])
        );
        // Kustomize puts the variables of a patch before the others. A value may refer only to variables that
        // precede it.
        let base = &object("DaemonSet")["spec"]["template"]["spec"]["containers"][0]["env"];
        let mut base = base.as_array().expect("a list").iter();
        assert_eq!(base.find(|variable| variable["name"] == name), Some(&set[0]));
        assert_eq!(agent, json!({"name": "agent", "env": null}));
    }

    #[test]
    fn each_component_gives_the_agent_one_capability() {
        let daemon_set = object("DaemonSet");
        for (component, capability) in [
            ("locked-memory-before-5.11", "SYS_RESOURCE"),
            ("pod-sockets-before-6.18", "SYS_ADMIN"),
        ] {
            let change = patch(&format!("components/{component}"));
            assert_eq!(change.as_array().expect("operations").len(), 1);
            assert_eq!(
                (&change[0]["op"], &change[0]["value"]),
                (&json!("add"), &json!(capability))
            );
            let path = change[0]["path"].as_str().expect("a path");
            let list = path.strip_suffix("/-").expect("the end of a list");
            assert!(daemon_set.pointer(list).is_some_and(Value::is_array), "{list}");
            let container = list
                .strip_suffix("/securityContext/capabilities/add")
                .expect("capabilities");
            assert_eq!(
                daemon_set.pointer(container).expect("a container")["name"],
                "agent"
            );
        }
    }

    #[test]
    fn beside_another_plugin_the_agent_lacks_the_flags_of_the_pod_network() {
        let change = patch("components/without-pod-network");
        assert_eq!(change.as_array().expect("operations").len(), 1);
        let daemon_set = object("DaemonSet");
        let path = change[0]["path"].as_str().expect("a path");
        let all = daemon_set
            .pointer(path)
            .and_then(Value::as_array)
            .expect("arguments");
        let is_of_pods = |flag: &&Value| flag.as_str().is_some_and(|flag| flag.starts_with("--cni-"));
        let left: Vec<_> = all.iter().filter(|flag| !is_of_pods(flag)).collect();
        assert!(left.len() < all.len());
        assert_eq!(
            (&change[0]["op"], &change[0]["value"]),
            (&json!("replace"), &json!(left))
        );
    }

    #[test]
    fn the_uninstall_pods_match_the_agents_pods() {
        let [uninstall] = &objects(&UNINSTALL)[..] else {
            panic!("one DaemonSet and no other object, since its role is deleted already");
        };
        let (agents, uninstall) = (object("DaemonSet"), uninstall.clone());
        assert_eq!(
            uninstall["metadata"]["namespace"],
            agents["metadata"]["namespace"]
        );
        // Each of the two DaemonSets selects its own pods.
        let labels = |of: &Value| of["spec"]["selector"]["matchLabels"].clone();
        assert_ne!(labels(&uninstall), labels(&agents));
        let [agents, uninstall] = [&agents, &uninstall].map(|of| &of["spec"]["template"]["spec"]);
        for key in ["hostNetwork", "tolerations", "nodeSelector", "priorityClassName"] {
            assert_eq!(uninstall[key], agents[key], "{key}");
        }
        let agent = &agents["containers"][0];
        let [remove, stay] = [&uninstall["initContainers"][0], &uninstall["containers"][0]];
        assert_eq!(remove["args"], json!(["uninstall"]));
        assert_eq!(stay["args"], json!(["uninstall", "--wait"]));
        for container in [remove, stay] {
            for key in ["image", "imagePullPolicy", "securityContext"] {
                assert_eq!(container[key], agent[key], "{key}");
            }
            // The mounts and volumes are a part of the agent's, unchanged.
            for (some, all) in [
                (&container["volumeMounts"], &agent["volumeMounts"]),
                (&uninstall["volumes"], &agents["volumes"]),
            ] {
                let all = all.as_array().expect("a list");
                for one in some.as_array().expect("a list") {
                    assert!(all.contains(one), "{one}");
                }
            }
            assert_eq!(names(&container["volumeMounts"]), names(&uninstall["volumes"]));
        }
    }
}
