//! What `manifests/` says is what a real kube-apiserver takes, and it lets the agent do what it does and no more.

use std::fs;
use std::path::Path;
use std::time::Duration;

use harness::kubernetes::ControlPlane;
use harness::{World, eventually, require_kubernetes};
use serde_json::{Value, json};

const SECOND: Duration = Duration::from_secs(1);

/// The objects of `manifests/install.yaml`.
fn objects() -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/install.yaml");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_saphyr::from_multiple(&text).expect("documents of YAML")
}

/// May the service account do this to a resource of a group, anywhere in the cluster?
fn may(plane: &ControlPlane, verb: &str, group: &str, resource: &str) -> bool {
    let answer = plane.ask(&json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": "system:serviceaccount:kube-system:millrace",
            "groups": ["system:serviceaccounts", "system:authenticated"],
            "resourceAttributes": {"verb": verb, "group": group, "resource": resource},
        },
    }));
    answer["status"]["allowed"] == true
}

#[test]
fn an_api_server_takes_every_object() {
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
    // The judge has teeth.
    let mut misspelt = objects().pop().expect("a DaemonSet");
    misspelt["spec"]["template"]["spec"]["hostNetwrok"] = json!(true);
    assert!(plane.judge(&misspelt).is_err());
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
            // The API server learns of a role a moment after it is there.
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
