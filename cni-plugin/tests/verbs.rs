//! The other verbs: CHECK finds differences, GC frees leaked attachments, STATUS reports whether ADD would
//! work.

#[expect(dead_code, reason = "this file needs a part of it")]
mod support;

use cni_plugin::netlink::{NetlinkSocket, link};
use serde_json::{Value, json};
use support::{World, names, on_a_bare_node, on_a_node, with};

#[test]
fn check_names_each_difference() {
    on_a_node(|world| {
        let pod = world.pod("pod");
        let result = world.add("c1", &pod).done();
        let host = result["interfaces"][0]["name"].as_str().unwrap();
        let config = with(world.config(), &json!({"prevResult": result}));
        let check = || World::call("CHECK", "c1", Some(&pod), &config);
        check().done();
        assert_eq!(World::call("CHECK", "c1", Some(&pod), &world.config()).code(), 7);
        let lease = world.data_dir.join("10.244.1.2");
        std::fs::rename(&lease, world.path("kept")).unwrap();
        assert_eq!(check().code(), 107);
        std::fs::rename(world.path("kept"), &lease).unwrap();
        let index = link::find(&mut NetlinkSocket::open().unwrap(), host)
            .unwrap()
            .unwrap()
            .index;
        world.detach(index);
        let failure = check();
        assert!(
            failure.document["details"]
                .as_str()
                .unwrap()
                .contains("from_own_pod"),
            "{failure:?}"
        );
        // The removal of the interface removes its routes and addresses.
        World::inside(&pod, || {
            let mut socket = NetlinkSocket::open().unwrap();
            let index = link::find(&mut socket, "eth0").unwrap().unwrap().index;
            link::remove(&mut socket, index).unwrap();
        });
        assert_eq!(check().code(), 107);
        world.del("c1", Some(&pod)).done();
    });
}

#[test]
fn gc_frees_attachments_that_are_not_named() {
    on_a_node(|world| {
        let before = world.traces();
        for container in ["c1", "c2", "c3"] {
            world.add(container, &world.pod(container)).done();
        }
        // There are no entries before Linux 5.14, where namespaces have no cookie.
        let each = world.namespaces().len() / 3;
        std::fs::write(world.data_dir.join("10.244.1.99"), "old\r\neth0").unwrap();
        std::fs::write(world.data_dir.join("10.244.1.98"), "").unwrap();
        let gc = |valid: Value| {
            let config = with(world.config(), &json!({"cni.dev/valid-attachments": valid}));
            World::call("GC", "", None, &config)
        };
        gc(json!([{"containerID": "c2", "ifname": "eth0"}])).done();
        let leases: Vec<_> = names(&world.data_dir)
            .into_iter()
            .filter(|name| name.contains(['.', ':']))
            .collect();
        assert_eq!(
            leases,
            [
                "10.244.1.3",
                "fd00:1::3",
                "last_reserved_ip.0",
                "last_reserved_ip.1"
            ]
        );
        assert_eq!((world.pods().len(), world.namespaces().len()), (2, each));
        assert_eq!(
            World::call("GC", "", None, &world.config()).code(),
            7,
            "without a list nothing is freed"
        );
        gc(json!([])).done();
        assert_eq!(world.traces(), before);
    });
}

#[test]
fn gc_of_a_node_without_pods_frees_everything() {
    on_a_node(|world| {
        let (pod, before) = (world.pod("c1"), world.traces());
        let [first, second] = ["cni.dev/valid-attachments", "cni.dev/attachments"];
        // Go writes a list without elements as `null`; libcni writes both keys.
        for none in [
            json!({first: null, second: null}),
            json!({first: null}),
            json!({second: null}),
            json!({first: [], second: []}),
        ] {
            world.add("c1", &pod).done();
            assert_ne!(world.traces(), before);
            World::call("GC", "", None, &with(world.config(), &none)).done();
            assert_eq!(world.traces(), before, "{none}");
        }
    });
}

#[test]
fn null_equals_an_empty_value_in_every_call() {
    on_a_node(|world| {
        let before = world.traces();
        let nulls = json!({
            "args": null, "capabilities": null, "dns": null, "prevResult": null, "mtu": null, "enabledad": null,
            "runtimeConfig": {"portMappings": null, "bandwidth": null, "ips": null, "mac": null, "dns": null, "ipRanges": null},
        });
        let config = with(world.config(), &nulls);
        let pod = world.pod("pod");
        let result = World::call("ADD", "c1", Some(&pod), &config).done();
        let mut previous = result.clone();
        previous["dns"] = json!(null);
        let check = with(world.config(), &nulls);
        World::call(
            "CHECK",
            "c1",
            Some(&pod),
            &with(check, &json!({"prevResult": previous})),
        )
        .done();
        World::call("DEL", "c1", Some(&pod), &config).done();
        // The result of an earlier plugin that made nothing.
        let empty = json!({"prevResult": {"cniVersion": "1.1.0", "interfaces": null, "ips": null, "routes": null, "dns": null}});
        let chained = World::call("ADD", "c1", Some(&pod), &with(config, &empty)).done();
        assert_eq!(chained["interfaces"].as_array().map(Vec::len), Some(2));
        assert_eq!(chained["dns"], json!({}));
        World::call("DEL", "c1", Some(&pod), &world.config()).done();
        assert_eq!(world.traces(), before);
    });
}

#[test]
fn status_shows_whether_add_would_work() {
    on_a_bare_node(|world| {
        let status = |changes: Value| World::call("STATUS", "", None, &with(world.config(), &changes));
        let failure = status(json!({}));
        assert_eq!(failure.code(), 50);
        assert!(
            failure.document["details"]
                .as_str()
                .unwrap()
                .contains("millrace agent"),
            "{failure:?}"
        );
        let pod = world.pod("pod");
        assert_eq!(world.add("c1", &pod).code(), 11);
        world.pin_programs();
        assert_eq!(status(json!({})).done(), Value::Null);
        let tiny = json!({"ipam": {"dataDir": world.data_dir, "ranges": [[{"subnet": "10.0.0.0/30"}]]}});
        status(tiny.clone()).done();
        World::call("ADD", "c1", Some(&pod), &with(world.config(), &tiny)).done();
        assert_eq!(status(tiny).code(), 50, "the only address is given");
        assert_eq!(status(json!({"cniVersion": "1.0.0"})).code(), 1);
    });
}
