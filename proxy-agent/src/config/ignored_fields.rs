//! The fields of a `KubeProxyConfiguration` that ask for a feature that Millrace does not have.
//!
//! Millrace accepts a file for kube-proxy as it is, but the operator must know which fields have no effect.
//! If a field without a meaning here has a value other than kube-proxy's default, one warning names it with
//! the reason. Defaults are those of kube-proxy v1.36; a zero value stands for the default.

use super::duration::GoDuration;
use super::kube_proxy::{
    ClientConnection, ConntrackOfKubeProxy, DetectLocal, Iptables, Ipvs, KubeProxyConfiguration, Logging,
    Nftables, Winkernel,
};

const RULES: &str = "there are no rules that would be written anew";
const NETFILTER: &str = "no netfilter rules are made";
const IPVS: &str = "IPVS is not used";
const WINDOWS: &str = "it is about Windows";
const CLIENT: &str = "the API client has limits and encodings of its own";
const LOGS: &str = "--verbose and RUST_LOG say what is logged";
const LOCAL: &str = "a local pod is one whose packets enter by a pod's interface";
const CONNTRACK: &str = "flows are not kept in the kernel's conntrack table";

/// The warnings so far.
#[derive(Default)]
struct Found(Vec<String>);

impl Found {
    /// Notes a field whose value is given, and is neither zero nor one of the `defaults`.
    fn field<T: Default + PartialEq>(&mut self, name: &str, value: Option<&T>, defaults: &[T], why: &str) {
        if value.is_some_and(|value| *value != T::default() && !defaults.contains(value)) {
            self.0.push(format!("{name} is ignored: {why}"));
        }
    }

    fn duration(&mut self, name: &str, value: Option<&GoDuration>, default: u64, why: &str) {
        self.field(name, value, &[GoDuration::seconds(default)], why);
    }
}

/// A warning for each field that is set and has no meaning.
pub fn ignored_fields(config: &KubeProxyConfiguration) -> Vec<String> {
    let mut found = Found::default();
    let text = |text: &str| text.to_owned();
    found.field(
        "mode",
        config.mode.as_ref(),
        &[],
        "eBPF programs serve in each mode",
    );
    found.field(
        "featureGates",
        config.feature_gates.as_ref(),
        &[],
        "Millrace has none",
    );
    found.duration(
        "configSyncPeriod",
        config.config_sync_period.as_ref(),
        900,
        "every change is watched",
    );
    found.field(
        "oomScoreAdj",
        config.oom_score_adj.as_ref(),
        &[-999],
        "the command that starts the agent sets it",
    );
    found.field(
        "enableProfiling",
        config.enable_profiling.as_ref(),
        &[],
        "there is no profiler to serve",
    );
    found.field(
        "showHiddenMetricsForVersion",
        config.show_hidden_metrics_for_version.as_ref(),
        &[],
        "no metrics are hidden",
    );
    found.field(
        "portRange",
        config.port_range.as_ref(),
        &[],
        "kube-proxy ignores it too",
    );
    found.field(
        "windowsRunAsService",
        config.windows_run_as_service.as_ref(),
        &[],
        WINDOWS,
    );
    found.field(
        "bindAddress",
        config.bind_address.as_ref(),
        &[text("0.0.0.0"), text("::")],
        "nodeAddresses of an AgentConfiguration says which addresses are the node's",
    );
    found.field(
        "detectLocalMode",
        config.detect_local_mode.as_ref(),
        &[text("ClusterCIDR")],
        LOCAL,
    );
    if let Some(part) = &config.detect_local {
        detect_local(part, &mut found);
    }
    if let Some(part) = &config.client_connection {
        client(part, &mut found);
    }
    if let Some(part) = &config.logging {
        logging(part, &mut found);
    }
    if let Some(part) = &config.iptables {
        iptables(part, &mut found);
    }
    if let Some(part) = &config.ipvs {
        ipvs(part, &mut found);
    }
    if let Some(part) = &config.nftables {
        nftables(part, &mut found);
    }
    if let Some(part) = &config.conntrack {
        conntrack(part, &mut found);
    }
    if let Some(part) = &config.winkernel {
        winkernel(part, &mut found);
    }
    found.0
}

fn detect_local(part: &DetectLocal, found: &mut Found) {
    found.field(
        "detectLocal.bridgeInterface",
        part.bridge_interface.as_ref(),
        &[],
        LOCAL,
    );
    found.field(
        "detectLocal.interfaceNamePrefix",
        part.interface_name_prefix.as_ref(),
        &[],
        LOCAL,
    );
}

fn client(part: &ClientConnection, found: &mut Found) {
    let json = "application/vnd.kubernetes.protobuf".to_owned();
    found.field(
        "clientConnection.acceptContentTypes",
        part.accept_content_types.as_ref(),
        &[],
        CLIENT,
    );
    found.field(
        "clientConnection.contentType",
        part.content_type.as_ref(),
        &[json],
        CLIENT,
    );
    found.field("clientConnection.qps", part.qps.as_ref(), &[5.0], CLIENT);
    found.field("clientConnection.burst", part.burst.as_ref(), &[10], CLIENT);
}

