//! The decisions: what becomes of a packet or of a socket's peer.
//!
//! [`Tables`] is everything a decision may ask. One module holds each decision:
//!
//! - [`admission`]: who may come by an entry; [`tunnel`]: by the port of the nodes' tunnel; [`sender`]: out
//!   of a pod, [`offload`]: with a checksum that the NIC writes.
//! - [`packet`]: packets that enter the node's part of the network, `elsewhere` those to no frontend;
//!   [`egress`]: packets that leave it.
//! - [`socket`]: the socket hooks.
//! - [`select`]: which backend; [`host_port`]: which pod, by a port of the node.
//! - `translate`: how a new flow is translated; `conntrack`: how flows are remembered, and how they end.
//! - `local_socket`: what sockets of the node send from ports of masqueraded flows.
//! - [`neighbour`]: which packets may ask for a neighbour; [`limit`]: which go through a limiter
//!   first.
//! - `fragment`: the ports of later fragments; `related`: ICMP errors; [`gateway`]: what a pod's gateway
//!   replies.
//! - [`local`]: packets that go straight into another pod.

pub mod admission;
pub mod conntrack;
pub mod decision;
pub mod egress;
mod elsewhere;
mod flow_state;
pub mod fragment;
pub mod gateway;
pub mod host_port;
pub mod limit;
pub mod local;
mod local_socket;
pub mod neighbour;
pub mod offload;
pub mod packet;
mod related;
pub mod select;
pub mod sender;
pub mod socket;
mod translate;
pub mod tunnel;

pub use conntrack::settle;
pub use egress::note_direct;
pub use host_port::choose as choose_host_port;
pub use translate::{prepare, try_port};

use self::decision::Entry;
use self::select::Selected;
use crate::maps::{
    AddressFlags, Affinity, AffinityKey, Backend, Config, Datagram, FirstFragment, Flow, FlowKey,
    FragmentKey, FragmentPorts, Frontend, FrontendKey, HostPort, HostPortKey, Pod, PodLink, RangeFlags,
    Reason, Slot, SocketKey, SocketPeer,
};
use crate::packet::{Headers, Packet, parse_into};
use crate::{Ip, Port};

