//! The node's side of things: its interfaces, addresses, own device and routes, kept in step with the kernel and the cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use proxy_common::Ip;
use proxy_common::maps::{Config, ConfigFlags, InUse, Lifetime, MAX_SERVICE_RANGES};

use super::cgroup_root;
use super::pod_network::{PodNetwork, Prepared};
use super::pod_ranges::PodRanges;
use super::ranges::{is_stray, node_addresses, others_addresses, range_words, service_cidrs, too_many};
use crate::apply::Programmer;
use crate::bpf::Datapath;
use crate::bpf::links::InterfaceRole;
use crate::cluster::ClusterState;
use crate::config::{AgentOptions, Conntrack, GoDuration, HostRouting, NodePortAddress, SocketLb};
use crate::control::ObjectError;
use crate::network::namespaces::RUNTIME_DIRECTORY;
use crate::network::{
    self, Change, HostDevice, HostRoutes, Monitor, Netlink, NetworkError, NodeAddresses, PodNamespaces,
    Problem, Role, RoleOptions, Roles, own_netns_cookie, roles,
};

/// What the agent knows and does about its node's network.
pub struct NodeSide {
    monitor: Monitor,
    device: HostDevice,
    namespaces: PodNamespaces,
    netns: u64,
    roles: Roles,
    addresses: NodeAddresses,
    problems: Vec<ObjectError>,
    attached: bool,
    pod_netns: BTreeMap<u32, u64>,
    pod_ranges: PodRanges,
    adopted: bool,
    pods: PodNetwork,
}

impl NodeSide {
    /// Starts to follow the network namespace of this thread.
    pub async fn start(options: &AgentOptions) -> Result<Self, NetworkError> {
        let netlink = Netlink::open()?;
        let monitor = Monitor::start(netlink.clone()).await?;
        let witness = super::namespace_witness(options);
        let side = Self {
            device: HostDevice::new(netlink.clone()),
            pods: PodNetwork::new(&netlink, options),
            namespaces: PodNamespaces::new(netlink, RUNTIME_DIRECTORY)?.with_witness(witness.clone()),
            netns: own_netns_cookie(witness.as_ref())?,
            roles: Roles::default(),
            addresses: NodeAddresses::default(),
            problems: Vec::new(),
            attached: false,
            pod_netns: BTreeMap::new(),
            pod_ranges: PodRanges::default(),
            adopted: false,
            monitor,
        };
        tracing::debug!(netns = side.netns, uplinks = ?options.uplinks, "following the network");
        Ok(side)
    }

    /// Waits for a change; true if something of ours may depend on it.
    pub async fn changed(&mut self) -> Result<bool, NetworkError> {
        tokio::select! {
            change = self.monitor.changed() => {
                let change = change?;
                Ok(self.pods.is_concerned(&change) | self.is_relevant(&change))
            }
            () = self.namespaces.mounted() => Ok(true),
        }
    }

    fn is_relevant(&self, change: &Change) -> bool {
        change.resynced
            || change.default_routes
            || !change.links.is_empty()
            || self.device.is_concerned(change)
    }

    /// The way to pods.
    pub fn pods(&self) -> &PodNetwork {
        &self.pods
    }

    /// What is wrong with the node.
    pub fn problems(&self) -> &[ObjectError] {
        &self.problems
    }

    /// Whether every program that must be attached is.
    pub fn is_attached(&self) -> bool {
        self.attached
    }

    /// The node's addresses.
    pub fn addresses(&self) -> &NodeAddresses {
        &self.addresses
    }

    /// The name of an interface.
    pub fn interface_name(&self, index: u32) -> String {
        self.monitor
            .links()
            .get(index)
            .map_or_else(|| format!("interface {index}"), |link| link.name.clone())
    }

    /// The index of an interface of this role, if there is one.
    pub fn interface_of(&self, role: Role) -> Option<u32> {
        self.roles.of(role).map(|interface| interface.index).next()
    }

    /// Virtual addresses that no service range covers, which need routes of their own.
    pub fn stray_addresses(
        cluster: &ClusterState,
        options: &AgentOptions,
        programmer: &Programmer<Datapath>,
    ) -> BTreeSet<IpAddr> {
        let ranges = service_cidrs(cluster, options);
        programmer
            .virtual_addresses()
            .map(IpAddr::from)
            .filter(|address| is_stray(address, &ranges))
            .collect()
    }

