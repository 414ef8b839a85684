//! `kubeproxy.config.k8s.io/v1alpha1` KubeProxyConfiguration, the file that every kubeadm cluster has in a ConfigMap.
//!
//! Every field of the type as of v1.36 is known here. kube-proxy reads v1alpha1 leniently: a field that it
//! does not have, such as one that is gone, is left out with a warning, and so it is here. Of a key that is
//! given twice the last value counts, and the case of names counts (`loadConfig` in
//! cmd/kube-proxy/app/options.go, `UnmarshalCaseSensitivePreserveInts`). What has a meaning becomes
//! [`Settings`]; what has none is for [`unheeded`](super::unheeded) to name. In Go's form a field that is not
//! set may also be written as its zero value, and kubeadm writes all of them so: zero says nothing.

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

/// A struct whose fields may all be left out.
macro_rules! part {
    ($(#[$doc:meta])+ $name:ident { $($(#[$attribute:meta])* $field:ident: $type:ty,)+ }) => {
        $(#[$doc])+
        #[derive(Clone, Debug, Default, PartialEq, Deserialize)]
        #[serde(default, rename_all = "camelCase")]
        pub(super) struct $name { $($(#[$attribute])* pub(super) $field: Option<$type>,)+ }
    };
}

part! {
    /// The document.
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
    /// How the API server is asked.
    ClientConnection {
        kubeconfig: String,
        accept_content_types: String,
        content_type: String,
        qps: f64,
        burst: i32,
    }
}

part! {
    /// What is logged, and how.
    Logging {
        format: String,
        // Nanoseconds, or a span of time as text.
        flush_frequency: Value,
        verbosity: u32,
        vmodule: Vec<Value>,
        options: LoggingOptions,
    }
}

part! {
    /// What each format of the log has of its own.
    LoggingOptions {
        text: LoggingFormat,
        json: LoggingFormat,
    }
}

part! {
    /// How a format is written out.
    LoggingFormat {
        split_stream: bool,
        // A quantity: a number, or text with a unit.
        info_buffer_size: Value,
    }
}

part! {
    /// Mode iptables.
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
    /// Mode ipvs.
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
    /// Mode nftables.
    Nftables {
        masquerade_bit: i32,
        masquerade_all: bool,
        sync_period: GoDuration,
        min_sync_period: GoDuration,
    }
}

part! {
    /// Windows.
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
    /// How kube-proxy tells local pods.
    DetectLocal {
        bridge_interface: String,
        interface_name_prefix: String,
    }
}

part! {
    /// The kernel's table of connections, where kube-proxy keeps its flows.
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

/// One entry of `nodePortAddresses`: a range, or a word for one or two.
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
    /// What it says in our terms.
    pub(super) fn settings(&self) -> Settings {
        let (health, metrics) = self.listen_addresses();
        let mut settings = Settings {
            kubeconfig: self
                .client_connection
                .as_ref()
                .and_then(|client| given(client.kubeconfig.as_ref()))
                .map(Into::into),
            // A kubelet's name for its node is in lower case whatever the host calls itself.
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

    /// Where health and metrics are served: an IPv6 `bindAddress` makes their defaults IPv6 ones, all else is as written.
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
