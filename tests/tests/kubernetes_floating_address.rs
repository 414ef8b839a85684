//! A floating address leads to the API server, and only the kubeconfig names it. A service names the address
//! as external IP. The API server stays reachable there, for pods, for the node and for the agent itself.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use harness::kubernetes::ControlPlane;
use harness::{Endpoint, Node, Place, Probe, Service, Source, World, eventually, require_kubernetes};
use serde_json::{Value, json};

const SECOND: Duration = Duration::from_secs(1);
const API_PORT: u16 = 7443;
/// An address in the nodes' subnet, and one that no link has in its subnet. For the second one, no neighbour
/// shows that a machine holds it.
const FLOATING: [&str; 2] = ["192.168.50.100", "198.51.100.100"];

/// Writes a kubeconfig with the floating address. The certificate of the API server does not have it.
fn kubeconfig(plane: &ControlPlane, node: &Node, address: &str) -> PathBuf {
    let text = fs::read_to_string(plane.kubeconfig()).expect("the kubeconfig");
    let mut config: Value = serde_saphyr::from_str(&text).expect("YAML");
    let cluster = &mut config["clusters"][0]["cluster"];
    cluster["server"] = json!(format!("https://{address}:{API_PORT}"));
    cluster["tls-server-name"] = json!("kubernetes.default.svc");
    let path = node.dir().join("kubeconfig");
    let text = serde_saphyr::to_string(&config).expect("YAML");
    fs::write(&path, text).expect("to write the kubeconfig");
    path
}

#[test]
fn a_floating_address_of_the_kubeconfig_stays_open_where_a_service_names_it() {
    require_kubernetes!();
    let world = World::with_nodes(1);
    let node = world.node(1);
    let plane = ControlPlane::start(&world);
    plane.apply(&node.object());
    plane.apply_status(&node.object());
    let [client, backend] = ["client", "backend"].map(|name| node.add_pod(name));
    let _server = backend.serve_tcp(8080);
    // The pods' addresses are not masqueraded here, so the fabric needs a route to the one that asks.
    let route = format!("route replace {}/32 via {}", client.ip(), node.ip());
    world.fabric().run_ip(&route);
    for (number, address) in FLOATING.iter().enumerate() {
        world.fabric().run_ip(&format!("addr add {address}/32 dev br0"));
        let (relay, _) = plane.serve_at(API_PORT);
        let source = Source::Kubernetes {
            kubeconfig: kubeconfig(&plane, node, address),
        };
        let mut agent = node.agent().source(source).start();
        agent.wait_ready(60 * SECOND);
        let service = Service::new(&format!("web-{number}"))
            .cluster_ip(&format!("10.96.0.{}", 20 + number))
            .tcp("http", 80, 8080)
            .set("externalIPs", json!([address]));
        plane.apply(&service);
        for slice in service.slices([Endpoint::of(&backend)]) {
            plane.apply(&slice);
        }
        let ip: IpAddr = address.parse().expect("an address");
        for place in [&client as &Place, node] {
            eventually(
                &format!("{address}:80 from {}", place.name()),
                20 * SECOND,
                || {
                    let reply = place.ask_within(Probe::Tcp, SocketAddr::new(ip, 80), SECOND);
                    reply.is_ok_and(|reply| reply.backend == "backend")
                },
            );
            let api = place.tcp_connect(SocketAddr::new(ip, API_PORT));
            assert!(api.is_ok(), "{address}:{API_PORT} from {}: {api:?}", place.name());
        }
        let errors = agent.cli(&["status"])["errors"].to_string();
        let is_named = errors.contains(&format!("address {address}")) && errors.contains("an API server");
        assert!(is_named, "{errors}");

        // The agent has to connect again, and receives changes.
        drop(relay);
        let (_relay, _) = plane.serve_at(API_PORT);
        let later = format!("later-{number}");
        let service = Service::new(&later)
            .cluster_ip(&format!("10.96.0.{}", 40 + number))
            .tcp("http", 80, 8080);
        plane.apply(&service);
        eventually("the later service", 90 * SECOND, || {
            agent.cli(&["service", "list"]).to_string().contains(&later)
        });
        plane.delete(&service);
    }
}
