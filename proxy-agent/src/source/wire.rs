//! The fields of Kubernetes' objects that the proxy uses, and no others.
//!
//! Both sources decode into these types, so the decoder skips all other fields, and they cost no memory. Most
//! of a Service is bookkeeping (`managedFields`), and nearly all of a Node is status. Every field is
//! optional, as it is in Kubernetes, where a missing list, `null` and `[]` mean the same. Numbers are wider
//! than in Kubernetes, so that an invalid value affects only its own field: the next stage checks it and can
//! report it.
//!
//! The types follow `k8s.io/api` v1.36; strings of up to 24 bytes are kept inline.

use std::collections::BTreeMap;

use compact_str::CompactString;
use serde::Deserialize;

use super::{Kind, ObjectId};

/// A string of an object.
pub type Text = CompactString;

/// The `metadata` of any object.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(
    default,
    rename_all = "camelCase",
    bound(deserialize = "L: Default + Deserialize<'de>")
)]
pub struct Metadata<L = Labels> {
    /// The name. The consumer refuses an object without one.
    pub name: Text,
    /// The namespace, for kinds that have one.
    pub namespace: Option<Text>,
    /// The time of creation, as RFC 3339.
    pub creation_timestamp: Option<Text>,
    /// The time of deletion, as RFC 3339; present while the object is being deleted.
    pub deletion_timestamp: Option<Text>,
    /// The version to resume a watch from.
    pub resource_version: Option<Text>,
    /// The labels that the proxy uses.
    pub labels: Option<L>,
    /// The annotations that the proxy uses.
    pub annotations: Option<Annotations>,
}

impl Metadata {
    /// The namespace; `default` if none is given.
    pub fn namespace(&self) -> &str {
        self.namespace
            .as_deref()
            .filter(|namespace| !namespace.is_empty())
            .unwrap_or("default")
    }

    /// The identity of the object of `kind` that this metadata belongs to.
    pub fn id(&self, kind: Kind) -> ObjectId {
        ObjectId::new(
            kind,
            if kind.namespaced() { self.namespace() } else { "" },
            &self.name,
        )
    }
}

/// The labels that the proxy uses.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Labels {
    /// The Service an EndpointSlice belongs to.
    #[serde(rename = "kubernetes.io/service-name")]
    pub service_name: Option<Text>,
    /// Marks a Service (and its slices) that no proxy serves; any value counts.
    #[serde(rename = "service.kubernetes.io/headless")]
    pub headless: Option<Text>,
    /// The proxy that serves this Service in place of the node's usual one.
    #[serde(rename = "service.kubernetes.io/service-proxy-name")]
    pub service_proxy_name: Option<Text>,
    /// The zone of a Node.
    #[serde(rename = "topology.kubernetes.io/zone")]
    pub zone: Option<Text>,
}

/// The annotations that the proxy uses.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Annotations {
    /// When the content of an EndpointSlice last changed, as RFC 3339.
    #[serde(rename = "endpoints.kubernetes.io/last-change-trigger-time")]
    pub last_change: Option<Text>,
    /// Whether connections to removed endpoints of this Service are reset: `true` or `false`.
    #[serde(rename = "millrace.dev/reset-removed-backends")]
    pub reset_removed: Option<Text>,
    /// Whether the cluster IPs of this Service are left to sockets of the node: `true` or `false`.
    #[serde(rename = "millrace.dev/leave-to-node")]
    pub leave_to_node: Option<Text>,
    /// The data of flannel's backend on this Node for other nodes, as JSON.
    #[serde(rename = "flannel.alpha.coreos.com/backend-data")]
    pub flannel_backend: Option<Text>,
    /// `off` leaves the sockets of this Pod, or of the Pods of this Namespace, to the packet path.
    #[serde(rename = "millrace.dev/socket-lb")]
    pub socket_lb: Option<Text>,
    /// The limit of packets to this Pod, in bits per second.
    #[serde(rename = "kubernetes.io/ingress-bandwidth")]
    pub ingress_bandwidth: Option<Text>,
    /// The limit of packets from this Pod, in bits per second.
    #[serde(rename = "kubernetes.io/egress-bandwidth")]
    pub egress_bandwidth: Option<Text>,
}

