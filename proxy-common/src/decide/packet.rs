//! The decision for one packet, at each place where packets meet a program.

use super::conntrack::{advance, age, find, forget};
pub use super::decision::{Decision, Entry};
use super::elsewhere::elsewhere;
use super::fragment::Passage;
use super::select::select;
use super::translate::begin;
use super::{Tables, Work, admission, fragment, local_socket, related, sender, tunnel};
use crate::Ip;
use crate::flow_hash::flow_hash;
use crate::maps::{
    Config, ConfigFlags, Deliver, Flow, FlowKey, FlowState, Frontend, FrontendFlags, FrontendKey, Reason,
    Scope,
};
use crate::packet::{Headers, Packet, parse_carried_into};
use crate::protocol;

impl Headers {
    /// The conntrack key of the packet.
    #[inline(always)]
    pub const fn flow_key(&self) -> FlowKey {
        FlowKey::new(self.src, self.dst, self.sport, self.dport, self.protocol)
    }

    #[inline(always)]
    const fn frontend_key(&self) -> FrontendKey {
        FrontendKey::new(self.dst, self.dport, self.protocol)
    }
}

/// Decides about a packet that enters by `entry`.
#[inline(always)]
pub fn entering<T: Tables, P: Packet + ?Sized>(
    tables: &T,
    work: &mut Work,
    packet: &P,
    entry: Entry,
) -> Decision {
    let Some(config) = tables.config() else {
        return Decision::Pass(Reason::NotOurs);
    };
    if let Some(reason) = tables.admit(config, packet, work, entry) {
        if reason.is_drop() {
            return Decision::Drop(reason);
        }
        // The stack takes what a frame to a group carries.
        if work.headers.is_icmp_error() {
            tables.is_error_of_a_flow(work, packet);
            if let Some(refused) = refused_error(tables, config, work, entry) {
                return Decision::Drop(refused);
            }
        }
        return Decision::Pass(reason);
    }
    if admission::is_against_route(tables, config, work, entry) {
        return Decision::Drop(Reason::ReversePath);
    }
    let is_of_a_flow = work.headers.is_icmp_error() && tables.is_error_of_a_flow(work, packet);
    if work.headers.is_icmp_error() {
        if let Some(reason) = refused_error(tables, config, work, entry) {
            return Decision::Drop(reason);
        }
        if is_of_a_flow && !is_for_later(&work.flow, &work.reply_key, entry) {
            return Decision::TranslateError;
        }
    }
    fragment::complete(tables, work, Passage::Entering);
    // Node ports on loopback addresses are for the socket hooks: no such packet belongs on a wire.
    if !work.headers.has_ports || work.headers.dst.is_loopback() {
        return elsewhere(tables, config, work, entry);
    }
    let key = work.headers.frontend_key();
    let new = if let Some(frontend) = tables.frontend(&key) {
        to_frontend(tables, config, work, entry, key, frontend)
    } else if tables.choose_host_port(config, work) {
        to_host_port(tables, config, work, entry)
    } else {
        return elsewhere(tables, config, work, entry);
    };
    let decision = match new {
        Ok(_) if belongs_to_node(tables, config, work, entry) => Decision::Pass(Reason::NotOurs),
        Ok(reason) => match tables.may_begin(config, work, entry) {
            Ok(()) => begin(tables, config, work, entry, reason),
            Err(reason) => Decision::Drop(reason),
        },
        Err(decision) => decision,
    };
    if let Decision::Translate(_) = decision {
        fragment::note(tables, work, Passage::Entering);
    }
    decision
}

