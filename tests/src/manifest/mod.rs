//! Kubernetes objects that tests write, to a directory or to an API server. There are builders for the kinds
//! that the proxy reads, and any JSON value for other kinds.

mod endpoints;
mod service;

use serde_json::{Value, json};

pub use endpoints::{Endpoint, EndpointSlice, Family};
pub use service::{Protocol, Service};

/// A value that can be written as a Kubernetes object.
pub trait Manifest {
    /// The object, with `apiVersion`, `kind` and `metadata.name`.
    fn object(&self) -> Value;
}

impl Manifest for Value {
    fn object(&self) -> Value {
        self.clone()
    }
}

/// The ranges of cluster IPs: 10.96.0.0/16 and `fd00:96::/112`.
pub const SERVICE_CIDRS: [&str; 2] = ["10.96.0.0/16", "fd00:96::/112"];

/// The ServiceCIDR object that an API server makes of its flags.
pub fn service_cidrs() -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": SERVICE_CIDRS},
    })
}

/// The file of an object: `service.default.web.yaml`.
pub(crate) fn file_name(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("unnamed").to_owned();
    let mut parts = vec![text(&object["kind"]).to_lowercase()];
    if let Some(namespace) = object["metadata"]["namespace"].as_str() {
        parts.push(namespace.to_owned());
    }
    parts.push(text(&object["metadata"]["name"]));
    parts.push("yaml".to_owned());
    parts.join(".")
}
