//! A node with a client and a service that must stay served in every test, and the agent's list of errors.

use std::io::ErrorKind;
use std::time::Duration;

use harness::{Agent, Endpoint, Node, Place, Pod, Probe, Server, Service, World, address, wait_for};
use proxy_common::maps::Reason;

pub const SECOND: Duration = Duration::from_secs(1);

/// A node with two pods that serve TCP and UDP on port 8080, `a` and `b`, and the service `good` in front of
/// both.
pub struct Fixture {
    pub world: World,
    pub client: Pod,
    pub a: Pod,
    pub b: Pod,
    _servers: Vec<Server>,
}

impl Fixture {
    pub fn open() -> Self {
        let world = World::with_nodes(1);
        let [client, a, b] = ["client", "a", "b"].map(|name| world.node(1).add_pod(name));
        let servers = [&a, &b].into_iter().flat_map(|pod| pod.serve(8080));
        let servers = servers.collect();
        let fixture = Self {
            world,
            client,
            a,
            b,
            _servers: servers,
        };
        let good = good();
        fixture
            .world
            .apply_all(good.slices([&fixture.a, &fixture.b].map(Endpoint::of)));
        fixture.world.apply(&good);
        fixture
    }

    pub fn node(&self) -> &Node {
        self.world.node(1)
    }

    /// A TCP service `name` at `10.96.<third>.<fourth>` with an IPv4 slice that leads to some pods.
    pub fn serve(&self, name: &str, (third, fourth): (u8, u8), pods: &[&Pod]) -> Service {
        let service = Service::new(name)
            .cluster_ip(&format!("10.96.{third}.{fourth}"))
            .tcp("http", 80, 8080);
        self.world
            .apply_all(service.slices(pods.iter().map(|pod| Endpoint::of(pod))));
        self.world.apply(&service);
        service
    }

    /// The service `good` answers the pod and the node, by TCP and UDP, IPv4 and IPv6.
    #[track_caller]
    pub fn assert_served(&self) {
        for place in [&self.client as &Place, self.node()] {
            for to in ["10.96.0.10:80", "[fd00:96::10]:80"] {
                for probe in Probe::ALL {
                    if let Err(error) = place.ask(probe, address(to)) {
                        panic!("{} asks {to} by {probe:?}: {error}", place.name());
                    }
                }
            }
        }
    }

    /// Waits until this backend answers the client.
    #[track_caller]
    pub fn wait_reply(&self, to: &str, backend: &str) {
        wait_for(&format!("{backend} to reply at {to}"), SECOND, || {
            let reply = self.client.ask_within(Probe::Tcp, address(to), SECOND / 4);
            match reply {
                Ok(reply) if reply.backend == backend => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }

    /// Waits until the client is refused or gets no reply; `reasons` decide which of the two. The node counts
    /// one of these reasons. Without a reason, the stack handles the packet and no counter changes.
    #[track_caller]
    pub fn wait_unserved(&self, to: &str, reasons: &[Reason]) {
        let is_rejection = |reason: &Reason| reason.is_reject() || *reason == Reason::SocketRefused;
        let expected_error = if reasons.iter().any(is_rejection) {
            ErrorKind::ConnectionRefused
        } else {
            ErrorKind::TimedOut
        };
        let counted = || -> u64 {
            let counters = self.node().counters();
            reasons.iter().map(|reason| counters[*reason as usize]).sum()
        };
        wait_for(
            &format!("{expected_error:?} at {to} for {reasons:?}"),
            SECOND,
            || {
                let before = counted();
                let outcome = self.client.ask_within(Probe::Tcp, address(to), SECOND / 10);
                let more = counted().saturating_sub(before);
                match &outcome {
                    Err(error) if error.kind() == expected_error && (more > 0 || reasons.is_empty()) => {
                        Ok(())
                    }
                    _ => Err(format!("{outcome:?}, and {more} were counted")),
                }
            },
        );
    }

    /// Waits until the agent's errors are exactly these: the object and the message of each contain one pair
    /// of texts.
    #[track_caller]
    pub fn wait_errors(&self, expected: &[(&str, &str)]) {
        wait_for(&format!("the errors {expected:?}"), SECOND, || {
            let errors = errors(self.node());
            let mut left = errors.clone();
            for (object, message) in expected {
                let fits = |error: &(String, String)| error.0.contains(object) && error.1.contains(message);
                let found = left.iter().position(fits).ok_or_else(|| format!("{errors:#?}"))?;
                left.remove(found);
            }
            if left.is_empty() {
                Ok(())
            } else {
                Err(format!("{errors:#?}"))
            }
        });
    }
}

/// The service that must stay served.
pub fn good() -> Service {
    Service::new("good")
        .cluster_ip("10.96.0.10")
        .cluster_ip("fd00:96::10")
        .tcp("http", 80, 8080)
        .udp("dns", 80, 8080)
}

pub fn started(agent: harness::AgentBuilder) -> Agent {
    let mut agent = agent.start();
    agent.wait_ready(10 * SECOND);
    agent
}

/// The errors in `millrace status`, as object and message.
pub fn errors(node: &Node) -> Vec<(String, String)> {
    let status = node.cli(&["status"]).expect("a status");
    let text = |value: &serde_json::Value| value.as_str().expect("text").to_owned();
    let errors = status["errors"].as_array().expect("a list");
    errors
        .iter()
        .map(|error| (text(&error["object"]), text(&error["message"])))
        .collect()
}