/// Whether a flow to the backend that was selected may begin.
///
/// # Errors
/// The reason why it may not, and is dropped.
#[inline(always)]
pub fn may_begin<T: Tables>(tables: &T, config: &Config, work: &Work, entry: Entry) -> Result<(), Reason> {
    if admission::is_astray(tables, work, entry) {
        return Err(Reason::ReversePath);
    }
    let backend = &work.selected.backend;
    // The agent refuses such endpoints; with `route_localnet` the stack would take one for the node's own.
    if backend.address.is_loopback() {
        return Err(Reason::LoopbackDestination);
    }
    if tunnel::is_end(
        tables,
        config,
        &backend.address,
        backend.port,
        work.headers.protocol,
    ) {
        return Err(Reason::TunnelPort);
    }
    if admission::is_loop(tables, config, &work.headers, entry) {
        return Err(Reason::ReplyLoop);
    }
    if matches!(entry, Entry::Uplink) {
        let headers = &work.headers;
        // The replies would go from this node to the port of another one's tunnel.
        if headers.protocol == protocol::UDP
            && tunnel::is_port(config, headers.sport)
            && tables.address(&headers.src).is_peer()
        {
            return Err(Reason::TunnelPort);
        }
        // RFC 4291 §2.5.6: no router forwards it.
        if !headers.src.is_v4() && headers.src.is_link_local() && !tables.address(&backend.address).is_node()
        {
            return Err(Reason::ForgedSource);
        }
    }
    Ok(())
}

/// Whether a packet to a port of the node's is one of a connection that the node itself made from that port.
/// The connection was there first: a service or a host port with its port gets new connections only.
#[inline(always)]
fn belongs_to_node<T: Tables>(tables: &T, config: &Config, work: &Work, entry: Entry) -> bool {
    let headers = &work.headers;
    matches!(entry, Entry::Uplink | Entry::Pod)
        && !headers.is_opening()
        && (config.is_node_address(&headers.dst)
            || (config.has(ConfigFlags::MORE_NODE_ADDRESSES) && tables.address(&headers.dst).is_node()))
        && tables.has_own_connection(&work.key)
}

/// Decides about a packet on its way to a client that is a pod, or out of the node to one outside: it may be an answer
/// to a translated flow.
#[inline(always)]
pub fn leaving<T: Tables, P: Packet + ?Sized>(tables: &T, work: &mut Work, packet: &P) -> Decision {
    let Some(config) = tables.config() else {
        return Decision::Pass(Reason::NotOurs);
    };
    if work.headers.is_icmp_error() && tables.is_error_of_a_flow(work, packet) {
        return Decision::TranslateError;
    }
    fragment::complete(tables, work, Passage::Leaving);
    if answers(tables, config, work, Passage::Leaving) {
        return Decision::Translate(Reason::Reply);
    }
    if local_socket::may_clash(tables, config, work) {
        return local_socket::leaving(tables, config, work);
    }
    Decision::Pass(Reason::NotOurs)
}

/// Whether a packet that nothing stands before but its receiver answers to a translated flow; it then becomes what
/// [`Work::flow`] says.
#[inline(always)]
pub(super) fn answers<T: Tables>(tables: &T, config: &Config, work: &mut Work, passage: Passage) -> bool {
    let is_answer = work.headers.has_ports
        && find(tables, config, work)
        && work.flow.is_reply != 0
        && work.flow.backend != Flow::DIRECT;
    if is_answer {
        advance(tables, work);
        fragment::note(tables, work, passage);
    }
    is_answer
}

/// Whether an ICMP error is about a flow that is translated here.
#[inline(always)]
pub fn is_error_of_a_flow<T: Tables, P: Packet + ?Sized>(tables: &T, work: &mut Work, packet: &P) -> bool {
    // What is known of the flow and of the packet in the error after this is of this packet.
    work.flow.backend = 0;
    work.carried.src = Ip::UNSPECIFIED;
    work.carried.dst = Ip::UNSPECIFIED;
    if work.headers.is_fragment {
        return false;
    }
    parse_carried_into(packet, &work.headers, &mut work.carried).is_some()
        && related::find(tables, work)
        && work.flow.backend != Flow::DIRECT
}

/// Why an ICMP error is dropped, whether it is about a flow that is known here or not: the stack that
/// receives it acts upon it. [`is_error_of_a_flow`] comes before, which reads what the error carries.
#[inline(always)]
fn refused_error<T: Tables>(tables: &T, config: &Config, work: &Work, entry: Entry) -> Option<Reason> {
    match entry {
        Entry::Pod => (!may_report(tables, work)).then_some(Reason::ForgedSource),
        Entry::Uplink => tunnel::is_error(tables, config, work).then_some(Reason::TunnelSource),
        _ => None,
    }
}

