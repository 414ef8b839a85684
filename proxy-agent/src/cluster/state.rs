//! All objects that count, and the changes of an event to them.
//!
//! During a full list every object that it names gets a mark; at the end of the list the objects without a
//! mark are removed.
//!
//! Invariant: no service is reported dirty before the first full list of every kind is complete, since an
//! incomplete list justifies no removal. The event that completes the last list reports [`Changes::synced`].

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::address::Family;
use super::endpoint_slice::EndpointSlice;
use super::merge::Merged;
use super::names::Names;
use super::node::{Node, ServiceCidr};
use super::pod_choice::PodChoice;
use super::pods::Pod;
use super::pods::{BandwidthByPod, PodNames, Pods, Settings};
use super::problems::{Findings, Problem, Problems, code_of};
use super::service::{Service, ServicePort};
use super::services::Services;
use super::small::Small;
use crate::source::{Change, Event, Kind, Object, ObjectId, ObjectIdSet, Unreadable, wire};
use crate::trouble::Trouble;

/// The objects to process again after one or more events.
#[derive(Debug, Default)]
pub struct Changes {
    /// Services to plan again; removed ones too.
    pub services: ObjectIdSet,
    /// Some node or pod came, went or changed, or a namespace changed a setting of its pods.
    pub nodes: bool,
    /// The ranges of cluster IPs changed.
    pub service_cidrs: bool,
    /// The first full list of every kind is complete, so every service has to be planned.
    pub synced: bool,
}

impl Changes {
    /// Whether there are no changes.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && !self.nodes && !self.service_cidrs && !self.synced
    }

    /// Removes all changes, and keeps the memory for the next ones.
    pub fn clear(&mut self) {
        self.services.clear();
        (self.nodes, self.service_cidrs, self.synced) = (false, false, false);
    }
}

/// The progress of the full list of a kind.
#[derive(Clone, Copy, Debug, Default)]
struct Listing {
    running: bool,
    complete: bool,
    /// The list had an object without a readable name, so its end does not show which objects are gone.
    vague: bool,
}

/// The known state of the cluster.
#[derive(Debug, Default)]
pub struct ClusterState {
    proxy_name: Option<String>,
    names: Names,
    services: Services,
    nodes: Small<Node>,
    service_cidrs: Small<ServiceCidr>,
    pods: Pods,

    listings: [Listing; Kind::ALL.len()],
    problems: Problems,
}

impl ClusterState {
    /// A state without objects. `proxy_name` is the `service-proxy-name` that means us; without it every
    /// Service with that label belongs to another proxy.
    pub fn new(proxy_name: Option<String>) -> Self {
        Self {
            proxy_name,
            ..Self::default()
        }
    }

    /// Takes in an event and adds its effects to `changes`.
    pub fn apply(&mut self, event: Event, changes: &mut Changes) {
        let was_synced = self.synced();
        match event.change {
            Change::Begin(kind) => self.begin(kind),
            Change::Apply(object) => self.put(&object, changes),
            Change::Delete(kind, id) => self.delete(kind, id, changes),
            Change::Unreadable(what) => self.keep(what, changes),
            Change::End(kind) => self.end(kind, changes),
            Change::Problems { subject, messages } => {
                self.problems.set_input(Trouble::FileInvalid, subject, messages);
            }
        }
        if !was_synced {
            changes.clear();
            changes.synced = self.synced();
        }
    }

    /// Whether the first full list of every vital kind is complete. Before that nothing may be removed from
    /// the maps.
    pub fn synced(&self) -> bool {
        let mut vital = Kind::ALL.into_iter().filter(|kind| kind.is_vital());
        vital.all(|kind| self.listings[kind as usize].complete)
    }

    /// The vital kinds whose first full list is not complete.
    pub fn waiting_for(&self) -> Vec<Kind> {
        Kind::ALL
            .into_iter()
            .filter(|&kind| kind.is_vital() && !self.listings[kind as usize].complete)
            .collect()
    }

    /// The addresses of all other pods, if the sockets of some pods on the node are left to the packet path;
    /// else `None`.
    pub fn pods_with_sockets(&self, node: &str) -> Option<BTreeSet<IpAddr>> {
        self.pods.with_sockets(node)
    }

