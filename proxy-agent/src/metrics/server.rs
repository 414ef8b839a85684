//! The metrics port, with the other paths that kube-proxy has there (`:10249`):
//!
//! | path | response |
//! |---|---|
//! | `/metrics` | the metrics |
//! | `/healthz` | `ok`: the agent responds |
//! | `/proxyMode` | `millrace`; kube-proxy responds with the mode that it uses |
//! | `/configz` | the configuration in force |

use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::StatusCode;
use tokio::sync::{mpsc, oneshot};

use super::text::CONTENT_TYPE;
use super::{Metrics, Scrape};
use crate::http::{Handler, Response, not_found, reply};

/// The response to `/proxyMode`.
const MODE: &str = "millrace";

/// The configuration in force, as `/configz` shows it; clones show the same one.
#[derive(Clone, Debug, Default)]
pub struct Shown(Arc<Mutex<Arc<str>>>);

impl Shown {
    /// Replaces the text.
    pub fn set(&self, text: &str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = text.into();
    }

    fn get(&self) -> Arc<str> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The responses at the port.
#[derive(Clone)]
pub struct MetricsServer {
    /// The metrics that `/metrics` shows.
    pub metrics: Metrics,
    /// The configuration that `/configz` shows.
    pub shown: Shown,
    /// The channel to the loop for values that need a lookup.
    pub scrapes: mpsc::Sender<Scrape>,
}

impl Handler for MetricsServer {
    fn handle(&self, path: &str) -> BoxFuture<'static, Response> {
        let text = |text: &'static str| reply(StatusCode::OK, "text/plain; charset=utf-8", text);
        let response = match path {
            "/metrics" => return self.clone().scrape().boxed(),
            "/healthz" => text("ok"),
            "/proxyMode" => text(MODE),
            "/configz" => reply(StatusCode::OK, "application/json", self.shown.get().to_string()),
            _ => not_found(),
        };
        std::future::ready(response).boxed()
    }
}

impl MetricsServer {
    async fn scrape(self) -> Response {
        let (done, looked) = oneshot::channel();
        // While the agent stops, the loop takes no request, and the page shows the last values.
        if self.scrapes.send(done).await.is_ok() {
            let _ = looked.await;
        }
        reply(StatusCode::OK, CONTENT_TYPE, self.metrics.page())
    }
}
