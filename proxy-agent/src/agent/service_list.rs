//! The data of `millrace service list`.
//!
//! A cluster may have 100 000 services, and the loop has other work. So the list is made page by page, one
//! page of 256 services in each round of the loop. Another thread sorts it.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use proxy_common::maps::{Backend, BackendState as State, FrontendFlags, FrontendKind};
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

use super::Agent;
use crate::apply::{Difference, Listed};
use crate::cluster::{Names, Service};
use crate::control::{
    BackendEntry, BackendState, PendingUpdate, Protocol, Reply, ServiceEntry, ServiceKind, TrafficPolicy,
};

type Sender = oneshot::Sender<Result<Reply, String>>;

/// The lists that clients wait for, the oldest first.
#[derive(Default)]
pub struct Lists(VecDeque<List>);

struct List {
    to: Sender,
    page: usize,
    entries: Vec<ServiceEntry>,
}

impl Lists {
    /// Begins a list for a client.
    pub fn begin(&mut self, to: Sender) {
        self.0.push_back(List {
            to,
            page: 0,
            entries: Vec::new(),
        });
    }

    /// Whether a client waits for a list.
    pub fn are_wanted(&self) -> bool {
        !self.0.is_empty()
    }
}

/// Adds one page to the oldest list, and sends it if it is complete.
pub fn add_page(agent: &mut Agent) {
    let Some(mut list) = agent.lists.0.pop_front() else {
        return;
    };
    // The client may have closed its connection by now.
    if list.to.is_closed() {
        return;
    }
    if let Some(services) = agent.cluster.services_on_page(list.page) {
        let names = agent.cluster.names();
        for (id, service) in services {
            let listed = agent.programmer.list(id, &agent.cluster, &agent.context);
            list.entries
                .extend(listed.iter().filter_map(|listed| entry(service, listed, names)));
        }
        list.page += 1;
        agent.lists.0.push_front(list);
        return;
    }
    list.entries.extend(host_ports(agent));
    spawn_blocking(move || {
        let mut entries = list.entries;
        entries.sort_by(|a, b| {
            let key = |e: &ServiceEntry| (e.address, e.port_number, e.protocol);
            let names = (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name));
            names.then_with(|| key(a).cmp(&key(b)))
        });
        let _ = list.to.send(Ok(Reply::ListServices(entries)));
    });
}

fn entry(service: &Service, listed: &Listed, names: &Names) -> Option<ServiceEntry> {
    let key = &listed.frontend.key;
    let flags = FrontendFlags(u32::from(listed.frontend.flags));
    let group = listed.group.as_ref();
    let is_local = group.map_or(flags.has(FrontendFlags::KEEP_SOURCE), |group| group.local);
    // The map has no name of a backend's node; the plan has it as long as it has the backend.
    let targets = group
        .into_iter()
        .flat_map(|group| group.active.iter().chain(&group.draining));
    let nodes: HashMap<_, _> = targets
        .filter_map(|target| Some(((target.address, target.port), target.node?)))
        .collect();
    let node = |known: &Backend| nodes.get(&(known.address, known.port));
    Some(ServiceEntry {
        namespace: names.text(service.namespace).to_owned(),
        name: service.name.to_string(),
        port: group.map_or("", |group| names.text(group.port_name)).to_owned(),
        protocol: Protocol::from_number(key.protocol)?,
        kind: kind(listed.frontend.kind()),
        address: IpAddr::from(key.address),
        port_number: key.port.number(),
        policy: if is_local {
            TrafficPolicy::Local
        } else {
            TrafficPolicy::Cluster
        },
        affinity_seconds: Some(listed.affinity).filter(|seconds| *seconds > 0),
        backends: listed
            .backends
            .iter()
            .map(|known| BackendEntry {
                address: SocketAddr::new(known.address.into(), known.port.number()),
                node: node(known).map(|node| names.text(*node).to_owned()),
                state: if known.state == State::Active as u8 {
                    BackendState::Active
                } else {
                    BackendState::Terminating
                },
            })
            .collect(),
        update: listed.difference.map(|difference| match difference {
            Difference::Waiting => PendingUpdate::Waiting,
            Difference::NoRoom => PendingUpdate::NoRoom,
        }),
    })
}

/// Every host port of this node that leads to a pod. The map holds no names.
fn host_ports(agent: &Agent) -> Vec<ServiceEntry> {
    let mut entries = Vec::new();
    let walked = agent.programmer.store().host_ports.for_each(|key, target| {
        let Some(protocol) = Protocol::from_number(key.protocol) else {
            return;
        };
        entries.push(ServiceEntry {
            namespace: String::new(),
            name: String::new(),
            port: String::new(),
            protocol,
            kind: ServiceKind::HostPort,
            address: IpAddr::from(key.address),
            port_number: key.port.number(),
            policy: TrafficPolicy::Local,
            affinity_seconds: None,
            backends: vec![BackendEntry {
                address: SocketAddr::new(target.pod.into(), target.port.number()),
                node: Some(agent.options.node_name.clone()),
                state: BackendState::Active,
            }],
            update: None,
        });
    });
    if let Err(error) = walked {
        tracing::warn!(%error, "reading the map HOST_PORTS: its ports are not listed");
    }
    entries
}

/// The kind as JSON documents name it.
pub fn kind(kind: FrontendKind) -> ServiceKind {
    match kind {
        FrontendKind::ClusterIp => ServiceKind::ClusterIp,
        FrontendKind::NodePort => ServiceKind::NodePort,
        FrontendKind::LoadBalancer => ServiceKind::LoadBalancer,
        FrontendKind::ExternalIp => ServiceKind::ExternalIp,
    }
}
