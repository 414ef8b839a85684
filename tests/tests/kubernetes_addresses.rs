//! An agent that knows several addresses of an API server uses one that answers.

use std::time::Duration;

use harness::kubernetes::ControlPlane;
use harness::{Service, Source, World, eventually, require_kubernetes};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn the_next_address_is_used_after_no_response() {
    require_kubernetes!();
    let world = World::with_nodes(1);
    let plane = ControlPlane::start(&world);
    plane.apply(&world.node(1).object());
    plane.apply_status(&world.node(1).object());
    let (relay, relayed) = plane.serve_at(7443);
    // There is no listener at the first address.
    let unreachable = relayed.replace("7443", "9");
    let mut agent = world
        .node(1)
        .agent()
        .source(Source::Kubernetes {
            kubeconfig: plane.kubeconfig(),
        })
        .arg(format!("--api-server={unreachable}"))
        .arg(format!("--api-server={relayed},{}", plane.url()))
        .start();
    agent.wait_ready(60 * SECOND);
    let moves = |agent: &harness::Agent| {
        agent
            .log()
            .matches("asking the API server at its next address")
            .count()
    };
    assert_eq!(moves(&agent), 1, "{}", agent.log());

    drop(relay);
    let web = Service::new("web").cluster_ip("10.96.0.10").tcp("http", 80, 8080);
    plane.apply(&web);
    eventually("the service is programmed", 60 * SECOND, || {
        agent.cli(&["service", "list"]).to_string().contains("\"web\"")
    });
    assert_eq!(moves(&agent), 2, "{}", agent.log());
}