/// Whether a pod may send the ICMP error: one about a packet to itself, in one piece. A pod that the
/// operator lets send from any address may be a router, and one of another plugin is that plugin's
/// business.
#[inline(always)]
fn may_report<T: Tables>(tables: &T, work: &Work) -> bool {
    work.headers.src.same(&work.carried.dst)
        || tables
            .pod_link(work.interface)
            .is_none_or(|link| sender::is_exempt(&link))
}

/// Decides about a packet to a frontend. If it begins a flow, the backend is selected then, and the reason is why.
#[inline(always)]
fn to_frontend<T: Tables>(
    tables: &T,
    config: &Config,
    work: &mut Work,
    entry: Entry,
    mut key: FrontendKey,
    mut frontend: Frontend,
) -> Result<Reason, Decision> {
    let reason = match established(tables, config, work, entry, &frontend) {
        // A connection outlives it that its peer's address became a service's.
        Ok(()) if is_for_later(&work.flow, &work.key, entry) => return Err(Decision::Pass(Reason::NotOurs)),
        Ok(()) if work.flow.is_reply != 0 => return Err(Decision::Translate(Reason::Reply)),
        Ok(()) => return Err(Decision::Translate(Reason::Established)),
        Err(reason) if reason.is_drop() => return Err(Decision::Drop(reason)),
        Err(reason) => reason,
    };
    let headers = &work.headers;
    if frontend.flags().has(FrontendFlags::SOURCE_RANGES)
        && !is_of_node_itself(entry, work)
        && !tables.is_allowed(frontend.service, &headers.src)
    {
        return Err(Decision::Drop(Reason::SourceNotAllowed));
    }
    if frontend.flags().has(FrontendFlags::OUTSIDE_DIFFERS) && is_outside(tables, entry, &headers.src) {
        key.scope = Scope::Outside as u8;
        match tables.frontend(&key) {
            Some(outside) => frontend = outside,
            None => return Err(Decision::Drop(Reason::Inconsistent)),
        }
    }
    let FlowKey {
        src,
        dst,
        sport,
        dport,
        protocol,
        ..
    } = &work.key;
    let hash = flow_hash(src, dst, *sport, *dport, *protocol, 0);
    match select(tables, &key, frontend, src, hash) {
        Ok(selected) => {
            work.selected = selected;
            Ok(reason)
        }
        Err(reason) => Err(Decision::Drop(reason)),
    }
}

/// Whether the node reaches itself by an address that it does not hold, and has taken it for its own source.
#[inline(always)]
fn is_of_node_itself(entry: Entry, work: &Work) -> bool {
    let is_sender = match entry {
        Entry::Host => work.arrived_by == 0,
        Entry::Loopback => true,
        _ => false,
    };
    is_sender && work.headers.src.same(&work.headers.dst)
}

/// Decides about a packet to a host port, whose pod is selected. As with a frontend, an established connection stays where it
/// is, and datagrams go to whoever has the port now.
#[inline(always)]
fn to_host_port<T: Tables>(
    tables: &T,
    config: &Config,
    work: &mut Work,
    entry: Entry,
) -> Result<Reason, Decision> {
    if !find(tables, config, work) {
        return Ok(Reason::NewFlow);
    }
    let opens = work.headers.is_opening();
    if work.flow.is_reply != 0 {
        if opens || work.flow.backend == Flow::DIRECT {
            return Ok(Reason::Moved);
        }
        return Err(reply(tables, work, entry));
    }
    let is_current = work.flow.backend == work.selected.id
        && work.flow.generation == work.selected.backend.generation
        && !(opens && is_over(work.flow.state(), is_outside(tables, entry, &work.headers.src)));
    if !is_current && (opens || !work.headers.has_connections()) {
        forget(tables, work);
        return Ok(Reason::Moved);
    }
    if is_for_later(&work.flow, &work.key, entry) {
        return Err(Decision::Pass(Reason::NotOurs));
    }
    advance(tables, work);
    Err(Decision::Translate(Reason::Established))
}

