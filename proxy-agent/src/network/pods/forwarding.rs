//! The kernel's permission to forward packets between interfaces.
//!
//! IPv4 has a setting for each interface that packets enter by. IPv6 has one for all, and newer kernels have
//! one for each besides. A host that forwards IPv6 ignores router advertisements, and would lose the
//! addresses and routes that it has from them. So this module sets its interfaces to accept them still.

use crate::network::error::NetworkError;
use crate::network::sysctl::{self, Setting};

/// Enables forwarding for packets that enter by these interfaces. Returns the number of settings written.
pub fn ensure(interfaces: &[&str], v4: bool, v6: bool) -> Result<u64, NetworkError> {
    let mut written = 0;
    if v4 {
        for device in interfaces {
            written += ensure_one("ipv4", device, "forwarding", "1")?;
        }
    }
    if v6 && sysctl::has_ipv6() {
        let all = setting("ipv6", "all", "forwarding", "1");
        if !all.is_so()? {
            for device in interfaces {
                if setting("ipv6", device, "accept_ra", "1").is_so()? {
                    written += ensure_one("ipv6", device, "accept_ra", "2")?;
                }
            }
        }
        written += ensure_one("ipv6", "all", "forwarding", "1")?;
        for device in interfaces {
            // Another program may have disabled it.
            written += ensure_one("ipv6", device, "forwarding", "1")?;
        }
    }
    Ok(written)
}

/// The settings of these interfaces, and of all of them, that have another value now.
pub fn changed(interfaces: &[&str], v4: bool, v6: bool) -> Vec<String> {
    let v4 = interfaces.iter().filter(|_| v4);
    let v4 = v4.map(|device| setting("ipv4", device, "forwarding", "1"));
    let v6 = [&"all"]
        .into_iter()
        .chain(interfaces)
        .filter(|_| v6 && sysctl::has_ipv6());
    let v6 = v6.map(|device| setting("ipv6", device, "forwarding", "1"));
    let changed = v4.chain(v6).filter(Setting::is_changed);
    changed.map(|setting| setting.to_string()).collect()
}

fn ensure_one(
    family: &'static str,
    device: &str,
    name: &'static str,
    value: &'static str,
) -> Result<u64, NetworkError> {
    let written = setting(family, device, name, value).ensure()?;
    if written {
        tracing::info!("set net.{family}.conf.{device}.{name} to {value}, to pass on packets of pods");
    }
    Ok(u64::from(written))
}

fn setting<'a>(
    family: &'static str,
    device: &'a str,
    name: &'static str,
    value: &'static str,
) -> Setting<'a> {
    Setting {
        family,
        device,
        name,
        value,
    }
}
