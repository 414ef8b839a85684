//! A load-balancer controller for the cluster of `cargo xtask cluster`, in the place of a cloud's.
//!
//! Each service of type `LoadBalancer` gets an address of each of its families. The network namespace of this
//! program is the control plane's, where the end-to-end suite runs too. There the program sets a route for
//! each address, to the nodes that should have its traffic. This balancer does no more than that: the nodes
//! see packets for the address itself, from the client's own address.
//!
//! The program looks at everything anew twice a second, so it keeps no state that a missed event could make
//! wrong.

mod pool;
mod routes;
mod service;

use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Node, Service};
use kube::Client;
use kube::api::{Api, ListParams};

use pool::Pool;
use routes::{Hop, Routes};

const PERIOD: Duration = Duration::from_millis(500);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let client = Client::try_default()
        .await
        .context("making an API client from KUBECONFIG")?;
    let mut pool = Pool::default();
    let mut routes = Routes::prepare()?;
    loop {
        if let Err(error) = look(&client, &mut pool, &mut routes).await {
            eprintln!("{error:#}");
        }
        tokio::time::sleep(PERIOD).await;
    }
}

async fn look(client: &Client, pool: &mut Pool, routes: &mut Routes) -> Result<()> {
    let everything = ListParams::default();
    let nodes = Api::<Node>::all(client.clone()).list(&everything).await;
    let hops: Vec<Hop> = nodes.context("listing nodes")?.iter().flat_map(hops).collect();
    let services = Api::<Service>::all(client.clone()).list(&everything).await;
    let services = services.context("listing services")?;
    pool.keep(
        services
            .iter()
            .filter(|service| service::is_served(service))
            .filter_map(service::uid),
    );
    for service in &services {
        let outcome = if service::is_served(service) {
            serve(client, service, &hops, pool, routes).await
        } else {
            service::withdraw(client, service).await
        };
        // The next round handles an object that changed meanwhile.
        if let Err(error) = outcome {
            eprintln!("{}: {error:#}", service::name(service));
        }
    }
    routes.keep(|address| pool.is_given(address));
    Ok(())
}

async fn serve(
    client: &Client,
    service: &Service,
    hops: &[Hop],
    pool: &mut Pool,
    routes: &mut Routes,
) -> Result<()> {
    service::hold(client, service).await?;
    let uid = service::uid(service).context("a service without uid")?;
    let mut addresses = Vec::new();
    for ipv6 in service::families(service) {
        addresses.push(pool.give(uid, ipv6, service::asked_for(service))?);
    }
    for &address in &addresses {
        let mut next_hops: Vec<_> = Vec::new();
        for hop in hops.iter().filter(|hop| hop.via.is_ipv6() == address.is_ipv6()) {
            if service::wants(service, hop).await {
                next_hops.push(hop.via);
            }
        }
        // Each node keeps affinity by itself, so the traffic of such a service goes to one node only.
        if service::has_affinity(service) {
            next_hops.truncate(1);
        }
        routes.set(address, &next_hops)?;
    }
    service::announce(client, service, &addresses).await
}

/// A node's addresses. The first of them is asked for health checks.
fn hops(node: &Node) -> Vec<Hop> {
    let addresses = node
        .status
        .iter()
        .flat_map(|status| status.addresses.iter().flatten());
    let addresses: Vec<_> = addresses
        .filter(|address| address.type_ == "InternalIP")
        .filter_map(|address| address.address.parse().ok())
        .collect();
    let Some(&health) = addresses.first() else {
        return Vec::new();
    };
    addresses.into_iter().map(|via| Hop { via, health }).collect()
}
