//! The node's side of the agent: its interfaces, addresses, own device and routes, kept in step with the
//! kernel and the cluster.

mod addresses;
mod configuration;
pub mod hooks;
mod inside;
mod interfaces;
pub mod left_to_node;
mod missing_family;
mod owners;
mod pod_sockets;
mod queues;
mod settings;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use cni_plugin::attachment::is_of_limiter;
use ipnet::IpNet;
use proxy_common::maps::InUse;

use super::pod_network::{PodNetwork, Prepared};
use super::pod_ranges::PodRanges;
use super::ranges::{
    around, is_host, node_addresses, own_pod_cidrs, pod_cidrs, service_cidrs, too_many, too_many_uplinks,
};
use crate::apply::Programmer;
use crate::bpf::Datapath;
use crate::bpf::links::InterfaceRole;
use crate::cluster::ClusterState;
use crate::config::AgentOptions;
use crate::control::ObjectError;
use crate::network::inside::OwnRoutes;
use crate::network::namespaces::RUNTIME_DIRECTORY;
use crate::network::netlink::Restored;
use crate::network::sysctl::Setting;
use crate::network::{
    Change, HostDevice, HostRoutes, Monitor, Netlink, NetworkError, NodeAddresses, PodNamespaces, Problem,
    Role, RoleOptions, Roles, own_netns_cookie, roles,
};
use configuration::NodeConfiguration;
use hooks::AttachPoints;
use missing_family::Families;
use owners::AddressOwners;
use pod_sockets::PodSockets;
use queues::Queues;
use settings::Settings;

/// The agent's state of the node's network, and its actions on it.
pub struct Node {
    monitor: Monitor,
    device: HostDevice,
    pod_sockets: PodSockets,
    netns: u64,
    roles: Roles,
    settings: Settings,
    addresses: NodeAddresses,
    owners: AddressOwners,
    /// Addresses of other nodes that services name too, and the name of each node.
    shared_with_nodes: BTreeMap<IpAddr, String>,
    tunnel_port: Option<u16>,
    problems: Vec<ObjectError>,
    /// Ranges of our routes, and the foreign routes that the last look found inside them.
    own_routes: OwnRoutes,
    inside: Vec<ObjectError>,
    /// Whether to look for foreign routes again, since a change may concern them.
    looks_inside: bool,
    /// Foreign queueing disciplines at our own devices.
    queues: Queues,
    attached: bool,
    pod_ranges: PodRanges,
    pods: PodNetwork,
    netlink: Netlink,
    /// Whether programs are attached to the loopback.
    opens_loopback: bool,
    /// Interfaces with a change of a filter, qdisc, neighbour or link-local address since the last
    /// [`Self::take_touched`].
    touched: BTreeSet<u32>,
    concerns: Concerns,
}

/// The parts of our pods that may be gone since the last [`Node::take_concerns`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Concerns {
    /// A part of the pods themselves: an interface, a route, a neighbour entry.
    pub pods: bool,
    /// A part of their bandwidth limits.
    pub limits: bool,
}

impl Node {
    /// Starts to follow the network namespace of this thread.
    pub async fn start(options: &AgentOptions) -> Result<Self, NetworkError> {
        let netlink = Netlink::open()?;
        let monitor = Monitor::start(netlink.clone()).await?;
        let witness = hooks::namespace_witness(options);
        let namespaces =
            PodNamespaces::new(netlink.clone(), RUNTIME_DIRECTORY)?.with_witness(witness.clone());
        let node = Self {
            device: HostDevice::new(netlink.clone()),
            pods: PodNetwork::new(&netlink, options),
            pod_sockets: PodSockets::new(namespaces),
            netns: own_netns_cookie(witness.as_ref())?,
            roles: Roles::default(),
            settings: Settings::default(),
            addresses: NodeAddresses::default(),
            owners: AddressOwners::default(),
            shared_with_nodes: BTreeMap::new(),
            tunnel_port: options.tunnel_port(),
            problems: Vec::new(),
            own_routes: OwnRoutes::default(),
            inside: Vec::new(),
            looks_inside: true,
            queues: Queues::default(),
            attached: false,
            pod_ranges: PodRanges::default(),
            opens_loopback: false,
            touched: BTreeSet::new(),
            concerns: Concerns {
                pods: true,
                limits: false,
            },
            monitor,
            netlink,
        };
        tracing::debug!(netns = node.netns, uplinks = ?options.uplinks, "following the network");
        Ok(node)
    }

    /// Waits for a change; true if a part of ours may depend on it.
    pub async fn changed(&mut self) -> Result<bool, NetworkError> {
        tokio::select! {
            change = self.monitor.changed() => {
                let change = change?;
                self.note_losses(&change);
                Ok(self.pods.is_concerned(&change) | self.is_relevant(&change))
            }
            () = self.pod_sockets.mounted() => Ok(true),
        }
    }

