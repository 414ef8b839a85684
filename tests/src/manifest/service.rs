//! Builders of Services.

use serde_json::{Map, Value, json};

use super::{Endpoint, EndpointSlice, Family, Manifest};

/// A transport protocol of a service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

/// One port of a service: its own number and that of its endpoints.
#[derive(Clone, Debug)]
pub(crate) struct Port {
    pub(crate) name: String,
    pub(crate) protocol: Protocol,
    pub(crate) number: u16,
    pub(crate) target: u16,
    on_nodes: Option<u16>,
}

/// A Service under construction; of type `ClusterIP` unless [`Service::set`] says otherwise.
#[derive(Clone, Debug)]
pub struct Service {
    pub(crate) namespace: String,
    pub(crate) name: String,
    cluster_ips: Vec<String>,
    pub(crate) ports: Vec<Port>,
    labels: Map<String, Value>,
    annotations: Map<String, Value>,
    spec: Map<String, Value>,
    ingress: Vec<Value>,
}

impl Service {
    /// A service in namespace `default`, without addresses and ports.
    pub fn new(name: &str) -> Self {
        Self {
            namespace: "default".to_owned(),
            name: name.to_owned(),
            cluster_ips: Vec::new(),
            ports: Vec::new(),
            labels: Map::new(),
            annotations: Map::new(),
            spec: Map::new(),
            ingress: Vec::new(),
        }
    }

    /// The service that most tests ask, `web`. It has an address of each family, `10.96.0.10` and
    /// `fd00:96::10`. Port 80 leads to 8080, by TCP as `http` and by UDP as `dns`.
    pub fn web() -> Self {
        Self::new("web")
            .cluster_ip("10.96.0.10")
            .cluster_ip("fd00:96::10")
            .tcp("http", 80, 8080)
            .udp("dns", 80, 8080)
    }

    /// The name of the service.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Puts the service into another namespace.
    #[must_use]
    pub fn namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.namespace);
        self
    }

    /// Adds a cluster IP; the first one's family is the primary one.
    #[must_use]
    pub fn cluster_ip(mut self, address: &str) -> Self {
        self.cluster_ips.push(address.to_owned());
        self
    }

    /// Adds a TCP port; `target` is the port of the endpoints.
    #[must_use]
    pub fn tcp(self, name: &str, port: u16, target: u16) -> Self {
        self.port(name, Protocol::Tcp, port, target)
    }

    /// Adds a UDP port; `target` is the port of the endpoints.
    #[must_use]
    pub fn udp(self, name: &str, port: u16, target: u16) -> Self {
        self.port(name, Protocol::Udp, port, target)
    }

    /// Adds a port.
    #[must_use]
    pub fn port(mut self, name: &str, protocol: Protocol, port: u16, target: u16) -> Self {
        self.ports.push(Port {
            name: name.to_owned(),
            protocol,
            number: port,
            target,
            on_nodes: None,
        });
        self
    }

    /// Gives the port of this name a port of every node, and makes the type `NodePort`.
    #[must_use]
    pub fn node_port(mut self, name: &str, number: u16) -> Self {
        for port in self.ports.iter_mut().filter(|port| port.name == name) {
            port.on_nodes = Some(number);
        }
        self.set("type", json!("NodePort"))
    }

    /// Adds an address of a load balancer, and makes the type `LoadBalancer`.
    #[must_use]
    pub fn load_balancer_ip(mut self, address: &str) -> Self {
        self.ingress.push(json!({"ip": address}));
        self.set("type", json!("LoadBalancer"))
    }

    /// Sets the mode, `VIP` or `Proxy`, of the load balancer addresses that were added before.
    #[must_use]
    pub fn ip_mode(mut self, mode: &str) -> Self {
        for ingress in &mut self.ingress {
            ingress["ipMode"] = json!(mode);
        }
        self
    }

    /// Removes all ports.
    #[must_use]
    pub fn without_ports(mut self) -> Self {
        self.ports.clear();
        self
    }

    /// Makes a client's connections stay at one endpoint for this time after its last connection.
    #[must_use]
    pub fn client_ip_affinity(self, timeout_seconds: u32) -> Self {
        self.set("sessionAffinity", json!("ClientIP")).set(
            "sessionAffinityConfig",
            json!({"clientIP": {"timeoutSeconds": timeout_seconds}}),
        )
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), json!(value));
        self
    }

    /// Adds an annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), json!(value));
        self
    }

    /// Sets any field of `spec`.
    #[must_use]
    pub fn set(mut self, field: &str, value: Value) -> Self {
        self.spec.insert(field.to_owned(), value);
        self
    }

    /// The slices of the service: one for each family of its addresses.
    pub fn slices(&self, endpoints: impl IntoIterator<Item = Endpoint>) -> Vec<EndpointSlice> {
        let endpoints: Vec<Endpoint> = endpoints.into_iter().collect();
        let families = [Family::V4, Family::V6]
            .into_iter()
            .filter(|family| self.has(*family));
        families
            .map(|family| EndpointSlice::of(self, family).endpoints(endpoints.clone()))
            .collect()
    }

    fn has(&self, family: Family) -> bool {
        self.cluster_ips
            .iter()
            .any(|address| Family::of(address) == family)
    }
}

impl Manifest for Service {
    fn object(&self) -> Value {
        let ports: Vec<_> = self.ports.iter().map(port_object).collect();
        let families: Vec<_> = self
            .cluster_ips
            .iter()
            .map(|address| Family::of(address).name())
            .collect();
        let mut spec = Map::from_iter([
            ("type".to_owned(), json!("ClusterIP")),
            ("ports".to_owned(), json!(ports)),
            ("ipFamilies".to_owned(), json!(families)),
        ]);
        if let Some(primary) = self.cluster_ips.first() {
            let policy = if families.len() > 1 {
                "RequireDualStack"
            } else {
                "SingleStack"
            };
            spec.insert("clusterIP".to_owned(), json!(primary));
            spec.insert("clusterIPs".to_owned(), json!(self.cluster_ips));
            spec.insert("ipFamilyPolicy".to_owned(), json!(policy));
        }
        spec.extend(self.spec.clone());
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "namespace": self.namespace,
                "name": self.name,
                "labels": self.labels,
                "annotations": self.annotations,
            },
            "spec": spec,
            "status": {"loadBalancer": {"ingress": self.ingress}},
        })
    }
}

fn port_object(port: &Port) -> Value {
    let mut object = json!({
        "name": port.name,
        "protocol": port.protocol.name(),
        "port": port.number,
        "targetPort": port.target,
    });
    if let Some(number) = port.on_nodes {
        object["nodePort"] = json!(number);
    }
    object
}
