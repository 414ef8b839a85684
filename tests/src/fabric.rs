//! The fabric: a namespace with a bridge for the underlay, which connects nodes and outside clients. The
//! fabric is their default gateway. It has no route to other networks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;

use anyhow::{Context, Result};

use crate::names::Tag;
use crate::netlink::{Veth, everywhere};
use crate::netns::Netns;
use crate::node::UPLINK;
use crate::place::Place;

/// The fabric's own addresses, the gateways of all nodes and clients.
const GATEWAYS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 168, 50, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x50, 0, 0, 0, 0, 0, 1)),
];

/// Prefix lengths of the underlay.
const PREFIXES: [u8; 2] = [24, 64];

/// The fabric's bridge.
pub(crate) const BRIDGE: &str = "br0";

/// The underlay is 192.168.50.0/24 and `fd00:50::/64`.
pub(crate) struct Fabric {
    place: Place,
}

impl Fabric {
    pub(crate) fn create(tag: &Tag) -> Result<Self> {
        let name = "fabric";
        let netns = Netns::create(
            &tag.netns(name),
            &[
                ("net/ipv4/ip_forward", "1"),
                ("net/ipv4/conf/all/rp_filter", "0"),
                ("net/ipv4/conf/all/send_redirects", "0"),
                ("net/ipv4/conf/default/send_redirects", "0"),
                ("net/ipv6/conf/all/forwarding", "1"),
                ("net/ipv6/conf/all/accept_dad", "0"),
                ("net/ipv6/conf/default/accept_dad", "0"),
            ],
        )?;
        netns.rtnl().add_bridge(BRIDGE, [2, 0x50, 0, 0, 0, 1])?;
        for (address, prefix) in GATEWAYS.into_iter().zip(PREFIXES) {
            netns.rtnl().add_address(BRIDGE, address, prefix)?;
        }
        let place = Place::start(name, netns, tag.cgroup()?.join(name), GATEWAYS.to_vec())?;
        Ok(Self { place })
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// Joins a namespace's `eth0` to a link named `port` here.
    pub(crate) fn wire(&self, port: &str, netns: &Netns, number: u8) -> Result<()> {
        let rtnl = self.place.netns().rtnl();
        let (mac, peer_mac) = ([2, 0x50, 0, 0, 1, number], [2, 0x50, 0, 0, 2, number]);
        let peer_netns = netns.as_fd();
        rtnl.add_veth(&Veth {
            name: port,
            mac,
            peer_name: UPLINK,
            peer_mac,
            peer_netns,
        })?;
        rtnl.set_up(port)?;
        netns.rtnl().set_up(UPLINK)
    }

    /// Puts a namespace into subnets of its own behind the router, `172.31.<number>.0/24` and
    /// `fd00:31:<number>::/64`. Its addresses there end in 2.
    pub(crate) fn attach_behind_router(&self, port: &str, netns: &Netns, number: u8) -> Result<Vec<IpAddr>> {
        let host = |last: u8| -> [IpAddr; 2] {
            [
                Ipv4Addr::new(172, 31, number, last).into(),
                Ipv6Addr::new(0xfd00, 0x31, number.into(), 0, 0, 0, 0, last.into()).into(),
            ]
        };
        self.wire(port, netns, number)?;
        let router = self.place.netns().rtnl();
        for ((near, far), prefix) in host(2).into_iter().zip(host(1)).zip(PREFIXES) {
            router.add_address(port, far, prefix)?;
            netns.rtnl().add_address(UPLINK, near, prefix)?;
            netns.rtnl().add_route(everywhere(far), Some(far), UPLINK)?;
        }
        netns.rtnl().wait_operational(UPLINK)?;
        Ok(host(2).to_vec())
    }

    /// Puts a namespace on the underlay, with the addresses that end in `number`.
    pub(crate) fn attach(&self, port: &str, netns: &Netns, number: u8) -> Result<Vec<IpAddr>> {
        self.wire(port, netns, number)?;
        self.place.netns().rtnl().set_bridge(port, BRIDGE)?;
        let addresses = vec![
            IpAddr::from(Ipv4Addr::new(192, 168, 50, number)),
            // Both families have the same digits: .11 and ::11.
            format!("fd00:50::{number}")
                .parse()
                .context("making an underlay address")?,
        ];
        for ((&address, prefix), gateway) in addresses.iter().zip(PREFIXES).zip(GATEWAYS) {
            netns.rtnl().add_address(UPLINK, address, prefix)?;
            netns
                .rtnl()
                .add_route(everywhere(gateway), Some(gateway), UPLINK)?;
        }
        Ok(addresses)
    }
}
