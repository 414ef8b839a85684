//! A client of the API server for any kind of object. Its connections are made in the fabric's namespace, and
//! its callers may be in another one.

use std::path::Path;

use anyhow::{Context, Result};
use futures::StreamExt;
use http::{Method, Request};
use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::place::Place;

/// Concurrent requests. The API server takes 200 that change something.
const IN_FLIGHT: usize = 64;

const MERGE: &str = "application/merge-patch+json";
const JSON: &str = "application/json";

pub(super) struct ApiClient {
    runtime: Runtime,
    client: Client,
}

impl ApiClient {
    pub(super) fn new(fabric: &Place, kubeconfig: &Path) -> Result<Self> {
        let runtime = fabric.netns().runtime()?;
        let file = Kubeconfig::read_from(kubeconfig).context("reading the kubeconfig")?;
        let connect = async move {
            let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
            // A proxy from the environment cannot be reached from the fabric.
            config.proxy_url = None;
            anyhow::Ok(Client::try_from(config)?)
        };
        let client = runtime
            .block_on(runtime.spawn(connect))
            .context("making an API client")??;
        Ok(Self { runtime, client })
    }

    pub(super) fn get(&self, path: &str) -> Result<Value> {
        self.send(Method::GET, path.to_owned(), JSON, Vec::new())
    }

    pub(super) fn text(&self, path: &str) -> Result<String> {
        let client = self.client.clone();
        let request = Request::get(path).body(Vec::new()).context("making a request")?;
        let task = self
            .runtime
            .spawn(async move { client.request_text(request).await });
        self.runtime
            .block_on(task)?
            .with_context(|| format!("reading {path}"))
    }

    /// Replaces the object, or creates it. (Not by server-side apply, which refuses a node with two addresses
    /// of one type.)
    pub(super) fn apply(&self, object: &Value) -> Result<Value> {
        let body = object.to_string().into_bytes();
        match self.send(Method::PUT, path_of(object)?, JSON, body.clone()) {
            Err(error) if is_absent(&error) => self.send(Method::POST, collection_of(object)?, JSON, body),
            outcome => outcome,
        }
    }

    /// Creates an object; `query` is appended to the URL.
    pub(super) fn create(&self, object: &Value, query: &str) -> Result<Value> {
        let path = format!("{}{query}", collection_of(object)?);
        self.send(Method::POST, path, JSON, object.to_string().into_bytes())
    }

    pub(super) fn apply_status(&self, object: &Value) -> Result<Value> {
        self.patch_at(
            &format!("{}/status", path_of(object)?),
            MERGE,
            &json!({"status": object["status"]}),
        )
    }

    pub(super) fn patch(&self, object: &Value, change: &Value) -> Result<Value> {
        self.patch_at(&path_of(object)?, MERGE, change)
    }

    pub(super) fn delete(&self, object: &Value) -> Result<()> {
        self.send(Method::DELETE, path_of(object)?, JSON, Vec::new())
            .map(drop)
    }

    /// Creates objects, [`IN_FLIGHT`] at a time. Returns the first failure, after all requests.
    pub(super) fn create_all(&self, objects: Vec<Value>) -> Result<()> {
        let client = self.client.clone();
        let creations = async move {
            let mut outcomes = futures::stream::iter(objects)
                .map(|object| {
                    send(
                        client.clone(),
                        Method::POST,
                        collection_of(&object),
                        JSON,
                        object.to_string().into(),
                    )
                })
                .buffer_unordered(IN_FLIGHT);
            let mut outcome = Ok(());
            while let Some(created) = outcomes.next().await {
                outcome = outcome.and(created.map(drop));
            }
            outcome
        };
        self.runtime.block_on(self.runtime.spawn(creations))?
    }

    fn patch_at(&self, path: &str, kind: &'static str, body: &Value) -> Result<Value> {
        self.send(
            Method::PATCH,
            path.to_owned(),
            kind,
            body.to_string().into_bytes(),
        )
    }

    fn send(&self, method: Method, path: String, kind: &'static str, body: Vec<u8>) -> Result<Value> {
        let client = self.client.clone();
        self.runtime
            .block_on(self.runtime.spawn(send(client, method, Ok(path), kind, body)))?
    }
}

async fn send(
    client: Client,
    method: Method,
    path: Result<String>,
    kind: &'static str,
    body: Vec<u8>,
) -> Result<Value> {
    let path = path?;
    let what = format!("{method} {path}");
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::CONTENT_TYPE, kind);
    let request = request.body(body).context("making a request")?;
    client.request(request).await.context(what)
}

/// Whether the server refused the request because the object does not exist.
fn is_absent(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(kube::Error::Api(status)) if status.code == 404)
}

/// The URL path of the objects of this kind and namespace. The plural names are regular for all kinds that
/// the tests use.
fn collection_of(object: &Value) -> Result<String> {
    let version = object["apiVersion"]
        .as_str()
        .context("an object without apiVersion")?;
    let kind = object["kind"]
        .as_str()
        .context("an object without kind")?
        .to_lowercase();
    let root = if version.contains('/') { "apis" } else { "api" };
    Ok(match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("/{root}/{version}/namespaces/{namespace}/{kind}s"),
        None => format!("/{root}/{version}/{kind}s"),
    })
}

fn path_of(object: &Value) -> Result<String> {
    let name = object["metadata"]["name"]
        .as_str()
        .context("an object without a name")?;
    Ok(format!("{}/{name}", collection_of(object)?))
}
