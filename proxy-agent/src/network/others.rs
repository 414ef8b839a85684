//! The kernel's state about the addresses of other machines: the routes that lead to them, and neighbours.

use std::fmt;
use std::net::IpAddr;

use futures::{StreamExt as _, TryStreamExt as _};
use ipnet::IpNet;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteType};

use super::error::NetworkError;
use super::netlink::{self, Netlink};
use super::{host_routes, pods, route};

/// A route of the main table that another program made, except default routes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignRoute {
    /// The destination of the route.
    pub prefix: IpNet,
    /// Whether the route leads to a gateway.
    pub has_gateway: bool,
    interface: Option<u32>,
}

impl fmt::Display for ForeignRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let next_hop = self.interface.map(route::through);
        write!(
            f,
            "{}, {},",
            self.prefix,
            next_hop.as_deref().unwrap_or("by several next hops")
        )
    }
}

impl ForeignRoute {
    /// Parses a message. `is_own` recognises our devices.
    pub fn read(message: &RouteMessage, is_own: impl Fn(u32) -> bool) -> Option<Self> {
        let protocol = u8::from(message.header.protocol);
        let is_ours = [host_routes::PROTOCOL, pods::routes::PROTOCOL].contains(&protocol);
        if is_ours || message.header.kind != RouteType::Unicast || !netlink::is_main_table(message) {
            return None;
        }
        let mut route = Self {
            prefix: netlink::prefix(message).filter(|prefix| prefix.prefix_len() > 0)?,
            has_gateway: false,
            interface: None,
        };
        let is_gateway = |attribute: &RouteAttribute| {
            matches!(attribute, RouteAttribute::Gateway(_) | RouteAttribute::Via(_))
        };
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Oif(interface) => route.interface = Some(*interface),
                RouteAttribute::MultiPath(hops) => {
                    route.has_gateway |= hops.iter().any(|hop| hop.attributes.iter().any(is_gateway));
                }
                other => route.has_gateway |= is_gateway(other),
            }
        }
        (!route.interface.is_some_and(is_own)).then_some(route)
    }

    /// The route that the kernel would choose for an address.
    pub fn longest(routes: &[Self], address: IpAddr) -> Option<&Self> {
        let fitting = routes.iter().filter(|route| route.prefix.contains(&address));
        fitting.max_by_key(|route| route.prefix.prefix_len())
    }
}

/// A neighbour entry that shows whether a host exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// The IP address of the neighbour.
    pub address: IpAddr,
    /// The index of the interface.
    pub interface: u32,
    /// The Ethernet address of the host; `None` if the kernel got no reply.
    pub mac: Option<[u8; 6]>,
}

impl Neighbour {
    /// Parses a message; `None` while the kernel still resolves the address.
    pub fn read(message: &NeighbourMessage) -> Option<Self> {
        use NeighbourState::{Delay, Failed, Permanent, Probe, Reachable, Stale};
        let (mut address, mut mac) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => address = Some((*ip).into()),
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => address = Some((*ip).into()),
                NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
                _ => {}
            }
        }
        let mac = match message.header.state {
            Reachable | Stale | Delay | Probe | Permanent => Some(mac?),
            Failed => None,
            _ => return None,
        };
        Some(Self {
            address: address?,
            interface: message.header.ifindex,
            mac,
        })
    }
}

impl Netlink {
    /// Every neighbour whose state is known.
    pub async fn neighbours(&self) -> Result<Vec<Neighbour>, NetworkError> {
        let messages = self.reading().neighbours().get().execute();
        let messages = messages.try_collect::<Vec<_>>().await;
        let messages = messages.map_err(NetworkError::request("listing the neighbours"))?;
        Ok(messages.iter().filter_map(Neighbour::read).collect())
    }

