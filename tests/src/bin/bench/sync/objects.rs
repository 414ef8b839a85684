//! The objects of a cluster of any size. They carry the fields of real objects, besides those that a proxy
//! reads.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

/// Holds the cluster IPs of more than 100 000 services.
pub const SERVICE_CIDR: &str = "10.96.0.0/12";

/// The port of every service.
pub const PORT: u16 = 80;

/// The port of every endpoint.
pub const TARGET_PORT: u16 = 8080;

const CLUSTER_IPS: u32 = u32::from_be_bytes([10, 96, 1, 0]);
const ENDPOINTS: u32 = u32::from_be_bytes([10, 128, 0, 0]);
const REPLACEMENTS: u32 = u32::from_be_bytes([10, 192, 0, 0]);

/// The number of nodes that the endpoints are on, in three zones.
const NODES: usize = 100;

/// The cluster IP of a service.
pub fn cluster_ip(service: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(CLUSTER_IPS + service as u32)
}

/// The number of endpoints of a service: 2.5 on average.
pub fn endpoint_count(service: usize) -> usize {
    2 + service % 2
}

/// The endpoints of a service as they are at first.
pub fn endpoints(service: usize) -> Vec<Ipv4Addr> {
    (0..endpoint_count(service))
        .map(|index| Ipv4Addr::from_bits(ENDPOINTS + (service * 4 + index) as u32))
        .collect()
}

/// An endpoint that no service has at first. Each number gives another one.
pub fn replacement(number: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(REPLACEMENTS + number as u32)
}

/// The ServiceCIDR of the cluster, under the name that an API server gives to its own.
pub fn service_cidr() -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": [SERVICE_CIDR, "fd00:96::/112"]},
    })
}

/// A Service.
pub fn service(number: usize) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": "default", "name": service_name(number), "labels": labels(number)},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": cluster_ip(number),
            "clusterIPs": [cluster_ip(number)],
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster",
            "sessionAffinity": "None",
            "selector": {"app": service_name(number)},
            "ports": [{"name": "http", "protocol": "TCP", "port": PORT, "targetPort": TARGET_PORT}],
        },
    })
}

/// The slice of a service, with any endpoints.
pub fn slice(service: usize, endpoints: &[Ipv4Addr]) -> Value {
    numbered_slice(service, 0, endpoints)
}

/// One of several slices of a service.
pub fn numbered_slice(service: usize, slice: usize, endpoints: &[Ipv4Addr]) -> Value {
    let endpoint = |(index, address): (usize, &Ipv4Addr)| {
        let node = (service + index) % NODES;
        json!({
            "addresses": [address],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": format!("node-{node}"),
            "zone": format!("zone-{}", node % 3),
            "targetRef": {
                "kind": "Pod",
                "namespace": "default",
                "name": format!("{}-6b7f9c5d4f-{index:05}", service_name(service)),
                "uid": format!("00000000-0000-4000-8000-{:012}", address.to_bits()),
            },
        })
    };
    let mut labels = labels(service);
    labels["kubernetes.io/service-name"] = json!(service_name(service));
    labels["endpointslice.kubernetes.io/managed-by"] = json!("endpointslice-controller.k8s.io");
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "namespace": "default",
            "name": format!("{}-{slice:05}", service_name(service)),
            "labels": labels,
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": TARGET_PORT}],
        "endpoints": endpoints.iter().enumerate().map(endpoint).collect::<Vec<_>>(),
    })
}

fn service_name(number: usize) -> String {
    format!("s{number}")
}

fn labels(number: usize) -> Value {
    json!({
        "app.kubernetes.io/name": service_name(number),
        "app.kubernetes.io/part-of": "shop",
        "app.kubernetes.io/managed-by": "Helm",
    })
}
