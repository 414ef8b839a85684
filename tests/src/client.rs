//! A client outside of the cluster: on the underlay, as a neighbour of the nodes, or in a subnet of its own.
//! The fabric's router leads to such a subnet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Deref;
use std::os::fd::AsFd as _;

use anyhow::Result;
use ipnet::IpNet;

use crate::fabric::{BRIDGE, Fabric};
use crate::failure::OrPanic;
use crate::names::Tag;
use crate::netlink::Veth;
use crate::netns::Netns;
use crate::node::{Node, UPLINK};
use crate::place::Place;
use crate::pod::END_HOST;
use crate::tun::TunLink;

/// A client of a world; it lives as long as the world.
pub struct Client {
    place: Place,
    /// The place that holds the routes of this client: the client itself, or the router.
    router: Place,
    router_link: &'static str,
    /// The link that copies its packets, for a client on tun devices.
    _carrier: Option<TunLink>,
}

impl Client {
    /// A client with an address of the underlay.
    pub(crate) fn on_underlay(tag: &Tag, fabric: &Fabric, name: &str, number: u8) -> Result<Self> {
        let netns = Netns::create(&tag.netns(name), END_HOST)?;
        let addresses = fabric.attach(name, &netns, 100 + number)?;
        let place = Place::start(name, netns, tag.cgroup()?.join(name), addresses)?;
        Ok(Self {
            router: place.clone(),
            place,
            router_link: UPLINK,
            _carrier: None,
        })
    }

    /// A client in the subnets `172.31.<number>.0/24` and `fd00:31:<number>::/64`.
    pub(crate) fn behind_router(tag: &Tag, fabric: &Fabric, name: &str, number: u8) -> Result<Self> {
        let netns = Netns::create(&tag.netns(name), END_HOST)?;
        let addresses = fabric.attach_behind_router(name, &netns, number)?;
        let place = Place::start(name, netns, tag.cgroup()?.join(name), addresses)?;
        Ok(Self {
            place,
            router: fabric.place().clone(),
            router_link: BRIDGE,
            _carrier: None,
        })
    }

    /// A client at the other end of a link of its own to a node, whose side is named `link` there. The client
    /// has a route to that link only. The node's addresses end in 1, the client's in 2:
    /// `172.30.<number>.0/24` and `fd00:30:<number>::/64`.
    pub(crate) fn on_link(node: &Node, link: &'static str, name: &str, number: u8) -> Result<Self> {
        let tag = node.tag();
        let netns = Netns::create(&tag.netns(name), END_HOST)?;
        let rtnl = node.netns().rtnl();
        rtnl.add_veth(&Veth {
            name: link,
            mac: [2, 0x30, 0, 0, 1, number],
            peer_name: UPLINK,
            peer_mac: [2, 0x30, 0, 0, 2, number],
            peer_netns: netns.as_fd(),
        })?;
        rtnl.set_up(link)?;
        netns.rtnl().set_up(UPLINK)?;
        Self::at_end(node, link, name, number, netns, None)
    }

    /// The same on a link whose packets have no Ethernet header.
    pub(crate) fn on_tun(node: &Node, link: &'static str, name: &str, number: u8) -> Result<Self> {
        let netns = Netns::create(&node.tag().netns(name), END_HOST)?;
        let carrier = TunLink::between([(node.netns(), link), (&netns, UPLINK)])?;
        Self::at_end(node, link, name, number, netns, Some(carrier))
    }

    fn at_end(
        node: &Node,
        link: &str,
        name: &str,
        number: u8,
        netns: Netns,
        carrier: Option<TunLink>,
    ) -> Result<Self> {
        let rtnl = node.netns().rtnl();
        for ((near, far), prefix) in ends(number, 1).into_iter().zip(ends(number, 2)).zip([24, 64]) {
            rtnl.add_address(link, near, prefix)?;
            netns.rtnl().add_address(UPLINK, far, prefix)?;
        }
        if carrier.is_none() {
            netns.rtnl().wait_operational(UPLINK)?;
        }
        let cgroup = node.tag().cgroup()?.join(name);
        let place = Place::start(name, netns, cgroup, ends(number, 2).to_vec())?;
        Ok(Self {
            router: place.clone(),
            place,
            router_link: UPLINK,
            _carrier: carrier,
        })
    }

    /// Adds another link to a node, as [`Self::on_link`] makes the first one. `link` and `own` name its ends.
    /// Returns the node's addresses there.
    #[track_caller]
    pub fn add_link(&self, node: &Node, link: &'static str, own: &'static str, number: u8) -> [IpAddr; 2] {
        let make = || -> Result<[IpAddr; 2]> {
            let (near, far) = (node.netns().rtnl(), self.place.netns().rtnl());
            near.add_veth(&Veth {
                name: link,
                mac: [2, 0x30, 0, 0, 1, number],
                peer_name: own,
                peer_mac: [2, 0x30, 0, 0, 2, number],
                peer_netns: self.place.netns().as_fd(),
            })?;
            near.set_up(link)?;
            far.set_up(own)?;
            for ((at_node, at_client), prefix) in
                ends(number, 1).into_iter().zip(ends(number, 2)).zip([24, 64])
            {
                near.add_address(link, at_node, prefix)?;
                far.add_address(own, at_client, prefix)?;
            }
            far.wait_operational(own)?;
            Ok(ends(number, 1))
        };
        make().or_panic()
    }

    /// Sends the client's packets for `to` by way of a node. A client behind the router uses the router's
    /// route, so the change applies to all such clients.
    #[track_caller]
    pub fn route_via(&self, to: IpNet, node: &Node) {
        let via = node.address_like(to.addr());
        self.router
            .netns()
            .rtnl()
            .add_route(to, Some(via), self.router_link)
            .or_panic();
    }
}

/// The addresses of one end of a link between a node and a client.
fn ends(number: u8, last: u8) -> [IpAddr; 2] {
    [
        Ipv4Addr::new(172, 30, number, last).into(),
        Ipv6Addr::new(0xfd00, 0x30, number.into(), 0, 0, 0, 0, last.into()).into(),
    ]
}

impl Deref for Client {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}