    fn is_relevant(&self, change: &Change) -> bool {
        change.resynced
            || change.default_routes
            || !change.links.is_empty()
            || self.device.is_concerned(change)
            || self.owners.is_concerned(change)
            || self.looks_inside
            || self.queues.is_due()
    }

    /// Notes the interfaces and the parts of our pods that a change concerns.
    fn note_losses(&mut self, change: &Change) {
        let links = self.monitor.links();
        let is_own_pods = |index: &u32| {
            let link = links.get(*index);
            // A renamed interface may belong to one of our pods.
            link.is_none_or(|link| {
                InterfaceRole::of_pod(&link.name) == InterfaceRole::OwnPod
                    || link.connects_to_another_namespace()
            })
        };
        let is_pods = |prefix: &IpNet| prefix.prefix_len() == prefix.max_prefix_len();
        self.concerns.pods |= change.resynced
            || change.links.iter().chain(&change.touched).any(is_own_pods)
            || change.routes.iter().any(is_pods);
        let is_limiters = |index: &u32| links.get(*index).is_some_and(|link| is_of_limiter(&link.name));
        self.concerns.limits |= change.resynced
            || !change.queues.is_empty()
            || change.links.iter().chain(&change.touched).any(is_limiters);
        // The kernel removes IPv4 routes along with a link, and sends no message about them.
        let may_be_inside = self.own_routes.is_concerned(change);
        self.looks_inside |= may_be_inside || (!self.inside.is_empty() && !change.links.is_empty());
        if may_be_inside && !change.routes.is_empty() {
            self.pods.look_again();
        }
        self.queues.note(change);
        self.touched.extend(&change.touched);
        if change.resynced {
            self.touched.extend(links.iter().map(|link| link.index));
        }
    }

    /// The parts of our own pods that may be gone since the last call.
    pub fn take_concerns(&mut self) -> Concerns {
        std::mem::take(&mut self.concerns)
    }

    /// The interfaces with a change of a filter, qdisc, neighbour or link-local address since the last call.
    pub fn take_touched(&mut self) -> BTreeSet<u32> {
        std::mem::take(&mut self.touched)
    }

    /// The objects that were made again since the last call.
    pub fn take_restored(&mut self) -> Vec<Restored> {
        let files = self.pods.take_reinstalled().into_iter();
        let files = files.map(|path| ("file", path.display().to_string()));
        let mut restored = self.netlink.take_restored();
        restored.extend(files);
        restored
    }

    /// Settings of the kernel that the agent made and that have another value now.
    pub fn changed_settings(&mut self) -> Vec<String> {
        let mut changed = self.device.changed_settings();
        let of_loopback = crate::network::loopback_settings().filter(|_| self.opens_loopback);
        let of_loopback = of_loopback.filter(Setting::is_changed);
        changed.extend(of_loopback.map(|setting| setting.to_string()));
        changed.extend(self.pods.changed_settings());
        changed
    }

    /// Restores the entries of the table of pods' namespaces that another process altered or removed, and
    /// describes them.
    pub fn compare_pod_sockets(&self, datapath: &Datapath) -> std::io::Result<Option<String>> {
        self.pod_sockets.compare(datapath)
    }

    /// Whether the files for container runtimes are as the agent wrote them.
    pub fn is_installed(&mut self) -> bool {
        self.pods.is_installed()
    }

    /// Whether the tunnel to other nodes is as the agent made it.
    pub async fn is_tunnel_whole(&mut self) -> bool {
        self.pods.is_tunnel_whole().await
    }

    /// The pod network of this node.
    pub fn pods(&self) -> &PodNetwork {
        &self.pods
    }

    /// The problems of the node.
    pub fn problems(&self) -> &[ObjectError] {
        &self.problems
    }

    /// Whether every program that must be attached is attached.
    pub fn is_attached(&self) -> bool {
        self.attached
    }

    /// The node's addresses.
    pub fn addresses(&self) -> &NodeAddresses {
        &self.addresses
    }

