//! The decisions of the socket hooks, by their own code over the live maps.

use std::cell::Cell;
use std::hash::{BuildHasher as _, RandomState};
use std::net::SocketAddr;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use proxy_common::decide::socket::{Owner, Sender, SocketDecision, connect, send};
use proxy_common::decide::{PacketContext, host_port};
use proxy_common::maps::{
    AddressFlags, Affinity, AffinityKey, Backend, Config, Datagram, FirstFragment, Flow, FlowKey,
    FragmentKey, FragmentPorts, Frontend, FrontendKey, HostPort, HostPortKey, Pod, PodLink, RangeFlags, Slot,
    SocketKey, SocketPeer, SourceRangeKey,
};
use proxy_common::packet::Headers;
use proxy_common::{Ip, Port, Tables};

use super::{Agent, Sample};
use crate::bpf::Datapath;
use crate::control::{Protocol, TraceRequest, Verdict};

/// Whether the hooks decide about sockets of this protocol at all.
pub fn applies(request: &TraceRequest) -> bool {
    matches!(request.protocol, Protocol::Tcp | Protocol::Udp)
}

/// Runs the hooks once a sample, and the packet path if they leave the socket alone.
pub fn samples(
    agent: &Agent,
    request: &TraceRequest,
    steps: &mut Vec<String>,
) -> Result<Vec<Sample>, String> {
    let tables = KernelMaps::new(agent.programmer.store());
    let (address, port) = (Ip::from(request.to.ip()), Port::new(request.to.port()));
    // A socket that has sent no packet yet.
    let sender = Sender {
        cookie: 0,
        port: Port::new(request.source_port.unwrap_or(0)),
    };
    let decide = || match request.protocol {
        Protocol::Udp => send(&tables, &tables.config, &sender, address, port),
        _ => connect(
            &tables,
            &tables.config,
            Owner::Node,
            address,
            port,
            request.protocol.number(),
        ),
    };
    let hook = if request.protocol == Protocol::Udp {
        "sendmsg (unconnected sockets)"
    } else {
        "connect"
    };
    let mut samples = Vec::new();
    for _ in 0..request.samples {
        match decide() {
            SocketDecision::Translate(selected) => {
                let backend = selected.backend;
                samples.push(Sample {
                    verdict: Verdict::Forward,
                    reason: "The socket is given a backend in place of the virtual address.".to_owned(),
                    backend: Some((
                        SocketAddr::new(backend.address.into(), backend.port.number()),
                        false,
                    )),
                });
            }
            SocketDecision::Refuse => samples.push(Sample {
                verdict: Verdict::Reject,
                reason: "The call fails with ECONNREFUSED, because the service has no usable endpoint."
                    .to_owned(),
                backend: None,
            }),
            SocketDecision::Leave(_) => {
                steps.push(format!("the {hook} hook leaves the socket alone"));
                return super::from_node(agent, request, steps);
            }
        }
    }
    steps.push(format!(
        "the {hook} hook decides, with a random choice for each socket"
    ));
    Ok(samples)
}

/// The pod and the port that the destination leads to, if it is a host port of this node.
pub fn host_port(agent: &Agent, request: &TraceRequest) -> Option<SocketAddr> {
    let tables = KernelMaps::new(agent.programmer.store());
    let (address, port) = (Ip::from(request.to.ip()), Port::new(request.to.port()));
    let found = host_port::find(&tables, &tables.config, &address, port, request.protocol.number())?;
    Some(SocketAddr::new(
        found.backend.address.into(),
        found.backend.port.number(),
    ))
}

/// The live maps, read only.
struct KernelMaps<'a> {
    datapath: &'a Datapath,
    config: Config,
    random: Cell<u64>,
}

impl<'a> KernelMaps<'a> {
    fn new(datapath: &'a Datapath) -> Self {
        let config = datapath.config.get(0).unwrap_or_default();
        Self {
            datapath,
            config,
            random: Cell::new(RandomState::new().hash_one(0_u8) | 1),
        }
    }
}

