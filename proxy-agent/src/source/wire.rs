//! The fields of Kubernetes' objects that the proxy looks at, and no others.
//!
//! Both sources decode into these types, so what is not named here is skipped by the decoder and never costs memory: most
//! of a Service is bookkeeping (`managedFields`), nearly all of a Node is status. Everything is optional, as it is in
//! Kubernetes, where a missing list, `null` and `[]` mean the same. Numbers are wider than their fields, so that a bad value
//! spoils only the place it stands in: the next stage judges it and can name it.
//!
//! The types follow `k8s.io/api` v1.36; strings of up to 24 bytes are kept inline.

use std::collections::BTreeMap;

use compact_str::CompactString;
use serde::Deserialize;

use super::{Kind, ObjectId};

/// A string of an object.
pub type Text = CompactString;

/// `metadata` of any object.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(
    default,
    rename_all = "camelCase",
    bound(deserialize = "L: Default + Deserialize<'de>")
)]
pub struct Metadata<L = Labels> {
    /// The name. An object without one is refused by whoever reads it.
    pub name: Text,
    /// The namespace, for kinds that have one.
    pub namespace: Option<Text>,
    /// RFC 3339.
    pub creation_timestamp: Option<Text>,
    /// RFC 3339; present while the object is being deleted.
    pub deletion_timestamp: Option<Text>,
    /// The version to resume a watch from.
    pub resource_version: Option<Text>,
    /// The labels that mean something to a proxy.
    pub labels: Option<L>,
    /// The annotations that mean something to a proxy.
    pub annotations: Option<Annotations>,
}

impl Metadata {
    /// The namespace, `default` where none is given.
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

/// The labels that mean something to a proxy.
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
    /// The zone a Node stands in.
    #[serde(rename = "topology.kubernetes.io/zone")]
    pub zone: Option<Text>,
}

/// The annotations that mean something to a proxy.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Annotations {
    /// When what an EndpointSlice says last changed, RFC 3339.
    #[serde(rename = "endpoints.kubernetes.io/last-change-trigger-time")]
    pub last_change: Option<Text>,
    /// Whether connections to removed endpoints of this Service are reset: `true` or `false`.
    #[serde(rename = "millrace.dev/reset-removed-backends")]
    pub reset_removed: Option<Text>,
    /// Whether the cluster IPs of this Service are left to sockets of the node: `true` or `false`.
    #[serde(rename = "millrace.dev/leave-to-node")]
    pub leave_to_node: Option<Text>,
    /// What flannel's backend on this Node tells others, as JSON.
    #[serde(rename = "flannel.alpha.coreos.com/backend-data")]
    pub flannel_backend: Option<Text>,
    /// `off` leaves the sockets of this Pod, or of this Namespace's, to the packet path.
    #[serde(rename = "millrace.dev/socket-lb")]
    pub socket_lb: Option<Text>,
    /// How many bits per second this Pod may receive.
    #[serde(rename = "kubernetes.io/ingress-bandwidth")]
    pub ingress_bandwidth: Option<Text>,
    /// How many bits per second this Pod may send.
    #[serde(rename = "kubernetes.io/egress-bandwidth")]
    pub egress_bandwidth: Option<Text>,
}

/// `v1` Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Service {
    /// Name and labels.
    pub metadata: Metadata,
    /// What is asked for.
    pub spec: Option<ServiceSpec>,
    /// What it was given.
    pub status: Option<ServiceStatus>,
}

/// `spec` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceSpec {
    /// `ClusterIP`, `NodePort`, `LoadBalancer` or `ExternalName`.
    #[serde(rename = "type")]
    pub type_: Option<Text>,
    /// The first cluster IP, or `None` for a headless Service.
    #[serde(rename = "clusterIP")]
    pub cluster_ip: Option<Text>,
    /// One cluster IP for each family.
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: Option<Vec<Text>>,
    /// The ports.
    pub ports: Option<Vec<ServicePort>>,
    /// Use endpoints that are not ready too.
    pub publish_not_ready_addresses: Option<bool>,
    /// `Cluster` or `Local`.
    pub internal_traffic_policy: Option<Text>,
    /// `Cluster` or `Local`.
    pub external_traffic_policy: Option<Text>,
    /// Addresses of nodes, or routed to them, at which the Service answers too.
    #[serde(rename = "externalIPs")]
    pub external_ips: Option<Vec<Text>>,
    /// Whose packets to the load balancer's addresses are let through; nothing means everybody's.
    pub load_balancer_source_ranges: Option<Vec<Text>>,
    /// Where a load balancer asks for the health of this node's endpoints.
    pub health_check_node_port: Option<i64>,
    /// `None` or `ClientIP`.
    pub session_affinity: Option<Text>,
    /// The parameters of `sessionAffinity`.
    pub session_affinity_config: Option<SessionAffinityConfig>,
}

/// `status` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceStatus {
    /// What the load balancer reports.
    pub load_balancer: Option<LoadBalancerStatus>,
}

/// `status.loadBalancer` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct LoadBalancerStatus {
    /// The load balancer's addresses.
    pub ingress: Option<Vec<LoadBalancerIngress>>,
}

