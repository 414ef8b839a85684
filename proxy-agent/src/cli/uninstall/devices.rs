//! Removes our devices from this network namespace, the routes to other nodes' pods, and the rules for ports.
//! The kernel removes a device's peer and the routes on it together with the device.

use anyhow::Context as _;

use super::{Left, Uninstalled};
use crate::bpf::pins::Removed;
use crate::network::pods::{TUNNEL_DEVICE, Tunnel, routes};
use crate::network::{HOST_DEVICE, HOST_DEVICE_PEER, HostDevice, Netlink, NetworkError, port_rules};

/// Removes those that exist, and reports foreign devices with our names.
pub fn remove(uninstalled: &mut Uninstalled) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let netlink = Netlink::open().context("asking for our devices")?;
        let removed = routes::remove_all(&netlink).await;
        let removed = removed.context("removing the routes to other nodes' pods")?;
        let route = |prefix: ipnet::IpNet| Removed {
            kind: "route".into(),
            name: prefix.to_string(),
        };
        uninstalled.removed.extend(removed.into_iter().map(route));
        let removed = port_rules::remove_all(&netlink).await;
        let removed = removed.context("removing the rules for ports of services")?;
        let rule = |port: port_rules::PortAt| Removed {
            kind: "rule".into(),
            name: port.to_string(),
        };
        uninstalled.removed.extend(removed.into_iter().map(rule));
        let removed = Tunnel::new(netlink.clone()).remove().await;
        note(removed, &[TUNNEL_DEVICE], uninstalled)?;
        let removed = HostDevice::new(netlink).remove().await;
        note(removed, &[HOST_DEVICE, HOST_DEVICE_PEER], uninstalled)
    })
}

fn note(
    removed: Result<bool, NetworkError>,
    names: &[&str],
    uninstalled: &mut Uninstalled,
) -> anyhow::Result<()> {
    match removed {
        Ok(false) => {}
        Ok(true) => {
            let device = |name: &&str| Removed {
                kind: "device".into(),
                name: (*name).into(),
            };
            uninstalled.removed.extend(names.iter().map(device));
        }
        Err(NetworkError::ForeignDevice { name, what }) => {
            uninstalled.left.push(Left {
                name: format!("interface {name}"),
                reason: format!("not ours: it is {what}"),
            });
        }
        Err(error) => return Err(error).context("removing our device"),
    }
    Ok(())
}