/// A reply to a flow whose source port is a port of the node's that leads somewhere as well. The flow was
/// there first.
#[inline(always)]
fn reply<T: Tables>(tables: &T, work: &mut Work, entry: Entry) -> Decision {
    if is_for_later(&work.flow, &work.key, entry) {
        return Decision::Pass(Reason::NotOurs);
    }
    advance(tables, work);
    Decision::Translate(Reason::Reply)
}

/// Whether a client that enters by `entry` is neither a pod of this node nor the node itself.
#[inline(always)]
fn is_outside<T: Tables>(tables: &T, entry: Entry, client: &Ip) -> bool {
    match entry {
        Entry::Pod | Entry::Loopback | Entry::Egress => false,
        Entry::Uplink => true,
        Entry::Host => !tables.address(client).is_node(),
    }
}

/// Whether a SYN begins a new connection in place of the flow. From outside both the RST before it and the
/// SYN may be forged.
#[inline(always)]
const fn is_over(state: FlowState, from_outside: bool) -> bool {
    state.is_over() || (state.has(FlowState::CLOSED) && !from_outside)
}

/// Whether a connection goes on in spite of a SYN from outside, which may be forged, also where its backend
/// takes no new ones. A client that begins anew by the same port, and whose old connection got no RST, waits
/// until that one has been silent for a minute. Netfilter leaves it to the old backend for the whole
/// lifetime.
#[inline(always)]
fn outlives_syn<T: Tables>(tables: &T, work: &Work) -> bool {
    /// Ticks.
    const SILENCE: u32 = 60;
    let state = work.flow.state();
    state.has(FlowState::CONFIRMED) && age(tables.now(), work.flow.seen) < SILENCE
}

/// Finds the live entry of a packet to a frontend; else says why the flow needs a new one, or why it ends.
///
/// An established connection stays where it is whatever becomes of its backend: it goes on if the endpoint still
/// answers, and times out if not, unless its service wants it reset. Datagrams have no connection to lose and move to a
/// live backend at once.
#[inline(always)]
fn established<T: Tables>(
    tables: &T,
    config: &Config,
    work: &mut Work,
    entry: Entry,
    frontend: &Frontend,
) -> Result<(), Reason> {
    if !find(tables, config, work) {
        return Err(Reason::NewFlow);
    }
    let opens = work.headers.is_opening();
    if work.flow.is_reply != 0 {
        if opens || work.flow.backend == Flow::DIRECT {
            return Err(Reason::Moved);
        }
        // A reply to a flow whose source is the frontend's address and port: the flow was there first.
        advance(tables, work);
        return Ok(());
    }
    let from_outside = is_outside(tables, entry, &work.headers.src);
    let resets = frontend.flags().has(FrontendFlags::RESET_REMOVED);
    if !work.headers.has_connections() || opens || resets {
        let stands = match tables.backend(work.flow.backend) {
            Some(backend) if backend.generation == work.flow.generation => {
                if opens {
                    // A SYN within a connection may be forged; its backend says what it is (RFC 5961 §4).
                    let state = work.flow.state();
                    let was_confirmed = state.has(FlowState::CONFIRMED | FlowState::RESET);
                    !is_over(state, from_outside)
                        && (backend.is_active() || (was_confirmed && backend.is_alive()))
                } else {
                    backend.is_alive()
                }
            }
            _ => false,
        };
        let is_kept = opens && from_outside && !resets && outlives_syn(tables, work);
        if !stands && !is_kept {
            forget(tables, work);
            return Err(if opens || !work.headers.has_connections() {
                Reason::Moved
            } else {
                Reason::BackendRemoved
            });
        }
    }
    advance(tables, work);
    Ok(())
}

/// Whether what goes on through the stack is translated only when it has come through, if at all: the stack would take a
/// packet for spoofed that comes in by a pod's interface or the uplink with a virtual address, or one of the node's own, as
/// source.
#[inline(always)]
pub(super) fn is_for_later(flow: &Flow, key: &FlowKey, entry: Entry) -> bool {
    flow.is_for_egress()
        || (matches!(entry, Entry::Pod | Entry::Uplink)
            && matches!(Deliver::from_number(flow.deliver), Deliver::Stack)
            && !flow.src.same(&key.src))
}