    /// Reads interfaces and addresses as they are now, and gives what is wrong with them.
    pub fn observe(&mut self, cluster: &ClusterState, options: &AgentOptions) -> Vec<ObjectError> {
        let node_object = node_addresses(cluster, options);
        let links = self.monitor.links();
        let role_options = RoleOptions {
            uplinks: options.uplinks.clone(),
            pod_interfaces: options.pod_interfaces.clone(),
            node_addresses: node_object.clone(),
        };
        self.roles = roles(links, &role_options);
        self.addresses = NodeAddresses::find(links, &self.roles, &node_object);
        self.roles.problems.iter().map(to_error).collect()
    }

    /// The node's addresses that node ports are served on.
    pub fn node_port_addresses(&self, options: &AgentOptions) -> Vec<IpAddr> {
        let NodeAddresses {
            primary_v4,
            primary_v6,
            ..
        } = self.addresses;
        let primary = || {
            [primary_v4.map(IpAddr::from), primary_v6.map(IpAddr::from)]
                .into_iter()
                .flatten()
        };
        let mut chosen: Vec<IpAddr> = options
            .configuration
            .node_port_addresses
            .iter()
            .flat_map(|choice| -> Vec<IpAddr> {
                match choice {
                    NodePortAddress::Primary => primary().collect(),
                    NodePortAddress::In(range) => {
                        let all = self.addresses.all.iter().copied();
                        all.filter(|address| range.contains(address)).collect()
                    }
                }
            })
            .collect();
        chosen.sort_unstable();
        chosen.dedup();
        chosen
    }

    /// The node's addresses as the maps hold them.
    pub fn held_addresses(&self) -> Vec<Ip> {
        self.addresses.all.iter().copied().map(Ip::from).collect()
    }

    /// Brings interfaces, addresses, device, routes and the node's facts in the maps in line.
    pub async fn refresh(
        &mut self,
        cluster: &ClusterState,
        options: &AgentOptions,
        programmer: &mut Programmer<Datapath>,
        mut virtual_addresses: BTreeSet<IpAddr>,
    ) {
        let mut problems = self.observe(cluster, options);
        let others = others_addresses(cluster, options);
        programmer.set_node_addresses(
            &self.held_addresses(),
            others.iter().copied().map(Ip::from).collect(),
        );
        virtual_addresses.retain(|address| self.addresses.holds(*address) || !others.contains(address));
        let seen = (self.monitor.links(), &self.roles, &self.addresses);
        let Prepared { tunnel, mtu: pod_mtu } =
            self.pods.prepare(cluster, options, seen, &mut problems).await;
        let ranges = self
            .pod_ranges
            .refresh(cluster, options, self.pods.plan(), programmer.store());
        problems.extend(ranges.err());

        let mtu = self.roles.uplink_mtu(self.monitor.links()).unwrap_or(1500);
        // What a service's backend is sent may have to go through the tunnel.
        let mtu = pod_mtu.map_or(mtu, |pods| pods.min(mtu));
        let device = match self.device.ensure(mtu).await {
            Ok(index) => Some(index),
            Err(error) => {
                problems.push(ObjectError {
                    object: "device millrace0".into(),
                    message: error.to_string(),
                });
                None
            }
        };
        let service_cidrs = service_cidrs(cluster, options);
        problems.extend(too_many(&service_cidrs));
        let stray = virtual_addresses
            .iter()
            .any(|address| !self.addresses.holds(*address));
        self.write_config(device, &service_cidrs, stray, options, programmer.store());
        // The plugin enters host ports whenever it likes, and nobody tells the agent.
        let own = options.cni_conf_dir.is_some()
            || programmer.store().is_in_use(InUse::PODS)
            || virtual_addresses
                .iter()
                .any(|address| self.addresses.holds(*address));
        self.attached = self.attach(
            (device, tunnel),
            own,
            options,
            programmer.store_mut(),
            &mut problems,
        ) && device.is_some();
        if device.is_some() {
            let routes = HostRoutes {
                service_cidrs,
                virtual_addresses,
                node: self.addresses.clone(),
            };
            match self.device.sync_routes(routes).await {
                Ok(found) => problems.extend(found.iter().map(to_error)),
                Err(error) => problems.push(ObjectError {
                    object: "routes".into(),
                    message: error.to_string(),
                }),
            }
        }
        self.pods.finish(options, self.attached, &mut problems).await;
        let with_sockets = cluster.pods_with_sockets(&options.node_name);
        self.refresh_namespaces(programmer.store(), with_sockets.as_ref(), &mut problems)
            .await;
        for problem in &problems {
            if !self.problems.contains(problem) {
                tracing::warn!(object = problem.object, "{}", problem.message);
            }
        }
        self.problems = problems;
    }