    /// Reads the present interfaces and addresses, and returns the problems with them.
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
        self.roles.problems.iter().map(ObjectError::from).collect()
    }

    /// Updates interfaces, addresses, device, routes and the node's configuration in the maps.
    pub async fn refresh(
        &mut self,
        cluster: &ClusterState,
        options: &AgentOptions,
        programmer: &mut Programmer<Datapath>,
        (mut virtual_addresses, api_servers): (BTreeSet<IpAddr>, &BTreeSet<SocketAddr>),
    ) {
        let mut problems = self.observe(cluster, options);
        let named = (&virtual_addresses, api_servers);
        problems.extend(self.write_addresses(cluster, options, programmer, named).await);
        problems.extend(self.owners.problems());
        virtual_addresses.retain(|address| !self.is_anothers(*address));
        let seen = (self.monitor.links(), &self.roles, &self.addresses);
        let Prepared { tunnel, mtu: pod_mtu } =
            self.pods.prepare(cluster, options, seen, &mut problems).await;
        let ranges = self.pod_ranges.refresh(
            cluster,
            options,
            (self.pods.plan(), self.monitor.links()),
            programmer.store(),
        );
        problems.extend(ranges.err());

        // A packet to a service's backend may have to go through the tunnel.
        let device = self.ensure_device(pod_mtu, &mut problems).await;
        let service_cidrs = service_cidrs(cluster, options);
        problems.extend(too_many(&service_cidrs));
        problems.extend(too_many_uplinks(&self.addresses.elsewhere, self.monitor.links()));
        let own_pods = own_pod_cidrs(cluster, options);
        let missing_family = Families {
            node: &self.addresses,
            own_pods: &own_pods,
            services: &service_cidrs,
            outside_ranges: &virtual_addresses,
            uplinks: self
                .roles
                .of(Role::Uplink)
                .map(|uplink| uplink.name.as_str())
                .collect(),
            masquerades: options.masquerades_pods(),
        };
        problems.extend(missing_family.problems());
        let outside_ranges = virtual_addresses
            .iter()
            .any(|address| !self.addresses.holds(*address));
        self.settings = self.read_settings(options);
        let configuration = NodeConfiguration {
            netns: self.netns,
            device,
            mac: device.and_then(|index| self.monitor.links().get(index)?.mac),
            addresses: &self.addresses,
            pods: self.pods.plan(),
            service_cidrs: &service_cidrs,
            flags: self.conditions(outside_ranges),
            own_pods: if options.cni_conf_dir.is_some() {
                own_pods
            } else {
                Vec::new()
            },
            around_pods: around(&pod_cidrs(cluster, options)),
            tunnel,
            strict_interfaces: &self.settings.strict_interfaces,
            headerless: &self.roles.headerless,
        };
        configuration.write(options, programmer.store());
        // The plugin adds host ports at any time, and sends the agent no message about it.
        let own_frontends = options.cni_conf_dir.is_some()
            || programmer.store().is_in_use(InUse::PODS)
            || virtual_addresses
                .iter()
                .any(|address| self.addresses.holds(*address));
        let points = AttachPoints {
            links: self.monitor.links(),
            roles: &self.roles,
            device,
            tunnel,
            own_frontends,
        };
        self.opens_loopback = own_frontends;
        self.attached = points.attach(options, programmer.store_mut(), &mut problems) && device.is_some();
        if device.is_some() {
            let routes = HostRoutes {
                service_cidrs,
                virtual_addresses,
                node: self.addresses.clone(),
            };
            match self.device.sync_routes(routes).await {
                Ok(found) => problems.extend(found.iter().map(ObjectError::from)),
                Err(error) => problems.push(ObjectError::new(error.trouble(), "routes", &error)),
            }
            problems.extend(self.sync_port_rules(cluster, programmer).await);
        }
        self.pods.finish(options, self.attached, &mut problems).await;
        problems.extend(self.routes_of_others().await);
        problems.extend(self.queues_of_others().await);
        self.refresh_sockets(cluster, options, programmer.store(), &mut problems)
            .await;
        self.report_problems(problems);
    }

    /// Makes sure that our own device exists, and returns its index.
    async fn ensure_device(&mut self, pod_mtu: Option<u32>, problems: &mut Vec<ObjectError>) -> Option<u32> {
        let uplink_mtu = self.roles.uplink_mtu(self.monitor.links()).unwrap_or(1500);
        let mtu = pod_mtu.map_or(uplink_mtu, |pods| pods.min(uplink_mtu));
        let ensured = self.device.ensure(mtu).await;
        ensured
            .map_err(|error| problems.push(ObjectError::new(error.trouble(), "device millrace0", &error)))
            .ok()
    }

    async fn refresh_sockets(
        &mut self,
        cluster: &ClusterState,
        options: &AgentOptions,
        datapath: &Datapath,
        problems: &mut Vec<ObjectError>,
    ) {
        let with_sockets = cluster.pods_with_sockets(&options.node_name);
        let interfaces = (self.monitor.links(), &self.roles);
        self.pod_sockets
            .refresh(interfaces, with_sockets.as_ref(), datapath, problems)
            .await;
    }

    /// Keeps the problems for `status`, and logs those that are new.
    fn report_problems(&mut self, problems: Vec<ObjectError>) {
        for problem in &problems {
            if !self.problems.contains(problem) {
                tracing::warn!(object = problem.object, "{}", problem.message);
            }
        }
        self.problems = problems;
    }
}

impl From<&Problem> for ObjectError {
    fn from(problem: &Problem) -> Self {
        Self {
            code: problem.code,
            object: problem.object.clone(),
            message: problem.message.clone(),
        }
    }
}