    /// The limits of the pods on a node, once all pods are known.
    pub fn bandwidth_of_pods(&self, node: &str) -> Option<BandwidthByPod> {
        let listed = self.listings[Kind::Pod as usize].complete;
        listed.then(|| self.pods.bandwidth(node))
    }

    /// The pods on a node that one of the choices means, once all pods are known.
    pub fn chosen_pods(&self, node: &str, choices: &[PodChoice]) -> Option<PodNames> {
        let listed = self.listings[Kind::Pod as usize].complete;
        listed.then(|| self.pods.chosen(node, choices))
    }

    /// The shared values of symbols.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// A service that counts.
    pub fn service(&self, id: ObjectId) -> Option<&Service> {
        self.services.get(id)
    }

    /// Every service that counts.
    pub fn services(&self) -> impl Iterator<Item = (ObjectId, &Service)> {
        self.services.iter()
    }

    /// The services on one page of the table, at most 256; `None` behind the last page. A service stays on
    /// its page, so a walk page by page meets every service that exists all the time once.
    pub fn services_on_page(&self, page: usize) -> Option<impl Iterator<Item = (ObjectId, &Service)>> {
        self.services.page(page)
    }

    /// The number of services that count.
    pub fn service_count(&self) -> usize {
        self.services.len()
    }

    /// A service that counts and has this cluster IP.
    pub fn service_at(&self, cluster_ip: IpAddr) -> Option<&Service> {
        self.services.at(cluster_ip)
    }

    /// The services that name an address as one from outside.
    pub fn services_naming(&self, address: IpAddr) -> impl Iterator<Item = (ObjectId, &Service)> {
        self.services.naming(address)
    }

    /// Whether a service has this address as an external IP, and not only as a balancer's.
    pub fn is_external_ip(&self, address: IpAddr) -> bool {
        let external = self.services_naming(address);
        let mut external = external.filter_map(|(_, service)| service.external.as_deref());
        external.any(|external| external.external_ips.contains(&address))
    }

    /// The slices of a service, in no order.
    pub fn slices_of(&self, service: ObjectId) -> impl Iterator<Item = &EndpointSlice> {
        self.services.slices_of(service)
    }

    /// The endpoints of a service's port in one family.
    pub fn endpoints_of(&self, service: ObjectId, family: Family, port: &ServicePort) -> Merged {
        Merged::new(self.slices_of(service), family, port)
    }

