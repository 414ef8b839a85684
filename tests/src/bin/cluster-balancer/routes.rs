//! Routes from outside to the nodes, one for each balanced address.
//!
//! The suite's client has an address of its own for them, since specs tell clients from nodes by the subnet.
//! An address without nodes to serve it is routed to a neighbour that does not exist. So a released address
//! is silent, where a missing route would be an error at once.

use std::collections::HashMap;
use std::fs;
use std::net::IpAddr;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// A node, as the next hop of an address.
pub struct Hop {
    /// The node's address of the route's family.
    pub via: IpAddr,
    /// The address that is asked for health checks.
    pub health: IpAddr,
}

/// The client's addresses.
const CLIENT_V4: &str = "172.30.242.1";
const CLIENT_V6: &str = "fd00:242::1";
/// The bridge to the nodes, and a neighbour there that does not exist.
const BRIDGE: &str = "underlay";
const UNUSED_V4: &str = "192.168.240.250";
const UNUSED_V6: &str = "fd00:240::250";
const UNUSED_MAC: &str = "02:00:00:00:00:fe";

#[derive(Default)]
pub struct Routes {
    set: HashMap<IpAddr, Vec<IpAddr>>,
}

impl Routes {
    pub fn prepare() -> Result<Self> {
        // The hash includes ports, so that the connections of one client reach several nodes.
        for key in ["ipv4", "ipv6"] {
            fs::write(format!("/proc/sys/net/{key}/fib_multipath_hash_policy"), "1")
                .with_context(|| format!("setting {key}'s fib_multipath_hash_policy"))?;
        }
        for (client, unused, pool) in [
            (CLIENT_V4, UNUSED_V4, "192.168.241.0/24"),
            (CLIENT_V6, UNUSED_V6, "fd00:241::/112"),
        ] {
            ip(&["address", "replace", client, "dev", "lo"])?;
            ip(&[
                "neighbour",
                "replace",
                unused,
                "lladdr",
                UNUSED_MAC,
                "dev",
                BRIDGE,
                "nud",
                "permanent",
            ])?;
            ip(&["route", "replace", pool, "via", unused, "src", client])?;
        }
        Ok(Self::default())
    }

    /// Routes an address to these nodes. An empty list leaves the address to the route of the pool, which is
    /// silent.
    pub fn set(&mut self, address: IpAddr, hops: &[IpAddr]) -> Result<()> {
        if self.set.get(&address).is_some_and(|set| set == hops) {
            return Ok(());
        }
        if hops.is_empty() {
            self.remove(address);
        } else {
            let client = if address.is_ipv4() { CLIENT_V4 } else { CLIENT_V6 };
            let (address, hops): (_, Vec<_>) =
                (address.to_string(), hops.iter().map(IpAddr::to_string).collect());
            let mut arguments = vec!["route", "replace", &address, "src", client];
            for hop in &hops {
                arguments.extend(["nexthop", "via", hop]);
            }
            ip(&arguments)?;
        }
        self.set.insert(address, hops.to_vec());
        Ok(())
    }

    /// Removes the routes of all addresses for which `keep` is false.
    pub fn keep(&mut self, keep: impl Fn(IpAddr) -> bool) {
        let gone: Vec<_> = self
            .set
            .keys()
            .copied()
            .filter(|address| !keep(*address))
            .collect();
        for address in gone {
            self.remove(address);
        }
    }

    fn remove(&mut self, address: IpAddr) {
        if self.set.remove(&address).is_some_and(|hops| !hops.is_empty())
            && let Err(error) = ip(&["route", "delete", &address.to_string()])
        {
            eprintln!("{error:#}");
        }
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    println!("ip {}", arguments.join(" "));
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .context("starting `ip`")?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("ip {}: {}", arguments.join(" "), stderr.trim());
    }
    Ok(())
}
