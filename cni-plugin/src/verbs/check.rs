//! CHECK: whether an interface is still as ADD made it.

use std::net::IpAddr;

use serde_json::{Map, Value};

use crate::attachment::{host_interface, limiter, mac_text};
use crate::config::{Attachment, Environment, NetworkConfig};
use crate::datapath::{Datapath, Entry};
use crate::ipam::Store;
use crate::netlink::{Namespace, NetlinkSocket, ip, link};
use crate::spec::{CniError, CniResult, Code};

/// Compares the result of ADD with the present state. Other plugins of a chain check the parts of their own
/// results.
pub fn check(environment: &Environment, config: &NetworkConfig) -> Result<(), CniError> {
    let attachment = environment.attachment()?;
    let previous = config.previous()?.ok_or_else(|| {
        CniError::new(Code::InvalidConfig, "prevResult is missing")
            .with_details("CHECK compares with the result of ADD, which the runtime has to pass")
    })?;
    let expected = Expected::read(&previous, attachment)?;
    let store = check_leases(config, attachment, &expected)?;
    let mut node = NetlinkSocket::open()?;
    let host_name = host_interface(attachment);
    let host = link::find(&mut node, &host_name)?
        .filter(|link| link.is_up)
        .ok_or_else(|| {
            mismatch(format!(
                "interface {host_name} of the node is missing or switched off"
            ))
        })?;
    let noted = store.note(&host_name)?;
    if noted.as_ref().is_some_and(|note| note.egress_rate.is_some())
        && link::find(&mut node, &limiter(attachment))?.is_none()
    {
        let name = limiter(attachment);
        return Err(mismatch(format!(
            "the device {name}, which limits what the container sends, is gone"
        )));
    }
    let namespace = Namespace::open(environment.netns()?, environment.netns_override)?;
    let mut pod = namespace.enter(NetlinkSocket::open)??;
    let mac = expected.check_pod(&mut pod, &attachment.if_name, host.peer)?;
    let datapath = Datapath::open(&config.bpf_root)?;
    let missing = datapath.missing(host.index)?;
    if !missing.is_empty() {
        let missing = missing.join(", ");
        return Err(mismatch(format!("not attached to {host_name}: {missing}")));
    }
    let addresses: Vec<IpAddr> = expected.ips().map(|ip| ip.address.addr()).collect();
    let entry = Entry {
        interface: host.index,
        netns_cookie: pod.netns_cookie(),
        mac,
        addresses: &addresses,
        is_limited: false,
        limiter: None,
        host_ports: noted.as_ref().map_or(&[], |note| &note.host_ports),
    };
    match datapath.differences(&entry)? {
        differences if differences.is_empty() => Ok(()),
        differences => Err(mismatch(differences.join("; "))),
    }
}

/// The pod's side in the result of ADD.
struct Expected {
    result: CniResult,
    position: usize,
}

impl Expected {
    fn read(previous: &Map<String, Value>, attachment: &Attachment) -> Result<Self, CniError> {
        let result = CniResult::read(previous)?;
        let is_pods = |interface: &crate::spec::result::Interface| {
            interface.name == attachment.if_name && !interface.sandbox.is_empty()
        };
        let position = result.interfaces.iter().position(is_pods).ok_or_else(|| {
            CniError::new(Code::InvalidConfig, "prevResult is invalid").with_details(format!(
                "it has no interface {} of the container",
                attachment.if_name
            ))
        })?;
        Ok(Self { result, position })
    }

    fn ips(&self) -> impl Iterator<Item = &crate::spec::result::Address> {
        let ours = |ip: &&crate::spec::result::Address| ip.interface == Some(self.position);
        self.result.ips.iter().filter(ours)
    }

    /// Compares the pod's side and returns its present Ethernet address.
    fn check_pod(&self, pod: &mut NetlinkSocket, name: &str, index: u32) -> Result<[u8; 6], CniError> {
        let link = link::find(pod, name)?
            .filter(|link| link.is_up && link.index == index)
            .ok_or_else(|| {
                mismatch(format!(
                    "interface {name} of the container is missing, switched off, or another one"
                ))
            })?;
        let expected = &self.result.interfaces[self.position];
        let octets = <[u8; 6]>::try_from(link.mac).unwrap_or_default();
        let mac = mac_text(&octets);
        if !expected.mac.is_empty() && !expected.mac.eq_ignore_ascii_case(&mac) {
            return Err(mismatch(format!(
                "interface {name} has Ethernet address {mac}, not {}",
                expected.mac
            )));
        }
        if let Some(mtu) = expected.mtu.filter(|mtu| *mtu != link.mtu) {
            return Err(mismatch(format!(
                "interface {name} has MTU {}, not {mtu}",
                link.mtu
            )));
        }
        let held = ip::addresses(pod)?;
        for expected in self.ips() {
            if !held.contains(&(index, expected.address)) {
                return Err(mismatch(format!(
                    "interface {name} lacks the address {}",
                    expected.address
                )));
            }
        }
        let routes = ip::gateway_routes(pod)?;
        let ours = |gateway: IpAddr| gateway == ip::gateway(gateway);
        for route in self
            .result
            .routes
            .iter()
            .filter(|route| route.gw.is_some_and(ours))
        {
            let there = |(to, by, at): &(ipnet::IpNet, IpAddr, u32)| {
                *to == route.dst.trunc() && Some(*by) == route.gw && *at == index
            };
            if !routes.iter().any(there) {
                return Err(mismatch(format!(
                    "the container lacks the route to {}",
                    route.dst
                )));
            }
        }
        Ok(octets)
    }
}

fn check_leases(
    config: &NetworkConfig,
    attachment: &Attachment,
    expected: &Expected,
) -> Result<Store, CniError> {
    let store = Store::existing(&config.data_dir).ok_or_else(|| {
        mismatch(format!(
            "the directory of leases {} is gone",
            config.data_dir.display()
        ))
    })?;
    for ip in expected.ips() {
        let address = ip.address.addr();
        if !store.lease(address).is_some_and(|lease| lease.is_of(attachment)) {
            return Err(mismatch(format!("{address} is not leased to this container")));
        }
    }
    Ok(store)
}

fn mismatch(what: String) -> CniError {
    CniError::new(Code::Mismatch, "the container's network is not as it was made").with_details(what)
}
