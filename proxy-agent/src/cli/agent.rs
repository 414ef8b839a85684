//! `millrace agent`: the options of an agent, from flags, the environment and files.

use std::path::PathBuf;

use anyhow::anyhow;
use clap::{ArgAction, Args};

use super::{Global, environment};
use crate::config::{
    Address, AgentOptions, ApiServer, Cidr, Configuration, HostRouting, ListenAddress, MapSettings,
    NamePattern, NodePortAddress, PortRange, RoutingMode, Settings, SocketLb, SourceSpec, read_files,
};

/// `millrace agent`
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// The node's name, as its Node object has it [default: this host's name]
    #[arg(long, value_name = "NAME", env = "MILLRACE_NODE_NAME")]
    node_name: Option<String>,
    /// The source of objects: kubernetes, or dir:PATH for the manifests below a directory
    #[arg(
        long,
        value_name = "SOURCE",
        default_value = "kubernetes",
        env = "MILLRACE_SOURCE"
    )]
    source: SourceSpec,
    /// The kubeconfig file for the API server [default: as a pod of the cluster]
    #[arg(long, value_name = "FILE", env = "MILLRACE_KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
    /// A file of configuration, ours or kube-proxy's; can be given several times, and the last one wins
    #[arg(long, value_name = "FILE", env = "MILLRACE_CONFIG", value_delimiter = ',')]
    config: Vec<PathBuf>,
    /// The directory of files that outlive a boot
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/var/lib/millrace",
        env = "MILLRACE_STATE_DIR"
    )]
    state_dir: PathBuf,
    /// The cgroup whose sockets are translated [default: the root of cgroup v2]
    #[arg(long, value_name = "DIR", env = "MILLRACE_CGROUP")]
    cgroup: Option<PathBuf>,
    /// An interface to other machines; can be given several times [default: those that hold the node's
    /// addresses or the default route]
    #[arg(
        long = "uplink",
        value_name = "IFACE",
        env = "MILLRACE_UPLINK",
        value_delimiter = ','
    )]
    uplinks: Vec<String>,
    /// An interface by which pods' packets reach the node, such as cali*; can be given several times
    /// [default: all that lead to other network namespaces]
    #[arg(
        long = "pod-interfaces",
        value_name = "PATTERN",
        env = "MILLRACE_POD_INTERFACES",
        value_delimiter = ','
    )]
    pod_interfaces: Vec<NamePattern>,
    /// Set up the pod network, and describe it for container runtimes in this directory
    #[arg(long, value_name = "DIR", env = "MILLRACE_CNI_CONF_DIR")]
    cni_conf_dir: Option<PathBuf>,
    /// Install the plugin millrace-cni in this directory of container runtimes
    #[arg(long, value_name = "DIR", env = "MILLRACE_CNI_BIN_DIR")]
    cni_bin_dir: Option<PathBuf>,
    /// Log more; twice or three times for still more
    #[arg(short, long, action = ArgAction::Count)]
    verbose: u8,
    #[command(flatten)]
    configuration: ConfigurationArgs,
}

