//! The configuration of the node that the programs need: the one element of the map `CONFIG`.

use ipnet::IpNet;
use proxy_common::maps::{
    Config, ConfigFlags, Lifetime, MAX_ON_LINK_RANGES, MAX_OWN_RANGES, MAX_SERVICE_RANGES, UplinkAddresses,
};
use proxy_common::{Ip, Port};

use crate::agent::ranges::range_words;
use crate::bpf::Datapath;
use crate::config::{AgentOptions, Conntrack, GoDuration, HostRouting, RoutingMode, SocketLb};
use crate::network::NodeAddresses;
use crate::network::on_link::fit;
use crate::network::pods::Plan;

/// The configuration of the node that the programs need.
pub struct NodeConfiguration<'a> {
    /// The cookie of the node's network namespace.
    pub netns: u64,
    /// The index of our own device.
    pub device: Option<u32>,
    /// The hardware address of our own device; `None` for a new device whose address is not known yet.
    pub mac: Option<[u8; 6]>,
    /// The node's addresses.
    pub addresses: &'a NodeAddresses,
    /// The plan of the pod network.
    pub pods: &'a Plan,
    /// The ranges of virtual addresses.
    pub service_cidrs: &'a [IpNet],
    /// Bits of [`ConfigFlags`] that follow from the node's links, settings and virtual addresses.
    pub flags: u32,
    /// The ranges of this node's pods, if our plugin makes them: with another plugin they may be used
    /// anywhere.
    pub own_pods: Vec<IpNet>,
    /// For each family, a range that contains all ranges of pods.
    pub around_pods: [Option<IpNet>; 2],
    /// The index of the tunnel's device.
    pub tunnel: Option<u32>,
    /// Interfaces with strict reverse-path filtering.
    pub strict_interfaces: &'a [u32],
    /// Uplinks whose packets have no Ethernet header.
    pub headerless: &'a [u32],
}

impl NodeConfiguration<'_> {
    /// Writes the configuration into the map, if it has changed.
    pub fn write(&self, options: &AgentOptions, datapath: &Datapath) {
        let old = datapath.config.get(0).unwrap_or_default();
        let config = self.config(options, datapath, &old);
        if config != old {
            datapath.config.set(0, &config);
        }
    }

    fn config(&self, options: &AgentOptions, datapath: &Datapath, old: &Config) -> Config {
        let configuration = &options.configuration;
        let ports = configuration.masquerade_ports;
        let tunnel = |v4: bool| self.pods.tunnel_address(v4).map(Ip::from).unwrap_or_default();
        let mut config = Config {
            node_netns: self.netns,
            flags: self.flags(options),
            // Without our own device the programs drop the packets that would go there, and serve all others.
            host_device: self.device.unwrap_or_default(),
            // This function runs again once the address is known.
            host_mac: self.mac.unwrap_or(old.host_mac),
            masquerade_first: ports.first(),
            masquerade_count: ports.count(),
            pods_reply_outside: old.pods_reply_outside,
            node_replies_outside: old.node_replies_outside,
            lifetimes: lifetimes(&configuration.conntrack),
            node_v4: self.addresses.primary_v4.map(Ip::from).unwrap_or_default(),
            node_v6: self.addresses.primary_v6.map(Ip::from).unwrap_or_default(),
            tunnel_v4: tunnel(true),
            tunnel_v6: tunnel(false),
            tunnel_port: options.tunnel_port().map(Port::new).unwrap_or_default(),
            tunnel_device: self.tunnel.unwrap_or_default(),
            connection_share: share(datapath.flows.capacity()),
            stream_share: share(datapath.streams.capacity()),
            neighbour_share: NEIGHBOUR_SHARE,
            // A flow without a reply releases its port after two ticks, so a client may hold half of the
            // ports.
            unreplied_share: (u32::from(ports.count()) / 2).max(1),
            ..Config::default()
        };
        for (index, range) in self.own_pods.iter().take(MAX_OWN_RANGES).enumerate() {
            (config.own_range[index], config.own_mask[index]) = range_words(range);
        }
        for (index, range) in self.around_pods.iter().enumerate() {
            if let Some(range) = range {
                (config.around_pods[index], config.around_pods_mask[index]) = range_words(range);
            }
        }
        let broadcasts = self.addresses.broadcasts.iter();
        for (to, address) in config.broadcasts.iter_mut().zip(broadcasts) {
            *to = Ip::from(*address).v4_word();
        }
        let on_link = fit(&self.addresses.on_link, MAX_ON_LINK_RANGES);
        for (index, range) in on_link.iter().take(MAX_ON_LINK_RANGES).enumerate() {
            (config.on_link_range[index], config.on_link_mask[index]) = range_words(range);
        }
        for (to, uplink) in config.uplinks.iter_mut().zip(&self.addresses.elsewhere) {
            *to = UplinkAddresses {
                interface: uplink.interface,
                v4: uplink.v4.map_or(0, |ip| Ip::from(ip).v4_word()),
                v6: uplink.v6.map(Ip::from).unwrap_or_default(),
            };
        }
        for (to, interface) in config.strict_interfaces.iter_mut().zip(self.strict_interfaces) {
            *to = *interface;
        }
        for (to, interface) in config.headerless.iter_mut().zip(self.headerless) {
            *to = *interface;
        }
        for (index, range) in self.service_cidrs.iter().take(MAX_SERVICE_RANGES).enumerate() {
            let (network, mask) = range_words(range);
            config.service_range[index] = network;
            config.service_mask[index] = mask;
        }
        config
    }

    fn flags(&self, options: &AgentOptions) -> u32 {
        let configuration = &options.configuration;
        let mut flags = self.flags;
        flags |= match configuration.socket_lb {
            SocketLb::All => ConfigFlags::SOCKETS_OF_NODE | ConfigFlags::SOCKETS_OF_PODS,
            SocketLb::Host => ConfigFlags::SOCKETS_OF_NODE,
            SocketLb::Off => 0,
        };
        let several = |v4: bool| {
            let all = self.addresses.all.iter();
            all.filter(|address| address.is_ipv4() == v4).count() > 1
        };
        flags |= of_conditions([
            (
                several(true) || several(false) || !self.addresses.local.is_empty(),
                ConfigFlags::MORE_NODE_ADDRESSES,
            ),
            (!self.addresses.elsewhere.is_empty(), ConfigFlags::MORE_UPLINKS),
            (
                configuration.routing_mode == RoutingMode::Vxlan,
                ConfigFlags::TUNNEL_ONLY,
            ),
            (configuration.masquerade_all, ConfigFlags::MASQUERADE_ALL),
            (configuration.protect_node_ports, ConfigFlags::PROTECT_NODE_PORTS),
            (options.masquerades_pods(), ConfigFlags::MASQUERADE_PODS),
            (
                configuration.host_routing == HostRouting::Redirect,
                ConfigFlags::REDIRECT_TO_PODS,
            ),
        ]);
        flags
    }
}