impl Tables for KernelMaps<'_> {
    fn config(&self) -> Option<&Config> {
        Some(&self.config)
    }

    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.datapath.frontends.get(key).ok().flatten()
    }

    fn slot(&self, index: u32) -> Option<Slot> {
        self.datapath.slots.get(index)
    }

    fn backend(&self, id: u32) -> Option<Backend> {
        self.datapath.backends.get(id)
    }

    fn address(&self, address: &Ip) -> AddressFlags {
        AddressFlags(
            self.datapath
                .addresses
                .get(address)
                .ok()
                .flatten()
                .unwrap_or_default(),
        )
    }

    /// The hooks look up no ranges and no pods.
    fn range(&self, _address: &Ip) -> RangeFlags {
        RangeFlags::default()
    }

    fn is_in_use(&self, table: u32) -> bool {
        self.datapath.is_in_use(table)
    }

    fn pod(&self, _address: &Ip) -> Option<Pod> {
        None
    }

    fn pod_link(&self, _interface: u32) -> Option<PodLink> {
        None
    }

    fn host_port(&self, key: &HostPortKey) -> Option<HostPort> {
        self.datapath.host_ports.get(key).ok().flatten()
    }

    fn is_allowed(&self, service: u32, client: &Ip) -> bool {
        let key = SourceRangeKey {
            prefix_len: 160,
            service,
            address: *client,
        };
        self.datapath.source_ranges.get(&key).ok().flatten().is_some()
    }

    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.datapath.affinity.get(key).ok().flatten()
    }

    fn replace_affinity(&self, _key: &AffinityKey, _affinity: &Affinity) {}

    /// The hooks read no flow.
    fn flow(&self, _key: &FlowKey, _into: &mut Flow) -> bool {
        false
    }

    fn has_flow(&self, key: &FlowKey) -> bool {
        [
            &self.datapath.flows,
            &self.datapath.streams,
            &self.datapath.new_flows,
        ]
        .iter()
        .any(|flows| flows.get(key).ok().flatten().is_some())
    }

    fn insert_flow(&self, _key: &FlowKey, _flow: &Flow) -> bool {
        true
    }

    fn replace_flow(&self, _key: &FlowKey, _flow: &Flow) -> bool {
        true
    }

    fn touch_flow(&self, _key: &FlowKey, _now: u32, _state: u8, _sequence: u32, _fin: u32) -> bool {
        true
    }

    fn forget_flow(&self, _key: &FlowKey, _protected: bool) {}

    fn take_share(&self, _config: &Config, _client: &Ip, _protocol: u8) -> bool {
        true
    }

    fn return_share(&self, _client: &Ip, _protocol: u8) {}

    fn note_unreplied(&self, _config: &Config, _client: &Ip) -> bool {
        true
    }

    fn note_replied(&self, _client: &Ip) {}

    /// The packets of a socket come by no interface.
    fn passes_reverse_path(&self, _headers: &Headers, _interface: u32) -> bool {
        true
    }

    fn output_device(&self, _ctx: &PacketContext) -> u32 {
        0
    }

    fn lacks_neighbour(&self, _ctx: &PacketContext, _is_translated: bool) -> bool {
        false
    }

    fn note_neighbour(&self, _config: &Config, _interface: u32) -> bool {
        true
    }

    fn fragment(&self, _key: &FragmentKey, _datagram: &Datagram) -> Option<FragmentPorts> {
        None
    }

    fn replace_fragment(&self, _key: &FragmentKey, _first: &FirstFragment) {}

    /// Only the packet path asks this.
    fn has_own_connection(&self, _key: &FlowKey) -> bool {
        false
    }

    /// The hooks change no source.
    fn has_own_socket(&self, _key: &FlowKey) -> bool {
        false
    }

    /// A socket that has sent no packet yet.
    fn socket_peer(&self, _key: &SocketKey) -> Option<SocketPeer> {
        None
    }

    fn replace_socket_peer(&self, _key: &SocketKey, _peer: &SocketPeer) {}

    fn pods_reply_outside(&self) {}

    fn node_replies_outside(&self) {}

    fn clock(&self) -> u64 {
        // The clock of `bpf_ktime_get_ns`.
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
        u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
    }

    fn random(&self) -> u32 {
        // xorshift64*: Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled"
        // (2016).
        let mut state = self.random.get();
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        self.random.set(state);
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }
}
