//! A client outside of the cluster: on the underlay, as a neighbour of the
//! nodes, or in a subnet of its own behind the fabric's router.

use std::ops::Deref;

use anyhow::Result;
use ipnet::IpNet;

use crate::fabric::{BRIDGE, Fabric};
use crate::failure::OrPanic;
use crate::names::Tag;
use crate::netns::Netns;
use crate::node::{Node, UPLINK};
use crate::place::Place;
use crate::pod::END_HOST;

/// A client of a world; it lives as long as the world.
pub struct Client {
    place: Place,
    /// Where a route of this client goes: its own table, or the router's.
    router: Place,
    router_link: &'static str,
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
        })
    }

    /// Sends what this client has for `to` by way of a node. For a client
    /// behind the router the route is the router's, thus for all such clients.
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

impl Deref for Client {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}