    /// Hangs the programs where they belong; at the loopback only where frontends have addresses of the node's own.
    fn attach(
        &self,
        (device, tunnel): (Option<u32>, Option<u32>),
        own_frontends: bool,
        options: &AgentOptions,
        datapath: &mut Datapath,
        problems: &mut Vec<ObjectError>,
    ) -> bool {
        let mut wanted: BTreeMap<u32, InterfaceRole> = self
            .roles
            .interfaces
            .iter()
            .map(|interface| match interface.role {
                Role::Uplink => (interface.index, InterfaceRole::Uplink),
                Role::Pod => (interface.index, InterfaceRole::of_pod(&interface.name)),
            })
            .collect();
        wanted.extend(device.map(|index| (index, InterfaceRole::Host)));
        // It leads to other machines, as an uplink does.
        wanted.extend(tunnel.map(|index| (index, InterfaceRole::Uplink)));
        if own_frontends {
            wanted.insert(LOOPBACK, InterfaceRole::Loopback);
            if let Err(error) = network::open_loopback() {
                problems.push(ObjectError {
                    object: "interface lo".into(),
                    message: error.to_string(),
                });
            }
        }
        let errors = datapath.links.set_interfaces(&wanted, &datapath.programs);
        let complete = errors.is_empty();
        for (index, error) in errors {
            let object = format!("interface {}", self.interface_name(index));
            problems.push(ObjectError {
                object,
                message: error.to_string(),
            });
        }
        complete && attach_sockets(options, datapath, problems)
    }

    /// Tells the programs what they need to know of the node, if it is not what they know already.
    fn write_config(
        &self,
        device: Option<u32>,
        service_cidrs: &[IpNet],
        stray_addresses: bool,
        options: &AgentOptions,
        datapath: &Datapath,
    ) {
        let old = datapath.config.get(0).unwrap_or_default();
        let mut flags = match options.configuration.socket_lb {
            SocketLb::All => ConfigFlags::SOCKETS_OF_NODE | ConfigFlags::SOCKETS_OF_PODS,
            SocketLb::Host => ConfigFlags::SOCKETS_OF_NODE,
            SocketLb::Off => 0,
        };
        let per_family = |v4: bool| {
            self.addresses
                .all
                .iter()
                .filter(|address| address.is_ipv4() == v4)
                .count()
        };
        if per_family(true) > 1 || per_family(false) > 1 {
            flags |= ConfigFlags::MORE_NODE_ADDRESSES;
        }
        let configuration = &options.configuration;
        for (set, flag) in [
            (stray_addresses, ConfigFlags::STRAY_ADDRESSES),
            (configuration.masquerade_all, ConfigFlags::MASQUERADE_ALL),
            (configuration.protect_node_ports, ConfigFlags::PROTECT_NODE_PORTS),
            (options.masquerades_pods(), ConfigFlags::MASQUERADE_PODS),
            (
                configuration.host_routing == HostRouting::Redirect,
                ConfigFlags::REDIRECT_TO_PODS,
            ),
        ] {
            flags |= if set { flag } else { 0 };
        }
        let ports = configuration.masquerade_ports;
        let mac = device.and_then(|index| self.monitor.links().get(index)?.mac);
        let mut config = Config {
            node_netns: self.netns,
            flags,
            // Without one, what would go there is dropped, and the rest is served.
            host_device: device.unwrap_or_default(),
            // The device may be so new that the monitor has not heard of it; then this runs again when it has.
            host_mac: mac.unwrap_or(old.host_mac),
            masquerade_first: ports.first(),
            masquerade_count: ports.count(),
            pods_answer_outside: old.pods_answer_outside,
            node_answers_outside: old.node_answers_outside,
            lifetimes: lifetimes(&configuration.conntrack),
            node_v4: self.addresses.primary_v4.map(Ip::from).unwrap_or_default(),
            node_v6: self.addresses.primary_v6.map(Ip::from).unwrap_or_default(),
            tunnel_v4: self
                .pods
                .plan()
                .tunnel_address(true)
                .map(Ip::from)
                .unwrap_or_default(),
            tunnel_v6: self
                .pods
                .plan()
                .tunnel_address(false)
                .map(Ip::from)
                .unwrap_or_default(),
            ..Config::default()
        };
        for (index, range) in service_cidrs.iter().take(MAX_SERVICE_RANGES).enumerate() {
            let (network, mask) = range_words(range);
            config.service_range[index] = network;
            config.service_mask[index] = mask;
        }
        if config != old {
            datapath.config.set(0, &config);
        }
    }

