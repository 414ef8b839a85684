//! ADD: giving a container an interface.
//!
//! First the plugin checks the request, without any change. Then it takes an address, and checks that no
//! other host uses it where the configuration demands that. Then it makes the interface, unless one of that
//! name exists. The pod's side goes up only when the programs are attached to the node's side, so that no
//! packet bypasses them. On any failure the plugin undoes all steps before it reports the failure.

use std::net::IpAddr;
use std::os::fd::AsFd as _;

use proxy_bpf::links::InterfaceRole;
use serde_json::Value;

use super::demands;
use super::detach::detach;
use crate::attachment::{host_interface, host_mac, limiter, limiter_end, mac_text, pod_mac};
use crate::config::runtime::Limit;
use crate::config::{Attachment, Environment, HostPort, NetworkConfig};
use crate::datapath::{Datapath, DatapathError, Entry};
use crate::ipam::boot::BootTimestamp;
use crate::ipam::{Note, RangeSet, Store, allocate};
use crate::netlink::announce::Announcer;
use crate::netlink::conflict::{self, Conflict};
use crate::netlink::host_side::{self, HOST_V6};
use crate::netlink::limiter::Limiter;
use crate::netlink::link::{End, Link, Pair};
use crate::netlink::socket::errno;
use crate::netlink::sysctl::{self, Setting};
use crate::netlink::{Namespace, NetlinkError, NetlinkSocket, ip, limit, link};
use crate::spec::result::{Address, CniResult, Interface, Route};
use crate::spec::{CniError, Code};

/// The settings of the pod's side for IPv6.
const POD_V6: &[Setting] = &[
    ("ipv6", "disable_ipv6", "0"),
    ("ipv6", "accept_ra", "0"),
    ("ipv6", "accept_dad", "0"),
];

/// The decisions that precede all changes.
struct Plan<'a> {
    attachment: &'a Attachment,
    host_name: String,
    pod_mac: [u8; 6],
    host_mac: [u8; 6],
    mtu: u32,
    has_v6: bool,
    ingress: Option<Limit>,
    egress: Option<Limit>,
    host_ports: Vec<HostPort>,
    namespace: Namespace,
    pod: NetlinkSocket,
}

/// A failure after an address was taken.
#[derive(Debug, thiserror::Error)]
enum MakeError {
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error(transparent)]
    Datapath(#[from] DatapathError),
}

impl MakeError {
    /// Whether [`Plan::make_pair`] failed before it made an object.
    fn is_before_anything(&self) -> bool {
        match self {
            Self::Datapath(_) => true,
            Self::Netlink(error) => matches!(
                error,
                NetlinkError::InterfaceExists(_) | NetlinkError::HostInterfaceExists(_)
            ),
        }
    }

    /// Whether an object that the plugin wanted to make exists already.
    fn already_exists(&self) -> bool {
        matches!(self, Self::Netlink(error) if errno(error) == Some(libc::EEXIST))
    }
}