/// `status.loadBalancer.ingress[]` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LoadBalancerIngress {
    /// The address; a balancer that is reached by name has none.
    pub ip: Option<Text>,
    /// `VIP` (also where nothing is said): packets arrive with this address. `Proxy`: they do not.
    pub ip_mode: Option<Text>,
}

/// `spec.ports[]` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServicePort {
    /// Matches the port's name in the slices.
    pub name: Option<Text>,
    /// `TCP` (also where nothing is said), `UDP` or `SCTP`.
    pub protocol: Option<Text>,
    /// The port of the cluster IP.
    pub port: Option<i64>,
    /// The port of every node.
    pub node_port: Option<i64>,
}

/// `spec.sessionAffinityConfig` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct SessionAffinityConfig {
    /// The parameters of affinity by client address.
    #[serde(rename = "clientIP")]
    pub client_ip: Option<ClientIpConfig>,
}

/// `spec.sessionAffinityConfig.clientIP` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ClientIpConfig {
    /// How long a client keeps its endpoint, in seconds.
    pub timeout_seconds: Option<i64>,
}

/// `discovery.k8s.io/v1` EndpointSlice.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EndpointSlice {
    /// Name and labels.
    pub metadata: Metadata,
    /// `IPv4`, `IPv6` or `FQDN`.
    pub address_type: Option<Text>,
    /// The ports that every endpoint of the slice has.
    pub ports: Option<Vec<EndpointPort>>,
    /// The endpoints.
    pub endpoints: Option<Vec<Endpoint>>,
}

/// `ports[]` of an EndpointSlice.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct EndpointPort {
    /// Matches the port's name in the Service.
    pub name: Option<Text>,
    /// `TCP` (also where nothing is said), `UDP` or `SCTP`.
    pub protocol: Option<Text>,
    /// The port; nothing means every port, which no proxy can serve.
    pub port: Option<i64>,
}

/// `endpoints[]` of an EndpointSlice.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Endpoint {
    /// Addresses that are the same for every purpose; proxies use the first.
    pub addresses: Option<Vec<Text>>,
    /// The endpoint's state.
    pub conditions: Option<Conditions>,
    /// The node it runs on.
    pub node_name: Option<Text>,
    /// The zone it stands in.
    pub zone: Option<Text>,
    /// Who should prefer it.
    pub hints: Option<Hints>,
}

/// `endpoints[].conditions` of an EndpointSlice.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Conditions {
    /// Takes new connections; nothing means yes.
    pub ready: Option<bool>,
    /// Able to answer, even while terminating; nothing means yes.
    pub serving: Option<bool>,
    /// On its way out; nothing means no.
    pub terminating: Option<bool>,
}

/// `endpoints[].hints` of an EndpointSlice.
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
    /// The name.
    pub name: Text,
}

/// `v1` Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Node {
    /// Name and labels.
    pub metadata: Metadata,
    /// What was assigned to it.
    pub spec: Option<NodeSpec>,
    /// What it reports.
    pub status: Option<NodeStatus>,
}

/// `spec` of a Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeSpec {
    /// The first pod range.
    #[serde(rename = "podCIDR")]
    pub pod_cidr: Option<Text>,
    /// One pod range for each family.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Option<Vec<Text>>,
    /// What keeps pods off it.
    pub taints: Option<Vec<Taint>>,
}

/// `spec.taints[]` of a Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Taint {
    /// What it is about.
    pub key: Text,
}

/// `status` of a Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    /// The node's addresses.
    pub addresses: Option<Vec<NodeAddress>>,
}

/// `status.addresses[]` of a Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeAddress {
    /// `InternalIP`, `ExternalIP`, `Hostname`, …
    #[serde(rename = "type")]
    pub type_: Text,
    /// The address or name.
    pub address: Text,
}

/// `networking.k8s.io/v1` ServiceCIDR.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ServiceCidr {
    /// The name.
    pub metadata: Metadata,
    /// What is asked for.
    pub spec: Option<ServiceCidrSpec>,
}

/// `spec` of a ServiceCIDR.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ServiceCidrSpec {
    /// Ranges that cluster IPs are taken from.
    pub cidrs: Option<Vec<Text>>,
}

/// `v1` Namespace.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Namespace {
    /// Name and annotations.
    pub metadata: Metadata,
}

/// `v1` Pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(from = "PodDocument")]
pub struct Pod {
    /// Name and annotations.
    pub metadata: Metadata,
    /// All labels, sorted: an operator may choose pods by any of them.
    pub labels: Box<[(Text, Text)]>,
    /// What is asked for.
    pub spec: Option<PodSpec>,
    /// What it was given.
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

/// `spec` of a Pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodSpec {
    /// The node it runs on.
    pub node_name: Option<Text>,
    /// Whether it has no network of its own.
    pub host_network: Option<bool>,
}

/// `status` of a Pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodStatus {
    /// `Pending`, `Running`, `Succeeded`, `Failed` or `Unknown`.
    pub phase: Option<Text>,
    /// One address for each family.
    #[serde(rename = "podIPs")]
    pub pod_ips: Option<Vec<PodIp>>,
}

/// `status.podIPs[]` of a Pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PodIp {
    /// The address.
    pub ip: Text,
}