/// The tables as a decision sees them.
///
/// Every look-up gives a copy: what lies in a map may change at any time.
pub trait Tables {
    /// What is known of the node.
    fn config(&self) -> Option<&Config>;
    /// The frontend a client addresses.
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend>;
    /// One slot of a slice.
    fn slot(&self, index: u32) -> Option<Slot>;
    /// A backend by id.
    fn backend(&self, id: u32) -> Option<Backend>;
    /// What is known of an address; no flags for a strange one.
    fn address(&self, address: &Ip) -> AddressFlags;
    /// What is known of the range that an address lies in; no flags for a strange one.
    fn range(&self, address: &Ip) -> RangeFlags;
    /// Whether the address is a pod's, on whichever node of this cluster.
    fn is_pod(&self, address: &Ip) -> bool {
        self.range(address).has(RangeFlags::PODS)
    }
    /// Whether one of the plugin's tables ever held something, see [`crate::maps::InUse`].
    fn is_in_use(&self, table: u32) -> bool;
    /// The pod of this node that has an address, if our plugin made it.
    fn pod(&self, address: &Ip) -> Option<Pod>;
    /// What a pod may send by an interface, if our plugin made that.
    fn pod_link(&self, interface: u32) -> Option<PodLink>;
    /// Where a port of the node's leads to.
    fn host_port(&self, key: &HostPortKey) -> Option<HostPort>;
    /// Whether a client may use frontends of a service that are open to some ranges only.
    fn is_allowed(&self, service: u32, client: &Ip) -> bool;
    /// The backend a client had last.
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity>;
    /// Remembers the backend of a client.
    fn replace_affinity(&self, key: &AffinityKey, affinity: &Affinity);
    /// Copies the conntrack entry of a packet, a confirmed one if there is one; false if there is none.
    fn flow(&self, key: &FlowKey, into: &mut Flow) -> bool;
    /// Whether there is a conntrack entry.
    fn has_flow(&self, key: &FlowKey) -> bool;
    /// Remembers a flow that begins unless there is an entry with this key; false if there is.
    fn insert_flow(&self, key: &FlowKey, flow: &Flow) -> bool;
    /// Remembers a flow in the table that its state belongs to, over an entry with this key; false if there is no room.
    fn replace_flow(&self, key: &FlowKey, flow: &Flow) -> bool;
    /// Notes in an entry that it is in use, how far its flow is and, unless they are 0, [`Flow::sequence`]
    /// and [`Flow::fin`]; false if there is no entry.
    fn touch_flow(&self, key: &FlowKey, now: u32, state: u8, sequence: u32, fin: u32) -> bool;
    /// Forgets an entry, in the table that evicts nothing or in `NEW_FLOWS`.
    fn forget_flow(&self, key: &FlowKey, protected: bool);
    /// Does what a packet's notes have left; see [`settle`]. Nothing to implement, but a verifier may want it as a function of
    /// its own.
    fn settle(&self, work: &mut Work)
    where
        Self: Sized,
    {
        if let Some(config) = self.config() {
            settle(self, config, work);
        }
    }
    /// Counts one more protected flow of a client; false, and nothing is counted, if its share is used up.
    fn take_share(&self, config: &Config, client: &Ip, protocol: u8) -> bool;
    /// Counts one less.
    fn return_share(&self, client: &Ip, protocol: u8);
    /// Counts one more flow of a client that holds a source port and waits for a reply; false, and nothing is counted, if
    /// that is one too many.
    fn note_unanswered(&self, config: &Config, client: &Ip) -> bool;
    /// Counts one less.
    fn note_answered(&self, client: &Ip);
    /// Whether the node would have to look for the neighbour that the packet goes to, as it is or translated.
    fn lacks_neighbour(&self, work: &Work, is_translated: bool) -> bool;
    /// Counts one more packet that makes the node look for a neighbour, under the index of the pod's
    /// interface or a service port; false, and nothing is counted, if that is one too many.
    fn note_neighbour(&self, config: &Config, key: u32) -> bool;
    /// The ports of a datagram whose first fragment was seen; none if its place holds another datagram.
    fn fragment(&self, key: &FragmentKey, datagram: &Datagram) -> Option<FragmentPorts>;
    /// Remembers a first fragment for the later ones, over the datagram that its place holds.
    fn replace_fragment(&self, key: &FragmentKey, first: &FirstFragment);
    /// Fills in the ports of a later fragment; see [`fragment::fill_in`]. As above.
    fn complete_fragment(&self, work: &mut Work, passage: fragment::Passage)
    where
        Self: Sized,
    {
        fragment::fill_in(self, work, passage);
    }
    /// Notes the ports of a first fragment; see [`fragment::keep`]. As above.
    fn note_fragment(&self, work: &mut Work, passage: fragment::Passage)
    where
        Self: Sized,
    {
        fragment::keep(self, work, passage);
    }
    /// Whether a packet is admitted; see [`admission::admit`]. As above.
    fn admit<P: Packet + ?Sized>(
        &self,
        config: &Config,
        packet: &P,
        work: &mut Work,
        entry: Entry,
    ) -> Option<Reason>
    where
        Self: Sized,
    {
        admission::admit(self, config, packet, work, entry)
    }
    /// Writes a packet into its flow's entries; see [`conntrack::note`]. As above.
    fn note(&self, work: &mut Work) -> u32
    where
        Self: Sized,
    {
        conntrack::note(self, work)
    }
    /// Whether an ICMP error is about a flow that is translated here; see [`packet::is_error_of_a_flow`]. As
    /// above.
    fn is_error_of_a_flow<P: Packet + ?Sized>(&self, work: &mut Work, packet: &P) -> bool
    where
        Self: Sized,
    {
        packet::is_error_of_a_flow(self, work, packet)
    }
    /// Whether a flow to the backend that was selected may begin; see [`packet::may_begin`]. As above.
    fn may_begin(&self, config: &Config, work: &mut Work, entry: Entry) -> Result<(), Reason>
    where
        Self: Sized,
    {
        packet::may_begin(self, config, work, entry)
    }
    /// Prepares a new flow; see [`prepare`]. As above.
    fn prepare(&self, config: &Config, work: &mut Work, entry: Entry) -> Result<(), Reason>
    where
        Self: Sized,
    {
        prepare(self, config, work, entry)
    }
    /// Whether a pod of this node has an address, if our plugin made it.
    fn is_own_pod(&self, address: &Ip) -> bool {
        self.pod(address).is_some()
    }
    /// Selects the pod that a packet goes to by a host port; see [`choose_host_port`]. As above.
    fn choose_host_port(&self, config: &Config, work: &mut Work) -> bool
    where
        Self: Sized,
    {
        choose_host_port(self, config, work)
    }
    /// Notes a flow from outside to a pod itself; see [`note_direct`]. As above.
    fn note_direct(&self, config: &Config, work: &mut Work)
    where
        Self: Sized,
    {
        note_direct(self, config, work);
    }
    /// Whether the route to the packet's source leads out by this interface.
    fn leads_back(&self, headers: &Headers, interface: u32) -> bool;
    /// The interface that the route to where the flow goes leads out by; 0 if there is none.
    fn way_out(&self, work: &Work) -> u32;
    /// Whether packets with this key would find a socket of the node's.
    fn has_own_socket(&self, key: &FlowKey) -> bool;
    /// Whether packets with this key belong to a connected socket of the node's.
    fn has_own_connection(&self, key: &FlowKey) -> bool;
    /// Tries a source port for a new flow; see [`try_port`]. As above.
    fn try_port(&self, config: &Config, work: &mut Work, attempt: u32) -> bool
    where
        Self: Sized,
    {
        try_port(self, config, work, attempt)
    }
    /// The translation of an unconnected socket's peer.
    fn socket_peer(&self, key: &SocketKey) -> Option<SocketPeer>;
    /// Remembers the translation of an unconnected socket's peer.
    fn replace_socket_peer(&self, key: &SocketKey, peer: &SocketPeer);
    /// From now on, pods answer clients whose requests the uplink translated without masquerading.
    fn pods_answer_outside(&self);
    /// From now on, the node itself answers clients whose requests the uplink translated without masquerading.
    fn node_answers_outside(&self);
    /// Nanoseconds since boot.
    fn clock(&self) -> u64;
    /// Coarse time: ticks of about one second (2^30 ns) since boot.
    fn now(&self) -> u32 {
        (self.clock() >> 30) as u32
    }
    /// A random number.
    fn random(&self) -> u32;
}