/// Gives the container an interface and returns the result.
pub fn add(environment: &Environment, config: &NetworkConfig) -> Result<Value, CniError> {
    let attachment = environment.attachment()?;
    let sets = config.range_sets()?;
    let routes = config.routes()?;
    let capability_args = config.capability_args()?;
    let requests = config.requests(&environment.args)?;
    let refuses_duplicates = config.refuses_duplicates()?;
    let previous = config.previous()?;
    demands::check_mac(attachment, requests.mac)?;
    demands::check_families(&capability_args.host_ports, &sets)?;
    let namespace = Namespace::open(environment.netns()?, environment.netns_override)?;
    let datapath = Datapath::open(&config.bpf_root)?;
    let mut node = NetlinkSocket::open()?;
    demands::check_tunnel_port(datapath.tunnel_port()?, &capability_args.host_ports)?;
    demands::check_host_addresses(&mut node, &datapath, &capability_args.host_ports)?;
    let mtu = match config.mtu()? {
        Some(mtu) => mtu,
        None => link::uplink_mtu(&mut node)?,
    };
    let has_v6 = sets.iter().any(RangeSet::is_ipv6);
    if has_v6 && !sysctl::has_ipv6() {
        return Err(NetlinkError::NoIpv6.into());
    }
    let pod = namespace.enter(NetlinkSocket::open)??;
    let mut plan = Plan {
        attachment,
        host_name: host_interface(attachment),
        pod_mac: requests.mac.unwrap_or_else(|| pod_mac(attachment)),
        host_mac: host_mac(attachment),
        mtu,
        has_v6,
        ingress: capability_args.ingress,
        egress: capability_args.egress,
        host_ports: capability_args.host_ports,
        namespace,
        pod,
    };
    let store = Store::create(&config.data_dir)?;
    let allocation = allocate::allocate(&store, &sets, &requests.ips, plan.note(environment))?;
    let addresses = &allocation.addresses;
    let give_back = || {
        let given_back = allocation.give_back(&store, attachment, &plan.host_name);
        given_back.map_err(CniError::from)
    };
    if refuses_duplicates && let Err(error) = check_conflicts(&mut node, addresses, &requests.ips) {
        // The objects of such an address belong to its holder, so only the lease and the note are removed.
        return Err(undone(error, give_back()));
    }
    let lock = store.interface_lock();
    let host = match plan.make_pair(&mut node, &datapath, addresses) {
        Ok(host) => host,
        Err(error) => {
            // An existing interface of that name is not this attachment's.
            let taken_back = if error.is_before_anything() {
                give_back()
            } else {
                detach(config, &mut node, attachment)
            };
            return Err(undone(name_port_owner(error, &store), taken_back));
        }
    };
    let routes = routes_of(routes, addresses);
    let made = plan.make_objects(&mut node, datapath, &host, addresses, &routes);
    drop(lock);
    if let Err(error) = made {
        let conflicting_route = error
            .already_exists()
            .then(|| conflicting_route(&mut node, &store, host.index, addresses, &requests.ips));
        let error = conflicting_route
            .flatten()
            .unwrap_or_else(|| name_port_owner(error, &store));
        return Err(undone(error, detach(config, &mut node, attachment)));
    }
    let result = plan.result(environment, &allocation.addresses, routes, capability_args.dns)?;
    Ok(result.document(config.version, previous.as_ref()))
}

/// The failure to report after the steps were undone.
fn undone(error: CniError, taken_back: Result<(), CniError>) -> CniError {
    match taken_back {
        Ok(()) => error,
        // The runtime calls DEL after a failed ADD, which repeats the removal.
        Err(left) => CniError {
            details: format!("{}; taking it back failed too: {left}", error.details),
            ..error
        },
    }
}

/// Refuses addresses that a host uses without a lease.
fn check_conflicts(
    node: &mut NetlinkSocket,
    addresses: &[IpAddr],
    requested: &[IpAddr],
) -> Result<(), CniError> {
    match conflict::find(node, addresses)? {
        Some(Conflict { address, owner }) => Err(in_use(address, requested, &format!("{owner} has it"))),
        None => Ok(()),
    }
}

fn in_use(address: IpAddr, requested: &[IpAddr], why: &str) -> CniError {
    // A range continues after the last address that was given, even if that was freed again.
    let (code, advice) = if requested.contains(&address) {
        (Code::AddressUnavailable, "ask for another one")
    } else {
        (
            Code::TryAgainLater,
            "the next ADD tries the next one of its range",
        )
    };
    CniError::new(code, format!("address {address} is in use")).with_details(format!("{why}: {advice}"))
}

/// The failure for a route that prevents the route to the pod, if there is such a route. No lease exists for
/// the destination of that route.
fn conflicting_route(
    node: &mut NetlinkSocket,
    store: &Store,
    own: u32,
    addresses: &[IpAddr],
    requested: &[IpAddr],
) -> Option<CniError> {
    // If the look-up fails, the caller reports the original failure.
    let (address, interface) = ip::conflicting_route(node, own, addresses).ok()??;
    let name = interface.and_then(link::name_of);
    let why = match name {
        Some(name) if InterfaceRole::of_pod(&name) == InterfaceRole::OwnPod => {
            let dir = store.dir().display();
            let owner = match store.note(&name) {
                Ok(Some(found)) => found.owner(),
                _ => "another pod".to_owned(),
            };
            format!(
                "{owner} has it at interface {name}, and its lease is gone from {dir}; the pod keeps the address until it is \
                 deleted, and `millrace ipam check` lists what else is lost"
            )
        }
        Some(name) => {
            format!("a route of another leads to it by interface {name}, see `ip route show {address}`")
        }
        None => format!("a route of another leads to it, see `ip route show {address}`"),
    };
    Some(in_use(address, requested, &why))
}