    /// Makes the kernel resolve an unknown address on a link. The result arrives as a change of the neighbour
    /// table.
    pub async fn ask_for(&self, interface: u32, address: IpAddr) -> Result<(), NetworkError> {
        let mut entry = self.reading().neighbours().add(interface, address);
        let mut message = std::mem::take(entry.message_mut());
        message.header.state = NeighbourState::None;
        message.header.flags = NeighbourFlags::Use;
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewNeighbour(message));
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        self.send_request(request)
            .await
            .map_err(NetworkError::request(format!("asking for {address}")))
    }

    /// Sends a request for which the netlink library has no call. It does not count as a write.
    pub(super) async fn send_request(
        &self,
        request: NetlinkMessage<RouteNetlinkMessage>,
    ) -> Result<(), rtnetlink::Error> {
        let mut replies = self.reading().clone().request(request)?;
        while let Some(reply) = replies.next().await {
            if let NetlinkPayload::Error(error) = reply.payload
                && error.code.is_some()
            {
                return Err(rtnetlink::Error::NetlinkError(error));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtnetlink::RouteMessageBuilder;
    use rtnetlink::packet_route::route::RouteProtocol;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn route(prefix: &str, interface: u32, gateway: Option<&str>) -> RouteMessage {
        let prefix: IpNet = prefix.parse().expect("a prefix");
        let route = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(prefix.addr(), prefix.prefix_len())
            .expect("a destination")
            .output_interface(interface);
        match gateway {
            Some(gateway) => route.gateway(ip(gateway)).expect("a gateway").build(),
            None => route.build(),
        }
    }

    #[test]
    fn the_longest_route_that_is_not_ours_counts() {
        let mut ours = route("198.51.100.9/32", 2, None);
        ours.header.protocol = RouteProtocol::Other(host_routes::PROTOCOL);
        let mut nowhere = route("198.51.100.10/32", 2, None);
        nowhere.header.kind = RouteType::Unreachable;
        let messages = [
            route("0.0.0.0/0", 2, Some("192.0.2.1")),
            route("192.0.2.0/24", 2, None),
            route("198.51.100.0/24", 2, Some("192.0.2.254")),
            route("198.51.100.7/32", 3, None),
            route("198.51.100.8/32", 7, None),
            ours,
            nowhere,
        ];
        let routes = messages
            .iter()
            .filter_map(|message| ForeignRoute::read(message, |index| index == 7));
        let routes: Vec<_> = routes.collect();
        let longest = |address: &str| {
            let route = ForeignRoute::longest(&routes, ip(address))?;
            Some((route.prefix.to_string(), route.has_gateway))
        };
        let range = Some(("198.51.100.0/24".to_owned(), true));
        assert_eq!(
            longest("198.51.100.7"),
            Some(("198.51.100.7/32".to_owned(), false))
        );
        for address in ["198.51.100.8", "198.51.100.9", "198.51.100.10"] {
            assert_eq!(longest(address), range, "{address}");
        }
        assert_eq!(longest("192.0.2.9"), Some(("192.0.2.0/24".to_owned(), false)));
        assert_eq!(longest("203.0.113.1"), None);
    }

    #[test]
    fn an_entry_shows_whether_a_host_replied() {
        let entry = |state, mac: Option<[u8; 6]>| {
            let mut message = NeighbourMessage::default();
            message.header.state = state;
            message.header.ifindex = 2;
            let address = NeighbourAddress::Inet([192, 0, 2, 9].into());
            message.attributes = vec![NeighbourAttribute::Destination(address)];
            let mac = mac.map(|mac| NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
            message.attributes.extend(mac);
            Neighbour::read(&message).map(|entry| (entry.address, entry.mac))
        };
        let mac = Some([2, 0, 0, 0, 0, 9]);
        for state in [
            NeighbourState::Reachable,
            NeighbourState::Stale,
            NeighbourState::Permanent,
        ] {
            assert_eq!(entry(state, mac), Some((ip("192.0.2.9"), mac)), "{state:?}");
            assert_eq!(entry(state, None), None, "no Ethernet");
        }
        assert_eq!(entry(NeighbourState::Failed, None), Some((ip("192.0.2.9"), None)));
        assert_eq!(entry(NeighbourState::Incomplete, None), None);
    }
}