/// Settings of the files that the environment and flags override.
#[derive(Debug, Args)]
#[command(next_help_heading = "Configuration (comes before the files)")]
struct ConfigurationArgs {
    /// apiServers: an API server's address, in place of that of the kubeconfig or the cluster; can be given
    /// several times, the first that responds is used
    #[arg(
        long = "api-server",
        value_name = "URL",
        env = "MILLRACE_API_SERVER",
        value_delimiter = ','
    )]
    api_servers: Option<Vec<ApiServer>>,
    /// socketLB: the sockets whose destination is translated when they connect or send
    #[arg(long, value_name = "WHOSE", env = "MILLRACE_SOCKET_LB")]
    socket_lb: Option<SocketLb>,
    /// masqueradePorts: source ports for masqueraded flows
    #[arg(long, value_name = "FIRST-LAST", env = "MILLRACE_MASQUERADE_PORTS")]
    masquerade_ports: Option<PortRange>,
    /// serviceCIDRs: the ranges of services' addresses
    #[arg(
        long,
        value_name = "CIDR",
        env = "MILLRACE_SERVICE_CIDRS",
        value_delimiter = ','
    )]
    service_cidrs: Option<Vec<Cidr>>,
    /// clusterCIDRs: the ranges of pods' addresses
    #[arg(
        long,
        value_name = "CIDR",
        env = "MILLRACE_CLUSTER_CIDRS",
        value_delimiter = ','
    )]
    cluster_cidrs: Option<Vec<Cidr>>,
    /// nodeAddresses: the node's addresses
    #[arg(
        long,
        value_name = "IP",
        env = "MILLRACE_NODE_ADDRESSES",
        value_delimiter = ','
    )]
    node_addresses: Option<Vec<Address>>,
    /// nodePortAddresses: the addresses of the node that serve node ports, as ranges or primary
    #[arg(
        long,
        value_name = "CIDR",
        env = "MILLRACE_NODE_PORT_ADDRESSES",
        value_delimiter = ','
    )]
    node_port_addresses: Option<Vec<NodePortAddress>>,
    /// masqueradeAll: whether all flows to services get the node's address as their source
    #[arg(
        long,
        value_name = "BOOL",
        env = "MILLRACE_MASQUERADE_ALL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    masquerade_all: Option<bool>,
    /// podCIDRs: the ranges of addresses for this node's pods [default: those of its Node object]
    #[arg(long, value_name = "CIDR", env = "MILLRACE_POD_CIDRS", value_delimiter = ',')]
    pod_cidrs: Option<Vec<Cidr>>,
    /// routingMode: how packets reach the pods of other nodes
    #[arg(long, value_name = "MODE", env = "MILLRACE_ROUTING_MODE")]
    routing_mode: Option<RoutingMode>,
    /// hostRouting: how packets reach pods of this node: through the stack, or redirected past it and
    /// netfilter
    #[arg(long, value_name = "HOW", env = "MILLRACE_HOST_ROUTING")]
    host_routing: Option<HostRouting>,
    /// masquerade: whether packets from pods to the outside get the node's address as their source
    #[arg(
        long,
        value_name = "BOOL",
        env = "MILLRACE_MASQUERADE",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    masquerade: Option<bool>,
    /// nonMasqueradeCIDRs: the ranges to which packets from pods keep their source address
    #[arg(
        long,
        value_name = "CIDR",
        env = "MILLRACE_NON_MASQUERADE_CIDRS",
        value_delimiter = ','
    )]
    non_masquerade_cidrs: Option<Vec<Cidr>>,
    /// healthAddress: the address that serves health; 0 for none
    #[arg(long, value_name = "IP:PORT", env = "MILLRACE_HEALTH_ADDRESS")]
    health_address: Option<ListenAddress>,
    /// metricsAddress: the address that serves metrics; 0 for none
    #[arg(long, value_name = "IP:PORT", env = "MILLRACE_METRICS_ADDRESS")]
    metrics_address: Option<ListenAddress>,
    /// maps: sizes of maps, such as {frontends: 1000, slots: {max: 50000}}
    #[arg(long, value_name = "SIZES", env = "MILLRACE_MAPS")]
    maps: Option<MapSettings>,
}

impl AgentArgs {
    /// The number of `-v` flags.
    pub fn verbosity(&self) -> u8 {
        self.verbose
    }

    /// All options of an agent, the configuration in force included.
    pub fn options(self, global: &Global) -> anyhow::Result<AgentOptions> {
        let read = read_files(&self.config).map_err(|errors| anyhow!(lines("reading --config", &errors)))?;
        let overrides = self.configuration.settings();
        let errors = overrides.errors();
        if !errors.is_empty() {
            return Err(anyhow!(lines("reading flags and the environment", &errors)));
        }
        let configuration = Configuration::of(&read.settings, &overrides);
        let mut files = read.settings.iter().rev();
        let named = files.clone().find_map(|settings| settings.node_name.clone());
        let node_name = self.node_name.or(named);
        let kubeconfig = files.find_map(|settings| settings.kubeconfig.clone());
        Ok(AgentOptions {
            node_name: node_name.map_or_else(environment::node_name, Ok)?,
            source: self.source,
            kubeconfig: self.kubeconfig.or(kubeconfig),
            bpf_root: global.bpf_root.clone(),
            state_dir: self.state_dir,
            run_dir: global.run_dir.clone(),
            cgroup: self.cgroup,
            uplinks: self.uplinks,
            pod_interfaces: self.pod_interfaces,
            cni_conf_dir: self.cni_conf_dir,
            cni_bin_dir: self.cni_bin_dir,
            verbose: self.verbose > 0,
            config_files: self.config,
            overrides,
            warnings: read.warnings,
            configuration,
        })
    }
}

