//! Removing our device from this network namespace; its peer and its routes go with it.

use anyhow::Context as _;

use super::{Left, Uninstalled};
use crate::bpf::pins::Removed;
use crate::network::{HOST_DEVICE, HOST_DEVICE_PEER, HostDevice, Netlink, NetworkError};

/// Removes the device if there is one, and mentions a foreign one of that name.
pub fn remove(uninstalled: &mut Uninstalled) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let removed = runtime.block_on(async { HostDevice::new(Netlink::open()?).remove().await });
    match removed {
        Ok(false) => {}
        Ok(true) => {
            let device = |name: &str| Removed {
                kind: "device".into(),
                name: name.into(),
            };
            uninstalled
                .removed
                .extend([HOST_DEVICE, HOST_DEVICE_PEER].map(device));
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
