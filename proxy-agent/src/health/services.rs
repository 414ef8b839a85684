//! The health of single services: a server at the `healthCheckNodePort` of each service that has one.
//!
//! A load balancer that keeps clients' addresses (`externalTrafficPolicy: Local`) must know which nodes have
//! an endpoint. It asks every node at this port, with any path. The servers start, stop and follow the
//! services as they change.
//!
//! Invariant: each service with a port has one server, and no other server runs. If two services want one
//! port, the first has it; the agent reports to the other that the port is in use.

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::HeaderValue;
use serde_json::json;
use tokio::task::JoinHandle;

use super::Health;
use super::proxy::status;
use crate::events::{Event, Recorder};
use crate::http::{Faults, Handler, Response, Room, keep_serving, reply};
use crate::source::{ObjectId, ObjectIdMap};

/// The header with the number of the node's endpoints, which a balancer may use as this node's weight.
const WEIGHT: &str = "x-load-balancing-endpoint-weight";

/// The health check of one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceCheck {
    /// The service's namespace.
    pub namespace: String,
    /// The service's name.
    pub name: String,
    /// The value of `spec.healthCheckNodePort`.
    pub port: u16,
    /// How many ready endpoints this node has.
    pub endpoints: u32,
}

/// The running servers.
pub struct ServiceChecks {
    running: ObjectIdMap<Running>,
    health: Health,
    room: Room,
    faults: Faults,
    recorder: Recorder,
}

struct Running {
    port: u16,
    subject: String,
    endpoints: Arc<AtomicU32>,
    task: JoinHandle<()>,
    faults: Faults,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
        self.faults.clear(&self.subject);
    }
}

impl ServiceChecks {
    /// Makes a set without servers.
    pub fn new(health: Health, room: Room, faults: Faults, recorder: Recorder) -> Self {
        Self {
            running: ObjectIdMap::default(),
            health,
            room,
            faults,
            recorder,
        }
    }

    /// Starts, stops and updates the servers of some services. Must be called within a tokio runtime.
    pub fn update(&mut self, checks: impl Iterator<Item = (ObjectId, Option<ServiceCheck>)>) {
        let mut wanted = Vec::new();
        for (id, check) in checks {
            match (self.running.get(&id), check) {
                (Some(running), Some(check)) if running.port == check.port => {
                    running.endpoints.store(check.endpoints, Ordering::Relaxed);
                }
                (_, check) => {
                    self.running.remove(&id);
                    wanted.extend(check.map(|check| (id, check)));
                }
            }
        }
        // New servers start last, so that a port that moves from one service to another is free.
        for (id, check) in wanted {
            let running = self.start(&check);
            self.running.insert(id, running);
        }
    }

    fn start(&self, check: &ServiceCheck) -> Running {
        let endpoints = Arc::new(AtomicU32::new(check.endpoints));
        let handler = CheckHandler {
            namespace: check.namespace.as_str().into(),
            name: check.name.as_str().into(),
            endpoints: Arc::clone(&endpoints),
            health: self.health.clone(),
        };
        let subject = format!("Service {}/{}", check.namespace, check.name);
        let recorder = self.recorder.clone();
        let (namespace, name, port) = (check.namespace.clone(), check.name.clone(), check.port);
        let failed = move |message: &str| {
            recorder.record(Event::warning_of_service(
                &namespace,
                &name,
                "FailedToStartServiceHealthcheck",
                "Listen",
                format!("healthCheckNodePort {port}: {message}"),
            ));
        };
        let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, check.port));
        let (room, faults) = (self.room.clone(), self.faults.clone());
        let server = keep_serving(address, handler, room, faults, subject.clone(), failed);
        Running {
            port: check.port,
            subject,
            endpoints,
            task: tokio::spawn(server),
            faults: self.faults.clone(),
        }
    }
}

#[derive(Clone)]
struct CheckHandler {
    namespace: Arc<str>,
    name: Arc<str>,
    endpoints: Arc<AtomicU32>,
    health: Health,
}

