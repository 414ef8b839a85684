//! `kubeproxy.config.k8s.io/v1alpha1` KubeProxyConfiguration, the file that every kubeadm cluster has in a
//! ConfigMap.
//!
//! This module knows every field of the type as of v1.36. Like kube-proxy, it reads v1alpha1 leniently: a
//! field that the type does not have, such as a removed one, is left out with a warning. If a key is given
//! twice the last value counts, and the case of names counts. (See `loadConfig` in
//! cmd/kube-proxy/app/options.go, `UnmarshalCaseSensitivePreserveInts`.) Fields with a meaning here become
//! [`Settings`], and [`ignored_fields`](super::ignored_fields) names the others. In Go a field that is not
//! set may also be written as its zero value, and kubeadm writes all of them so. So zero means that the field
//! is not set.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::conntrack::ConntrackSettings;
use super::duration::GoDuration;
use super::listen::ListenAddress;
use super::settings::{Ignored, Settings};
use super::values::{Cidr, NodePortAddress};
use super::{HEALTH_PORT, METRICS_PORT};

/// Defines a struct whose fields are all optional.
macro_rules! part {
    ($(#[$doc:meta])+ $name:ident { $($(#[$attribute:meta])* $field:ident: $type:ty,)+ }) => {
        $(#[$doc])+
        #[derive(Clone, Debug, Default, PartialEq, Deserialize)]
        #[serde(default, rename_all = "camelCase")]
        pub(super) struct $name { $($(#[$attribute])* pub(super) $field: Option<$type>,)+ }
    };
}

part! {
    /// The whole document.
    KubeProxyConfiguration {
        api_version: Ignored,
        kind: Ignored,
        feature_gates: BTreeMap<String, bool>,
        client_connection: ClientConnection,
        logging: Logging,
        hostname_override: String,
        bind_address: String,
        healthz_bind_address: ListenAddress,
        metrics_bind_address: ListenAddress,
        bind_address_hard_fail: bool,
        enable_profiling: bool,
        show_hidden_metrics_for_version: String,
        mode: String,
        iptables: Iptables,
        ipvs: Ipvs,
        nftables: Nftables,
        winkernel: Winkernel,
        detect_local_mode: String,
        detect_local: DetectLocal,
        #[serde(rename = "clusterCIDR")]
        cluster_cidr: Cidrs,
        node_port_addresses: Vec<NodePorts>,
        oom_score_adj: i32,
        conntrack: ConntrackOfKubeProxy,
        config_sync_period: GoDuration,
        port_range: String,
        windows_run_as_service: bool,
    }
}

part! {
    /// The connection to the API server.
    ClientConnection {
        kubeconfig: String,
        accept_content_types: String,
        content_type: String,
        qps: f64,
        burst: i32,
    }
}

part! {
    /// The level and the format of the log.
    Logging {
        format: String,
        // Nanoseconds as a number, or a span of time as text.
        flush_frequency: Value,
        verbosity: u32,
        vmodule: Vec<Value>,
        options: LoggingOptions,
    }
}

part! {
    /// The options of each format of the log.
    LoggingOptions {
        text: LoggingFormat,
        json: LoggingFormat,
    }
}

part! {
    /// The options of one format.
    LoggingFormat {
        split_stream: bool,
        // A quantity: a number, or text with a unit.
        info_buffer_size: Value,
    }
}

part! {
    /// The options of mode iptables.
    Iptables {
        masquerade_bit: i32,
        masquerade_all: bool,
        localhost_node_ports: bool,
        #[serde(rename = "snatNodeInternalIP")]
        snat_node_internal_ip: bool,
        sync_period: GoDuration,
        min_sync_period: GoDuration,
    }
}

part! {
    /// The options of mode ipvs.
    Ipvs {
        sync_period: GoDuration,
        min_sync_period: GoDuration,
        scheduler: String,
        #[serde(rename = "excludeCIDRs")]
        exclude_cidrs: Vec<String>,
        #[serde(rename = "strictARP")]
        strict_arp: bool,
        tcp_timeout: GoDuration,
        tcp_fin_timeout: GoDuration,
        udp_timeout: GoDuration,
    }
}

part! {
    /// The options of mode nftables.
    Nftables {
        masquerade_bit: i32,
        masquerade_all: bool,
        sync_period: GoDuration,
        min_sync_period: GoDuration,
    }
}

part! {
    /// The options for Windows.
    Winkernel {
        network_name: String,
        source_vip: String,
        #[serde(rename = "enableDSR")]
        enable_dsr: bool,
        root_hns_endpoint_name: String,
        forward_health_check_vip: bool,
    }
}

part! {
    /// The detection of local pods.
    DetectLocal {
        bridge_interface: String,
        interface_name_prefix: String,
    }
}

part! {
    /// The kernel's conntrack table, in which kube-proxy keeps its flows.
    ConntrackOfKubeProxy {
        max_per_core: i32,
        min: i32,
        tcp_established_timeout: GoDuration,
        tcp_close_wait_timeout: GoDuration,
        tcp_be_liberal: bool,
        udp_timeout: GoDuration,
        udp_stream_timeout: GoDuration,
    }
}

/// Ranges with commas between them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Cidrs(Vec<Cidr>);

impl<'de> Deserialize<'de> for Cidrs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let parts = text.split(',').filter(|part| !part.trim().is_empty());
        let ranges: Result<_, String> = parts.map(str::parse).collect();
        ranges.map(Self).map_err(serde::de::Error::custom)
    }
}

/// One entry of `nodePortAddresses`: a range, or a keyword for one or two ranges.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct NodePorts(Vec<NodePortAddress>);

impl<'de> Deserialize<'de> for NodePorts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let parts = match text.trim() {
            "all" => vec!["0.0.0.0/0", "::/0"],
            "localhost" => vec!["127.0.0.0/8", "::1/128"],
            other => vec![other],
        };
        let addresses: Result<_, String> = parts.into_iter().map(str::parse).collect();
        addresses.map(Self).map_err(serde::de::Error::custom)
    }
}

impl KubeProxyConfiguration {
    /// The document as our settings.
    pub(super) fn settings(&self) -> Settings {
        let (health, metrics) = self.listen_addresses();
        let mut settings = Settings {
            kubeconfig: self
                .client_connection
                .as_ref()
                .and_then(|client| given(client.kubeconfig.as_ref()))
                .map(Into::into),
            // A kubelet's name for its node is in lower case, independent of the host's own name.
            node_name: given(self.hostname_override.as_ref()).map(|name| name.to_lowercase()),
            health_address: health,
            metrics_address: metrics,
            bind_address_hard_fail: self.bind_address_hard_fail.filter(|fail| *fail),
            masquerade_all: self.masquerades_all().then_some(true),
            ..Settings::default()
        };
        if let Some(Cidrs(ranges)) = &self.cluster_cidr
            && !ranges.is_empty()
        {
            settings.cluster_cidrs = Some(ranges.clone());
        }
        if let Some(addresses) = &self.node_port_addresses
            && !addresses.is_empty()
        {
            let addresses = addresses.iter().flat_map(|NodePorts(addresses)| addresses);
            settings.node_port_addresses = Some(addresses.copied().collect());
        }
        if let Some(conntrack) = &self.conntrack {
            settings.conntrack = Some(ConntrackSettings {
                tcp_established_timeout: conntrack.tcp_established_timeout,
                tcp_close_wait_timeout: conntrack.tcp_close_wait_timeout,
                udp_timeout: conntrack.udp_timeout,
                udp_stream_timeout: conntrack.udp_stream_timeout,
            });
        }
        settings
    }

    fn masquerades_all(&self) -> bool {
        let iptables = self.iptables.as_ref().and_then(|part| part.masquerade_all);
        let nftables = self.nftables.as_ref().and_then(|part| part.masquerade_all);
        iptables.unwrap_or(false) || nftables.unwrap_or(false)
    }

    /// The addresses of health and metrics: an IPv6 `bindAddress` makes their defaults IPv6 ones, all else is
    /// as written.
    fn listen_addresses(&self) -> (Option<ListenAddress>, Option<ListenAddress>) {
        let bind = self.bind_address.as_deref().unwrap_or_default().parse();
        let v6 = matches!(bind, Ok(IpAddr::V6(_)));
        let pick = |given: Option<ListenAddress>, default: Ipv6Addr, port| {
            let given = given.filter(|address| *address != ListenAddress::default());
            if !v6 {
                return given;
            }
            let default = SocketAddr::from((default, port));
            let off = ListenAddress::from(SocketAddr::new(default.ip(), 0));
            Some(given.unwrap_or_default().or(default).map_or(off, Into::into))
        };
        (
            pick(self.healthz_bind_address, Ipv6Addr::UNSPECIFIED, HEALTH_PORT),
            pick(self.metrics_bind_address, Ipv6Addr::LOCALHOST, METRICS_PORT),
        )
    }
}

fn given(text: Option<&String>) -> Option<String> {
    text.map(|text| text.trim())
        .filter(|text| !text.is_empty())
        .map(str::to_owned)
}