/// The bits whose conditions hold.
pub fn of_conditions<const N: usize>(conditions: [(bool, u32); N]) -> u32 {
    let holding = conditions.into_iter().filter(|(holds, _)| *holds);
    holding.fold(0, |flags, (_, flag)| flags | flag)
}

/// The limit of packets to unknown neighbours, for one pod, or for clients from outside to one service port.
/// Each may send half of it in each second. A neighbour entry stays for 8 seconds, so each fills an eighth of
/// the kernel's table (`net.ipv4.neigh.default.gc_thresh3`) at the most.
const NEIGHBOUR_SHARE: u32 = 32;

/// A client's share of a table that evicts no entry: a quarter of the flows. Each flow has two entries.
const fn share(entries: u32) -> u32 {
    let share = entries / 2 / 4;
    if share == 0 { 1 } else { share }
}

/// The lifetimes of flows, in ticks. A tick that has begun counts in full.
fn lifetimes(conntrack: &Conntrack) -> [u32; Lifetime::COUNT] {
    // The timeouts of netfilter for these states (`nf_conntrack_tcp_timeout_syn_sent` and `_time_wait`).
    const HANDSHAKE: GoDuration = GoDuration::seconds(120);
    const CLOSED: GoDuration = GoDuration::seconds(120);
    let mut lifetimes = [0; Lifetime::COUNT];
    for (lifetime, duration) in [
        (Lifetime::Opening, HANDSHAKE),
        (Lifetime::Open, conntrack.tcp_established_timeout),
        (Lifetime::Closing, conntrack.tcp_close_wait_timeout),
        (Lifetime::Closed, CLOSED),
        (Lifetime::Datagram, conntrack.udp_timeout),
        (Lifetime::Stream, conntrack.udp_stream_timeout),
    ] {
        let ticks = (duration.0.as_nanos() >> 30) + 1;
        lifetimes[lifetime as usize] = u32::try_from(ticks).unwrap_or(u32::MAX);
    }
    lifetimes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_of_flows_follow_the_configuration() {
        let conntrack = Conntrack {
            tcp_established_timeout: GoDuration::seconds(10_000),
            tcp_close_wait_timeout: GoDuration::seconds(2000),
            udp_timeout: GoDuration::seconds(50),
            udp_stream_timeout: GoDuration::seconds(400),
        };
        let lifetimes = lifetimes(&conntrack);
        for (lifetime, seconds) in [
            (Lifetime::Open, 10_000_u64),
            (Lifetime::Closing, 2000),
            (Lifetime::Datagram, 50),
            (Lifetime::Stream, 400),
        ] {
            // A tick is 2^30 ns, and a tick that has begun counts in full.
            let longest = u64::from(lifetimes[lifetime as usize]) << 30;
            let expected = seconds * 1_000_000_000;
            assert!(
                (expected..expected + (1 << 31)).contains(&longest),
                "{lifetime:?}: {longest}"
            );
        }
    }
}
