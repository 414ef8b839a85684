//! Posting events to the API server (`events.k8s.io/v1`).
//!
//! Each event is an object of its own. The agent makes no series of events, which would need the right to
//! change them. It asks for one right only: `create` on `events`.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use kube::core::Request;
use kube::core::params::PostParams;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::Event;
use super::limit::Limit;
use crate::source::kubernetes::{Servers, is_no_response, status_code};

/// The controller's name in events.
const CONTROLLER: &str = "millrace.dev/agent";
/// The longest note in bytes; the API server refuses longer ones.
const LONGEST_NOTE: usize = 1024;
/// The time limit of one request.
const POST_TIMEOUT: Duration = Duration::from_secs(30);

/// Posts events one after another.
pub struct Poster {
    servers: Servers,
    instance: String,
    node: String,
}

impl Poster {
    /// Makes a poster for the agent of `node`.
    pub fn new(servers: Servers, node: &str) -> Self {
        Self {
            servers,
            instance: format!("millrace-{node}"),
            node: node.to_owned(),
        }
    }

    /// Runs until every [`Recorder`](super::Recorder) is dropped.
    pub async fn run(self, mut events: mpsc::Receiver<Event>) {
        let mut limit = Limit::new(Instant::now());
        while let Some(event) = events.recv().await {
            if !limit.admit(&event, Instant::now()) {
                tracing::debug!(?event, "an event is not sent again");
                continue;
            }
            match tokio::time::timeout(POST_TIMEOUT, self.post(&event)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, reason = event.reason, "an event is lost"),
                Err(_) => tracing::warn!(
                    reason = event.reason,
                    "an event is lost: the server does not reply"
                ),
            }
        }
    }

    async fn post(&self, event: &Event) -> Result<(), kube::Error> {
        let body = self.object(event, Timestamp::now());
        let namespace = &body["metadata"]["namespace"];
        let path = format!(
            "/apis/events.k8s.io/v1/namespaces/{}/events",
            namespace.as_str().unwrap_or("default")
        );
        let request = Request::new(path).create(&PostParams::default(), body.to_string().into_bytes());
        let request = request.map_err(kube::Error::BuildRequest)?;
        let (choice, client) = self.servers.choose();
        let response = client.request_text(request).await;
        self.servers
            .state()
            .count_request("POST", status_code(&response, 201));
        if response.as_ref().is_err_and(is_no_response) {
            self.servers.failed(choice);
        }
        response.map(drop)
    }

    fn object(&self, event: &Event, now: Timestamp) -> Value {
        // The event of an object without a namespace goes to the namespace `default`.
        let namespace = if event.namespace.is_empty() {
            "default"
        } else {
            &event.namespace
        };
        let mut regarding = json!({"apiVersion": event.api_version, "kind": event.kind, "name": event.name});
        if !event.namespace.is_empty() {
            regarding["namespace"] = json!(event.namespace);
        }
        let note = format!("node {}: {}", self.node, event.note);
        let end = note.floor_char_boundary(LONGEST_NOTE.min(note.len()));
        json!({
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {
                "namespace": namespace,
                "name": format!("{}.{:x}", object_name(&event.name), now.as_nanosecond()),
            },
            "eventTime": format!("{now:.6}"),
            "reportingController": CONTROLLER,
            "reportingInstance": self.instance,
            "action": event.action,
            "reason": event.reason,
            "regarding": regarding,
            "note": &note[..end],
            "type": event.type_,
        })
    }
}

/// Makes the start of an event object's name from the name of its subject, which may hold characters that no
/// object's name can have.
fn object_name(name: &str) -> String {
    let plain = |character: char| match character.to_ascii_lowercase() {
        plain @ ('a'..='z' | '0'..='9' | '-' | '.') => plain,
        _ => '-',
    };
    let plain: String = name.chars().map(plain).collect();
    plain.trim_matches(['-', '.']).to_owned()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::{Arc, Mutex};

    use http::{Request, Response};
    use http_body_util::BodyExt as _;
    use kube::Client;
    use kube::client::Body;

    use super::*;
    use crate::events::Recorder;

    #[test]
    fn an_events_name_can_be_an_objects() {
        for (name, expected) in [("n1.example", "n1.example"), ("N1", "n1"), ("_Node_1.", "node-1")] {
            assert_eq!(object_name(name), expected);
        }
    }

    #[tokio::test]
    async fn an_event_is_posted_once() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let posted = Arc::clone(&seen);
        let server = tower::service_fn(move |request: Request<Body>| {
            let posted = Arc::clone(&posted);
            async move {
                let place = format!("{} {}", request.method(), request.uri().path());
                let body = request.into_body().collect().await.expect("a body").to_bytes();
                let body: Value = serde_json::from_slice(&body).expect("JSON");
                posted.lock().expect("no thread panicked").push((place, body));
                let response = Response::builder().status(201).body(Body::from(b"{}".to_vec()));
                Ok::<_, Infallible>(response.expect("a good response"))
            }
        });
        let servers = Servers::of_clients([Client::new(server, "default")]);
        let state = servers.state().clone();
        let recorder = Recorder::start(servers, "n1");
        let event = Event::warning_of_service("shop", "cart", "FailedToStart", "Listen", "x".repeat(2000));
        recorder.record(event.clone());
        recorder.record(event);
        while state.requests().is_empty() {
            tokio::task::yield_now().await;
        }
        drop(recorder);
        tokio::task::yield_now().await;
        let seen = seen.lock().unwrap();
        assert_eq!(seen.len(), 1);
        let (place, body) = &seen[0];
        assert_eq!(place, "POST /apis/events.k8s.io/v1/namespaces/shop/events");
        assert_eq!(
            body["regarding"],
            json!({"apiVersion": "v1", "kind": "Service", "name": "cart", "namespace": "shop"})
        );
        assert_eq!(body["note"].as_str().unwrap().len(), LONGEST_NOTE);
        assert_eq!(body["reportingInstance"], "millrace-n1");
        assert!(body["eventTime"].as_str().unwrap().len() == "2026-01-02T03:04:05.000006Z".len());
    }
}