impl ConfigurationArgs {
    fn settings(self) -> Settings {
        let Self {
            api_servers,
            socket_lb,
            masquerade_ports,
            service_cidrs,
            cluster_cidrs,
            node_addresses,
            node_port_addresses,
            masquerade_all,
            pod_cidrs,
            routing_mode,
            host_routing,
            masquerade,
            non_masquerade_cidrs,
            health_address,
            metrics_address,
            maps,
        } = self;
        Settings {
            socket_lb,
            masquerade_ports,
            service_cidrs,
            cluster_cidrs,
            node_addresses,
            node_port_addresses,
            masquerade_all,
            pod_cidrs,
            routing_mode,
            host_routing,
            masquerade,
            non_masquerade_cidrs,
            api_servers,
            health_address,
            metrics_address,
            maps,
            ..Settings::default()
        }
    }
}

fn lines<E: std::fmt::Display>(what: &str, errors: &[E]) -> String {
    match errors {
        [error] => format!("{what}: {error}"),
        errors => errors
            .iter()
            .fold(format!("{what}:"), |text, error| format!("{text}\n  {error}")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        global: Global,
        #[command(flatten)]
        args: AgentArgs,
    }

    fn options(line: &[&str]) -> anyhow::Result<AgentOptions> {
        let Line { global, args } = Line::try_parse_from([&["agent"], line].concat())?;
        args.options(&global)
    }

    #[test]
    fn the_defaults_are_the_documented_ones() {
        let options = options(&["--node-name", "a"]).unwrap();
        assert_eq!(
            options,
            AgentOptions {
                node_name: "a".into(),
                source: SourceSpec::Kubernetes,
                kubeconfig: None,
                bpf_root: "/sys/fs/bpf/millrace".into(),
                state_dir: "/var/lib/millrace".into(),
                run_dir: "/run/millrace".into(),
                cgroup: None,
                uplinks: vec![],
                pod_interfaces: vec![],
                cni_conf_dir: None,
                cni_bin_dir: None,
                verbose: false,
                config_files: vec![],
                overrides: Settings::default(),
                warnings: vec![],
                configuration: Configuration::default(),
            }
        );
    }

    #[test]
    fn the_node_is_called_like_the_host() {
        let name = options(&[]).unwrap().node_name;
        assert!(!name.is_empty() && name == name.to_lowercase(), "{name}");
    }

    #[test]
    fn flags_come_before_files_and_later_files_before_earlier_ones() {
        let root = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = root.path().join(name);
            fs::write(
                &path,
                format!("apiVersion: millrace.dev/v1alpha1\nkind: AgentConfiguration\n{text}"),
            )
            .unwrap();
            path.to_str().unwrap().to_owned()
        };
        let one = file(
            "one.yaml",
            "socketLB: host\nclusterCIDRs: [10.1.0.0/16]\nmaps: {frontends: 10, flows: 20}\n",
        );
        let two = file(
            "two.yaml",
            "clusterCIDRs: [10.2.0.0/16]\nnodeAddresses: [192.0.2.1]\n",
        );
        let configuration = options(&[
            "--config",
            &one,
            "--config",
            &two,
            "--uplink",
            "eth0",
            "--uplink",
            "eth1",
            "--node-addresses",
            "192.0.2.2,2001:db8::2",
            "--maps",
            "{flows: 30}",
            "--api-server",
            "https://192.0.2.1:6443",
            "--api-server",
            "https://192.0.2.2:6443,https://api.example",
            "-v",
        ])
        .unwrap();
        assert_eq!(configuration.uplinks, ["eth0", "eth1"]);
        assert!(configuration.verbose);
        let configuration = configuration.configuration;
        assert_eq!(configuration.socket_lb, SocketLb::Host);
        assert_eq!(configuration.cluster_cidrs, ["10.2.0.0/16".parse().unwrap()]);
        assert_eq!(configuration.node_addresses.len(), 2);
        assert_eq!(configuration.api_servers.len(), 3);
        assert_eq!(
            (configuration.maps.frontends.initial, configuration.maps.flows),
            (10, 30)
        );
    }

    #[test]
    fn bad_files_and_flags_differ() {
        let error = options(&["--config", "/nonexistent/agent.yaml"])
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("reading --config: /nonexistent/agent.yaml: "),
            "{error}"
        );
        let error = options(&["--node-addresses", "127.0.0.1,::1"])
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "reading flags and the environment:\n  nodeAddresses[0]: 127.0.0.1 cannot be the address of a node\n  \
             nodeAddresses[1]: ::1 cannot be the address of a node"
        );
        for line in [
            ["--source", "file:/x"],
            ["--socket-lb", "some"],
            ["--maps", "{flow: 1}"],
            ["--api-server", "192.0.2.1:6443"],
        ] {
            assert!(options(&line).is_err(), "{line:?}");
        }
    }
}
