//! Endpoints and the slices that hold them.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::Manifest;
use super::service::{Port, Service};
use crate::place::Place;
use crate::pod::Pod;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address as text.
    pub(crate) fn of(address: &str) -> Self {
        if address.contains(':') { Self::V6 } else { Self::V4 }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    fn holds(self, address: IpAddr) -> bool {
        (self == Self::V4) == address.is_ipv4()
    }
}

/// A backend of a service, ready by default. In a slice it appears with its addresses of the slice's family.
#[derive(Clone, Debug)]
pub struct Endpoint {
    addresses: Vec<IpAddr>,
    node: Option<String>,
    conditions: Value,
    hints: Option<Value>,
}

impl Endpoint {
    /// The endpoint of a pod.
    pub fn of(pod: &Pod) -> Self {
        Self::at(pod.addresses()).on_node(pod.node().name())
    }

    /// The endpoint of a process on a node's own addresses (`hostNetwork`).
    pub fn on_host(node: &Place) -> Self {
        Self::at(node.addresses()).on_node(node.name())
    }

    /// An endpoint at any addresses, on no node.
    pub fn at(addresses: &[IpAddr]) -> Self {
        let conditions = json!({"ready": true, "serving": true, "terminating": false});
        Self {
            addresses: addresses.to_vec(),
            node: None,
            conditions,
            hints: None,
        }
    }

    /// Names the node of the endpoint.
    #[must_use]
    pub fn on_node(self, node: &str) -> Self {
        Self {
            node: Some(node.to_owned()),
            ..self
        }
    }

    /// Not ready: the endpoint takes no connections.
    #[must_use]
    pub fn not_ready(self) -> Self {
        self.conditions(false, false, false)
    }

    /// Terminating but still serving.
    #[must_use]
    pub fn terminating(self) -> Self {
        self.conditions(false, true, true)
    }

    /// Sets the three conditions.
    #[must_use]
    pub fn conditions(self, ready: bool, serving: bool, terminating: bool) -> Self {
        let conditions = json!({"ready": ready, "serving": serving, "terminating": terminating});
        Self { conditions, ..self }
    }

    /// Sets the topology hints, `{"forZones": [{"name": "a"}]}`.
    #[must_use]
    pub fn hints(self, hints: Value) -> Self {
        Self {
            hints: Some(hints),
            ..self
        }
    }

    fn object(&self, family: Family) -> Option<Value> {
        let addresses: Vec<_> = self.addresses.iter().filter(|ip| family.holds(**ip)).collect();
        let mut endpoint = json!({"addresses": addresses, "conditions": self.conditions});
        if let Some(node) = &self.node {
            endpoint["nodeName"] = json!(node);
        }
        if let Some(hints) = &self.hints {
            endpoint["hints"].clone_from(hints);
        }
        (!addresses.is_empty()).then_some(endpoint)
    }
}

/// An EndpointSlice of one family.
#[derive(Clone, Debug)]
pub struct EndpointSlice {
    namespace: String,
    name: String,
    service: String,
    family: Family,
    ports: Vec<Port>,
    endpoints: Vec<Endpoint>,
}

impl EndpointSlice {
    /// A slice of a service, with its ports and without endpoints; named `<service>-ipv4` or
    /// `<service>-ipv6`.
    pub fn of(service: &Service, family: Family) -> Self {
        Self {
            namespace: service.namespace.clone(),
            name: format!("{}-{}", service.name, family.name().to_lowercase()),
            service: service.name.clone(),
            family,
            ports: service.ports.clone(),
            endpoints: Vec::new(),
        }
    }

    /// Sets another name, for a second slice of the same service and family.
    #[must_use]
    pub fn named(self, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ..self
        }
    }

    /// Adds endpoints; those without an address of this family are left out.
    #[must_use]
    pub fn endpoints(mut self, endpoints: impl IntoIterator<Item = Endpoint>) -> Self {
        self.endpoints.extend(endpoints);
        self
    }
}

impl Manifest for EndpointSlice {
    fn object(&self) -> Value {
        let port =
            |port: &Port| json!({"name": port.name, "protocol": port.protocol.name(), "port": port.target});
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "namespace": self.namespace,
                "name": self.name,
                "labels": {"kubernetes.io/service-name": self.service},
            },
            "addressType": self.family.name(),
            "ports": self.ports.iter().map(port).collect::<Vec<_>>(),
            "endpoints": self.endpoints.iter().filter_map(|e| e.object(self.family)).collect::<Vec<_>>(),
        })
    }
}
