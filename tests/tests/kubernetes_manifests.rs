//! A real kube-apiserver accepts the manifests in `manifests/`. They give the agent exactly the rights that
//! it needs.

use std::fs;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use harness::kubernetes::{ControlPlane, kustomize};
use harness::{World, eventually, require_kubernetes};
use serde_json::{Value, json};

const SECOND: Duration = Duration::from_secs(1);

fn manifests() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests");
    path.canonicalize().expect("the manifests")
}

/// The objects of a file of manifests.
fn objects_of(file: &str) -> Vec<Value> {
    let path = manifests().join(file);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_saphyr::from_multiple(&text).expect("documents of YAML")
}

/// The objects that are installed without an overlay.
fn objects() -> Vec<Value> {
    objects_of("install.yaml")
}

/// Whether the service account may do this to a resource of a group, anywhere in the cluster.
fn may(plane: &ControlPlane, verb: &str, group: &str, resource: &str) -> bool {
    let reply = plane.ask(&json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": "system:serviceaccount:kube-system:millrace",
            "groups": ["system:serviceaccounts", "system:authenticated"],
            "resourceAttributes": {"verb": verb, "group": group, "resource": resource},
        },
    }));
    reply["status"]["allowed"] == true
}

#[test]
fn an_api_server_accepts_every_object() {
    require_kubernetes!();
    let world = World::with_nodes(1);
    let plane = ControlPlane::start(&world);
    let mut kinds = Vec::new();
    for object in objects() {
        plane
            .judge(&object)
            .unwrap_or_else(|error| panic!("{error:#}\n{object:#}"));
        kinds.push(object["kind"].as_str().unwrap_or_default().to_owned());
    }
    assert_eq!(
        kinds,
        [
            "ServiceAccount",
            "ClusterRole",
            "ClusterRoleBinding",
            "ConfigMap",
            "DaemonSet"
        ]
    );
    // The validation rejects a misspelt field.
    let mut misspelt = objects().pop().expect("a DaemonSet");
    misspelt["spec"]["template"]["spec"]["hostNetwrok"] = json!(true);
    assert!(plane.judge(&misspelt).is_err());
}

/// The capabilities of the agent among these objects.
fn capabilities(objects: &[Value]) -> Value {
    let found = objects.iter().find(|object| object["kind"] == "DaemonSet");
    let containers = &found.expect("a DaemonSet")["spec"]["template"]["spec"]["containers"];
    containers[0]["securityContext"]["capabilities"]["add"].clone()
}

#[test]
fn kustomizations_are_rendered_as_expected_and_an_api_server_accepts_them() {
    require_kubernetes!();
    let world = World::with_nodes(1);
    let plane = ControlPlane::start(&world);
    let taken = |objects: &[Value]| {
        for object in objects {
            let judged = plane.judge(object);
            judged.unwrap_or_else(|error| panic!("{error:#}\n{object:#}"));
        }
    };
    let from = manifests();
    let usual = json!(["BPF", "PERFMON", "NET_ADMIN"]);
    let example = kustomize(&from.join("overlays/example"));
    taken(&example);
    assert_eq!(capabilities(&example), usual);

    // An overlay can name other directories by relative paths only.
    let overlay = world.dir().canonicalize().expect("its path").join("overlay");
    fs::create_dir(&overlay).expect("a folder");
    let names = |part: &Component<'_>| matches!(part, Component::Normal(_));
    let up = "../".repeat(overlay.components().filter(names).count());
    let below = |name: &str| format!("{up}{}/{name}", from.strip_prefix("/").expect("a root").display());
    let kustomization = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [below("overlays/example")],
        "components": [
            below("components/locked-memory-before-5.11"),
            below("components/pod-sockets-before-6.18"),
        ],
    });
    let file = overlay.join("kustomization.yaml");
    fs::write(file, kustomization.to_string()).expect("an overlay");
    let with_components = kustomize(&overlay);
    taken(&with_components);
    let more = json!(["BPF", "PERFMON", "NET_ADMIN", "SYS_RESOURCE", "SYS_ADMIN"]);
    assert_eq!(capabilities(&with_components), more);

    let uninstall = kustomize(&from.join("uninstall"));
    taken(&uninstall);
    assert_eq!(uninstall, objects_of("uninstall.yaml"));
}

#[test]
fn the_role_is_enough_and_no_more() {
    require_kubernetes!();
    let world = World::with_nodes(1);
    let plane = ControlPlane::start(&world);
    for object in objects() {
        if object["kind"] != "DaemonSet" {
            plane.apply(&object);
        }
    }
    let read = [
        ("", "services"),
        ("", "nodes"),
        ("", "namespaces"),
        ("", "pods"),
        ("discovery.k8s.io", "endpointslices"),
        ("networking.k8s.io", "servicecidrs"),
    ];
    for (group, resource) in read {
        for verb in ["get", "list", "watch"] {
            // The API server applies a role a moment after its creation.
            eventually(&format!("the right to {verb} {resource}"), 10 * SECOND, || {
                may(&plane, verb, group, resource)
            });
        }
        for verb in ["create", "update", "patch", "delete"] {
            assert!(!may(&plane, verb, group, resource), "{verb} {resource}");
        }
    }
    assert!(may(&plane, "create", "events.k8s.io", "events"));
    for (verb, group, resource) in [
        ("get", "", "secrets"),
        ("list", "", "configmaps"),
        ("delete", "events.k8s.io", "events"),
        ("create", "", "events"),
    ] {
        assert!(!may(&plane, verb, group, resource), "{verb} {resource}");
    }
}