    /// Every node, in the order of names.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter()
    }

    /// The node of this name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name)
    }

    /// The ranges that cluster IPs are taken from.
    pub fn service_cidrs(&self) -> impl Iterator<Item = IpNet> {
        self.service_cidrs
            .iter()
            .flat_map(|object| object.cidrs.iter().copied())
    }

    /// The problems of an object.
    pub fn problems_of(&self, id: ObjectId) -> &[String] {
        self.problems.of(id)
    }

    /// The problems of the input.
    pub fn problems(&self) -> Vec<Problem> {
        self.problems.list()
    }

    fn begin(&mut self, kind: Kind) {
        let listing = &mut self.listings[kind as usize];
        (listing.running, listing.vague) = (true, false);
        self.problems.forget_seen(kind);
        match kind {
            Kind::Service => self.services.forget_seen(),
            Kind::EndpointSlice => self.services.forget_seen_slices(),
            Kind::Node => self.nodes.forget_seen(),
            Kind::ServiceCidr => self.service_cidrs.forget_seen(),
            Kind::Namespace => self.pods.namespaces.forget_seen(),
            Kind::Pod => self.pods.pods.forget_seen(),
        }
    }

    fn end(&mut self, kind: Kind, changes: &mut Changes) {
        let listing = &mut self.listings[kind as usize];
        if !std::mem::take(&mut listing.running) {
            return;
        }
        listing.complete = true;
        if listing.vague {
            return;
        }
        self.problems.set_input(code_of(kind), nameless(kind), Vec::new());
        let gone = match kind {
            Kind::Service => self.services.unseen(),
            Kind::EndpointSlice => self.services.unseen_slices(),
            Kind::Node => self.nodes.unseen(),
            Kind::ServiceCidr => self.service_cidrs.unseen(),
            Kind::Namespace => self.pods.namespaces.unseen(),
            Kind::Pod => self.pods.pods.unseen(),
        };
        for id in gone {
            if !self.problems.is_unreadable(id) {
                self.delete(kind, id, changes);
            }
        }
        self.problems.drop_unseen(kind);
    }

    /// Notes an object that cannot be read. Its last readable form stays.
    fn keep(&mut self, what: Unreadable, changes: &mut Changes) {
        let message = |rest| format!("it cannot be read: {}; {rest}", what.message);
        let Some((id, object)) = what.object else {
            let rest = "everything else is served, and nothing is taken away before a good list has come";
            let code = code_of(what.kind);
            self.problems
                .set_input(code, nameless(what.kind), vec![message(rest)]);
            self.listings[what.kind as usize].vague = true;
            return;
        };
        let rest = "the last form of it that could be read counts, if there was one";
        self.problems.set_unreadable(id, object, message(rest));
        if self.service(id).is_some() {
            // An event about the problem goes to the Service's owner.
            changes.services.insert(id);
        }
    }

    fn delete(&mut self, kind: Kind, id: ObjectId, changes: &mut Changes) {
        self.problems.clear(id);
        match kind {
            Kind::Service => self
                .services
                .put(id, None, &mut self.names, &mut changes.services),
            Kind::EndpointSlice => self
                .services
                .remove_slice(id, &mut self.names, &mut changes.services),
            Kind::Node => changes.nodes |= self.nodes.remove(id),
            Kind::ServiceCidr => changes.service_cidrs |= self.service_cidrs.remove(id),
            Kind::Namespace => changes.nodes |= self.pods.namespaces.remove(id),
            Kind::Pod => changes.nodes |= self.pods.pods.remove(id),
        }
    }

    fn put(&mut self, object: &Object, changes: &mut Changes) {
        let id = object.id();
        let mut findings = Findings::default();
        match object {
            Object::Service(wire) => {
                let service = Service::read(wire, self.proxy_name.as_deref(), &mut self.names, &mut findings);
                self.services
                    .put(id, service, &mut self.names, &mut changes.services);
            }
            Object::EndpointSlice(wire) => self.put_slice(id, wire, &mut findings, changes),
            Object::Node(wire) => {
                let node = Node::read(wire, &mut findings);
                changes.nodes |= self.nodes.put(&wire.metadata.name, id, node);
            }
            Object::ServiceCidr(wire) => {
                let cidr = ServiceCidr::read(wire, &mut findings);
                changes.service_cidrs |= self.service_cidrs.put(&wire.metadata.name, id, cidr);
            }
            Object::Namespace(wire) => {
                let settings = Settings::read(&wire.metadata, &mut findings);
                changes.nodes |= self.pods.namespaces.put(&wire.metadata.name, id, settings);
            }
            Object::Pod(wire) => {
                let pod = Pod::read(wire, &mut findings);
                let name = format!("{}/{}", wire.metadata.namespace(), wire.metadata.name);
                changes.nodes |= self.pods.pods.put(&name, id, pod);
            }
        }
        self.problems
            .set(id, findings.into_messages(), || object.to_string());
    }

    fn put_slice(
        &mut self,
        id: ObjectId,
        wire: &wire::EndpointSlice,
        findings: &mut Findings,
        changes: &mut Changes,
    ) {
        let owner = wire
            .metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.service_name.as_deref());
        let owner = owner.filter(|name| !name.is_empty());
        if owner.is_none() {
            findings.add(|| {
                let label = "no kubernetes.io/service-name, so it belongs to no Service";
                format!("metadata.labels: {label}; the slice is left out")
            });
        }
        let slice = owner.and_then(|owner| {
            let owner = ObjectId::new(Kind::Service, wire.metadata.namespace(), owner);
            Some((owner, EndpointSlice::read(wire, &mut self.names, findings)?))
        });
        let dirty = &mut changes.services;
        match slice {
            Some((owner, slice)) => self.services.put_slice(id, owner, slice, &mut self.names, dirty),
            None => self.services.remove_slice(id, &mut self.names, dirty),
        }
    }
}

/// The name in messages for an object of this kind that has no readable name.
fn nameless(kind: Kind) -> String {
    format!("one of the {}", kind.plural())
}
