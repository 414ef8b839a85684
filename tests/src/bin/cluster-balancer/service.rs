//! A service's requests to a load balancer, and the status that the balancer writes.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::routes::Hop;

/// Keeps a deleted service until its balancer has removed its own state. Kubernetes defines the name.
const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";

const HEALTH: Duration = Duration::from_secs(1);

pub fn name(service: &Service) -> String {
    format!(
        "{}/{}",
        service.namespace().unwrap_or_default(),
        service.name_any()
    )
}

pub fn uid(service: &Service) -> Option<&str> {
    service.metadata.uid.as_deref()
}

/// Whether this balancer serves the service: a service that names a class of load balancer belongs to another
/// one.
pub fn is_served(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| {
        spec.type_.as_deref() == Some("LoadBalancer")
            && spec.load_balancer_class.is_none()
            && service.metadata.deletion_timestamp.is_none()
    })
}

/// One value for each family: whether it is IPv6.
pub fn families(service: &Service) -> Vec<bool> {
    let families = service.spec.as_ref().and_then(|spec| spec.ip_families.as_ref());
    let families = families.into_iter().flatten();
    families.map(|family| family == "IPv6").collect()
}

pub fn asked_for(service: &Service) -> Option<IpAddr> {
    service.spec.as_ref()?.load_balancer_ip.as_ref()?.parse().ok()
}

pub fn has_affinity(service: &Service) -> bool {
    let affinity = service
        .spec
        .as_ref()
        .and_then(|spec| spec.session_affinity.as_deref());
    affinity == Some("ClientIP")
}

/// Whether a node should get traffic: under the policy `Local` the node says so at its health check port.
pub async fn wants(service: &Service, hop: &Hop) -> bool {
    let Some(spec) = &service.spec else { return false };
    if spec.external_traffic_policy.as_deref() != Some("Local") {
        return true;
    }
    let Some(port) = spec
        .health_check_node_port
        .and_then(|port| u16::try_from(port).ok())
    else {
        return false;
    };
    matches!(timeout(HEALTH, is_healthy(hop.health, port)).await, Ok(Ok(true)))
}

async fn is_healthy(address: IpAddr, port: u16) -> Result<bool> {
    let mut stream = TcpStream::connect((address, port)).await?;
    stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").await?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await?;
    Ok(reply.split(' ').nth(1) == Some("200"))
}

/// Adds the finalizer, so that the service stays until [`withdraw`].
pub async fn hold(client: &Client, service: &Service) -> Result<()> {
    let finalizers = service.finalizers();
    if finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
        return Ok(());
    }
    let mut finalizers = finalizers.to_vec();
    finalizers.push(FINALIZER.to_owned());
    patch(client, service, &json!({"metadata": {"finalizers": finalizers}})).await
}

/// Writes the addresses to the service's status, unless they are there already.
pub async fn announce(client: &Client, service: &Service, addresses: &[IpAddr]) -> Result<()> {
    if announced(service) == addresses {
        return Ok(());
    }
    let ingress: Vec<_> = addresses
        .iter()
        .map(|address| json!({"ip": address, "ipMode": "VIP"}))
        .collect();
    patch_status(
        client,
        service,
        &json!({"status": {"loadBalancer": {"ingress": ingress}}}),
    )
    .await
}

/// Takes back the addresses of a service that has another type now, or is being deleted.
pub async fn withdraw(client: &Client, service: &Service) -> Result<()> {
    let class = service
        .spec
        .as_ref()
        .and_then(|spec| spec.load_balancer_class.as_ref());
    let goes = service.metadata.deletion_timestamp.is_some();
    if class.is_none() && !goes && !announced(service).is_empty() {
        patch_status(
            client,
            service,
            &json!({"status": {"loadBalancer": {"ingress": null}}}),
        )
        .await?;
    }
    let finalizers = service.finalizers();
    if finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
        let others: Vec<_> = finalizers
            .iter()
            .filter(|finalizer| *finalizer != FINALIZER)
            .collect();
        patch(client, service, &json!({"metadata": {"finalizers": others}})).await?;
    }
    Ok(())
}

fn announced(service: &Service) -> Vec<IpAddr> {
    let status = service
        .status
        .as_ref()
        .and_then(|status| status.load_balancer.as_ref());
    let ingress = status
        .iter()
        .flat_map(|balancer| balancer.ingress.iter().flatten());
    ingress
        .filter_map(|ingress| ingress.ip.as_ref()?.parse().ok())
        .collect()
}

async fn patch(client: &Client, service: &Service, change: &Value) -> Result<()> {
    let api = api(client, service);
    let patched = api
        .patch(
            &service.name_any(),
            &PatchParams::default(),
            &Patch::Merge(change),
        )
        .await;
    patched.map(drop).context("changing the service")
}

async fn patch_status(client: &Client, service: &Service, change: &Value) -> Result<()> {
    let api = api(client, service);
    let patched = api
        .patch_status(
            &service.name_any(),
            &PatchParams::default(),
            &Patch::Merge(change),
        )
        .await;
    patched.map(drop).context("changing the service's status")
}

fn api(client: &Client, service: &Service) -> Api<Service> {
    Api::namespaced(client.clone(), &service.namespace().unwrap_or_default())
}
