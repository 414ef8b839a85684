//! The pods of this node: the plugin's note on each, and the limits and host ports in force.
//!
//! Names and addresses come from the notes. Rates and host ports are read from the kernel, since the agent
//! changes limits while pods run.

use std::collections::BTreeMap;
use std::net::IpAddr;

use cni_plugin::ipam::{Note, Store};
use cni_plugin::netlink::rates::rates;
use proxy_common::maps::{HostPort, HostPortKey};

use super::kernel::{Kernel, index_of};
use super::{PluginPaths, PodsError};
use crate::control::{HostPortEntry, PodEntry, Protocol};

/// All pods, by namespace and name. Addresses that were adopted from another plugin belong to no known pod.
pub fn list(paths: &PluginPaths) -> Result<Vec<PodEntry>, PodsError> {
    let Some(store) = Store::existing(&paths.lease_dir) else {
        return Ok(Vec::new());
    };
    let mut notes = store.notes()?;
    notes.retain(|note| !note.adopted);
    let mut kernel = Kernel::read(&paths.bpf_root)?;
    let rates = rates(&mut kernel.node)?;
    let mut pods: Vec<_> = notes
        .into_iter()
        .map(|note| entry(note, &kernel, &rates))
        .collect();
    pods.sort_by(|one, other| {
        let key = |pod: &PodEntry| {
            (
                pod.namespace.clone(),
                pod.name.clone(),
                pod.container_id.clone(),
                pod.if_name.clone(),
            )
        };
        key(one).cmp(&key(other))
    });
    Ok(pods)
}

fn entry(note: Note, kernel: &Kernel, rates: &BTreeMap<u32, u64>) -> PodEntry {
    let index = index_of(&kernel.interfaces, &note.host_interface);
    let interface = index.and_then(|index| kernel.interfaces.get(&index));
    let limiter = index
        .and_then(|index| kernel.entries.links.get(&index))
        .map(|link| link.limiter);
    let rate_at = |index: Option<u32>| index.and_then(|index| rates.get(&index)).copied();
    PodEntry {
        mtu: interface.map_or(note.mtu, |interface| interface.mtu),
        ingress_bandwidth: rate_at(index),
        egress_bandwidth: rate_at(limiter),
        host_ports: index
            .map(|index| host_ports(&kernel.entries.host_ports, index))
            .unwrap_or_default(),
        namespace: note.pod_namespace,
        name: note.pod_name,
        container_id: note.container_id,
        if_name: note.if_name,
        host_interface: note.host_interface,
        addresses: note.addresses,
        mac: note.mac,
    }
}

/// The ports that lead to an interface. A port of both families is one port.
fn host_ports(entries: &BTreeMap<HostPortKey, HostPort>, interface: u32) -> Vec<HostPortEntry> {
    let here = entries.iter().filter(|(_, port)| port.interface == interface);
    let mut ports: Vec<_> = here
        .filter_map(|(key, port)| {
            Some(HostPortEntry {
                host_ip: Some(IpAddr::from(key.address)).filter(|address| !address.is_unspecified()),
                host_port: key.port.number(),
                container_port: port.port.number(),
                protocol: Protocol::from_number(key.protocol)?,
            })
        })
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

#[cfg(test)]
mod tests {
    use super::*;
    use proxy_common::{Ip, Port, protocol};

    #[test]
    fn a_port_of_both_families_is_listed_once() {
        let entry = |address: &str, port: u16, interface: u32| {
            let address: IpAddr = address.parse().expect("an address");
            let key = HostPortKey {
                address: Ip::from(address),
                port: Port::new(port),
                protocol: protocol::TCP,
                reserved: 0,
            };
            let value = HostPort {
                pod: Ip::UNSPECIFIED,
                port: Port::new(8080),
                reserved: [0; 2],
                interface,
                generation: 1,
            };
            (key, value)
        };
        let entries = BTreeMap::from([
            entry("0.0.0.0", 80, 7),
            entry("::", 80, 7),
            entry("192.0.2.1", 81, 7),
            entry("0.0.0.0", 82, 8),
        ]);
        let found: Vec<_> = host_ports(&entries, 7)
            .iter()
            .map(|port| (port.host_ip, port.host_port, port.container_port))
            .collect();
        let address = "192.0.2.1".parse().ok();
        assert_eq!(found, [(None, 80, 8080), (address, 81, 8080)]);
        assert_eq!(host_ports(&entries, 9), []);
    }
}
