//! The addresses of the cluster's API servers: those that the source asks, and the endpoints of the Service
//! `default/kubernetes`, which pods use.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use crate::cluster::{ClusterState, Protocol};
use crate::source::{Kind, ObjectId, StateHandle};

/// The Service of the API servers, which every cluster has.
pub fn service() -> ObjectId {
    ObjectId::new(Kind::Service, "default", "kubernetes")
}

/// Addresses and ports of all API servers that are known.
pub fn find(cluster: &ClusterState, source: &StateHandle) -> BTreeSet<SocketAddr> {
    let mut servers = source.servers();
    for slice in cluster.slices_of(service()) {
        for port in slice.ports.iter().filter(|port| port.protocol == Protocol::Tcp) {
            let endpoints = slice.endpoints.iter();
            servers.extend(endpoints.map(|endpoint| SocketAddr::new(endpoint.address, port.port)));
        }
    }
    servers
}