    /// Which network namespaces are this node's pods', as far as their sockets may be translated: where some pods opted out, a
    /// namespace has to have an address of one of the others.
    async fn refresh_namespaces(
        &mut self,
        datapath: &Datapath,
        with_sockets: Option<&BTreeSet<IpAddr>>,
        problems: &mut Vec<ObjectError>,
    ) {
        self.namespaces.update(self.monitor.links(), &self.roles).await;
        if let Some(limitation) = self.namespaces.limitation() {
            problems.push(ObjectError {
                object: "pods' namespaces".into(),
                message: limitation.to_owned(),
            });
        }
        let mut wanted: BTreeMap<u32, u64> = self.namespaces.cookies().collect();
        if let Some(with_sockets) = with_sockets {
            for interface in wanted.keys().copied().collect::<Vec<_>>() {
                let addresses = self.namespaces.addresses(interface).await;
                if !addresses.iter().any(|address| with_sockets.contains(address)) {
                    wanted.remove(&interface);
                }
            }
        }
        let mut known: BTreeMap<u64, u32> = BTreeMap::new();
        if self.adopted {
            known.extend(self.pod_netns.iter().map(|(index, cookie)| (*cookie, *index)));
        } else {
            let _ = datapath.pod_netns.for_each(|cookie, index| {
                known.insert(cookie, index);
            });
            self.adopted = true;
        }
        for cookie in known
            .keys()
            .filter(|cookie| !wanted.values().any(|wanted| wanted == *cookie))
        {
            let _ = datapath.pod_netns.remove(cookie);
        }
        for (index, cookie) in &wanted {
            if known.get(cookie) != Some(index)
                && let Err(error) = datapath.pod_netns.set(cookie, index)
            {
                let object = format!("interface {}", self.interface_name(*index));
                let message =
                    format!("noting the pod's namespace: {error}; its sockets are left to the packet path");
                problems.push(ObjectError { object, message });
            }
        }
        self.pod_netns = wanted;
    }
}

/// The loopback has this index in every network namespace.
const LOOPBACK: u32 = 1;

/// How long flows are remembered, in ticks, of which every one that has begun counts.
fn lifetimes(conntrack: &Conntrack) -> [u32; Lifetime::COUNT] {
    // As long as netfilter remembers these (`nf_conntrack_tcp_timeout_syn_sent` and `_time_wait`).
    const HANDSHAKE: GoDuration = GoDuration::seconds(120);
    const CLOSED: GoDuration = GoDuration::seconds(120);
    let mut lifetimes = [0; Lifetime::COUNT];
    for (lifetime, duration) in [
        (Lifetime::Opening, HANDSHAKE),
        (Lifetime::Open, conntrack.tcp_established_timeout),
        (Lifetime::Closing, conntrack.tcp_close_wait_timeout),
        (Lifetime::Closed, CLOSED),
        (Lifetime::Datagram, conntrack.udp_timeout),
        (Lifetime::Stream, conntrack.udp_stream_timeout),
    ] {
        let ticks = (duration.0.as_nanos() >> 30) + 1;
        lifetimes[lifetime as usize] = u32::try_from(ticks).unwrap_or(u32::MAX);
    }
    lifetimes
}

fn attach_sockets(options: &AgentOptions, datapath: &mut Datapath, problems: &mut Vec<ObjectError>) -> bool {
    if options.configuration.socket_lb == SocketLb::Off {
        datapath.links.detach_sockets();
        return true;
    }
    let cgroup = match options.cgroup.clone().map_or_else(cgroup_root, Ok) {
        Ok(cgroup) => cgroup,
        Err(error) => {
            problems.push(ObjectError {
                object: "socket hooks".into(),
                message: error.to_string(),
            });
            return false;
        }
    };
    match datapath.links.attach_sockets(&cgroup, &datapath.programs) {
        Ok(()) => true,
        Err(error) => {
            problems.push(ObjectError {
                object: "socket hooks".into(),
                message: error.to_string(),
            });
            false
        }
    }
}

fn to_error(problem: &Problem) -> ObjectError {
    ObjectError {
        object: problem.object.clone(),
        message: problem.message.clone(),
    }
}
