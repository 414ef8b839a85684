//! The requests of one call: addresses and an Ethernet address.
//!
//! A call can ask in three places: `CNI_ARGS` (`IP`, `MAC`), `args.cni` (`ips`, `mac`) and `runtimeConfig`
//! (`ips`, `mac`). The addresses of all three places count together. Of several Ethernet addresses that of
//! `runtimeConfig`, the newest place, counts.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;

use super::args::Args;
use crate::spec::{CniError, Code};

/// The keys for requests, which `args.cni` and `runtimeConfig` have in common.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct RequestKeys {
    #[serde(default)]
    ips: Option<Vec<String>>,
    #[serde(default)]
    mac: Option<String>,
}

/// The requests of a call, from all places.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Requests {
    /// The requested addresses, each once.
    pub ips: Vec<IpAddr>,
    /// The requested Ethernet address.
    pub mac: Option<[u8; 6]>,
}

impl Requests {
    /// Collects the requests of the three places.
    pub fn gather(args: &Args, in_args: &RequestKeys, in_runtime: &RequestKeys) -> Result<Self, CniError> {
        let mut requests = Self {
            ips: args.ips.clone(),
            mac: args.mac,
        };
        for (place, asked) in [("args.cni", in_args), ("runtimeConfig", in_runtime)] {
            for ip in asked.ips.iter().flatten() {
                let ip = parse_ip(ip).map_err(|why| invalid(&format!("{place}.ips"), why))?;
                requests.ips.push(ip);
            }
            if let Some(mac) = asked.mac.as_deref().filter(|mac| !mac.is_empty()) {
                let mac = parse_mac(mac).map_err(|why| invalid(&format!("{place}.mac"), why))?;
                requests.mac = Some(mac);
            }
        }
        requests.ips.sort_unstable();
        requests.ips.dedup();
        Ok(requests)
    }
}

fn invalid(place: &str, why: String) -> CniError {
    CniError::new(Code::InvalidConfig, format!("{place} is invalid")).with_details(why)
}

/// Reads an address with or without a prefix length; the range decides the length.
pub(super) fn parse_ip(text: &str) -> Result<IpAddr, String> {
    let text = text.trim();
    text.parse::<IpAddr>()
        .or_else(|_| text.parse::<IpNet>().map(|net| net.addr()))
        .map_err(|_| format!("{text:?} is no IP address"))
}

/// Reads a unicast Ethernet address.
pub(super) fn parse_mac(text: &str) -> Result<[u8; 6], String> {
    let mut mac = [0; 6];
    let mut parts = text.split([':', '-']);
    for byte in &mut mac {
        let is_byte = |part: &&str| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
        let value = parts
            .next()
            .filter(is_byte)
            .and_then(|part| u8::from_str_radix(part, 16).ok());
        *byte = value.ok_or_else(|| format!("{text:?} is no Ethernet address such as 02:00:00:00:00:01"))?;
    }
    if parts.next().is_some() || mac[0] & 1 == 1 || mac == [0; 6] {
        return Err(format!("{text:?} is no Ethernet address of one station"));
    }
    Ok(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_of_all_sources_are_combined() {
        let args = Args {
            ips: vec!["10.0.0.3".parse().unwrap()],
            mac: Some([2; 6]),
            ..Args::default()
        };
        let asked = |json: &str| serde_json::from_str::<RequestKeys>(json).unwrap();
        let requests = Requests::gather(
            &args,
            &asked(r#"{"ips": ["10.0.0.3", "10.0.0.2/24"]}"#),
            &asked(r#"{"mac": "0a-00-00-00-00-01", "ips": null}"#),
        )
        .unwrap();
        assert_eq!(
            requests.ips,
            ["10.0.0.2", "10.0.0.3"].map(|ip| ip.parse::<IpAddr>().unwrap())
        );
        assert_eq!(requests.mac, Some([10, 0, 0, 0, 0, 1]));
        let error = Requests::gather(&args, &asked(r#"{"ips": ["x"]}"#), &asked("{}")).unwrap_err();
        assert_eq!(
            (error.code, error.msg.as_str()),
            (Code::InvalidConfig, "args.cni.ips is invalid")
        );
    }

    #[test]
    fn only_unicast_ethernet_addresses_are_accepted() {
        for bad in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:01:02",
            "03:00:00:00:00:01",
            "00:00:00:00:00:00",
            "+2:00:00:00:00:01",
        ] {
            assert!(parse_mac(bad).is_err(), "{bad}");
        }
    }
}