/// The object `v1` Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Service {
    /// The name and the labels.
    pub metadata: Metadata,
    /// The wanted state.
    pub spec: Option<ServiceSpec>,
    /// The reported state.
    pub status: Option<ServiceStatus>,
}

/// The `spec` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceSpec {
    /// One of `ClusterIP`, `NodePort`, `LoadBalancer` and `ExternalName`.
    #[serde(rename = "type")]
    pub type_: Option<Text>,
    /// The first cluster IP, or `None` for a headless Service.
    #[serde(rename = "clusterIP")]
    pub cluster_ip: Option<Text>,
    /// One cluster IP for each family.
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: Option<Vec<Text>>,
    /// The ports of the Service.
    pub ports: Option<Vec<ServicePort>>,
    /// Whether endpoints are used before they are ready.
    pub publish_not_ready_addresses: Option<bool>,
    /// The policy for cluster IPs: `Cluster` or `Local`.
    pub internal_traffic_policy: Option<Text>,
    /// The policy for external addresses: `Cluster` or `Local`.
    pub external_traffic_policy: Option<Text>,
    /// Addresses of nodes, or routed to them, at which the node serves the Service too.
    #[serde(rename = "externalIPs")]
    pub external_ips: Option<Vec<Text>>,
    /// The clients that the load balancer's addresses accept; an absent list means all clients.
    pub load_balancer_source_ranges: Option<Vec<Text>>,
    /// The port where a load balancer checks the health of this node's endpoints.
    pub health_check_node_port: Option<i64>,
    /// One of `None` and `ClientIP`.
    pub session_affinity: Option<Text>,
    /// The parameters of `sessionAffinity`.
    pub session_affinity_config: Option<SessionAffinityConfig>,
}

/// The `status` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceStatus {
    /// The state that the load balancer reports.
    pub load_balancer: Option<LoadBalancerStatus>,
}

/// The `status.loadBalancer` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct LoadBalancerStatus {
    /// The load balancer's addresses.
    pub ingress: Option<Vec<LoadBalancerIngress>>,
}

/// An element of `status.loadBalancer.ingress[]` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LoadBalancerIngress {
    /// The address; a balancer that has only a name has none.
    pub ip: Option<Text>,
    /// With `VIP` (the default) packets arrive with this destination address; with `Proxy` they do not.
    pub ip_mode: Option<Text>,
}

/// An element of `spec.ports[]` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServicePort {
    /// The name, which matches the port's name in the slices.
    pub name: Option<Text>,
    /// One of `TCP` (the default), `UDP` and `SCTP`.
    pub protocol: Option<Text>,
    /// The port of the cluster IP.
    pub port: Option<i64>,
    /// The port of every node.
    pub node_port: Option<i64>,
}

/// The `spec.sessionAffinityConfig` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct SessionAffinityConfig {
    /// The parameters of affinity by client address.
    #[serde(rename = "clientIP")]
    pub client_ip: Option<ClientIpConfig>,
}

/// The `spec.sessionAffinityConfig.clientIP` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ClientIpConfig {
    /// How long a client keeps its endpoint, in seconds.
    pub timeout_seconds: Option<i64>,
}

/// The object `discovery.k8s.io/v1` EndpointSlice.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EndpointSlice {
    /// The name and the labels.
    pub metadata: Metadata,
    /// One of `IPv4`, `IPv6` and `FQDN`.
    pub address_type: Option<Text>,
    /// The ports that every endpoint of the slice has.
    pub ports: Option<Vec<EndpointPort>>,
    /// The endpoints of the slice.
    pub endpoints: Option<Vec<Endpoint>>,
}

/// An element of `ports[]` of an EndpointSlice.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct EndpointPort {
    /// The name, which matches the port's name in the Service.
    pub name: Option<Text>,
    /// One of `TCP` (the default), `UDP` and `SCTP`.
    pub protocol: Option<Text>,
    /// The port; an absent value means every port, which no proxy can serve.
    pub port: Option<i64>,
}

/// An element of `endpoints[]` of an EndpointSlice.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Endpoint {
    /// Addresses that are equivalent for every purpose; proxies use the first.
    pub addresses: Option<Vec<Text>>,
    /// The endpoint's state.
    pub conditions: Option<Conditions>,
    /// The node that the endpoint runs on.
    pub node_name: Option<Text>,
    /// The zone of the endpoint.
    pub zone: Option<Text>,
    /// The clients that should prefer the endpoint.
    pub hints: Option<Hints>,
}