/// The failure for the runtime. For a taken host port it names the holder.
fn name_port_owner(error: MakeError, store: &Store) -> CniError {
    match error {
        MakeError::Datapath(DatapathError::PortTaken { port, pod }) => {
            let notes = store.notes().unwrap_or_default();
            let owner = notes.iter().find(|note| note.addresses.contains(&pod));
            let owner = owner.map_or_else(|| "a pod of another network".to_owned(), Note::owner);
            CniError::new(Code::PortTaken, format!("{port} is in use"))
                .with_details(format!("{owner} has it, at {pod}"))
        }
        MakeError::Datapath(error) => error.into(),
        MakeError::Netlink(error) => error.into(),
    }
}

/// The configured routes of the pod's families, or a default route for each family.
fn routes_of(configured: Option<Vec<Route>>, addresses: &[IpAddr]) -> Vec<Route> {
    let has = |is_v4: bool| addresses.iter().any(|ip| ip.is_ipv4() == is_v4);
    let routes = configured.unwrap_or_else(|| {
        let default = |dst: &str| Route {
            dst: dst.parse().unwrap_or_default(),
            gw: None,
            mtu: None,
            advmss: None,
            priority: None,
            table: None,
            scope: None,
        };
        vec![default("0.0.0.0/0"), default("::/0")]
    });
    let with_gateway = |route: Route| Route {
        gw: Some(ip::gateway(route.dst.addr())),
        ..route
    };
    let usable = routes.into_iter().filter(|route| has(route.dst.addr().is_ipv4()));
    usable.map(with_gateway).collect()
}