impl Handler for CheckHandler {
    fn handle(&self, _path: &str) -> BoxFuture<'static, Response> {
        let endpoints = self.endpoints.load(Ordering::Relaxed);
        let healthy = self.health.report().healthy;
        let body = json!({
            "service": {"namespace": &*self.namespace, "name": &*self.name},
            "localEndpoints": endpoints,
            "serviceProxyHealthy": healthy,
        });
        let mut response = reply(
            status(healthy && endpoints > 0),
            "application/json",
            body.to_string(),
        );
        response
            .headers_mut()
            .insert(WEIGHT, HeaderValue::from(endpoints));
        std::future::ready(response).boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;
    use crate::health::state::TIMEOUT;
    use crate::source::Kind;

    fn room() -> Room {
        let (limiter, _) = crate::http::ConnectionLimiter::new();
        Room {
            limiter,
            name: "service",
        }
    }

    fn id(name: &str) -> ObjectId {
        ObjectId::new(Kind::Service, "shop", name)
    }

    fn check(name: &str, port: u16, endpoints: u32) -> (ObjectId, Option<ServiceCheck>) {
        let check = ServiceCheck {
            namespace: "shop".into(),
            name: name.into(),
            port,
            endpoints,
        };
        (id(name), Some(check))
    }

    /// A port that no socket uses at the moment.
    fn port() -> u16 {
        let listener = std::net::TcpListener::bind("[::]:0").unwrap();
        listener.local_addr().unwrap().port()
    }

    async fn ask(port: u16) -> Option<String> {
        // The server is a task that has not run yet.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        let request = "GET /any HTTP/1.1\r\nHost: a\r\n\r\n";
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        Some(text)
    }

    #[tokio::test]
    async fn servers_come_go_and_follow_their_services() {
        let (health, faults) = (Health::default(), Faults::default());
        let mut checks = ServiceChecks::new(health.clone(), room(), faults.clone(), Recorder::nowhere());
        let (one, other) = (port(), port());
        checks.update([check("cart", one, 2)].into_iter());
        let text = ask(one).await.unwrap();
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
        for part in [
            "content-type: application/json\r\n",
            "x-content-type-options: nosniff\r\n",
            "x-load-balancing-endpoint-weight: 2\r\n",
        ] {
            assert!(text.contains(part), "{text}");
        }
        let body: serde_json::Value = serde_json::from_str(text.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        assert_eq!(
            body,
            json!({"service": {"namespace": "shop", "name": "cart"}, "localEndpoints": 2, "serviceProxyHealthy": true})
        );
        checks.update([check("cart", one, 0)].into_iter());
        assert!(ask(one).await.unwrap().starts_with("HTTP/1.1 503 "));
        // The first service moves to a port that another service had, and a new service gets the first port.
        checks.update([check("till", other, 1)].into_iter());
        assert!(ask(other).await.unwrap().contains("till"));
        checks.update([check("cart", other, 1), (id("till"), None), check("new", one, 1)].into_iter());
        assert!(ask(other).await.unwrap().contains("cart"));
        assert!(ask(one).await.unwrap().contains("new"));
        assert!(faults.list().is_empty(), "{:?}", faults.list());
        health.waits(Instant::now().checked_sub(TIMEOUT).unwrap());
        let text = ask(one).await.unwrap();
        assert!(
            text.starts_with("HTTP/1.1 503 ") && text.contains("\"serviceProxyHealthy\":false"),
            "{text}"
        );
        checks.update([(id("cart"), None), (id("new"), None)].into_iter());
        assert_eq!((ask(one).await, ask(other).await), (None, None));
    }

    #[tokio::test]
    async fn a_port_in_use_is_a_fault_as_long_as_the_service_wants_it() {
        let (health, faults) = (Health::default(), Faults::default());
        let mut checks = ServiceChecks::new(health, room(), faults.clone(), Recorder::nowhere());
        let taken = std::net::TcpListener::bind("[::]:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        checks.update([check("cart", port, 1)].into_iter());
        tokio::time::sleep(Duration::from_millis(20)).await;
        let (subject, fault) = faults.list().remove(0);
        assert_eq!(subject, "Service shop/cart");
        assert!(fault.message.contains("Address already in use"), "{fault:?}");
        checks.update([(id("cart"), None)].into_iter());
        assert!(faults.list().is_empty());
    }
}