/// The `endpoints[].conditions` of an EndpointSlice.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Conditions {
    /// Whether the endpoint takes new connections; an absent value means yes.
    pub ready: Option<bool>,
    /// Whether the endpoint can reply, even while it terminates; an absent value means yes.
    pub serving: Option<bool>,
    /// Whether the endpoint terminates; an absent value means no.
    pub terminating: Option<bool>,
}

/// The `endpoints[].hints` of an EndpointSlice.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Hints {
    /// The zones whose clients should use the endpoint.
    pub for_zones: Option<Vec<Named>>,
    /// The nodes whose clients should use the endpoint.
    pub for_nodes: Option<Vec<Named>>,
}

/// An entry that consists of a name.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Named {
    /// The name in the entry.
    pub name: Text,
}

/// The object `v1` Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Node {
    /// The name and the labels.
    pub metadata: Metadata,
    /// The assigned state.
    pub spec: Option<NodeSpec>,
    /// The reported state.
    pub status: Option<NodeStatus>,
}

/// The `spec` of a Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeSpec {
    /// The first pod range.
    #[serde(rename = "podCIDR")]
    pub pod_cidr: Option<Text>,
    /// One pod range for each family.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Option<Vec<Text>>,
    /// The taints, which keep pods off the node.
    pub taints: Option<Vec<Taint>>,
}

/// An element of `spec.taints[]` of a Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Taint {
    /// The key of the taint.
    pub key: Text,
}

/// The `status` of a Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    /// The node's addresses.
    pub addresses: Option<Vec<NodeAddress>>,
}

/// An element of `status.addresses[]` of a Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeAddress {
    /// The type of the address: `InternalIP`, `ExternalIP`, `Hostname`, …
    #[serde(rename = "type")]
    pub type_: Text,
    /// The address or name.
    pub address: Text,
}

/// The object `networking.k8s.io/v1` ServiceCIDR.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ServiceCidr {
    /// The name of the object.
    pub metadata: Metadata,
    /// The wanted state.
    pub spec: Option<ServiceCidrSpec>,
}

/// The `spec` of a ServiceCIDR.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ServiceCidrSpec {
    /// The ranges that cluster IPs are taken from.
    pub cidrs: Option<Vec<Text>>,
}

/// The object `v1` Namespace.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Namespace {
    /// The name and the annotations.
    pub metadata: Metadata,
}

/// The object `v1` Pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(from = "PodDocument")]
pub struct Pod {
    /// The name and the annotations.
    pub metadata: Metadata,
    /// All labels, sorted: an operator may choose pods by any of them.
    pub labels: Box<[(Text, Text)]>,
    /// The wanted state.
    pub spec: Option<PodSpec>,
    /// The reported state.
    pub status: Option<PodStatus>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PodDocument {
    metadata: Metadata<BTreeMap<Text, Option<Text>>>,
    spec: Option<PodSpec>,
    status: Option<PodStatus>,
}

impl From<PodDocument> for Pod {
    fn from(document: PodDocument) -> Self {
        let PodDocument {
            metadata,
            spec,
            status,
        } = document;
        let labels = metadata.labels.into_iter().flatten();
        Self {
            metadata: Metadata {
                name: metadata.name,
                namespace: metadata.namespace,
                creation_timestamp: metadata.creation_timestamp,
                deletion_timestamp: metadata.deletion_timestamp,
                resource_version: metadata.resource_version,
                labels: None,
                annotations: metadata.annotations,
            },
            labels: labels.filter_map(|(key, value)| Some((key, value?))).collect(),
            spec,
            status,
        }
    }
}

/// The `spec` of a Pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodSpec {
    /// The node that the Pod runs on.
    pub node_name: Option<Text>,
    /// Whether the Pod has no network namespace of its own.
    pub host_network: Option<bool>,
}

/// The `status` of a Pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodStatus {
    /// One of `Pending`, `Running`, `Succeeded`, `Failed` and `Unknown`.
    pub phase: Option<Text>,
    /// One address for each family.
    #[serde(rename = "podIPs")]
    pub pod_ips: Option<Vec<PodIp>>,
}

/// An element of `status.podIPs[]` of a Pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PodIp {
    /// The IP address.
    pub ip: Text,
}
