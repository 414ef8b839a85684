//! `CNI_ARGS`: pairs that a runtime or its user adds to a call.
//!
//! Kubernetes runtimes name the pod in them. A pair that this plugin does not know is an error unless the
//! pair `IgnoreUnknown` permits it; the reference plugins do the same.

use std::net::IpAddr;

use super::environment::invalid;
use super::requests::{parse_ip, parse_mac};
use crate::spec::CniError;

/// The pairs that this plugin reads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Args {
    /// `IP`: the requested addresses.
    pub ips: Vec<IpAddr>,
    /// `MAC`: the requested Ethernet address.
    pub mac: Option<[u8; 6]>,
    /// `K8S_POD_NAMESPACE`: the namespace of the pod in Kubernetes.
    pub pod_namespace: Option<String>,
    /// `K8S_POD_NAME`: the name of the pod in Kubernetes.
    pub pod_name: Option<String>,
}

impl Args {
    /// Reads `KEY=VALUE;KEY=VALUE`.
    pub fn parse(text: &str) -> Result<Self, CniError> {
        let mut args = Self::default();
        let mut unknown = Vec::new();
        let mut ignore_unknown = false;
        for pair in text.split(';').filter(|pair| !pair.is_empty()) {
            let Some((key, value)) = pair.split_once('=') else {
                return Err(invalid(
                    "CNI_ARGS",
                    &format!("has {pair:?}"),
                    "it consists of pairs KEY=VALUE with `;` between them",
                ));
            };
            match key {
                "IP" => {
                    for ip in value.split(',').filter(|ip| !ip.is_empty()) {
                        let ip = parse_ip(ip).map_err(|why| invalid("CNI_ARGS", "has IP", &why))?;
                        args.ips.push(ip);
                    }
                }
                "MAC" => {
                    let mac = parse_mac(value).map_err(|why| invalid("CNI_ARGS", "has MAC", &why))?;
                    args.mac = Some(mac);
                }
                "IgnoreUnknown" => ignore_unknown = matches!(value, "1" | "true" | "True" | "TRUE"),
                "K8S_POD_NAMESPACE" => args.pod_namespace = Some(value.to_owned()),
                "K8S_POD_NAME" => args.pod_name = Some(value.to_owned()),
                key if key.starts_with("K8S_POD_") => {}
                key => unknown.push(key),
            }
        }
        if unknown.is_empty() || ignore_unknown {
            return Ok(args);
        }
        Err(invalid(
            "CNI_ARGS",
            &format!("has unknown keys: {}", unknown.join(", ")),
            "remove them or add IgnoreUnknown=1",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Code;

    #[test]
    fn pairs_are_read() {
        let args = Args::parse(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=p;K8S_POD_UID=1;x=y;IP=10.1.0.9,fd00::9/64;MAC=02:00:00:00:00:0a",
        )
        .unwrap();
        assert_eq!(
            args.ips,
            ["10.1.0.9", "fd00::9"].map(|ip| ip.parse::<IpAddr>().unwrap())
        );
        assert_eq!(args.mac, Some([2, 0, 0, 0, 0, 10]));
        assert_eq!(
            (args.pod_namespace.as_deref(), args.pod_name.as_deref()),
            (Some("ns"), Some("p"))
        );
        assert_eq!(Args::parse("").unwrap(), Args::default());
    }

    #[test]
    fn bad_pairs_are_refused() {
        for text in [
            "x",
            "x=y",
            "IP=1.2.3",
            "MAC=01:00:00:00:00:00",
            "MAC=1:2",
            "x=y;IgnoreUnknown=0",
        ] {
            assert_eq!(
                Args::parse(text).unwrap_err().code,
                Code::InvalidEnvironment,
                "{text}"
            );
        }
    }
}
