//! The port that shows metrics, and what else kube-proxy shows there (`:10249`):
//!
//! | path | answer |
//! |---|---|
//! | `/metrics` | the metrics |
//! | `/healthz` | `ok`: the agent answers |
//! | `/proxyMode` | `millrace`: who serves here, where kube-proxy names the mode that it serves by |
//! | `/configz` | the configuration in force |

use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::StatusCode;
use tokio::sync::{mpsc, oneshot};

use super::text::CONTENT_TYPE;
use super::{Metrics, Scrape};
use crate::http::{Answer, Response, answer, not_found};

/// The answer to `/proxyMode`.
const MODE: &str = "millrace";

/// The configuration in force, as `/configz` shows it; clones show the same one.
#[derive(Clone, Debug, Default)]
pub struct Shown(Arc<Mutex<Arc<str>>>);

impl Shown {
    /// Shows another one.
    pub fn set(&self, text: &str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = text.into();
    }

    fn get(&self) -> Arc<str> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Answers at the port.
#[derive(Clone)]
pub struct MetricsServer {
    /// What is shown.
    pub metrics: Metrics,
    /// What is shown of the configuration.
    pub shown: Shown,
    /// Asks the loop.
    pub scrapes: mpsc::Sender<Scrape>,
}

impl Answer for MetricsServer {
    fn answer(&self, path: &str) -> BoxFuture<'static, Response> {
        let text = |text: &'static str| answer(StatusCode::OK, "text/plain; charset=utf-8", text);
        let response = match path {
            "/metrics" => return self.clone().scrape().boxed(),
            "/healthz" => text("ok"),
            "/proxyMode" => text(MODE),
            "/configz" => answer(StatusCode::OK, "application/json", self.shown.get().to_string()),
            _ => not_found(),
        };
        std::future::ready(response).boxed()
    }
}

impl MetricsServer {
    async fn scrape(self) -> Response {
        let (done, looked) = oneshot::channel();
        // An agent that stops shows what it has.
        if self.scrapes.send(done).await.is_ok() {
            let _ = looked.await;
        }
        answer(StatusCode::OK, CONTENT_TYPE, self.metrics.page())
    }
}
