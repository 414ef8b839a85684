//! `/healthz` and `/livez` of the whole proxy, with the bodies of kube-proxy.
//!
//! A load balancer asks `/healthz` whether to send new connections to this node. A node that leaves the
//! cluster responds with an error there and still serves its connections. A kubelet asks `/livez` whether to
//! restart the agent, which would not help a node that leaves.

use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::StatusCode;
use serde::Serialize;

use super::{Health, Report};
use crate::http::{Handler, Response, not_found, reply};
use crate::metrics::Probes;

/// The body of both responses.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
}

/// The responses for the proxy.
#[derive(Clone)]
pub struct ProxyHealth {
    /// The state that the responses report.
    pub health: Health,
    /// The counters of the responses.
    pub probes: Probes,
}

impl Handler for ProxyHealth {
    fn handle(&self, path: &str) -> BoxFuture<'static, Response> {
        let report = self.health.report();
        let response = match path {
            "/healthz" => {
                let good = report.healthy && report.node_eligible;
                self.probes.healthz(status(good).as_str());
                respond(&report, good, Some(report.node_eligible))
            }
            "/livez" => {
                self.probes.livez(status(report.healthy).as_str());
                respond(&report, report.healthy, None)
            }
            _ => not_found(),
        };
        std::future::ready(response).boxed()
    }
}

/// The HTTP status for a good or a bad state.
pub fn status(good: bool) -> StatusCode {
    if good {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

fn respond(report: &Report, good: bool, node_eligible: Option<bool>) -> Response {
    let body = Body {
        last_updated: report.last_updated.to_string(),
        current_time: report.current_time.to_string(),
        node_eligible,
    };
    let body = serde_json::to_vec(&body).unwrap_or_default();
    reply(status(good), "application/json", body)
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use serde_json::Value;

    use super::*;

    async fn ask(server: &ProxyHealth, path: &str) -> (u16, Value) {
        let response = server.handle(path).await;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }

    #[tokio::test]
    async fn a_node_that_leaves_is_live_and_not_healthy() {
        let server = ProxyHealth {
            health: Health::default(),
            probes: Probes::default(),
        };
        let (status, body) = ask(&server, "/healthz").await;
        assert_eq!((status, &body["nodeEligible"]), (200, &Value::Bool(true)));
        assert_eq!(body["lastUpdated"], body["currentTime"]);
        server.health.set_node_leaving(true);
        let (status, body) = ask(&server, "/healthz").await;
        assert_eq!((status, &body["nodeEligible"]), (503, &Value::Bool(false)));
        let (status, body) = ask(&server, "/livez").await;
        assert_eq!((status, body.get("nodeEligible")), (200, None));
        assert!(body["currentTime"].as_str().unwrap().ends_with('Z'), "{body}");
        assert_eq!(ask(&server, "/").await.0, 404);
    }
}