impl Plan<'_> {
    fn note(&self, environment: &Environment) -> Note {
        let now = BootTimestamp::now();
        Note {
            adopted: false,
            netns_cookie: self.pod.netns_cookie(),
            netns: environment.netns().cloned().unwrap_or_default(),
            mac: mac_text(&self.pod_mac),
            mtu: self.mtu,
            ingress_rate: self.ingress.map(|limit| limit.rate),
            egress_rate: self.egress.map(|limit| limit.rate),
            host_ports: self.host_ports.clone(),
            pod_namespace: environment.args.pod_namespace.clone(),
            pod_name: environment.args.pod_name.clone(),
            ..Note::adopting(self.attachment, self.host_name.clone(), Vec::new(), &now)
        }
    }

    /// Makes all objects around the pair, in the order in which a packet meets them. So the pod sends no
    /// packet before a reply can reach it.
    fn make_objects(
        &mut self,
        node: &mut NetlinkSocket,
        datapath: Datapath,
        host: &Link,
        addresses: &[IpAddr],
        routes: &[Route],
    ) -> Result<(), MakeError> {
        let limiter = match self.egress {
            Some(limit) => Some(self.make_limiter(node, host.index, limit)?),
            None => None,
        };
        self.make_host_side(node, host, addresses)?;
        let entry = Entry {
            interface: host.index,
            netns_cookie: self.pod.netns_cookie(),
            mac: self.pod_mac,
            addresses,
            is_limited: self.ingress.is_some(),
            limiter,
            host_ports: &self.host_ports,
        };
        datapath.attach(node, &entry)?;
        self.make_pod_side(host.peer, addresses, routes)?;
        link::await_queue(node, &self.host_name)?;
        Ok(())
    }

    /// Makes the pair, unless an interface of either name exists or another pod has a host port.
    fn make_pair(
        &self,
        node: &mut NetlinkSocket,
        datapath: &Datapath,
        addresses: &[IpAddr],
    ) -> Result<Link, MakeError> {
        datapath.check_host_ports(node, &self.host_ports, addresses)?;
        let pair = Pair {
            host: End {
                name: &self.host_name,
                mac: self.host_mac,
            },
            pod: End {
                name: &self.attachment.if_name,
                mac: self.pod_mac,
            },
            mtu: self.mtu,
            namespace: Some(self.namespace.as_fd()),
        };
        Ok(pair.make(node)?)
    }

    fn make_limiter(
        &self,
        node: &mut NetlinkSocket,
        interface: u32,
        limit: Limit,
    ) -> Result<u32, NetlinkError> {
        let limiter = Limiter {
            name: &limiter(self.attachment),
            end: &limiter_end(self.attachment),
            interface,
            mac: self.host_mac,
            mtu: self.mtu,
            limit,
        };
        limiter.make(node)
    }

    fn make_host_side(
        &self,
        node: &mut NetlinkSocket,
        host: &Link,
        addresses: &[IpAddr],
    ) -> Result<(), NetlinkError> {
        let mut requests = vec![link::serve_pod_v4(host.index)];
        if self.has_v6 {
            sysctl::set(&self.host_name, HOST_V6)?;
        }
        if let Some(rate) = self.ingress {
            requests.extend(limit::limit(host.index, rate, self.mtu));
        }
        requests.push(link::up(host.index));
        if self.has_v6 {
            requests.push(ip::address(host.index, host_side::gateway_v6()));
        }
        for address in addresses {
            requests.push(ip::neighbour(host.index, *address, self.pod_mac));
            requests.push(ip::link_route(host.index, *address));
        }
        node.batch(requests).map(drop)
    }

    fn make_pod_side(
        &mut self,
        index: u32,
        addresses: &[IpAddr],
        routes: &[Route],
    ) -> Result<(), NetlinkError> {
        let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = addresses.iter().partition(|ip| ip.is_ipv4());
        let name = &self.attachment.if_name;
        let announcer = if v6.is_empty() {
            None
        } else {
            let prepare = || sysctl::set(name, POD_V6).and_then(|()| Announcer::open());
            Some(self.namespace.enter(prepare)??)
        };
        let held = |ip: &IpAddr| ip::address(index, ip::alone(*ip));
        // IPv4 addresses come first, so that the kernel sends gratuitous ARP when the interface goes up, see
        // [`crate::netlink::announce`].
        let mut requests = vec![link::notify_v4(index)];
        requests.extend(v4.iter().map(held));
        requests.push(link::up(index));
        requests.extend(v6.iter().map(held));
        for family in [&v4, &v6] {
            if let Some(ip) = family.first() {
                let gateway = ip::gateway(*ip);
                requests.push(ip::neighbour(index, gateway, self.host_mac));
                if gateway.is_ipv4() {
                    requests.push(ip::link_route(index, gateway));
                }
            }
        }
        requests.extend(routes.iter().map(|route| ip::gateway_route(index, route)));
        self.pod.batch(requests)?;
        for ip in v6 {
            if let (Some(announcer), IpAddr::V6(ip)) = (&announcer, ip) {
                ip::await_local(&mut self.pod, ip)?;
                announcer.announce(index, ip, self.pod_mac)?;
            }
        }
        Ok(())
    }

    fn result(
        &self,
        environment: &Environment,
        addresses: &[IpAddr],
        routes: Vec<Route>,
        dns: Option<Value>,
    ) -> Result<CniResult, CniError> {
        let interface = |name: &str, mac: &[u8; 6], sandbox: String| Interface {
            name: name.to_owned(),
            mac: mac_text(mac),
            mtu: Some(self.mtu),
            sandbox,
        };
        let sandbox = environment.netns()?.display().to_string();
        let ips = addresses.iter().map(|address| Address {
            interface: Some(1),
            address: ip::alone(*address),
            gateway: Some(ip::gateway(*address)),
        });
        Ok(CniResult {
            interfaces: vec![
                interface(&self.host_name, &self.host_mac, String::new()),
                interface(&self.attachment.if_name, &self.pod_mac, sandbox),
            ],
            ips: ips.collect(),
            routes,
            dns,
        })
    }
}