/// The words of an `ICMPv6` error that are summed up: pseudo-header, message, and what it carries.
pub const SCRATCH_WORDS: usize = 27;

/// What a decision about a packet works on.
///
/// A kernel program has 512 bytes of stack, which a few IPv6 addresses fill. The programs therefore keep this in a
/// per-CPU map; every field is written before it is read.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// The packet's headers, from the parser.
    pub headers: Headers,
    /// The packet's conntrack key.
    pub key: FlowKey,
    /// What the packet becomes, after [`packet::Decision::Translate`].
    pub flow: Flow,
    /// The packet that an ICMP error carries, after [`packet::Decision::TranslateError`].
    pub carried: Headers,
    /// The source that such an error gets.
    pub error_source: Ip,
    /// The next hop that the routing table named, as words of an address of `next_hop_family`.
    pub next_hop: [u32; 4],
    /// `AF_INET` or `AF_INET6`; not always the packet's family (RFC 8950).
    pub next_hop_family: u32,
    /// The size of the link that the packet turned out to be too big for.
    pub mtu: u32,
    /// Room for whoever acts on the decision, to sum up a checksum.
    pub scratch: [u32; SCRATCH_WORDS],
    /// The pod that the packet goes straight to, after [`local::shorten`].
    pub receiver: Pod,
    /// The cookie of the socket that sends the packet, where it is known: an unconnected one may be translated by its hooks
    /// too. Else 0.
    pub socket: u64,
    /// The interface that the packet is on.
    pub interface: u32,
    /// The interface that a packet on its way out has arrived by; 0 if the node itself sends it.
    pub arrived_by: u32,
    /// The interface by which a flow that begins leaves, where its source depends on that.
    pub out: u32,
    /// Whether the frame goes to all hosts of its link, or to a group of them.
    pub is_for_group: u32,
    /// Whether the packet is one that the nodes' tunnel may take, see [`tunnel`].
    pub is_for_tunnel: u32,
    /// What [`settle`] has to do: [`Self::MOVES`] with the flow's old state, [`Self::ANSWERED`], or nothing.
    pub unsettled: u32,
    selected: Selected,
    reply_key: FlowKey,
    reply: Flow,
    found: Flow,
    /// The place of the datagram that the packet is a fragment of.
    fragment_key: FragmentKey,
    /// That datagram.
    first_fragment: FirstFragment,
    /// Of the source ports that were tried, the one whose flow has been over for the longest, and how long that is.
    over: Port,
    reserved: [u8; 2],
    over_for: u32,
    /// The side that begins the flow, as shares are counted.
    client: Ip,
    /// Whether the client's own source port may be kept.
    keeps_port: u32,
}

impl Work {
    /// Where the flow that begins goes.
    #[inline(always)]
    pub const fn destination(&self) -> &Ip {
        &self.selected.backend.address
    }

    /// The flow has to move to another table, from that of the state in the lowest byte.
    pub const MOVES: u32 = 1 << 8;
    /// The first reply came to a flow with a source port of the node's.
    pub const ANSWERED: u32 = 1 << 9;

    /// The work on a parsed packet.
    pub const fn new(headers: Headers) -> Self {
        let key = headers.flow_key();
        Self {
            headers,
            key,
            flow: Flow::EMPTY,
            carried: headers,
            error_source: Ip::UNSPECIFIED,
            next_hop: [0; 4],
            next_hop_family: 0,
            mtu: 0,
            scratch: [0; SCRATCH_WORDS],
            receiver: Pod::EMPTY,
            socket: 0,
            interface: 0,
            arrived_by: 0,
            out: 0,
            is_for_group: 0,
            is_for_tunnel: 0,
            unsettled: 0,
            selected: Selected::NONE,
            reply_key: key,
            reply: Flow::EMPTY,
            found: Flow::EMPTY,
            fragment_key: FragmentKey::EMPTY,
            first_fragment: FirstFragment::EMPTY,
            over: Port::new(0),
            reserved: [0; 2],
            over_for: 0,
            client: Ip::UNSPECIFIED,
            keeps_port: 0,
        }
    }

    /// Takes up another packet, whose network header starts at `l3`.
    #[inline(always)]
    pub fn start<P: Packet + ?Sized>(&mut self, packet: &P, ether_type: u16, l3: u32) -> Result<(), Reason> {
        self.is_for_tunnel = 0;
        parse_into(packet, ether_type, l3, &mut self.headers)?;
        self.key = self.headers.flow_key();
        self.socket = 0;
        Ok(())
    }
}

#[cfg(test)]
mod packet_tests;
#[cfg(test)]
mod socket_tests;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
