//! The configuration in force as the log and `/configz` show it: in the format of kube-proxy as far as it
//! goes, and in ours.

use serde_json::{Value, json};

use crate::config::{AgentOptions, Configuration};

/// The JSON document of `/configz`.
pub fn page(options: &AgentOptions) -> Value {
    json!({
        "kubeproxy.config.k8s.io": kube_proxy(options),
        "millrace.dev": own(&options.configuration),
    })
}

/// Logs the configuration in force, and warns of odd settings.
pub fn log(options: &AgentOptions) {
    match serde_json::to_string(&options.configuration) {
        Ok(text) => tracing::info!(configuration = text, "the configuration in force"),
        Err(error) => tracing::warn!(%error, "the configuration cannot be shown"),
    }
    let odd = options.warnings.iter().cloned();
    for warning in odd.chain(options.configuration.warnings()) {
        tracing::warn!("{warning}");
    }
}

fn own(configuration: &Configuration) -> Value {
    let mut own = serde_json::to_value(configuration).unwrap_or_default();
    own["apiVersion"] = json!("millrace.dev/v1alpha1");
    own["kind"] = json!("AgentConfiguration");
    own
}

/// The settings that have a counterpart in kube-proxy, in the place where an operator of kube-proxy looks for
/// them.
fn kube_proxy(options: &AgentOptions) -> Value {
    let configuration = &options.configuration;
    let ranges: Vec<_> = configuration
        .cluster_cidrs
        .iter()
        .map(ToString::to_string)
        .collect();
    let address = |address: Option<std::net::SocketAddr>| {
        address.map_or_else(String::new, |address| address.to_string())
    };
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "hostnameOverride": options.node_name,
        "clientConnection": {"kubeconfig": options.kubeconfig},
        "healthzBindAddress": address(configuration.health_address),
        "metricsBindAddress": address(configuration.metrics_address),
        "bindAddressHardFail": configuration.bind_address_hard_fail,
        "mode": "millrace",
        "clusterCIDR": ranges.join(","),
        "nodePortAddresses": configuration.node_port_addresses,
        "iptables": {"masqueradeAll": configuration.masquerade_all},
        "nftables": {"masqueradeAll": configuration.masquerade_all},
        "conntrack": configuration.conntrack,
    })
}
