//! A pod: a namespace joined to its node by a veth pair. The ends are `eth0` in the pod and `veth<n>` on the
//! node. The plugin may give the node's end another name.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Deref;

use anyhow::{Result, bail};
use ipnet::IpNet;

use crate::cni::{self, Attachment, INTERFACE, PodSpec};
use crate::failure::OrPanic;
use crate::netlink::{Mac, Veth, everywhere};
use crate::netns::Netns;
use crate::node::{BRIDGE, Node, PodNetwork};
use crate::place::Place;
use crate::{cgroup, removal};

/// Kernel settings of a pod, and of every place that only sends and receives.
pub(crate) const END_HOST: &[(&str, &str)] = &[
    // A new namespace inherits its IPv4 settings from the machine.
    ("net/ipv4/ip_forward", "0"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
];

/// A pod of a world. It lives as long as the world, unless deleted.
pub struct Pod {
    place: Place,
    node: Node,
    host_interface: String,
    /// Set for a pod that the plugin made.
    attachment: Option<Attachment>,
}

impl Pod {
    pub(crate) fn create(node: &Node, name: &str, number: u8) -> Result<Self> {
        let netns = Netns::create(&node.tag().netns(name), END_HOST)?;
        let addresses = node.pod_addresses(number);
        let host_interface = format!("veth{number}");
        let wire = Wire {
            node,
            pod: &netns,
            host_interface: &host_interface,
            number,
        };
        match node.network() {
            PodNetwork::Routed => wire.route(&addresses)?,
            PodNetwork::Bridged => wire.bridge(&addresses)?,
            PodNetwork::Millrace => bail!("pods of {} are made by the plugin", node.name()),
        }
        let cgroup = node.cgroup().join(name);
        let place = Place::start(name, netns, cgroup, addresses)?;
        Ok(Self {
            place,
            node: node.clone(),
            host_interface,
            attachment: None,
        })
    }

    pub(crate) fn create_by_plugin(node: &Node, spec: &PodSpec) -> Result<Self> {
        let name = spec.name();
        let netns = Netns::create(&node.tag().netns(name), END_HOST)?;
        let attachment = cni::attachment(spec, netns.path());
        let result = cni::call(node, "ADD", &attachment, None)?.done()?;
        let cgroup = node.cgroup().join(name);
        let place = Place::start(name, netns, cgroup, cni::addresses(&result)?)?;
        Ok(Self {
            place,
            node: node.clone(),
            host_interface: cni::host_interface(&result)?,
            attachment: Some(attachment),
        })
    }

    /// The attachment that the plugin was called for, if the plugin made the pod.
    pub fn attachment(&self) -> Option<&Attachment> {
        self.attachment.as_ref()
    }

    /// The node that the pod runs on.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// The name of the node's end of the pod's veth pair.
    pub fn host_interface(&self) -> &str {
        &self.host_interface
    }

    /// Removes the pod as a runtime does: its process, interface, namespace, cgroup.
    #[track_caller]
    pub fn delete(self) {
        self.take_down().or_panic();
    }

    fn take_down(&self) -> Result<()> {
        self.place.stop();
        match &self.attachment {
            Some(attachment) => drop(cni::call(&self.node, "DEL", attachment, None)?.done()?),
            None => self.node.netns().rtnl().delete_link(&self.host_interface)?,
        }
        removal::remove_namespace(self.netns_path())?;
        cgroup::remove(self.cgroup())
    }
}

impl Deref for Pod {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

/// The two ends of a pod's veth pair while they are being set up.
struct Wire<'a> {
    node: &'a Node,
    pod: &'a Netns,
    host_interface: &'a str,
    number: u8,
}

impl Wire<'_> {
    /// The hardware addresses of the node's and the pod's end.
    fn macs(&self) -> (Mac, Mac) {
        let node = self.node.number();
        (
            [2, 0xfe, node, 0, 0, self.number],
            [2, 0xf4, node, 0, 0, self.number],
        )
    }

    fn connect(&self) -> Result<()> {
        let (mac, peer_mac) = self.macs();
        let peer_netns = std::os::fd::AsFd::as_fd(self.pod);
        let host = self.node.netns().rtnl();
        host.add_veth(&Veth {
            name: self.host_interface,
            mac,
            peer_name: INTERFACE,
            peer_mac,
            peer_netns,
        })?;
        if self.node.network() == PodNetwork::Bridged {
            host.set_bridge(self.host_interface, BRIDGE)?;
        }
        host.set_up(self.host_interface)?;
        self.pod.rtnl().set_up(INTERFACE)
    }

    fn route(&self, addresses: &[IpAddr]) -> Result<()> {
        self.connect()?;
        let (host_mac, pod_mac) = self.macs();
        let (host, pod) = (self.node.netns().rtnl(), self.pod.rtnl());
        for (&address, gateway) in addresses.iter().zip(self.node.gateways()) {
            pod.add_address(INTERFACE, address, single(address).prefix_len())?;
            pod.add_neighbour(INTERFACE, gateway, host_mac)?;
            pod.add_route(everywhere(gateway), Some(gateway), INTERFACE)?;
            host.add_neighbour(self.host_interface, address, pod_mac)?;
            host.add_route(single(address), None, self.host_interface)?;
        }
        Ok(())
    }

    fn bridge(&self, addresses: &[IpAddr]) -> Result<()> {
        self.connect()?;
        let ranges = self.node.pod_cidrs();
        for ((&address, gateway), range) in addresses.iter().zip(self.node.gateways()).zip(ranges) {
            self.pod
                .rtnl()
                .add_address(INTERFACE, address, range.prefix_len())?;
            self.pod
                .rtnl()
                .add_route(everywhere(gateway), Some(gateway), INTERFACE)?;
        }
        self.pod.rtnl().wait_operational(INTERFACE)
    }
}

/// The range that holds only this address.
pub(crate) fn single(address: IpAddr) -> IpNet {
    let length = match address {
        IpAddr::V4(_) => Ipv4Addr::BITS,
        IpAddr::V6(_) => Ipv6Addr::BITS,
    };
    IpNet::new_assert(address, length as u8)
}
