//! The kernel keeps ICMP redirects as entries of its route cache. A list of the routes has these entries too,
//! but they are no routes. A service whose address has such an entry gets its route and its traffic.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use harness::{Endpoint, Node, Probe, Service, World, eventually, wait_for};
use serde_json::json;

const SECOND: Duration = Duration::from_secs(1);
/// The address that the router sends a redirect for.
const REDIRECTED: &str = "198.51.100.9";
const OTHER: &str = "198.51.100.10";

/// The output of `ip route` with the words of a line.
#[track_caller]
fn ip_route(node: &Node, line: &str) -> String {
    let output = node.command("ip").arg("route").args(line.split(' ')).output();
    let output = output.unwrap_or_else(|error| panic!("ip route {line}: {error}"));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Has the router send redirects for the address to the node, until the node has one in its cache.
#[track_caller]
fn redirect(world: &World) {
    let [node, other] = [world.node(1), world.node(2)];
    let router = world.fabric();
    for link in ["all", "br0"] {
        router.sysctl(&format!("net/ipv4/conf/{link}/send_redirects"), "1");
    }
    for link in ["all", "eth0"] {
        node.sysctl(&format!("net/ipv4/conf/{link}/accept_redirects"), "1");
    }
    other.run_ip(&format!("addr add {REDIRECTED}/32 dev lo"));
    router.run_ip(&format!("route add {REDIRECTED}/32 via {}", other.ip()));
    let to: IpAddr = REDIRECTED.parse().expect("an address");
    // The first redirect only makes the node resolve the new next hop.
    wait_for("a redirect in the cache", 10 * SECOND, || {
        let echo = node.ping(to, SECOND / 4);
        has_redirect(node).map_err(|route| format!("{route} (ping: {echo:?})"))
    });
    other.run_ip(&format!("addr del {REDIRECTED}/32 dev lo"));
}

/// Whether the route to the address is an entry of the cache; the error is the route.
fn has_redirect(node: &Node) -> Result<(), String> {
    let route = ip_route(node, &format!("get {REDIRECTED}"));
    if route.contains("cache <redirected>") {
        Ok(())
    } else {
        Err(route)
    }
}

#[test]
fn an_address_with_a_cached_redirect_gets_its_route() {
    harness::require_root!();
    let world = World::with_nodes(2);
    let node = world.node(1);
    redirect(&world);
    assert_eq!(has_redirect(node), Ok(()));

    let mut agent = node.agent().start();
    agent.wait_ready(20 * SECOND);
    // The next list of the routes is due with the service, so the entry must still exist.
    assert_eq!(has_redirect(node), Ok(()));
    let backend = node.add_pod("backend");
    let _servers = backend.serve(8080);
    let service = Service::new("dns")
        .cluster_ip("10.96.0.10")
        .udp("dns", 53, 8080)
        .load_balancer_ip(REDIRECTED)
        .load_balancer_ip(OTHER);
    world.apply_all(service.slices([Endpoint::of(&backend)]));
    world.apply(&service);
    for address in [OTHER, REDIRECTED] {
        let what = format!("a route to {address}");
        eventually(&what, 5 * SECOND, || {
            ip_route(node, &format!("show {address}/32")).contains("dev millrace0")
        });
        // The packets of a connected UDP socket follow the route.
        let to = SocketAddr::new(address.parse().expect("an address"), 53);
        wait_for(&format!("a reply from {to}"), 5 * SECOND, || {
            node.ask_within(Probe::UdpConnected, to, SECOND)
        });
    }
    assert_eq!(agent.cli(&["status"])["errors"], json!([]));
}