fn logging(part: &Logging, found: &mut Found) {
    let interval = part.flush_frequency.as_ref().and_then(|value| {
        let nanos = value.as_u64().map(std::time::Duration::from_nanos);
        nanos
            .map(GoDuration)
            .or_else(|| value.as_str().and_then(|text| text.parse().ok()))
    });
    found.field("logging.format", part.format.as_ref(), &["text".to_owned()], LOGS);
    found.duration("logging.flushFrequency", interval.as_ref(), 5, LOGS);
    found.field("logging.verbosity", part.verbosity.as_ref(), &[], LOGS);
    found.field("logging.vmodule", part.vmodule.as_ref(), &[], LOGS);
    let Some(options) = &part.options else { return };
    for (name, format) in [("text", &options.text), ("json", &options.json)] {
        let Some(format) = format else { continue };
        let field = |last: &str| format!("logging.options.{name}.{last}");
        found.field(&field("splitStream"), format.split_stream.as_ref(), &[], LOGS);
        let zero = [serde_json::json!("0"), serde_json::json!(0)];
        found.field(
            &field("infoBufferSize"),
            format.info_buffer_size.as_ref(),
            &zero,
            LOGS,
        );
    }
}

fn iptables(part: &Iptables, found: &mut Found) {
    found.field(
        "iptables.masqueradeBit",
        part.masquerade_bit.as_ref(),
        &[14],
        NETFILTER,
    );
    // Only false deserves a warning; true is the default.
    if part.localhost_node_ports == Some(false) {
        found.0.push(
            "iptables.localhostNodePorts is ignored: node ports of a loopback address are the node's own affair"
                .to_owned(),
        );
    }
    found.field(
        "iptables.snatNodeInternalIP",
        part.snat_node_internal_ip.as_ref(),
        &[true],
        "flows are always masqueraded with the node's own address",
    );
    found.duration("iptables.syncPeriod", part.sync_period.as_ref(), 30, RULES);
    found.duration("iptables.minSyncPeriod", part.min_sync_period.as_ref(), 1, RULES);
}

fn nftables(part: &Nftables, found: &mut Found) {
    found.field(
        "nftables.masqueradeBit",
        part.masquerade_bit.as_ref(),
        &[14],
        NETFILTER,
    );
    found.duration("nftables.syncPeriod", part.sync_period.as_ref(), 30, RULES);
    found.duration("nftables.minSyncPeriod", part.min_sync_period.as_ref(), 1, RULES);
}

fn ipvs(part: &Ipvs, found: &mut Found) {
    found.duration("ipvs.syncPeriod", part.sync_period.as_ref(), 30, IPVS);
    found.duration("ipvs.minSyncPeriod", part.min_sync_period.as_ref(), 0, IPVS);
    found.field("ipvs.scheduler", part.scheduler.as_ref(), &[], IPVS);
    found.field("ipvs.excludeCIDRs", part.exclude_cidrs.as_ref(), &[], IPVS);
    found.field("ipvs.strictARP", part.strict_arp.as_ref(), &[], IPVS);
    found.duration("ipvs.tcpTimeout", part.tcp_timeout.as_ref(), 0, IPVS);
    found.duration("ipvs.tcpFinTimeout", part.tcp_fin_timeout.as_ref(), 0, IPVS);
    found.duration("ipvs.udpTimeout", part.udp_timeout.as_ref(), 0, IPVS);
}

fn conntrack(part: &ConntrackOfKubeProxy, found: &mut Found) {
    let size = "maps.flows of an AgentConfiguration is the size of the flow table";
    found.field(
        "conntrack.maxPerCore",
        part.max_per_core.as_ref(),
        &[32 * 1024],
        size,
    );
    found.field("conntrack.min", part.min.as_ref(), &[128 * 1024], size);
    found.field(
        "conntrack.tcpBeLiberal",
        part.tcp_be_liberal.as_ref(),
        &[],
        CONNTRACK,
    );
}

fn winkernel(part: &Winkernel, found: &mut Found) {
    found.field("winkernel.networkName", part.network_name.as_ref(), &[], WINDOWS);
    found.field("winkernel.sourceVip", part.source_vip.as_ref(), &[], WINDOWS);
    found.field("winkernel.enableDSR", part.enable_dsr.as_ref(), &[], WINDOWS);
    found.field(
        "winkernel.rootHnsEndpointName",
        part.root_hns_endpoint_name.as_ref(),
        &[],
        WINDOWS,
    );
    found.field(
        "winkernel.forwardHealthCheckVip",
        part.forward_health_check_vip.as_ref(),
        &[],
        WINDOWS,
    );
}
