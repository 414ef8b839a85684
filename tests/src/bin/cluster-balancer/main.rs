//! A load-balancer controller for the cluster of `cargo xtask cluster`, in the place of a cloud's.
//!
//! Each service of type `LoadBalancer` gets an address of every family it has, and whoever is in the network
//! namespace of this program (the control plane's, where the end-to-end suite runs too) gets a route for the
//! address to the nodes that should have its traffic. That is all a balancer is here: the nodes see packets for
//! the address itself, from the client's own address.
//!
//! Everything is looked at anew twice a second, so nothing is kept that a missed event could make wrong.

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
        // An object that changed meanwhile is met again in the next round.
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
        let mut ways: Vec<_> = Vec::new();
        for hop in hops.iter().filter(|hop| hop.via.is_ipv6() == address.is_ipv6()) {
            if service::wants(service, hop).await {
                ways.push(hop.via);
            }
        }
        // Affinity is each node's own affair, so a client has to stay with one.
        if service::has_affinity(service) {
            ways.truncate(1);
        }
        routes.set(address, &ways)?;
    }
    service::announce(client, service, &addresses).await
}

/// A node's addresses; the first of them is where its health checks are asked.
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
